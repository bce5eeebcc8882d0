package doctor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"
)

// The family and sequence numbers of the captured answer.
const (
	capturedFamily = 21
	capturedSeq    = 2
)

// capturedFeatures is what Linux 6.18 answered for its loopback interface.
func capturedFeatures(t testing.TB) []byte {
	t.Helper()
	if !bytes.Equal(native.AppendUint16(nil, 1), binary.LittleEndian.AppendUint16(nil, 1)) {
		t.Skip("the capture is of a little-endian machine")
	}
	b, err := os.ReadFile("testdata/features_lo_6.18_amd64.bin")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDecodeCapturedFeatures(t *testing.T) {
	reply, ok, err := findReply(capturedFeatures(t), capturedFamily, capturedSeq)
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	has, err := decodeFeatures(reply)
	if err != nil {
		t.Fatal(err)
	}
	// ethtool -k lo: on, off, and what is fixed on.
	for name, on := range map[string]bool{"tx-tcp-segmentation": true, "rx-gro-list": false, "loopback": true, "highdma": true} {
		if got, ok := has[name]; got != on || !ok {
			t.Errorf("%s: %v, %v", name, got, ok)
		}
	}
	// The kernel names them, but the loopback interface has none of them.
	for _, name := range []string{featureTX, featureRX, featureRecord} {
		if _, ok := has[name]; ok {
			t.Errorf("has %s", name)
		}
		if !bytes.Contains(reply, append([]byte(name), 0)) {
			t.Errorf("the kernel doesn't know %s", name)
		}
	}
}

func TestFindReply(t *testing.T) {
	captured := capturedFeatures(t)
	if _, ok, err := findReply(captured, capturedFamily, capturedSeq+1); ok || err != nil {
		t.Errorf("answer to something else: %v, %v", ok, err)
	}
	for n := 1; n < len(captured); n += 97 {
		if _, ok, err := findReply(captured[:n], capturedFamily, capturedSeq); ok || !errors.Is(err, errTruncated) {
			t.Errorf("%d bytes of it: %v, %v", n, ok, err)
		}
	}
	failure := func(errno int32) []byte {
		b := native.AppendUint32(nil, unix.SizeofNlMsghdr+4)
		b = native.AppendUint16(b, unix.NLMSG_ERROR)
		b = native.AppendUint16(b, 0)
		b = native.AppendUint32(b, 7)
		b = native.AppendUint32(b, 0)
		return native.AppendUint32(b, uint32(-errno))
	}
	if _, _, err := findReply(failure(int32(unix.ENODEV)), capturedFamily, 7); !errors.Is(err, unix.ENODEV) {
		t.Errorf("error message: %v", err)
	}
	if _, ok, err := findReply(failure(0), capturedFamily, 7); ok || err != nil {
		t.Errorf("acknowledgement: %v, %v", ok, err)
	}
	both := append(failure(0), encodeMessage(capturedFamily, 7, 11, featuresRequest(1))...)
	if attrs, ok, err := findReply(both, capturedFamily, 7); !ok || err != nil || !bytes.Equal(attrs, featuresRequest(1)) {
		t.Errorf("second message: %x, %v, %v", attrs, ok, err)
	}
}

// bitset is a bit set of the kernel's, as ethnl_put_bitset32 writes them.
func bitset(nomask bool, bits map[string]bool) []byte {
	var set, list []byte
	if nomask {
		set = appendAttr(set, unix.ETHTOOL_A_BITSET_NOMASK, nil)
	}
	set = appendAttr(set, unix.ETHTOOL_A_BITSET_SIZE, native.AppendUint32(nil, 64))
	for name, value := range bits {
		bit := appendAttr(nil, unix.ETHTOOL_A_BITSET_BIT_INDEX, native.AppendUint32(nil, 5))
		bit = appendAttr(bit, unix.ETHTOOL_A_BITSET_BIT_NAME, append([]byte(name), 0))
		if value && !nomask {
			bit = appendAttr(bit, unix.ETHTOOL_A_BITSET_BIT_VALUE, nil)
		}
		list = appendAttr(list, unix.ETHTOOL_A_BITSET_BITS_BIT|unix.NLA_F_NESTED, bit)
	}
	return appendAttr(set, unix.ETHTOOL_A_BITSET_BITS|unix.NLA_F_NESTED, list)
}

func TestDecodeFeaturesOfCardThatEncrypts(t *testing.T) {
	var b []byte
	b = appendAttr(b, unix.ETHTOOL_A_FEATURES_HEADER|unix.NLA_F_NESTED, nil)
	b = appendAttr(b, unix.ETHTOOL_A_FEATURES_HW|unix.NLA_F_NESTED,
		bitset(false, map[string]bool{featureTX: true, featureRX: true, featureRecord: false}))
	b = appendAttr(b, unix.ETHTOOL_A_FEATURES_WANTED|unix.NLA_F_NESTED, bitset(true, map[string]bool{featureRX: true}))
	b = appendAttr(b, unix.ETHTOOL_A_FEATURES_ACTIVE|unix.NLA_F_NESTED, bitset(true, map[string]bool{featureTX: true, "highdma": true}))
	has, err := decodeFeatures(b)
	if want := (map[string]bool{featureTX: true, featureRX: false, "highdma": true}); err != nil || !reflect.DeepEqual(has, want) {
		t.Errorf("%v, %v, want %v", has, err, want)
	}
	if _, err := decodeFeatures(b[:4]); err == nil {
		t.Error("an answer without features is taken")
	}
}

func TestEncodeMessage(t *testing.T) {
	got := encodeMessage(unix.GENL_ID_CTRL, 1, unix.CTRL_CMD_GETFAMILY, familyRequest("ethtool"))
	if string(native.AppendUint16(nil, 1)) != "\x01\x00" {
		t.Skip("what follows is of a little-endian machine")
	}
	want := "\x20\x00\x00\x00" + "\x10\x00" + "\x01\x00" + "\x01\x00\x00\x00" + "\x00\x00\x00\x00" + // nlmsghdr
		"\x03\x01\x00\x00" + // genlmsghdr
		"\x0c\x00\x02\x00ethtool\x00" // CTRL_ATTR_FAMILY_NAME
	if string(got) != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := string(featuresRequest(2)), "\x0c\x00\x01\x80"+"\x08\x00\x01\x00\x02\x00\x00\x00"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestOpenFeatures asks this machine's kernel.
func TestOpenFeatures(t *testing.T) {
	a, err := openFeatures()
	if err != nil {
		t.Skip(err) // an old kernel, or a sandbox
	}
	defer a.Close()
	ni, err := net.InterfaceByName("lo")
	if err != nil {
		t.Skip(err)
	}
	has, err := a.Features(ni.Index)
	if err != nil || !has["loopback"] {
		t.Errorf("lo: %v, %v", has, err)
	}
	if _, err := a.Features(1 << 30); !errors.Is(err, errGone) {
		t.Errorf("an interface that isn't there: %v", err)
	}
}

func FuzzNetlink(f *testing.F) {
	f.Add(capturedFeatures(f))
	f.Add(encodeMessage(capturedFamily, capturedSeq, 11, bitset(false, map[string]bool{"x": true})))
	f.Fuzz(func(t *testing.T, b []byte) {
		reply, ok, err := findReply(b, capturedFamily, capturedSeq)
		if ok && err == nil {
			decodeFeatures(reply)
			decodeFamily(reply)
		}
	})
}
