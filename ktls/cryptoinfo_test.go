package ktls

import (
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"
)

// The layouts of struct tls12_crypto_info_* in include/uapi/linux/tls.h, behind
// version and cipher_type: iv, key, salt, rec_seq.
func TestCryptoInfoLayout(t *testing.T) {
	const (
		iv13  = "a0a1a2a3b0b1b2b3b4b5b6b7"
		salt  = "a0a1a2a3"
		key16 = "101112131415161718191a1b1c1d1e1f"
		key32 = key16 + "202122232425262728292a2b2c2d2e2f"
		seq   = "0102030405060708"
	)
	for _, tc := range []struct {
		version uint16
		cipher  Cipher
		iv      string // of Keys
		want    []string
	}{
		{tls.VersionTLS13, AES128GCM, iv13, []string{"b0b1b2b3b4b5b6b7", key16, salt, seq}},
		{tls.VersionTLS13, AES256GCM, iv13, []string{"b0b1b2b3b4b5b6b7", key32, salt, seq}},
		{tls.VersionTLS13, AES128CCM, iv13, []string{"b0b1b2b3b4b5b6b7", key16, salt, seq}},
		{tls.VersionTLS13, CHACHA20POLY1305, iv13, []string{iv13, key32, seq}},
		{tls.VersionTLS12, AES128GCM, salt, []string{seq, key16, salt, seq}},
		{tls.VersionTLS12, AES256GCM, salt, []string{seq, key32, salt, seq}},
		{tls.VersionTLS12, AES128CCM, salt, []string{seq, key16, salt, seq}},
		{tls.VersionTLS12, CHACHA20POLY1305, iv13, []string{iv13, key32, seq}},
	} {
		k := &Keys{Version: tc.version, Cipher: tc.cipher}
		copy(k.Key[:], unhex(t, key32)[:tc.cipher.KeyLen()])
		copy(k.IV[:], unhex(t, tc.iv))
		info, err := k.CryptoInfo(0x0102030405060708)
		if err != nil {
			t.Fatal(err)
		}
		name := Combination{tc.version, tc.cipher}
		if v, c := binary.NativeEndian.Uint16(info), binary.NativeEndian.Uint16(info[2:]); v != tc.version || c != uint16(tc.cipher) {
			t.Errorf("%v: version %#x, cipher %d", name, v, c)
		}
		if got, want := hex.EncodeToString(info[4:]), strings.Join(tc.want, ""); got != want {
			t.Errorf("%v:\n got %s\nwant %s", name, got, want)
		}
		if len(info)%8 != 0 {
			t.Errorf("%v: %d bytes, setCryptoInfo needs a multiple of 8", name, len(info))
		}
	}
}

func TestCryptoInfoRejects(t *testing.T) {
	for _, k := range []Keys{{}, {Version: tls.VersionTLS11, Cipher: AES128GCM}, {Version: tls.VersionTLS13, Cipher: 50}} {
		if info, err := k.CryptoInfo(0); err == nil {
			t.Errorf("%v: %x", &k, info)
		}
	}
}
