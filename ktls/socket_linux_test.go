package ktls

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ccm is AES-CCM with 12-byte nonces and 16-byte tags (RFC 3610, L = 3 and
// M = 16), to open what the kernel seals with AES-128-CCM.
type ccm struct{ block cipher.Block }

func (c ccm) NonceSize() int { return 12 }
func (c ccm) Overhead() int  { return 16 }

func (c ccm) Seal(dst, nonce, plaintext, aad []byte) []byte {
	out := make([]byte, len(plaintext)+16)
	c.ctr(nonce, 1).XORKeyStream(out, plaintext)
	tag := c.mac(nonce, plaintext, aad)
	c.ctr(nonce, 0).XORKeyStream(out[len(plaintext):], tag)
	return append(dst, out...)
}

func (c ccm) Open(dst, nonce, sealed, aad []byte) ([]byte, error) {
	n := len(sealed) - 16
	if n < 0 {
		return nil, errors.New("ccm: too short")
	}
	out := make([]byte, len(sealed))
	c.ctr(nonce, 1).XORKeyStream(out[:n], sealed[:n])
	c.ctr(nonce, 0).XORKeyStream(out[n:], sealed[n:])
	if subtle.ConstantTimeCompare(c.mac(nonce, out[:n], aad), out[n:]) != 1 {
		return nil, errors.New("ccm: authentication failed")
	}
	return append(dst, out[:n]...), nil
}

func (c ccm) ctr(nonce []byte, counter byte) cipher.Stream {
	return cipher.NewCTR(c.block, append(append([]byte{2}, nonce...), 0, 0, counter))
}

func (c ccm) mac(nonce, plaintext, aad []byte) []byte {
	n := len(plaintext)
	b := append(append([]byte{1<<6 | 7<<3 | 2}, nonce...), byte(n>>16), byte(n>>8), byte(n))
	pad := func() { b = append(b, make([]byte, -len(b)&15)...) }
	b = append(b, byte(len(aad)>>8), byte(len(aad)))
	b = append(b, aad...)
	pad()
	b = append(b, plaintext...)
	pad()
	x := make([]byte, 16)
	for ; len(b) > 0; b = b[16:] {
		subtle.XORBytes(x, x, b[:16])
		c.block.Encrypt(x, x)
	}
	return x
}

// The input is example 3 of NIST SP 800-38C, the output OpenSSL's with a tag of
// 16 bytes (the example's is shorter; the first 24 bytes are the same).
func TestCCMOfTheTest(t *testing.T) {
	block, err := aes.NewCipher(unhex(t, "404142434445464748494a4b4c4d4e4f"))
	if err != nil {
		t.Fatal(err)
	}
	aad := make([]byte, 20)
	for i := range aad {
		aad[i] = byte(i)
	}
	got := ccm{block}.Seal(nil, unhex(t, "101112131415161718191a1b"), unhex(t, "202122232425262728292a2b2c2d2e2f3031323334353637"), aad)
	want := unhex(t, "e3b201a9f5b71a7a9b1ceaeccd97e70b6176aad9a4428aa5 c87ae488918de93f17dd3e4934347f44")
	if !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
}

// anyOpener is NewOpener that knows AES-128-CCM too.
func anyOpener(t testing.TB, k *Keys) *Opener {
	t.Helper()
	if k.Cipher != AES128CCM {
		return mustOpener(t, k)
	}
	block, err := aes.NewCipher(k.Key[:16])
	if err != nil {
		t.Fatal(err)
	}
	return &Opener{aead: ccm{block}, version: k.Version, explicit: k.explicitNonce(), iv: k.IV}
}

// upgrade gives keys to one direction of a connection.
func upgrade(t testing.TB, conn *net.TCPConn, dir int, k *Keys, seq uint64) {
	t.Helper()
	info, err := k.CryptoInfo(seq)
	if err != nil {
		t.Fatal(err)
	}
	err = control(conn, func(fd int) error {
		if err := setULP(fd); err != nil {
			return err
		}
		return setCryptoInfo(fd, dir, info)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// send sends one record that isn't application data.
func send(t testing.TB, conn *net.TCPConn, typ byte, p []byte) {
	t.Helper()
	err := control(conn, func(fd int) error {
		n, err := sendRecord(fd, typ, p, 0)
		if err == nil && n != len(p) {
			err = fmt.Errorf("sent %d bytes of %d", n, len(p))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// recv waits for what comes next and reads it.
func recv(t testing.TB, conn *net.TCPConn, p []byte) (n, typ int, err error) {
	t.Helper()
	rc, rerr := conn.SyscallConn()
	if rerr != nil {
		t.Fatal(rerr)
	}
	if rerr := rc.Read(func(fd uintptr) bool {
		n, typ, _, err = recvRecord(int(fd), p, 0)
		return !errors.Is(err, unix.EAGAIN)
	}); rerr != nil {
		t.Fatal(rerr)
	}
	return n, typ, err
}

// readRecord reads one record off the wire.
func readRecord(t testing.TB, r io.Reader) []byte {
	t.Helper()
	record := make([]byte, RecordHeaderLen)
	if _, err := io.ReadFull(r, record); err != nil {
		t.Fatal(err)
	}
	record = append(record, make([]byte, binary.BigEndian.Uint16(record[3:]))...)
	if _, err := io.ReadFull(r, record[RecordHeaderLen:]); err != nil {
		t.Fatal(err)
	}
	return record
}

// testSeqs are first sequence numbers: none before, a session ticket before,
// every byte another, and one whose next carries into every byte but the first.
var testSeqs = []uint64{0, 1, 0x0102030405060708, 0x01ffffffffffffff}

// eachCombination runs a test with each version and cipher that the kernel
// has. Kernels with KTLS_REQUIRED were chosen for having them all.
func eachCombination(t *testing.T, test func(t *testing.T, c Combination)) {
	needKTLS(t)
	for _, c := range Combinations() {
		t.Run(c.String(), func(t *testing.T) {
			f := Probe()
			if !f.CanTX(c.Version, c.Cipher) || !f.CanRX(c.Version, c.Cipher) {
				if os.Getenv("KTLS_REQUIRED") != "" {
					t.Fatalf("KTLS_REQUIRED is set, but TX: %v, RX: %v", f.TX[c], f.RX[c])
				}
				t.Skipf("TX: %v, RX: %v", f.TX[c], f.RX[c])
			}
			test(t, c)
		})
	}
}

func TestKernelSealsWhatOpenerOpens(t *testing.T) {
	eachCombination(t, func(t *testing.T, c Combination) {
		for _, seq := range testSeqs {
			a, b := tcpPair(t)
			k := randomTestKeys(t, c.Version, c.Cipher)
			upgrade(t, a, tlsTX, k, seq)
			o := anyOpener(t, k)
			data := pattern(MaxPlaintext + 1000)
			if _, err := a.Write(data); err != nil {
				t.Fatal(err)
			}
			send(t, a, RecordTypeHandshake, []byte{24, 0, 0, 1, 0})
			if _, err := a.Write([]byte("more")); err != nil {
				t.Fatal(err)
			}
			send(t, a, RecordTypeAlert, []byte{1, 0})
			for i, want := range []struct {
				typ     byte
				content []byte
			}{
				{RecordTypeApplicationData, data[:MaxPlaintext]},
				{RecordTypeApplicationData, data[MaxPlaintext:]},
				{RecordTypeHandshake, []byte{24, 0, 0, 1, 0}},
				{RecordTypeApplicationData, []byte("more")},
				{RecordTypeAlert, []byte{1, 0}},
			} {
				record := readRecord(t, b)
				n := seq + uint64(i)
				typ, got, err := o.Open(nil, record, n)
				if err != nil || typ != want.typ || !bytes.Equal(got, want.content) {
					t.Fatalf("sequence number %#x: type %d, %d bytes, error %v; want type %d, %d bytes", n, typ, len(got), err, want.typ, len(want.content))
				}
				// The explicit nonce counts on from ours, so that none is
				// used twice. The record must be Seal's to the last bit.
				if sealed := o.Seal(nil, typ, got, n); !bytes.Equal(sealed, record) {
					t.Errorf("sequence number %#x: Seal makes another record than the kernel", n)
				}
			}
		}
	})
}

func TestKernelOpensWhatOpenerSeals(t *testing.T) {
	eachCombination(t, func(t *testing.T, c Combination) {
		for _, seq := range testSeqs {
			a, b := tcpPair(t)
			k := randomTestKeys(t, c.Version, c.Cipher)
			upgrade(t, b, tlsRX, k, seq)
			o := anyOpener(t, k)
			stream := o.Seal(nil, RecordTypeApplicationData, []byte("data"), seq)
			stream = o.Seal(stream, RecordTypeAlert, []byte{1, 0}, seq+1)
			if _, err := a.Write(stream); err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 100)
			if n, typ, err := recv(t, b, p); err != nil || typ != 23 || string(p[:n]) != "data" {
				t.Fatalf("sequence number %#x: type %d, %q, error %v", seq, typ, p[:n], err)
			}
			if n, typ, err := recv(t, b, p); err != nil || typ != 21 || !bytes.Equal(p[:n], []byte{1, 0}) {
				t.Fatalf("sequence number %#x: type %d, % x, error %v", seq+1, typ, p[:n], err)
			}
		}
	})
}

func TestKernelToKernel(t *testing.T) {
	eachCombination(t, func(t *testing.T, c Combination) {
		for _, seq := range testSeqs {
			a, b := tcpPair(t)
			k := randomTestKeys(t, c.Version, c.Cipher)
			upgrade(t, a, tlsTX, k, seq)
			upgrade(t, b, tlsRX, k, seq)
			size := 1 << 20
			if slow {
				size = 100000
			}
			data := pattern(size)
			sent := make(chan error, 1)
			go func() {
				_, err := a.Write(data)
				sent <- err
			}()
			got := make([]byte, len(data))
			if _, err := io.ReadFull(b, got); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("sequence number %#x: the data differs, or error %v", seq, err)
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			send(t, a, RecordTypeAlert, []byte{1, 0})
			p := make([]byte, 100)
			if n, typ, err := recv(t, b, p); err != nil || typ != 21 || !bytes.Equal(p[:n], []byte{1, 0}) {
				t.Fatalf("sequence number %#x: type %d, % x, error %v", seq, typ, p[:n], err)
			}
		}
	})
}

// A kernel with other keys or another sequence number must refuse the records.
func TestKernelRefusesForeignRecords(t *testing.T) {
	eachCombination(t, func(t *testing.T, c Combination) {
		k := randomTestKeys(t, c.Version, c.Cipher)
		for name, tc := range map[string]struct {
			keys *Keys
			seq  uint64
		}{
			"other keys":            {randomTestKeys(t, c.Version, c.Cipher), 5},
			"other sequence number": {k, 6},
		} {
			a, b := tcpPair(t)
			upgrade(t, b, tlsRX, k, 5)
			if _, err := a.Write(anyOpener(t, tc.keys).Seal(nil, 23, []byte("data"), tc.seq)); err != nil {
				t.Fatal(err)
			}
			if n, _, err := recv(t, b, make([]byte, 100)); !errors.Is(err, unix.EBADMSG) {
				t.Errorf("%s: %d bytes, error %v, want EBADMSG", name, n, err)
			}
		}
	})
}

func TestSocketErrorsAreErrnos(t *testing.T) {
	needKTLS(t)
	k := randomTestKeys(t, tls.VersionTLS13, AES128GCM)
	info, err := k.CryptoInfo(0)
	if err != nil {
		t.Fatal(err)
	}
	a, b := tcpPair(t)
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	unknown := bytes.Clone(info)
	binary.NativeEndian.PutUint16(unknown[2:], 99)
	for _, step := range []struct {
		name string
		do   func(fd int) error
		want syscall.Errno
	}{
		{"TLS_TX without TCP_ULP", func(fd int) error { return setCryptoInfo(fd, tlsTX, info) }, unix.ENOPROTOOPT},
		{"TLS_RX without TCP_ULP", func(fd int) error { return setCryptoInfo(fd, tlsRX, info) }, unix.ENOPROTOOPT},
		{"TCP_ULP", setULP, 0},
		{"TCP_ULP again", setULP, unix.EEXIST},
		{"no crypto_info", func(fd int) error { return setCryptoInfo(fd, tlsTX, nil) }, unix.EINVAL},
		{"crypto_info of odd length", func(fd int) error { return setCryptoInfo(fd, tlsTX, info[:39]) }, unix.EINVAL},
		{"crypto_info too short", func(fd int) error { return setCryptoInfo(fd, tlsTX, info[:32]) }, unix.EINVAL},
		{"unknown cipher", func(fd int) error { return setCryptoInfo(fd, tlsTX, unknown) }, unix.EINVAL},
		{"TLS_TX", func(fd int) error { return setCryptoInfo(fd, tlsTX, info) }, 0},
		{"TLS_RX", func(fd int) error { return setCryptoInfo(fd, tlsRX, info) }, 0},
		{"empty record", func(fd int) error { _, err := sendRecord(fd, RecordTypeAlert, nil, 0); return err }, unix.EINVAL},
		{"control record with MSG_MORE", func(fd int) error {
			_, err := sendRecord(fd, RecordTypeHandshake, []byte{1}, unix.MSG_MORE)
			return err
		}, unix.EINVAL},
		{"nothing to read", func(fd int) error { _, _, _, err := recvRecord(fd, make([]byte, 1), 0); return err }, unix.EAGAIN},
		{"nowhere to read to", func(fd int) error { _, _, _, err := recvRecord(fd, nil, 0); return err }, unix.EINVAL},
	} {
		err := control(a, step.do)
		var errno syscall.Errno
		if errors.As(err, &errno); errno != step.want || (err != nil) != (step.want != 0) {
			t.Errorf("%s: %v, want %v", step.name, err, step.want)
		}
	}
	// Nothing of the failed calls may have reached the peer.
	send(t, a, RecordTypeAlert, []byte{2, 80})
	if typ, p, err := mustOpener(t, k).Open(nil, readRecord(t, b), 0); err != nil || typ != 21 || !bytes.Equal(p, []byte{2, 80}) {
		t.Errorf("first record: type %d, % x, error %v", typ, p, err)
	}
}

// A connection that can't be written to any more must be an error, not a
// SIGPIPE to a program that asked to be told of that signal.
func TestSendRecordRaisesNoSignal(t *testing.T) {
	needKTLS(t)
	a, b := tcpPair(t)
	upgrade(t, a, tlsTX, randomTestKeys(t, tls.VersionTLS13, AES128GCM), 0)
	sendAlert := func() error {
		return control(a, func(fd int) error { _, err := sendRecord(fd, RecordTypeAlert, []byte{1, 0}, 0); return err })
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGPIPE)
	defer signal.Stop(signals)
	a.CloseWrite()
	// The kernel takes the record in and says nothing of what becomes of it: no
	// error to be relied on here.
	sendAlert()
	b.SetLinger(0)
	b.Close()
	if err := sendAlert(); !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
		t.Errorf("after a reset: %v, want ECONNRESET or EPIPE", err)
	}
	select {
	case s := <-signals:
		t.Errorf("got %v", s)
	case <-time.After(100 * time.Millisecond):
	}
}

func TestRecvRecordWithoutKernelTLS(t *testing.T) {
	a, b := tcpPair(t)
	if _, err := a.Write([]byte("plain")); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 100)
	if n, typ, err := recv(t, b, p); err != nil || typ != -1 || string(p[:n]) != "plain" {
		t.Errorf("type %d, %q, error %v", typ, p[:n], err)
	}
	a.CloseWrite()
	if n, typ, err := recv(t, b, p); n != 0 || typ != -1 || err != nil {
		t.Errorf("at the end: %d bytes, type %d, error %v", n, typ, err)
	}
}

// The control message made by hand is the one that x/sys reads.
func TestCmsghdr(t *testing.T) {
	if n := unix.CmsgSpace(1); n > maxCmsgSpace {
		t.Fatalf("maxCmsgSpace is %d, needed are %d", maxCmsgSpace, n)
	}
	b := make([]byte, unix.CmsgSpace(1))
	putCmsghdr(b, unix.CmsgLen(1), solTLS, tlsSetRecordType)
	b[unix.CmsgLen(0)] = 21
	ms, err := unix.ParseSocketControlMessage(b)
	if err != nil || len(ms) != 1 || ms[0].Header.Level != solTLS || ms[0].Header.Type != tlsSetRecordType || !bytes.Equal(ms[0].Data, []byte{21}) {
		t.Errorf("x/sys reads %+v, error %v", ms, err)
	}
	if level, typ := cmsgLevelType(b); level != solTLS || typ != tlsSetRecordType {
		t.Errorf("level %d, type %d", level, typ)
	}
}

func TestNotsentLowat(t *testing.T) {
	a, _ := tcpPair(t)
	err := control(a, func(fd int) error {
		if err := setNotsentLowat(fd, 131072); err != nil {
			return err
		}
		n, err := unix.GetsockoptInt(fd, unix.SOL_TCP, unix.TCP_NOTSENT_LOWAT)
		if n != 131072 {
			t.Errorf("TCP_NOTSENT_LOWAT is %d", n)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestZerocopyRO(t *testing.T) {
	needKTLS(t)
	a, b := tcpPair(t)
	k := randomTestKeys(t, tls.VersionTLS13, AES128GCM)
	upgrade(t, a, tlsTX, k, 0)
	upgrade(t, b, tlsRX, k, 0)
	for _, o := range []struct {
		name   string
		conn   *net.TCPConn
		option int
		set    func(fd int, on bool) error
		has    bool
	}{
		{"TLS_TX_ZEROCOPY_RO", a, tlsTXZerocopyRO, setZerocopyRO, Probe().ZerocopyRO.Support == Yes},
	} {
		for _, on := range []bool{true, false} {
			err := control(o.conn, func(fd int) error {
				if err := o.set(fd, on); err != nil {
					return err
				}
				got, err := unix.GetsockoptInt(fd, solTLS, o.option)
				if got != boolInt(on) {
					t.Errorf("%s is %d after setting %v", o.name, got, on)
				}
				return err
			})
			if (err == nil) != o.has {
				t.Errorf("%s %v: %v; the kernel has it: %v", o.name, on, err, o.has)
			}
		}
	}
}

// Where the probe says that records can be made smaller, they must get smaller;
// where it says no, setting it must fail.
func TestMaxPayloadLen(t *testing.T) {
	needKTLS(t)
	a, b := tcpPair(t)
	k := randomTestKeys(t, tls.VersionTLS13, AES128GCM)
	upgrade(t, a, tlsTX, k, 0)
	err := control(a, func(fd int) error { return setMaxPayloadLen(fd, 1000) })
	if Probe().MaxPayloadLen.Support != Yes {
		if err == nil {
			t.Error("works, the probe says no")
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Write(pattern(2500)); err != nil {
		t.Fatal(err)
	}
	o := mustOpener(t, k)
	var got []byte
	for seq := uint64(0); len(got) < 2500; seq++ {
		_, p, err := o.Open(nil, readRecord(t, b), seq)
		if err != nil {
			t.Fatal(err)
		}
		// The type of the content is counted (RFC 8449, section 4).
		if len(p) > 1000 {
			t.Errorf("record %d has %d bytes", seq, len(p))
		}
		got = append(got, p...)
	}
	if !bytes.Equal(got, pattern(2500)) {
		t.Error("the content differs")
	}
}

// Where the probe says that senders can change their key, they must.
func TestRekey(t *testing.T) {
	needKTLS(t)
	for _, suite := range []uint16{tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384, tls.TLS_CHACHA20_POLY1305_SHA256} {
		t.Run(tls.CipherSuiteName(suite), func(t *testing.T) {
			secret := pattern(suites[suite].hash().Size())
			old, err := TLS13Keys(suite, secret)
			if err != nil {
				t.Fatal(err)
			}
			next, err := NextSecret(suite, secret)
			if err != nil {
				t.Fatal(err)
			}
			k, err := TLS13Keys(suite, next)
			if err != nil {
				t.Fatal(err)
			}
			a, b := tcpPair(t)
			upgrade(t, a, tlsTX, old, 3)
			send(t, a, RecordTypeHandshake, []byte{24, 0, 0, 1, 0})
			info, err := k.CryptoInfo(0)
			if err != nil {
				t.Fatal(err)
			}
			err = control(a, func(fd int) error { return setCryptoInfo(fd, tlsTX, info) })
			want, seq := k, uint64(0)
			if Probe().Rekey.Support == Yes {
				if err != nil {
					t.Fatalf("%v, the probe says that it works", err)
				}
			} else {
				if !errors.Is(err, unix.EBUSY) {
					t.Fatalf("%v, the probe says %v", err, Probe().Rekey)
				}
				want, seq = old, 4 // the old key stays
			}
			if _, err := a.Write([]byte("after")); err != nil {
				t.Fatal(err)
			}
			if _, p, err := mustOpener(t, old).Open(nil, readRecord(t, b), 3); err != nil || p[0] != 24 {
				t.Errorf("KeyUpdate: % x, error %v", p, err)
			}
			if _, p, err := mustOpener(t, want).Open(nil, readRecord(t, b), seq); err != nil || string(p) != "after" {
				t.Errorf("after it: %q, error %v", p, err)
			}
		})
	}
	t.Run("TLS 1.2", func(t *testing.T) {
		a, _ := tcpPair(t)
		k := randomTestKeys(t, tls.VersionTLS12, AES128GCM)
		upgrade(t, a, tlsTX, k, 0)
		info, err := k.CryptoInfo(1)
		if err != nil {
			t.Fatal(err)
		}
		if err := control(a, func(fd int) error { return setCryptoInfo(fd, tlsTX, info) }); !errors.Is(err, unix.EBUSY) {
			t.Errorf("%v, want EBUSY: TLS 1.2 has no key update", err)
		}
	})
}

// setCryptoInfo must leave info to the caller as it was.
func TestSetCryptoInfoKeepsInfo(t *testing.T) {
	a, _ := tcpPair(t)
	info, err := randomTestKeys(t, tls.VersionTLS13, AES256GCM).CryptoInfo(0)
	if err != nil {
		t.Fatal(err)
	}
	before := bytes.Clone(info)
	control(a, func(fd int) error { return setCryptoInfo(fd, tlsTX, info) })
	if !bytes.Equal(info, before) {
		t.Error("info has changed")
	}
}
