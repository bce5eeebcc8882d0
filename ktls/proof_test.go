package ktls

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// proof is what is proven of a connection: what the kernel would be given.
type proof struct {
	opener *Opener
	next   uint64
}

// proven proves key and sequence number, as an upgrade does.
func (l *link) proven() (proof, error) {
	l.tap.wmu.Lock()
	defer l.tap.wmu.Unlock()
	if err := l.tap.prove(); err != nil {
		return proof{}, err
	}
	return proof{l.tap.send.opener, l.tap.send.next + l.tap.since}, nil
}

// checkProof checks that key and number are proven, and that they are those of
// the next record that crypto/tls really writes. It needs a recorded link.
func checkProof(t testing.TB, l *link, want uint64) {
	t.Helper()
	p, err := l.proven()
	if err != nil {
		t.Fatal(err)
	}
	if p.next != want {
		t.Errorf("next sequence number %d, want %d", p.next, want)
	}
	before := len(l.record.written())
	content := randomBytes(100)
	if _, err := l.Write(content); err != nil {
		t.Fatal(err)
	}
	typ, data, err := p.opener.Open(nil, l.record.written()[before:], p.next)
	if err != nil || typ != RecordTypeApplicationData || !bytes.Equal(data, content) {
		t.Errorf("the next record isn't what the proof predicts: type %d, %v", typ, err)
	}
}

// after returns the sequence number after the handshake where the server sent
// a session ticket.
func (s suite) after() uint64 { return 1 } // TLS 1.3: NewSessionTicket, TLS 1.2: Finished

func TestProofForEverySuite(t *testing.T) {
	eachSuite(t, func(t *testing.T, s suite) {
		l := setup{recorded: true}.connect(t)
		l.with(s)
		if got := l.ConnectionState().CipherSuite; got != s.id {
			t.Fatalf("negotiated %s", tls.CipherSuiteName(got))
		}
		checkProof(t, l, s.after())
	})
}

func TestProofAfterApplicationData(t *testing.T) {
	eachSuite(t, func(t *testing.T, s suite) {
		l := setup{recorded: true}.connect(t)
		client := l.with(s)
		before := len(splitRecords(t, l.record.written()))
		checkServes(t, l, client)
		written := len(splitRecords(t, l.record.written())) - before
		checkProof(t, l, s.after()+uint64(written))
	})
}

func TestProofWithoutSessionTicket(t *testing.T) {
	for _, test := range []struct {
		name    string
		suite   suite
		server  func(*tls.Config)
		client  clientOptions
		tickets int
		want    uint64
	}{
		{"TLS 1.3 with", upgradable[0], nil, clientOptions{}, 1, 1},
		{"TLS 1.3 server has none", upgradable[0], func(c *tls.Config) { c.SessionTicketsDisabled = true }, clientOptions{}, 0, 0},
		{"TLS 1.3 client wants none", upgradable[1], nil, clientOptions{noTicket: true}, 0, 0},
		{"TLS 1.2 server has none", upgradable[3], func(c *tls.Config) { c.SessionTicketsDisabled = true }, clientOptions{}, 0, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := testServerConfig(t)
			if test.server != nil {
				test.server(config)
			}
			l := setup{config: config, recorded: true}.connect(t)
			if test.suite.version == tls.VersionTLS12 {
				l.with(test.suite)
				checkProof(t, l, test.want)
				return
			}
			c := l.with13(test.suite.id, test.client)
			checkProof(t, l, test.want)
			if _, err := io.ReadFull(c, make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
			if c.tickets != test.tickets {
				t.Errorf("the client got %d session tickets", c.tickets)
			}
		})
	}
}

func TestProofAfterHelloRetryRequest(t *testing.T) {
	config := testServerConfig(t)
	config.CurvePreferences = []tls.CurveID{tls.CurveP384}
	l := setup{config: config, recorded: true}.connect(t)
	l.withGo(&tls.Config{CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP384}})
	if !l.ConnectionState().HelloRetryRequest {
		t.Fatal("no HelloRetryRequest was sent")
	}
	checkProof(t, l, 1)
}

