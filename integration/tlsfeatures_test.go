//go:build linux

package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	bigint "math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// identity makes a certificate for a client that has all kinds of names, and the
// file that has to be trusted for it.
func identity(t *testing.T) (cert tls.Certificate, pool string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	uri, err := url.Parse("spiffe://example.org/client/7")
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: bigint.NewInt(1234567890),
		Subject:      pkix.Name{CommonName: "client 7", Organization: []string{"Test, Inc."}},
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		DNSNames: []string{"client.example.org", "other.example.org"}, EmailAddresses: []string{"client@example.org"},
		IPAddresses: []net.IP{net.IPv4(192, 0, 2, 7)}, URIs: []*url.URL{uri},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pool = filepath.Join(t.TempDir(), "client.pem")
	if err := os.WriteFile(pool, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// TestClientAuthenticationModes: who is let in, what the others are told, and
// what handlers and the access log get to know of the certificate.
func TestClientAuthenticationModes(t *testing.T) {
	notEmulated(t)
	valid, pool := identity(t)
	foreign, _ := clientCertificate(t)
	trust := "trust_pool file " + pool
	tests := []struct {
		mode                 string
		options              []string
		none, valid, foreign string // an alert, or empty if the file comes
	}{
		{"request", nil, "", "", ""},
		{"require", nil, "certificate required", "", ""},
		{"verify_if_given", []string{trust}, "", "", "unknown certificate authority"},
		{"require_and_verify", []string{trust}, "certificate required", "", "unknown certificate authority"},
		{"require", []string{"verifier leaf file " + pool}, "certificate required", "", "bad certificate"},
	}
	var sites []site
	for n, test := range tests {
		auth := append([]string{"tls {", "client_auth {", "mode " + test.mode}, append(test.options, "}", "}")...)
		sites = append(sites, site{fmt.Sprintf("auth%d.localhost", n), tellingTLS(auth...)})
	}
	c := start(t, threefold("WRAPPER", listener{sites: sites})...)
	for n, test := range tests {
		for _, given := range []struct {
			name  string
			certs []tls.Certificate
			want  string
		}{{"none", nil, test.none}, {"valid", []tls.Certificate{valid}, test.valid}, {"foreign", []tls.Certificate{foreign}, test.foreign}} {
			for _, version := range versions {
				for _, alpn := range []string{"http/1.1", "h2"} {
					if alpn == "h2" && given.want != "" {
						continue // whether the client sees the alert is a matter of luck then
					}
					t.Run(fmt.Sprintf("%s %d/%s/%s/%s", test.mode, n, given.name, version.name, alpn), func(t *testing.T) {
						v := visit{alpn: alpn, sni: sites[n].host, config: func(config *tls.Config) {
							config.MinVersion, config.MaxVersion = version.number, version.number
							// Whatever CAs the server names.
							config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
								return &append(given.certs, tls.Certificate{})[0], nil
							}
						}}
						switch {
						case given.want == "certificate required" && version.number == tls.VersionTLS12:
							v.want = []string{"remote error: tls: "} // there was no such alert then
						case given.want != "":
							v.want = []string{"remote error: tls: " + given.want}
						case given.name == "valid":
							v.want = []string{" 200 ", `"client_common_name":"client 7"`, "client.serial=1234567890", "client.san.dns_names.0=client.example.org",
								"client.san.uris=[spiffe://example.org/client/7]"}
						default:
							v.want = []string{" 200 ", "resumed=false"}
						}
						c.compare(t, v)
					})
				}
			}
		}
	}
}

// TestStrictSNIHost: a client that asks for another site than the one it made
// the connection for gets 421, also in the midst of a connection that the kernel
// encrypts; unless the server is told otherwise.
func TestStrictSNIHost(t *testing.T) {
	notEmulated(t)
	_, pool := identity(t)
	auth := tellingTLS("tls {", "client_auth {", "mode verify_if_given", "trust_pool file "+pool, "}", "}")
	sites := []site{{"localhost", tellingTLS()}, {"other.localhost", tellingTLS()}}
	withAuth := []site{{"localhost", tellingTLS()}, {"other.localhost", auth}}
	for _, test := range []struct {
		name, options string
		sites         []site
		strict        bool
	}{
		{"on", "strict_sni_host on", sites, true},
		{"default", "", sites, false},
		{"default with client_auth", "", withAuth, true},
		{"off with client_auth", "strict_sni_host insecure_off", withAuth, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := setup{
				listeners: threefold("WRAPPER", listener{options: test.options, sites: test.sites}),
				global:    "default_sni localhost",
			}.start(t)
			fronted, clean := []string{" 200 "}, "at the end: EOF"
			if test.strict {
				fronted = []string{" 421 "}
			}
			for _, alpn := range []string{"http/1.1", "h2"} {
				end := clean
				if alpn == "h2" {
					end = ""
				}
				for _, v := range []visit{
					{name: "same", hosts: []string{"localhost"}, want: []string{" 200 ", end}},
					{name: "same, other case, port", hosts: []string{"LOCALHOST:443"}, want: []string{" 200 ", end}},
					{name: "fronted", hosts: []string{"other.localhost"}, want: append(fronted, end)},
					{name: "fronted later", hosts: []string{"localhost", "localhost", "other.localhost"}, want: append(fronted, " 200 ", end)},
					{name: "no SNI", sni: " ", hosts: []string{"localhost"}, want: append(fronted, end)},
				} {
					v.alpn = alpn
					t.Run(v.name+" "+alpn, func(t *testing.T) { c.compare(t, v) })
				}
			}
		})
	}
}

