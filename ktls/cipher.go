package ktls

import (
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"fmt"
	"hash"
)

// Cipher is a record protection algorithm, numbered as the kernel does
// (TLS_CIPHER_* in include/uapi/linux/tls.h).
type Cipher uint16

// The ciphers that the kernel and TLS 1.2 or 1.3 have in common. crypto/tls
// negotiates all of them but AES-128-CCM.
const (
	AES128GCM        Cipher = 51
	AES256GCM        Cipher = 52
	AES128CCM        Cipher = 53
	CHACHA20POLY1305 Cipher = 54
)

// tagLen is the length in bytes of the authentication tag of every Cipher.
const tagLen = 16

// String returns the algorithm's name, such as "AES-128-GCM".
func (c Cipher) String() string {
	switch c {
	case AES128GCM:
		return "AES-128-GCM"
	case AES256GCM:
		return "AES-256-GCM"
	case AES128CCM:
		return "AES-128-CCM"
	case CHACHA20POLY1305:
		return "CHACHA20-POLY1305"
	}
	return fmt.Sprintf("cipher %d", uint16(c))
}

// MarshalText returns what String does, so that JSON has names, not numbers.
func (c Cipher) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// KeyLen returns the length of the cipher's key in bytes, 0 for an unknown
// cipher.
func (c Cipher) KeyLen() int {
	switch c {
	case AES128GCM, AES128CCM:
		return 16
	case AES256GCM, CHACHA20POLY1305:
		return 32
	}
	return 0
}

// CipherOf returns the record protection algorithm of a cipher suite ID of
// crypto/tls. It knows the AEAD suites of TLS 1.3 and of TLS 1.2, and reports
// false for any other (CBC, RC4, 3DES).
func CipherOf(suite uint16) (Cipher, bool) {
	s, ok := suites[suite]
	return s.cipher, ok
}

// suiteInfo is what the key derivation needs to know of a cipher suite.
type suiteInfo struct {
	version uint16 // the only protocol version the suite can be used with
	cipher  Cipher
	hash    func() hash.Hash // of HKDF in TLS 1.3, of the PRF in TLS 1.2
}

// suites has every AEAD cipher suite that crypto/tls implements. A test
// compares it with crypto/tls's own lists.
var suites = map[uint16]suiteInfo{
	tls.TLS_AES_128_GCM_SHA256:       {tls.VersionTLS13, AES128GCM, sha256.New},
	tls.TLS_AES_256_GCM_SHA384:       {tls.VersionTLS13, AES256GCM, sha512.New384},
	tls.TLS_CHACHA20_POLY1305_SHA256: {tls.VersionTLS13, CHACHA20POLY1305, sha256.New},

	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256:       {tls.VersionTLS12, AES128GCM, sha256.New},
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256:         {tls.VersionTLS12, AES128GCM, sha256.New},
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384:       {tls.VersionTLS12, AES256GCM, sha512.New384},
	tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384:         {tls.VersionTLS12, AES256GCM, sha512.New384},
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256: {tls.VersionTLS12, CHACHA20POLY1305, sha256.New},
	tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256:   {tls.VersionTLS12, CHACHA20POLY1305, sha256.New},
	tls.TLS_RSA_WITH_AES_128_GCM_SHA256:               {tls.VersionTLS12, AES128GCM, sha256.New},
	tls.TLS_RSA_WITH_AES_256_GCM_SHA384:               {tls.VersionTLS12, AES256GCM, sha512.New384},
}
