package ktls

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/tls"
	"errors"
	"fmt"
	"hash"
)

// masterSecretLen is the length of a TLS 1.2 master secret in bytes
// (RFC 5246, section 8.1).
const masterSecretLen = 48

// Keys are the traffic keys of one direction of a connection.
//
// They are secret: fmt prints them as a placeholder and encoding/json leaves
// Key and IV out. Whoever has Keys calls Wipe when done.
type Keys struct {
	Version uint16 // tls.VersionTLS12 or tls.VersionTLS13
	Cipher  Cipher

	// Key has the key in its first Cipher.KeyLen() bytes.
	Key [32]byte `json:"-"`

	// IV is the whole static IV in TLS 1.3 (RFC 8446, section 5.3) and with
	// CHACHA20-POLY1305 (RFC 7905, section 2). In TLS 1.2, GCM and CCM have
	// the salt in the first 4 bytes (RFC 5288, section 3) and zeros in the
	// rest: the other 8 bytes of a nonce go with each record.
	IV [12]byte `json:"-"`
}

// Wipe overwrites the keys with zeros.
func (k *Keys) Wipe() { *k = Keys{} }

// Format keeps the secrets out of whatever is printed, by any verb.
func (k Keys) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "[%s %v keys]", tls.VersionName(k.Version), k.Cipher)
}

// valid reports what is wrong with the keys' version or cipher.
func (k *Keys) valid() error {
	if k.Version != tls.VersionTLS12 && k.Version != tls.VersionTLS13 {
		return fmt.Errorf("ktls: no traffic keys in %s", tls.VersionName(k.Version))
	}
	if k.Cipher.KeyLen() == 0 {
		return fmt.Errorf("ktls: unknown %v", k.Cipher)
	}
	return nil
}

// explicitNonce reports whether each record carries 8 bytes of its nonce
// (RFC 5288, section 3, and RFC 6655, section 3).
func (k *Keys) explicitNonce() bool {
	return k.Version == tls.VersionTLS12 && k.Cipher != CHACHA20POLY1305
}

// TLS13Keys derives the traffic keys from a traffic secret, as logged by
// crypto/tls or returned by NextSecret (RFC 8446, section 7.3). It fails if
// suite is no TLS 1.3 cipher suite, or if the secret isn't as long as the
// output of the suite's hash.
func TLS13Keys(suite uint16, secret []byte) (*Keys, error) {
	s, err := tls13Suite(suite, secret)
	if err != nil {
		return nil, err
	}
	k := &Keys{Version: s.version, Cipher: s.cipher}
	if err := expandLabel(k.Key[:s.cipher.KeyLen()], s.hash, secret, "key"); err != nil {
		return nil, err
	}
	if err := expandLabel(k.IV[:], s.hash, secret, "iv"); err != nil {
		k.Wipe()
		return nil, err
	}
	return k, nil
}

// NextSecret returns the traffic secret that follows secret after a KeyUpdate
// (RFC 8446, section 7.2, "traffic upd"). It fails as TLS13Keys does. Both
// secrets are the caller's to wipe.
func NextSecret(suite uint16, secret []byte) ([]byte, error) {
	s, err := tls13Suite(suite, secret)
	if err != nil {
		return nil, err
	}
	next := make([]byte, len(secret))
	if err := expandLabel(next, s.hash, secret, "traffic upd"); err != nil {
		return nil, err
	}
	return next, nil
}

// tls13Suite looks up a TLS 1.3 cipher suite and checks the length of a
// traffic secret against it.
func tls13Suite(suite uint16, secret []byte) (suiteInfo, error) {
	s, err := suiteOf(suite, tls.VersionTLS13)
	if err != nil {
		return s, err
	}
	if want := s.hash().Size(); len(secret) != want {
		return s, fmt.Errorf("ktls: a traffic secret of %s has %d bytes, not %d", tls.CipherSuiteName(suite), want, len(secret))
	}
	return s, nil
}

func suiteOf(suite, version uint16) (suiteInfo, error) {
	s, ok := suites[suite]
	if !ok || s.version != version {
		return s, fmt.Errorf("ktls: %s is no AEAD cipher suite of %s", tls.CipherSuiteName(suite), tls.VersionName(version))
	}
	return s, nil
}

// expandLabel fills out by HKDF-Expand-Label with an empty context (RFC 8446,
// section 7.1).
func expandLabel(out []byte, h func() hash.Hash, secret []byte, label string) error {
	const prefix = "tls13 "
	info := make([]byte, 0, 2+1+len(prefix)+len(label)+1)
	info = append(info, byte(len(out)>>8), byte(len(out)), byte(len(prefix)+len(label)))
	info = append(info, prefix...)
	info = append(info, label...)
	info = append(info, 0)
	b, err := hkdf.Expand(h, secret, string(info), len(out))
	if err != nil {
		return fmt.Errorf("ktls: deriving %q: %w", label, err)
	}
	copy(out, b)
	clear(b)
	return nil
}

// TLS12Keys derives both directions' traffic keys from the master secret (also
// an extended one, RFC 7627: crypto/tls logs either under the same label) and
// the random values of the two hello messages (RFC 5246, section 6.3; RFC
// 5288, section 3; RFC 7905, section 2). It fails if suite is no AEAD cipher
// suite of TLS 1.2 or the master secret hasn't 48 bytes.
func TLS12Keys(suite uint16, master []byte, clientRandom, serverRandom [32]byte) (client, server *Keys, err error) {
	s, err := suiteOf(suite, tls.VersionTLS12)
	if err != nil {
		return nil, nil, err
	}
	if len(master) != masterSecretLen {
		return nil, nil, fmt.Errorf("ktls: a master secret has %d bytes, not %d", masterSecretLen, len(master))
	}
	keyLen, ivLen := s.cipher.KeyLen(), 4
	if s.cipher == CHACHA20POLY1305 {
		ivLen = 12
	}
	var block [2*32 + 2*12]byte
	defer clear(block[:])
	// The seed's order is the reverse of the one in the master secret's own
	// derivation. AEAD ciphers have no MAC keys.
	prf12(block[:2*(keyLen+ivLen)], s.hash, master, "key expansion", serverRandom[:], clientRandom[:])
	client = &Keys{Version: s.version, Cipher: s.cipher}
	server = &Keys{Version: s.version, Cipher: s.cipher}
	b := block[:]
	for _, part := range [][]byte{client.Key[:keyLen], server.Key[:keyLen], client.IV[:ivLen], server.IV[:ivLen]} {
		b = b[copy(part, b):]
	}
	return client, server, nil
}

// prf12 fills out by the pseudo-random function of TLS 1.2 (RFC 5246, section
// 5), with the concatenation of seeds as its seed.
func prf12(out []byte, h func() hash.Hash, secret []byte, label string, seeds ...[]byte) {
	seed := []byte(label)
	for _, s := range seeds {
		seed = append(seed, s...)
	}
	mac := hmac.New(h, secret)
	sum := make([]byte, 0, mac.Size())
	a := seed // A(0)
	for len(out) > 0 {
		mac.Reset()
		mac.Write(a)
		a = mac.Sum(nil) // A(i)
		mac.Reset()
		mac.Write(a)
		mac.Write(seed)
		sum = mac.Sum(sum[:0])
		out = out[copy(out, sum):]
	}
	clear(sum)
}

// errNoCCM is why AES-128-CCM is for the kernel alone.
var errNoCCM = errors.New("ktls: Go has no AES-128-CCM; only the kernel can open or seal such records")