// TestPoliciesBySNI: several connection policies of one server, which differ in
// all that they can. Each client gets the version, cipher, curve and protocol, or
// the alert, that stock Caddy gives it.
func TestPoliciesBySNI(t *testing.T) {
	notEmulated(t)
	cert, pool := identity(t)
	policy := func(options ...string) string {
		return tellingTLS(append(append([]string{"tls {"}, options...), "}")...)
	}
	sites := []site{
		{"localhost", tellingTLS()},
		{"h1.localhost", policy("alpn http/1.1")},
		{"h2.localhost", policy("alpn h2")},
		{"old.localhost", policy("protocols tls1.2 tls1.2")},
		{"new.localhost", policy("protocols tls1.3")},
		{"aes256.localhost", policy("protocols tls1.2 tls1.2", "ciphers TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384")},
		{"chacha.localhost", policy("protocols tls1.2 tls1.2", "ciphers TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256")},
		{"rsa.localhost", policy("protocols tls1.2 tls1.2", "ciphers TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "key_type rsa2048")},
		{"mlkem.localhost", policy("curves x25519mlkem768")},
		{"p256.localhost", policy("curves secp256r1")},
		{"p384.localhost", policy("curves secp384r1")},
		{"p521.localhost", policy("curves secp521r1")},
		{"x25519.localhost", policy("curves x25519")},
		{"auth.localhost", policy("alpn http/1.1", "protocols tls1.3", "client_auth {", "mode require_and_verify", "trust_pool file "+pool, "}")},
		{"*.wild.localhost", policy("protocols tls1.3", "curves secp256r1")},
	}
	c := start(t, threefold("WRAPPER", listener{sites: sites})...)
	to := func(f func(*tls.Config)) func(*tls.Config) { return f }
	old := to(func(config *tls.Config) { config.MaxVersion = tls.VersionTLS12 })
	onlyNew := to(func(config *tls.Config) { config.MinVersion = tls.VersionTLS13 })
	curves := func(ids ...tls.CurveID) func(*tls.Config) {
		return func(config *tls.Config) { config.CurvePreferences = ids }
	}
	both := "h2 http/1.1"
	for _, v := range []visit{
		{name: "default", sni: "localhost", alpn: both, want: []string{"TLS 1.3", `alpn="h2"`, "curve=X25519MLKEM768", " 200 "}},
		{name: "default, no ALPN", sni: "localhost", want: []string{`alpn=""`, "HTTP/1.1 200 "}},
		{name: "default, classical", sni: "localhost", alpn: both, config: curves(tls.X25519), want: []string{"curve=X25519 ", " 200 "}},
		{name: "default, retried", sni: "localhost", alpn: both, config: curves(tls.CurveP384, tls.CurveP256), want: []string{"curve=CurveP256 ", " 200 "}},
		{name: "default, no common curve", sni: "localhost", config: curves(tls.CurveP521), want: []string{"remote error: tls: handshake failure"}},
		{name: "default, 1.1", sni: "localhost", config: func(config *tls.Config) { config.MinVersion, config.MaxVersion = tls.VersionTLS11, tls.VersionTLS11 },
			want: []string{"remote error: tls: protocol version not supported"}},
		{name: "h1", sni: "h1.localhost", alpn: both, want: []string{`alpn="http/1.1"`, "HTTP/1.1 200 "}},
		{name: "h1, h2 offered", sni: "h1.localhost", alpn: "h2", want: []string{"remote error: tls: no application protocol"}},
		{name: "h1, no ALPN", sni: "h1.localhost", want: []string{`alpn=""`, "HTTP/1.1 200 "}},
		{name: "h2", sni: "h2.localhost", alpn: both, want: []string{`alpn="h2"`, "HTTP/2.0 200 "}},
		{name: "h2, h1 offered", sni: "h2.localhost", alpn: "http/1.1", want: []string{`alpn=""`, "HTTP/1.1 200 "}}, // Go lets that pass
		{name: "h2, other offered", sni: "h2.localhost", alpn: "spdy/3", want: []string{"remote error: tls: no application protocol"}},
		{name: "old", sni: "old.localhost", alpn: both, want: []string{"TLS 1.2", "HTTP/2.0 200 "}},
		{name: "old, new offered", sni: "old.localhost", config: onlyNew, want: []string{"remote error: tls: protocol version not supported"}},
		{name: "new", sni: "new.localhost", alpn: "http/1.1", want: []string{"TLS 1.3", "HTTP/1.1 200 "}},
		{name: "new, old offered", sni: "new.localhost", config: old, want: []string{"remote error: tls: protocol version not supported"}},
		{name: "AES-256", sni: "aes256.localhost", alpn: both, want: []string{"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", " 200 "}},
		{name: "AES-256, other offered", sni: "aes256.localhost", config: func(config *tls.Config) {
			config.MaxVersion, config.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}
		}, want: []string{"remote error: tls: handshake failure"}},
		{name: "ChaCha20", sni: "chacha.localhost", alpn: both, want: []string{"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", " 200 "}},
		{name: "RSA", sni: "rsa.localhost", alpn: both, want: []string{"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", " 200 "}},
		{name: "ML-KEM", sni: "mlkem.localhost", alpn: both, want: []string{"curve=X25519MLKEM768", " 200 "}},
		{name: "ML-KEM, classical client", sni: "mlkem.localhost", config: curves(tls.X25519), want: []string{"remote error: tls: handshake failure"}},
		{name: "ML-KEM, old client", sni: "mlkem.localhost", config: old, want: []string{"remote error: tls: handshake failure"}},
		{name: "P-256", sni: "p256.localhost", alpn: "http/1.1", want: []string{"curve=CurveP256 ", "retried=true", " 200 "}},
		{name: "P-256, old", sni: "p256.localhost", alpn: both, config: old, want: []string{"TLS 1.2", "curve=CurveP256 ", " 200 "}},
		{name: "P-384", sni: "p384.localhost", alpn: both, want: []string{"curve=CurveP384 ", "retried=true", " 200 "}},
		{name: "P-521", sni: "p521.localhost", alpn: both, config: curves(tls.X25519, tls.CurveP521), want: []string{"curve=CurveP521 ", "retried=true", " 200 "}},
		{name: "X25519", sni: "x25519.localhost", alpn: both, want: []string{"curve=X25519 ", "retried=false", " 200 "}},
		{name: "certificate", sni: "auth.localhost", alpn: both, config: func(config *tls.Config) { config.Certificates = []tls.Certificate{cert} },
			want: []string{`alpn="http/1.1"`, `"client_common_name":"client 7"`, " 200 "}},
		{name: "no certificate", sni: "auth.localhost", alpn: both, want: []string{"remote error: tls: certificate required"}},
		{name: "certificate elsewhere", sni: "h1.localhost", alpn: both, config: func(config *tls.Config) { config.Certificates = []tls.Certificate{cert} },
			want: []string{"client.subject= ", " 200 "}},
		{name: "wildcard", sni: "whatever.wild.localhost", alpn: both, want: []string{"curve=CurveP256 ", " 200 "}},
		{name: "wildcard, old", sni: "whatever.wild.localhost", config: old, want: []string{"remote error: tls: protocol version not supported"}},
		{name: "upper case", sni: "P384.LOCALHOST", alpn: "http/1.1", want: []string{"curve=CurveP384 ", " 200 "}},
		{name: "unknown name", sni: "example.org", alpn: both, config: func(config *tls.Config) { config.InsecureSkipVerify = true },
			want: []string{"remote error: tls: internal error"}},
		{name: "no name", sni: " ", alpn: both, want: []string{"remote error: tls: internal error"}},
	} {
		t.Run(v.name, func(t *testing.T) { c.compare(t, v) })
	}
}

// oneSession is a client's cache with one session, which stays until it is told
// to take another.
type oneSession struct {
	mu     sync.Mutex
	state  *tls.ClientSessionState
	frozen bool
}

func (s *oneSession) Get(string) (*tls.ClientSessionState, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state, s.state != nil
}

func (s *oneSession) Put(_ string, state *tls.ClientSessionState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.frozen {
		s.state = state
	}
}

// TestSessionsAcrossPolicies: a session that began under one policy is offered
// under another. What stock Caddy resumes is resumed and offloaded; what it
// doesn't, above all where a certificate is asked for, isn't.
func TestSessionsAcrossPolicies(t *testing.T) {
	notEmulated(t)
	_, pool := identity(t)
	c := start(t, threefold("WRAPPER", listener{sites: []site{
		{"localhost", tellingTLS()},
		{"auth.localhost", tellingTLS("tls {", "client_auth {", "mode require_and_verify", "trust_pool file "+pool, "}", "}")},
		{"p384.localhost", tellingTLS("tls {", "curves secp384r1", "}")},
		{"new.localhost", tellingTLS("tls {", "protocols tls1.3", "}")},
		{"chacha.localhost", tellingTLS("tls {", "ciphers TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "}")},
	}})...)
	for _, version := range versions {
		old := version.number == tls.VersionTLS12
		var sessions [3]oneSession
		i := 0
		v := visit{name: "begin " + version.name, alpn: "http/1.1", want: []string{" 200 "}, config: func(config *tls.Config) {
			config.MaxVersion, config.ClientSessionCache = version.number, &sessions[i%3]
			config.InsecureSkipVerify = true // else the client itself minds the name
			i++
		}}
		c.compare(t, v)
		for i := range sessions {
			if sessions[i].frozen = true; sessions[i].state == nil {
				t.Fatalf("no session from listener %d", i)
			}
		}
		for sni, want := range map[string]string{
			"localhost": "resumed=true", "p384.localhost": "resumed=true", "new.localhost": "resumed=true", "chacha.localhost": "resumed=true",
			"auth.localhost": "remote error: tls: certificate required",
		} {
			switch {
			case old && sni == "auth.localhost":
				want = "remote error: tls: handshake failure"
			case old && sni == "new.localhost":
				want = "remote error: tls: protocol version not supported"
			case old && sni == "chacha.localhost":
				want = "resumed=false"
			}
			t.Run(version.name+"/"+sni, func(t *testing.T) {
				v.name, v.sni, v.want = version.name, sni, []string{want}
				c.compare(t, v)
			})
		}
	}
}

// withTicketKeys is threefold with ticket keys in the storage, two of them, with
// a new one each interval.
func withTicketKeys(interval string) setup {
	return setup{
		listeners: threefold("WRAPPER", listener{sites: []site{{body: tellingTLS()}}}),
		patch: func(config map[string]any) {
			apps := config["apps"].(map[string]any)
			apps["tls"].(map[string]any)["session_tickets"] = map[string]any{
				"key_source": map[string]any{"provider": "distributed"}, "rotation_interval": interval, "max_keys": 2,
			}
		},
	}
}

// forgetTicketKeys removes those in the storage.
func forgetTicketKeys(t *testing.T) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(storage, "stek")); err != nil {
		t.Fatal(err)
	}
}