// resumed returns a link whose session is resumed, with its client.
func resumed(t testing.TB, s setup, version uint16) (*link, *goClient) {
	t.Helper()
	s.config, s.foreign = ServerConfig(testServerConfig(t)), true
	cache := tls.NewLRUClientSessionCache(1)
	connect := func() (*link, *goClient) {
		l := s.connect(t)
		return l, l.withGo(&tls.Config{MaxVersion: version, ServerName: "localhost", InsecureSkipVerify: true, ClientSessionCache: cache})
	}
	l, client := connect()
	checkServes(t, l, client) // the client reads the ticket
	l, client = connect()
	if !l.ConnectionState().DidResume {
		t.Fatal("the session wasn't resumed")
	}
	return l, client
}

// crypto/tls logs no secret when it resumes a TLS 1.2 session: the proof takes
// the one in the session ticket.
// In TLS 1.2 the secret comes from the session ticket: crypto/tls logs it in full
// handshakes alone (doFullHandshake in handshake_server.go).
func TestProofOnResumption(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			l, client := resumed(t, setup{recorded: true}, version)
			checkProof(t, l, 1)
			checkServes(t, l, drained(t, client, 100))
		})
	}
}

func TestProofWithClientCertificate(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			config := testServerConfig(t)
			config.ClientAuth = tls.RequireAnyClientCert
			l := setup{config: config, recorded: true}.connect(t)
			l.withGo(&tls.Config{MaxVersion: version, Certificates: config.Certificates})
			if len(l.ConnectionState().PeerCertificates) != 1 {
				t.Fatal("the server saw no client certificate")
			}
			checkProof(t, l, 1)
		})
	}
}

func TestProofWithLargeCertificate(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		for _, tickets := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s tickets %t", tls.VersionName(version), tickets), func(t *testing.T) {
				config := &tls.Config{
					Certificates:           []tls.Certificate{bigCertificate(t, 60_000, 0xa5)},
					SessionTicketsDisabled: !tickets,
				}
				l := setup{config: config, recorded: true}.connect(t)
				l.withGo(&tls.Config{MaxVersion: version})
				if n := len(splitRecords(t, l.record.written())); n < 4+3 {
					t.Fatalf("the handshake took only %d records", n)
				}
				want := uint64(1)
				if version == tls.VersionTLS13 && !tickets {
					want = 0
				}
				checkProof(t, l, want)
			})
		}
	}
}

// echConfig returns an ECHConfig (draft-ietf-tls-esni-22 section 4) for key.
func echConfig(key *ecdh.PrivateKey, publicName string) []byte {
	pub := key.PublicKey().Bytes()
	c := []byte{123, 0x00, 0x20} // config_id, DHKEM(X25519, HKDF-SHA256)
	c = binary.BigEndian.AppendUint16(c, uint16(len(pub)))
	c = append(c, pub...)
	c = append(c, 0, 4, 0, 1, 0, 1) // HKDF-SHA256, AES-128-GCM
	c = append(c, 32, byte(len(publicName)))
	c = append(c, publicName...)
	c = append(c, 0, 0) // no extensions
	return append([]byte{0xfe, 0x0d, byte(len(c) >> 8), byte(len(c))}, c...)
}

