package ktls

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// The secrets and what is derived from them in RFC 8448, section 3.
const (
	rfc8448ClientHandshake = "b3eddb126e067f35a780b3abf45e2d8f3b1a950738f52e9600746a0e27a55a21"
	rfc8448ServerHandshake = "b67b7d690cc16c4e75e54213cb2d37b4e9c912bcded9105d42befd59d391ad38"
	rfc8448ClientTraffic   = "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5"
	rfc8448ServerTraffic   = "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643"
)

func TestTLS13KeysOfRFC8448(t *testing.T) {
	for _, tc := range []struct{ name, secret, key, iv string }{
		{"server handshake", rfc8448ServerHandshake, "3fce516009c21727d0f2e4e86ee403bc", "5d313eb2671276ee13000b30"},
		{"client handshake", rfc8448ClientHandshake, "dbfaa693d1762c5b666af5d950258d01", "5bd3c71b836e0b76bb73265f"},
		{"server application", rfc8448ServerTraffic, "9f02283b6c9c07efc26bb9f2ac92e356", "cf782b88dd83549aadf1e984"},
		{"client application", rfc8448ClientTraffic, "17422dda596ed5d9acd890e3c63f5051", "5b78923dee08579033e523d9"},
	} {
		k, err := TLS13Keys(tls.TLS_AES_128_GCM_SHA256, unhex(t, tc.secret))
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(k.Key[:]); got != tc.key+strings.Repeat("00", 16) {
			t.Errorf("%s: key %s, want %s", tc.name, got, tc.key)
		}
		if got := hex.EncodeToString(k.IV[:]); got != tc.iv {
			t.Errorf("%s: iv %s, want %s", tc.name, got, tc.iv)
		}
		if k.Version != tls.VersionTLS13 || k.Cipher != AES128GCM {
			t.Errorf("%s: %v", tc.name, k)
		}
	}
}

func TestKeyDerivationRejects(t *testing.T) {
	for _, tc := range []struct {
		suite uint16
		n     int
	}{
		{tls.TLS_AES_128_GCM_SHA256, 31},
		{tls.TLS_AES_128_GCM_SHA256, 48},
		{tls.TLS_AES_256_GCM_SHA384, 32},
		{tls.TLS_CHACHA20_POLY1305_SHA256, 0},
		{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, 32}, // of TLS 1.2
		{0x1304, 32}, // TLS_AES_128_CCM_SHA256
	} {
		name := fmt.Sprintf("%s, %d bytes", tls.CipherSuiteName(tc.suite), tc.n)
		if _, err := TLS13Keys(tc.suite, make([]byte, tc.n)); err == nil {
			t.Errorf("TLS13Keys(%s) succeeds", name)
		}
		if _, err := NextSecret(tc.suite, make([]byte, tc.n)); err == nil {
			t.Errorf("NextSecret(%s) succeeds", name)
		}
	}
	for _, tc := range []struct {
		suite uint16
		n     int
	}{
		{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, 47},
		{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, 49},
		{tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, 48},
		{tls.TLS_AES_128_GCM_SHA256, 48}, // of TLS 1.3
	} {
		if _, _, err := TLS12Keys(tc.suite, make([]byte, tc.n), [32]byte{}, [32]byte{}); err == nil {
			t.Errorf("TLS12Keys(%s, %d bytes) succeeds", tls.CipherSuiteName(tc.suite), tc.n)
		}
	}
}

func TestWipe(t *testing.T) {
	k := randomTestKeys(t, tls.VersionTLS13, AES256GCM)
	k.Wipe()
	if *k != (Keys{}) {
		t.Error("keys are left")
	}
}

// tls13Stream opens what one side of a TLS 1.3 connection wrote, with the
// secrets of that side, through any number of key updates.
type tls13Stream struct {
	app     []byte  // application data
	updates int     // KeyUpdate messages
	opener  *Opener // of the last generation
	seq     uint64  // of the next record
}