// TestTicketKeysThroughStorage: two Caddys with the same ticket keys, which they
// share through the storage. A session begun at one, with ktls or without, goes
// on at the other, by sendfile.
func TestTicketKeysThroughStorage(t *testing.T) {
	notEmulated(t)
	forgetTicketKeys(t)
	first, second := withTicketKeys("12h").start(t), withTicketKeys("12h").start(t)
	for _, version := range versions {
		for i, from := range []string{"lazy", "handshake", "stock"} {
			t.Run(version.name+" from "+from, func(t *testing.T) {
				session := new(oneSession)
				v := visit{alpn: "http/1.1", config: func(config *tls.Config) {
					config.MaxVersion, config.ClientSessionCache = version.number, session
				}}
				if seen, _, _ := first.see(t, i, v); !strings.Contains(seen, "resumed=false") || session.state == nil {
					t.Fatalf("no session to resume: %s", seen)
				}
				session.frozen = true
				v.want = []string{"resumed=true", `"resumed":true`, " 200 "}
				second.compare(t, v)
				v.name = "back"
				first.compare(t, v)
			})
		}
	}
}

// TestTicketKeysRotate: in the end a session's key is rotated out, on whatever
// listener, and files go by sendfile before and after.
func TestTicketKeysRotate(t *testing.T) {
	notEmulated(t)
	forgetTicketKeys(t)
	c := withTicketKeys("1s").start(t)
	c.leaves = true // Caddy locks its storage anew with each rotation
	type try struct {
		i       int
		v       visit
		session *oneSession
	}
	var tries []try
	for _, version := range versions {
		for i := range 3 {
			session := new(oneSession)
			v := visit{name: version.name, alpn: "http/1.1", config: func(config *tls.Config) {
				config.MaxVersion, config.ClientSessionCache = version.number, session
			}}
			if c.see(t, i, v); session.state == nil {
				t.Fatalf("no session from listener %d with %s", i, version.name)
			}
			session.frozen = true
			tries = append(tries, try{i, v, session})
		}
	}
	for _, try := range tries {
		n := 0
		eventually(t, "the session's key is rotated out", func() bool {
			n++
			v := try.v
			v.name += fmt.Sprint(" ", n)
			seen, _, lines := c.see(t, try.i, v)
			if len(lines) != 1 || lines[0].Status != http.StatusOK {
				t.Fatalf("no answer: %s", seen)
			}
			if try.i != 2 {
				lines[0].isFile(t, visited().size)
			}
			return strings.Contains(seen, "resumed=false")
		})
	}
}