func TestProofWithECH(t *testing.T) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public := echConfig(key, "public.example")
	list := append(binary.BigEndian.AppendUint16(nil, uint16(len(public))), public...)

	config := testServerConfig(t)
	config.EncryptedClientHelloKeys = []tls.EncryptedClientHelloKey{{Config: public, PrivateKey: key.Bytes(), SendAsRetry: true}}
	pool := x509.NewCertPool()
	cert, err := x509.ParseCertificate(config.Certificates[0].Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(cert)

	for _, retry := range []bool{false, true} {
		t.Run(fmt.Sprintf("HelloRetryRequest %t", retry), func(t *testing.T) {
			config := config.Clone()
			if retry {
				config.CurvePreferences = []tls.CurveID{tls.CurveP384}
			}
			l := setup{config: config, recorded: true}.connect(t)
			client := l.withGo(&tls.Config{
				ServerName: "localhost", RootCAs: pool, MinVersion: tls.VersionTLS13,
				CurvePreferences:               []tls.CurveID{tls.X25519, tls.CurveP384},
				EncryptedClientHelloConfigList: list,
			})
			state := l.ConnectionState()
			if !state.ECHAccepted || state.ServerName != "localhost" || state.HelloRetryRequest != retry {
				t.Fatalf("ECH accepted: %t, server name %q, retried: %t", state.ECHAccepted, state.ServerName, state.HelloRetryRequest)
			}
			// The reason why the client random on the wire is no use.
			outer := client.wire.written()[RecordHeaderLen+6:][:32]
			if logged := client.keys.lines[LabelServerTraffic].ClientRandom; bytes.Equal(outer, logged[:]) {
				t.Error("the random on the wire is the one that was logged")
			}
			checkProof(t, l, 1)
		})
	}
}

// opensslConnect runs `openssl s_client` against l's server, on a port of its
// own. The returned function ends it.
func opensslConnect(t *testing.T, s setup, stdin io.Reader, args ...string) (*link, *bytes.Buffer, func() error) {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("no openssl")
	}
	listener := listenLoopback(t)
	args = append([]string{"s_client", "-connect", listener.Addr().String(), "-quiet", "-ign_eof", "-nocommands"}, args...)
	cmd := exec.Command(path, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	wait := func() error {
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("openssl: %w\n%s", err, stderr.String())
		}
		return nil
	}
	conn, err := listener.Accept()
	if err != nil {
		cmd.Process.Kill()
		t.Fatalf("%v; %v", err, wait())
	}
	conn.SetDeadline(time.Now().Add(testTimeout))
	t.Cleanup(func() { conn.Close() })
	l := &link{t: t, sock: conn.(*net.TCPConn)}
	l.start(s, conn)
	if err := l.Handshake(); err != nil {
		conn.Close()
		t.Fatalf("%v; %v", err, wait())
	}
	return l, &stdout, wait
}

// opensslArgs make s_client offer s alone.
func (s suite) opensslArgs() []string {
	if s.version == tls.VersionTLS13 {
		return []string{"-tls1_3", "-ciphersuites", tls.CipherSuiteName(s.id)}
	}
	name := map[Cipher]string{
		AES128GCM: "ECDHE-ECDSA-AES128-GCM-SHA256", AES256GCM: "ECDHE-ECDSA-AES256-GCM-SHA384",
		CHACHA20POLY1305: "ECDHE-ECDSA-CHACHA20-POLY1305",
	}[s.cipher()]
	return []string{"-tls1_2", "-cipher", name}
}

func TestProofWithOpenSSL(t *testing.T) {
	for _, s := range upgradable {
		for _, extra := range [][]string{nil, {"-no_ticket"}} {
			t.Run(s.String()+strings.Join(extra, ""), func(t *testing.T) {
				l, out, wait := opensslConnect(t, setup{recorded: true}, nil, append(s.opensslArgs(), extra...)...)
				if got := l.ConnectionState().CipherSuite; got != s.id {
					t.Fatalf("negotiated %s", tls.CipherSuiteName(got))
				}
				checkProof(t, l, s.after())
				if err := l.Close(); err != nil {
					t.Error(err)
				}
				if err := wait(); err != nil {
					t.Error(err)
				}
				if !bytes.Equal(out.Bytes(), randomBytes(100)) {
					t.Errorf("openssl got %d other bytes", out.Len())
				}
			})
		}
	}
}