func openTLS13(t *testing.T, stream []byte, suite uint16, handshake, traffic []byte) *tls13Stream {
	t.Helper()
	newOpener := func(secret []byte) *Opener {
		k, err := TLS13Keys(suite, secret)
		if err != nil {
			t.Fatal(err)
		}
		o, err := NewOpener(k)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	s := &tls13Stream{opener: newOpener(handshake)}
	inHandshake := true
	var messages []byte
	for i, r := range splitRecords(t, stream) {
		if r[0] != RecordTypeApplicationData {
			continue // a hello message or a change_cipher_spec
		}
		before := bytes.Clone(r)
		typ, p, err := s.opener.Open(nil, r, s.seq)
		if err != nil {
			t.Fatalf("record %d, sequence number %d: %v", i, s.seq, err)
		}
		if !bytes.Equal(r, before) {
			t.Fatal("Open modified the record")
		}
		s.seq++
		switch typ {
		case RecordTypeApplicationData:
			s.app = append(s.app, p...)
			continue
		case RecordTypeAlert:
			continue
		case RecordTypeHandshake:
		default:
			t.Fatalf("record %d has type %d", i, typ)
		}
		messages = append(messages, p...)
		for len(messages) >= 4 {
			end := 4 + int(messages[1])<<16 + int(messages[2])<<8 + int(messages[3])
			if len(messages) < end {
				break
			}
			switch msg := messages[0]; {
			case msg == 20 && inHandshake: // Finished
				inHandshake = false
				s.opener, s.seq = newOpener(traffic), 0
			case msg == 24 && !inHandshake: // KeyUpdate
				next, err := NextSecret(suite, traffic)
				if err != nil {
					t.Fatal(err)
				}
				traffic = next
				s.opener, s.seq = newOpener(traffic), 0
				s.updates++
			}
			messages = messages[end:]
		}
	}
	if inHandshake {
		t.Fatal("no Finished message in the stream")
	}
	return s
}

// openssl is the client, because it can be told which TLS 1.3 suite to offer
// and to update its keys. All records that it and crypto/tls wrote must open,
// over two key updates.
func TestTLS13KeysAgainstCryptoTLSAndOpenSSL(t *testing.T) {
	for _, suite := range []uint16{tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384, tls.TLS_CHACHA20_POLY1305_SHA256} {
		t.Run(tls.CipherSuiteName(suite), func(t *testing.T) {
			log := &testKeyLog{t: t}
			rec, conn, cmd := opensslClient(t, &tls.Config{
				Certificates: []tls.Certificate{testCertificate(t, false)},
				KeyLogWriter: log,
			}, "-tls1_3", "-ciphersuites", tls.CipherSuiteName(suite))
			if got := conn.ConnectionState().CipherSuite; got != suite {
				t.Fatalf("suite is %s", tls.CipherSuiteName(got))
			}
			data := pattern(40000)
			var fromClient, fromServer []byte
			const updates = 2
			for i := range updates + 1 {
				if i > 0 {
					// crypto/tls answers the client's KeyUpdate from within
					// Read. openssl takes a "K" for a command only at the
					// start of what it reads, so wait for that answer.
					before := len(rec.written())
					cmd.send("K\n")
					go func() {
						for deadline := time.Now().Add(testTimeout); len(rec.written()) == before && time.Now().Before(deadline); {
							time.Sleep(time.Millisecond)
						}
						cmd.send("again\n")
					}()
					line := make([]byte, len("again\n"))
					if _, err := io.ReadFull(conn, line); err != nil {
						t.Fatal(err)
					}
					fromClient = append(fromClient, line...)
				}
				if _, err := conn.Write(data); err != nil {
					t.Fatal(err)
				}
				fromServer = append(fromServer, data...)
			}
			conn.CloseWrite()
			server := openTLS13(t, rec.written(), suite, log.secret(LabelServerHandshake), log.secret(LabelServerTraffic))
			client := openTLS13(t, rec.read(), suite, log.secret(LabelClientHandshake), log.secret(LabelClientTraffic))
			if !bytes.Equal(server.app, fromServer) {
				t.Errorf("the server's records have %d bytes, want %d", len(server.app), len(fromServer))
			}
			if !bytes.Equal(client.app, fromClient) {
				t.Errorf("the client's records have %q, want %q", client.app, fromClient)
			}
			if server.updates != updates || client.updates != updates {
				t.Errorf("%d and %d key updates, want %d", server.updates, client.updates, updates)
			}
		})
	}
}

// stdin is what an openssl client reads its commands from.
type stdin struct {
	t *testing.T
	w io.Writer
}

func (s stdin) send(text string) {
	if _, err := io.WriteString(s.w, text); err != nil {
		s.t.Errorf("writing to openssl: %v", err)
	}
}

// opensslClient connects `openssl s_client` with args to a server with config.
// It returns the server's side, after the handshake.
func opensslClient(t *testing.T, config *tls.Config, args ...string) (*recorder, *tls.Conn, stdin) {
	t.Helper()
	l := listenLoopback(t)
	cmd := exec.Command("openssl", append([]string{"s_client", "-connect", l.Addr().String()}, args...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v; this test needs the openssl command", err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("openssl: %.2000s", out.String())
		}
	})
	raw, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	raw.SetDeadline(time.Now().Add(testTimeout))
	rec := &recorder{Conn: raw}
	conn := tls.Server(rec, config)
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	return rec, conn, stdin{t, in}
}