// echConfigs is the list of ECH configs in Caddy's storage that a publisher
// would give to the DNS.
func echConfigs(t *testing.T, publicName string) []byte {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(storage, "ech/configs/*/config.bin"))
	if err != nil {
		t.Fatal(err)
	}
	list := make([]byte, 2)
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), publicName) {
			list = append(list, b...)
		}
	}
	if len(list) == 2 {
		t.Fatal("no ECH config in the storage")
	}
	binary.BigEndian.PutUint16(list, uint16(len(list)-2))
	return list
}

// TestEncryptedClientHello: connections whose ClientHello was encrypted are
// offloaded like others, and Caddy says so of them; a client with an outdated
// config is refused, and told the right one.
func TestEncryptedClientHello(t *testing.T) {
	notEmulated(t)
	const outer = "outer.localhost"
	c := setup{
		listeners: threefold("WRAPPER", listener{sites: []site{{"localhost", tellingTLS()}, {"hidden.localhost", tellingTLS("tls {", "curves x25519 secp256r1", "}")}}}),
		global:    "ech " + outer,
	}.start(t)
	c.awaitLine(t, "certificate for "+outer, func(l *line) bool {
		return l.Msg == "added certificate to cache" && slices.Contains(l.Subjects, outer)
	})
	configs := echConfigs(t, outer)
	ech := func(more ...func(*tls.Config)) func(*tls.Config) {
		return func(config *tls.Config) {
			config.EncryptedClientHelloConfigList = configs
			for _, f := range more {
				f(config)
			}
		}
	}
	accepted := []string{"ech=true certificate=", `"ech":true`, " ech=true ", "server_name=hidden.localhost", " 200 "}
	for _, alpn := range []string{"http/1.1", "h2"} {
		for _, v := range []visit{
			{name: "accepted", config: ech(), want: accepted},
			{name: "accepted, retried", config: ech(func(config *tls.Config) { config.CurvePreferences = []tls.CurveID{tls.CurveP384, tls.CurveP256} }),
				want: append(accepted, "curve=CurveP256 ")},
			{name: "none", want: []string{"ech=false certificate=", `"ech":false`, " 200 "}},
			{name: "none, TLS 1.2", config: func(config *tls.Config) { config.MaxVersion = tls.VersionTLS12 }, want: []string{"TLS 1.2", " 200 "}},
		} {
			v.alpn, v.sni = alpn, "hidden.localhost"
			t.Run(v.name+"/"+alpn, func(t *testing.T) { c.compare(t, v) })
		}
	}
	t.Run("resumed", func(t *testing.T) {
		var sessions [3]oneSession
		for n, resumed := range []bool{false, true} {
			i := 0
			c.compare(t, visit{
				name: fmt.Sprint(n), alpn: "http/1.1", sni: "hidden.localhost",
				config: ech(func(config *tls.Config) { config.ClientSessionCache = &sessions[i]; i++ }),
				want:   append(accepted, fmt.Sprintf(" resumed=%t ", resumed)),
			})
		}
	})
	t.Run("fronted", func(t *testing.T) { // by HTTP, on top
		c.compare(t, visit{alpn: "h2", sni: "hidden.localhost", hosts: []string{"localhost"}, config: ech(), want: []string{" 200 "}})
	})
	t.Run("rejected", func(t *testing.T) {
		other := slices.Clone(configs)
		other[2+4] ^= 0xff // the config's identifier: a key that the server doesn't have
		var retry [3][]byte
		for i := range retry {
			tcp := c.dial(t, i)
			conn := tls.Client(tcp, tlsConfig(t, func(config *tls.Config) {
				config.ServerName, config.EncryptedClientHelloConfigList = "hidden.localhost", other
			}))
			var rejection *tls.ECHRejectionError
			if err := conn.Handshake(); !errors.As(err, &rejection) {
				t.Fatalf("listener %d: %v, want a rejection", i, err)
			}
			retry[i] = rejection.RetryConfigList
			readToEnd(t, tcp) // to the server it was a handshake like others
			c.compare(t, visit{
				name: fmt.Sprint("retry", i), alpn: "http/1.1", sni: "hidden.localhost", want: accepted,
				config: func(config *tls.Config) { config.EncryptedClientHelloConfigList = retry[i] },
			})
		}
		for i := range 2 {
			if string(retry[i]) != string(retry[2]) {
				t.Errorf("listener %d says %x, stock %x", i, retry[i], retry[2])
			}
		}
	})
}