func TestProofAfterHelloRetryRequestOfOpenSSL(t *testing.T) {
	config := testServerConfig(t)
	config.CurvePreferences = []tls.CurveID{tls.X25519}
	l, _, wait := opensslConnect(t, setup{config: config, recorded: true}, nil, "-tls1_3", "-groups", "P-384:X25519")
	if !l.ConnectionState().HelloRetryRequest {
		t.Fatal("no HelloRetryRequest was sent")
	}
	checkProof(t, l, 1)
	l.Close()
	if err := wait(); err != nil {
		t.Error(err)
	}
}

func TestProofRefuses(t *testing.T) {
	flip := func(b []byte, i int) { b[i] ^= 1 }
	for _, s := range []suite{upgradable[0], upgradable[3]} {
		for _, test := range []struct {
			name    string
			only    uint16 // protocol version, 0 for both
			corrupt func(t *tap, other *tap)
		}{
			{"a changed application secret", tls.VersionTLS13, func(t, _ *tap) { flip(t.secrets.traffic, 0) }},
			{"a changed master secret", tls.VersionTLS12, func(t, _ *tap) { flip(t.secrets.master, 47) }},
			{"secrets of another connection", 0, func(t, other *tap) { t.secrets = other.secrets }},
			{"the last record of another connection", 0, func(t, other *tap) { t.last = other.last }},
			{"the server random of another connection", tls.VersionTLS12, func(t, other *tap) { t.random = other.random }},
			{"another client random", tls.VersionTLS12, func(t, _ *tap) { flip(t.secrets.random[:], 31) }},
			{"client random and server random swapped", tls.VersionTLS12, func(t, _ *tap) {
				t.random, t.secrets.random = t.secrets.random, t.random
			}},
			{"no application secret", tls.VersionTLS13, func(t, _ *tap) { t.secrets.traffic = nil }},
			{"no handshake secret", tls.VersionTLS13, func(t, _ *tap) { t.secrets.handshake = nil }},
			{"no master secret", tls.VersionTLS12, func(t, _ *tap) { t.secrets.master = nil }},
			{"mixed secrets", 0, func(t, _ *tap) { t.secrets.mixed = true }},
			{"a last record without its end", 0, func(t, _ *tap) { t.last = t.last[:len(t.last)-1] }},
			{"a last record with more behind it", 0, func(t, _ *tap) { t.last = append(t.last, 0) }},
			{"no last record", 0, func(t, _ *tap) { t.last = nil }},
			{"a changed tag", 0, func(t, _ *tap) { flip(t.last, len(t.last)-1) }},
			{"a changed header", 0, func(t, _ *tap) { flip(t.last, 0) }},
			{"changed content", 0, func(t, _ *tap) { flip(t.last, RecordHeaderLen+explicitNonceLen) }},
			{"another cipher suite", 0, func(t, _ *tap) {
				for _, s := range upgradable {
					if s.version == t.version && s.id != t.suite {
						t.suite = s.id
					}
				}
			}},
			{"another version", 0, func(t, _ *tap) { t.version = tls.VersionTLS12 + tls.VersionTLS13 - t.version }},
			{"an unfinished handshake", 0, func(t, _ *tap) { t.done = false }},
			{"a write that failed", 0, func(t, _ *tap) { t.written = errors.New("broken pipe") }},
		} {
			if test.only != 0 && test.only != s.version {
				continue
			}
			t.Run(s.String()+" "+test.name, func(t *testing.T) {
				var links [2]*link
				for i := range links {
					links[i] = setup{recorded: true}.connect(t)
					links[i].with(s)
				}
				tp := links[0].tap
				tp.mu.Lock()
				var secrets []string
				for _, b := range [][]byte{tp.secrets.handshake, tp.secrets.traffic, tp.secrets.master} {
					if b != nil {
						secrets = append(secrets, hex.EncodeToString(b))
					}
				}
				test.corrupt(tp, links[1].tap)
				tp.mu.Unlock()
				_, err := links[0].proven()
				if err == nil {
					t.Fatal("proven")
				}
				if tp.send != nil {
					t.Error("an unproven state was kept")
				}
				for _, s := range secrets {
					if strings.Contains(fmt.Sprintf("%v %+v %q", err, err, err), s[:16]) {
						t.Error("the error has a secret in it")
					}
				}
			})
		}
	}
}