// tls12Suites are the AEAD suites of TLS 1.2 that crypto/tls has.
func tls12Suites() []uint16 {
	var ids []uint16
	for id, s := range suites {
		if s.version == tls.VersionTLS12 {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// tls12Pair is a TLS 1.2 connection of crypto/tls with itself.
type tls12Pair struct {
	rec            *recorder // the server's
	server, client *tls.Conn
	log            *testKeyLog
}

func newTLS12Pair(t *testing.T, suite uint16) *tls12Pair {
	t.Helper()
	s, c := tcpPair(t)
	p := &tls12Pair{rec: &recorder{Conn: s}, log: &testKeyLog{t: t}}
	p.server = tls.Server(p.rec, &tls.Config{
		Certificates: []tls.Certificate{testCertificate(t, !strings.Contains(tls.CipherSuiteName(suite), "ECDSA"))},
		CipherSuites: []uint16{suite},
		MaxVersion:   tls.VersionTLS12,
		KeyLogWriter: p.log,
	})
	p.client = tls.Client(c, &tls.Config{
		InsecureSkipVerify: true,
		CipherSuites:       []uint16{suite},
		MaxVersion:         tls.VersionTLS12,
	})
	handshakeBoth(t, p.server, p.client)
	if got := p.server.ConnectionState().CipherSuite; got != suite {
		t.Fatalf("suite is %s", tls.CipherSuiteName(got))
	}
	return p
}

func handshakeBoth(t *testing.T, server, client *tls.Conn) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- client.Handshake() }()
	if err := server.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// keys derives the connection's keys from what was logged and what the hello
// messages on the wire say.
func (p *tls12Pair) keys(t *testing.T, suite uint16) (client, server *Keys) {
	t.Helper()
	clientRandom := [32]byte(splitRecords(t, p.rec.read())[0][RecordHeaderLen+6:])
	serverRandom := [32]byte(splitRecords(t, p.rec.written())[0][RecordHeaderLen+6:])
	master := p.log.secret(LabelTLS12)
	if p.log.lines[LabelTLS12].ClientRandom != clientRandom {
		t.Error("another client random was logged than sent")
	}
	client, server, err := TLS12Keys(suite, master, clientRandom, serverRandom)
	if err != nil {
		t.Fatal(err)
	}
	return client, server
}

// openTLS12 opens what one side of a TLS 1.2 connection wrote. It returns the
// application data and the next sequence number.
func openTLS12(t *testing.T, stream []byte, k *Keys) (app []byte, seq uint64) {
	t.Helper()
	o, err := NewOpener(k)
	if err != nil {
		t.Fatal(err)
	}
	encrypted := false
	for i, r := range splitRecords(t, stream) {
		if !encrypted {
			encrypted = r[0] == RecordTypeChangeCipherSpec
			continue
		}
		before := bytes.Clone(r)
		typ, p, err := o.Open(nil, r, seq)
		if err != nil {
			t.Fatalf("record %d, sequence number %d: %v", i, seq, err)
		}
		if !bytes.Equal(r, before) {
			t.Fatal("Open modified the record")
		}
		if want := seq == 0; want != (typ == RecordTypeHandshake) || seq == 0 && p[0] != 20 {
			t.Fatalf("sequence number %d: type %d, content % x", seq, typ, p[:min(len(p), 4)])
		}
		if typ == RecordTypeApplicationData {
			app = append(app, p...)
		}
		seq++
	}
	if seq == 0 {
		t.Fatal("no Finished message in the stream")
	}
	return app, seq
}

func TestTLS12KeysAgainstCryptoTLS(t *testing.T) {
	for _, suite := range tls12Suites() {
		t.Run(tls.CipherSuiteName(suite), func(t *testing.T) {
			p := newTLS12Pair(t, suite)
			fromServer, fromClient := pattern(40000), pattern(20000)
			for _, dir := range []struct {
				from, to *tls.Conn
				data     []byte
			}{{p.server, p.client, fromServer}, {p.client, p.server, fromClient}} {
				sent := make(chan error, 1)
				go func() {
					_, err := dir.from.Write(dir.data)
					sent <- err
				}()
				if _, err := io.ReadFull(dir.to, make([]byte, len(dir.data))); err != nil {
					t.Fatal(err)
				}
				if err := <-sent; err != nil {
					t.Fatal(err)
				}
			}
			client, server := p.keys(t, suite)
			if app, _ := openTLS12(t, p.rec.written(), server); !bytes.Equal(app, fromServer) {
				t.Errorf("the server's records have %d bytes, want %d", len(app), len(fromServer))
			}
			if app, _ := openTLS12(t, p.rec.read(), client); !bytes.Equal(app, fromClient) {
				t.Errorf("the client's records have %d bytes, want %d", len(app), len(fromClient))
			}
		})
	}
}

// Between crypto/tls's own sides the master secret is always an extended one
// (RFC 7627); without that extension it is logged and used in the same way.
func TestTLS12KeysWithoutExtendedMasterSecret(t *testing.T) {
	const suite = tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
	conf := t.TempDir() + "/openssl.cnf"
	writeFile(t, conf, "openssl_conf = a\n[a]\nssl_conf = b\n[b]\nsystem_default = c\n[c]\nOptions = -ExtendedMasterSecret\n")
	t.Setenv("OPENSSL_CONF", conf)
	log := &testKeyLog{t: t}
	rec, conn, _ := opensslClient(t, &tls.Config{
		Certificates: []tls.Certificate{testCertificate(t, false)},
		CipherSuites: []uint16{suite},
		KeyLogWriter: log,
	}, "-tls1_2")
	state := conn.ConnectionState()
	if _, err := state.ExportKeyingMaterial("EXPERIMENTAL x", nil, 16); err == nil {
		t.Fatal("the connection has an extended master secret")
	}
	data := pattern(40000)
	if _, err := conn.Write(data); err != nil {
		t.Fatal(err)
	}
	p := &tls12Pair{rec: rec, log: log}
	_, server := p.keys(t, suite)
	if app, _ := openTLS12(t, rec.written(), server); !bytes.Equal(app, data) {
		t.Errorf("the server's records have %d bytes, want %d", len(app), len(data))
	}
}