var keyLogLine = regexp.MustCompile(`^(CLIENT_RANDOM|(?:CLIENT|SERVER)_HANDSHAKE_TRAFFIC_SECRET|(?:CLIENT|SERVER)_TRAFFIC_SECRET_0) [0-9a-f]{64} [0-9a-f]{64,96}$`)

// TestSecretsLogIsWhole: a log of secrets has what Wireshark needs to read each
// connection, line for line what the client knows too and no more, whichever way
// the connection was made.
func TestSecretsLogIsWhole(t *testing.T) {
	dir := t.TempDir()
	sites := []site{{body: tellingTLS("tls {", "insecure_secrets_log "+dir+"/LISTENER", "}")}}
	c := setup{listeners: threefold("WRAPPER", listener{sites: sites}), global: "ech outer.localhost"}.start(t)
	configs := echConfigs(t, "outer.localhost")
	var known, labels [3][]string
	var sessions [3]oneSession
	one := func(name, alpn string, change func(*tls.Config)) {
		t.Run(name, func(t *testing.T) {
			i := 0
			c.compare(t, visit{name: name, alpn: alpn, want: []string{" 200 "}, config: func(config *tls.Config) {
				lines := &known[i]
				config.KeyLogWriter = lineWriter(func(line string) { *lines = append(*lines, line) })
				config.ClientSessionCache = &sessions[i]
				change(config)
				i++
			}})
		})
	}
	for _, version := range versions {
		for _, alpn := range []string{"http/1.1", "h2"} {
			clear(sessions[:])
			for n := range 2 {
				one(fmt.Sprintf("%s %s %d", version.name, alpn, n), alpn, func(config *tls.Config) { config.MaxVersion = version.number })
			}
		}
	}
	clear(sessions[:])
	one("retried", "http/1.1", func(config *tls.Config) { config.CurvePreferences = []tls.CurveID{tls.CurveP384, tls.CurveP256} })
	clear(sessions[:])
	one("AES-256", "http/1.1", func(config *tls.Config) {
		config.MaxVersion, config.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384}
	})
	clear(sessions[:])
	one("ECH", "http/1.1", func(config *tls.Config) { config.EncryptedClientHelloConfigList = configs })

	for i := range known {
		b, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(string(b), "\n") {
			t.Error("the last line has no end")
		}
		lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
		for _, line := range lines {
			if m := keyLogLine.FindStringSubmatch(line); m == nil {
				t.Errorf("listener %d: not a line of a key log: %.60q", i, line)
			} else {
				labels[i] = append(labels[i], m[1])
			}
		}
		slices.Sort(lines)
		slices.Sort(known[i])
		if !slices.Equal(lines, known[i]) {
			t.Errorf("listener %d: %d lines, which aren't the client's %d", i, len(lines), len(known[i]))
		}
	}
	for i := range 2 {
		if !slices.Equal(labels[i], labels[2]) {
			t.Errorf("listener %d: %v, stock %v", i, labels[i], labels[2])
		}
	}
}