func TestProofRefusesOtherMessages(t *testing.T) {
	// A last record that opens, but isn't the message it must be: the server's
	// flight under the handshake key ended elsewhere.
	l := setup{recorded: true}.connect(t)
	l.with(upgradable[0])
	tp := l.tap
	hs, err := newHalf13(upgradable[0].id, tp.secrets.handshake)
	if err != nil {
		t.Fatal(err)
	}
	app, err := newHalf13(upgradable[0].id, tp.secrets.traffic)
	if err != nil {
		t.Fatal(err)
	}
	for _, last := range [][]byte{
		hs.opener.Seal(nil, RecordTypeHandshake, []byte{11, 0, 0, 0}, 3), // Certificate
		hs.opener.Seal(nil, RecordTypeHandshake, []byte{msgNewSessionTicket, 0, 0, 0}, 3),
		hs.opener.Seal(nil, RecordTypeHandshake, nil, 3),
		hs.opener.Seal(nil, RecordTypeApplicationData, []byte{msgFinished, 0, 0, 0}, 3),
		app.opener.Seal(nil, RecordTypeHandshake, []byte{msgFinished, 0, 0, 0}, 0),
		app.opener.Seal(nil, RecordTypeApplicationData, []byte{msgNewSessionTicket, 0, 0, 0}, 0),
		app.opener.Seal(nil, RecordTypeHandshake, []byte{msgNewSessionTicket, 0, 0, 0}, maxHandshakeRecords),
	} {
		tp.last = last
		if _, err := l.proven(); err == nil {
			t.Errorf("proven by %x", last)
		}
	}
}

// The tap must see crypto/tls's answer to a KeyUpdate: keys and sequence number
// start anew.
func TestProofAfterKeyUpdate(t *testing.T) {
	for _, s := range upgradable[:3] {
		t.Run(s.String(), func(t *testing.T) {
			l := setup{recorded: true}.connect(t)
			c := l.with13(s.id, clientOptions{})
			checkServes(t, l, c)
			for i := range 3 {
				if err := c.keyUpdate(true); err != nil {
					t.Fatal(err)
				}
				checkReads(t, l, c)
				checkProof(t, l, 0)
				checkServes(t, l, drained(t, c, 100))
				if c.updates != i+1 {
					t.Fatalf("the client got %d KeyUpdates, want %d", c.updates, i+1)
				}
			}
		})
	}
}

// drained returns c after reading n bytes from it.
func drained(t testing.TB, c net.Conn, n int) net.Conn {
	t.Helper()
	if _, err := io.ReadFull(c, make([]byte, n)); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestKeyUpdateWithoutRequestChangesNothing(t *testing.T) {
	l := setup{recorded: true}.connect(t)
	c := l.with13(tls.TLS_AES_128_GCM_SHA256, clientOptions{})
	if err := c.keyUpdate(false); err != nil {
		t.Fatal(err)
	}
	checkReads(t, l, c)
	checkProof(t, l, 1)
}

func TestShortWritesAreNotKeyUpdates(t *testing.T) {
	l := setup{recorded: true}.connect(t)
	l.with13(tls.TLS_AES_128_GCM_SHA256, clientOptions{})
	for range 3 {
		// What a KeyUpdate has as its content.
		if _, err := l.Write([]byte{24, 0, 0, 1, 0}); err != nil {
			t.Fatal(err)
		}
	}
	checkProof(t, l, 1+3)
}
