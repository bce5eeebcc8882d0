package ktls

import (
	"crypto/tls"
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// The table of suites is compared with the names, versions and hashes that
// crypto/tls gives, for each suite that it knows.
func TestCipherOfEverySuiteOfCryptoTLS(t *testing.T) {
	names := map[string]Cipher{
		"AES_128_GCM":       AES128GCM,
		"AES_256_GCM":       AES256GCM,
		"CHACHA20_POLY1305": CHACHA20POLY1305,
	}
	aeads := 0
	for _, s := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		var want Cipher
		for part, c := range names {
			if strings.Contains(s.Name, part) {
				want = c
			}
		}
		got, ok := CipherOf(s.ID)
		if got != want || ok != (want != 0) {
			t.Errorf("CipherOf(%s) = %v, %v", s.Name, got, ok)
		}
		if !ok {
			continue
		}
		aeads++
		if info := suites[s.ID]; !slices.Equal(s.SupportedVersions, []uint16{info.version}) {
			t.Errorf("%s: version %s, crypto/tls says %v", s.Name, tls.VersionName(info.version), s.SupportedVersions)
		}
		wantHash := 32
		if strings.HasSuffix(s.Name, "SHA384") {
			wantHash = 48
		}
		if got := suites[s.ID].hash().Size(); got != wantHash {
			t.Errorf("%s: hash of %d bytes, want %d", s.Name, got, wantHash)
		}
	}
	if aeads != len(suites) {
		t.Errorf("crypto/tls has %d AEAD suites, the table %d", aeads, len(suites))
	}
	if c, ok := CipherOf(0x1304); ok { // TLS_AES_128_CCM_SHA256: not in crypto/tls
		t.Errorf("CipherOf(TLS_AES_128_CCM_SHA256) = %v", c)
	}
}

func TestCipherNamesAndKeyLengths(t *testing.T) {
	for _, tc := range []struct {
		cipher Cipher
		name   string
		keyLen int
	}{
		{51, "AES-128-GCM", 16},
		{52, "AES-256-GCM", 32},
		{53, "AES-128-CCM", 16},
		{54, "CHACHA20-POLY1305", 32},
		{55, "cipher 55", 0},
	} {
		if got := tc.cipher.String(); got != tc.name {
			t.Errorf("String: %q, want %q", got, tc.name)
		}
		if got := tc.cipher.KeyLen(); got != tc.keyLen {
			t.Errorf("%v: KeyLen %d, want %d", tc.cipher, got, tc.keyLen)
		}
		if got, _ := json.Marshal(tc.cipher); string(got) != `"`+tc.name+`"` {
			t.Errorf("JSON: %s, want %q", got, tc.name)
		}
	}
}