// TestWithoutExtendedMasterSecret: TLS 1.2 as before RFC 7627, from two other TLS
// stacks; the master secret then comes of the randoms alone.
func TestWithoutExtendedMasterSecret(t *testing.T) {
	notEmulated(t)
	c := start(t, threefold("WRAPPER", listener{sites: []site{{body: tellingTLS()}}})...)
	f := visited()
	const priority = "--priority=NORMAL:-VERS-ALL:+VERS-TLS1.2"
	t.Run("gnutls-cli", func(t *testing.T) {
		for _, test := range []struct {
			name, priority, args string
			listener             int
		}{
			{"with", priority, "--noticket", 0},
			{"without", priority + ":%NO_SESSION_HASH", "--noticket", 0},
			{"without, handshake", priority + ":%NO_SESSION_HASH", "--noticket", 1},
			{"without, resumed", priority + ":%NO_SESSION_HASH", "--resume", 0},
		} {
			t.Run(test.name, func(t *testing.T) {
				check := countUpgrades(t)
				client, notes := c.gnutlsCommand(t, test.listener, test.priority, test.args)
				uri := "/" + f.name + "?" + url.QueryEscape(test.name)
				speak(t, client, lastRequest(uri)).isFile(t, f)
				if says := strings.Contains(notes(), "extended master secret"); says != (test.name == "with") {
					t.Errorf("extended master secret %t: %s", says, notes())
				}
				if says := strings.Contains(notes(), "*** This is a resumed session"); says != (test.args == "--resume") {
					t.Errorf("resumed %t: %s", says, notes())
				}
				c.tookFile(t, uri, f.size)
				check(t, 1)
			})
		}
	})
	t.Run("openssl", func(t *testing.T) {
		conf := filepath.Join(t.TempDir(), "openssl.cnf")
		for n, options := range []string{"ExtendedMasterSecret", "-ExtendedMasterSecret"} {
			text := "openssl_conf = init\n[init]\nssl_conf = ssl\n[ssl]\nsystem_default = default\n[default]\nOptions = " + options + "\n"
			if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			t.Setenv("OPENSSL_CONF", conf)
			for i := range 3 {
				uri := fmt.Sprintf("/%s?openssl-%d-%d", f.name, n, i)
				trace := filepath.Join(t.TempDir(), "trace")
				c.openssl(t, i, lastRequest(uri), "-tls1_2", "-trace", "-msgfile", trace).isFile(t, f)
				if b, err := os.ReadFile(trace); err != nil || strings.Contains(string(b), "extended_master_secret") != (n == 0) {
					t.Fatalf("with %s: %v, %s", options, err, b)
				}
				if i < 2 {
					c.tookFile(t, uri, f.size)
				}
			}
		}
	})
}
