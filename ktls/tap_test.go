package ktls

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/caddy-ktls/caddy-ktls/internal/lockorder"
)

func TestTapPassesBytesOnAtOnce(t *testing.T) {
	a, b := net.Pipe() // unbuffered: what isn't passed on blocks the writer
	defer a.Close()
	defer b.Close()
	tp := &tap{Conn: a}
	want := randomBytes(50_000)
	for _, dir := range []struct {
		name     string
		from, to net.Conn
	}{{"write", tp, b}, {"read", b, tp}} {
		t.Run(dir.name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, 2))
			for rest := want; len(rest) > 0; {
				n := min(len(rest), 1+rng.IntN(3000))
				errs := make(chan error, 1)
				go func() {
					m, err := dir.from.Write(rest[:n])
					if err == nil && m != n {
						err = io.ErrShortWrite
					}
					errs <- err
				}()
				got := make([]byte, n)
				if _, err := io.ReadFull(dir.to, got); err != nil {
					t.Fatal(err)
				}
				if err := <-errs; err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, rest[:n]) {
					t.Fatalf("other bytes came out, %d before the end", len(rest))
				}
				rest = rest[n:]
			}
		})
	}
}

// serverStream is what a server wrote through its tap, with what the tap must
// be told to follow it.
type serverStream struct {
	version, suite  uint16
	handshake, rest []byte
	keyLog          [][]byte
	updates         int
}

// lineLog is a KeyLogWriter that keeps the lines.
type lineLog struct {
	mu    sync.Mutex
	lines [][]byte
}

func (l *lineLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, bytes.Clone(p))
	return len(p), nil
}

func (l *lineLog) get() [][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}

// recordStream has a server write records of many lengths, those of a KeyUpdate
// and of an alert among them, and in TLS 1.3 two KeyUpdates.
func recordStream(t testing.TB, s suite) serverStream {
	t.Helper()
	log := new(lineLog)
	config := testServerConfig(t)
	config.KeyLogWriter = log
	l := setup{config: config, recorded: true}.connect(t)
	client := l.with(s)
	out := serverStream{version: s.version, suite: s.id, handshake: l.record.written(), keyLog: log.get()}
	exchange := func(n int) {
		if _, err := l.Write(randomBytes(n)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(client, make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []int{1, 5, 2, 300, 5, 20000} {
		exchange(n)
	}
	if c, ok := client.(*client13); ok {
		for range 2 {
			if err := c.keyUpdate(true); err != nil {
				t.Fatal(err)
			}
			checkReads(t, l, client) // the server has handled the KeyUpdate
			exchange(5)
			exchange(700)
		}
		out.updates = 2
		if c.updates != 2 {
			t.Fatalf("the server sent %d KeyUpdates", c.updates)
		}
	}
	out.rest = l.record.written()[len(out.handshake):]
	return out
}

// tapState is what a tap knows after a stream.
type tapState struct {
	records, since, next uint64
	last                 string // of the handshake, while it lasts
	random               [32]byte
	written              error
	partial              bool
	iv                   [12]byte // of the current generation
}

// follow shows the stream to a new tap, cut at random (every write of the
// original was one piece if rng is nil).
func (s serverStream) follow(t testing.TB, rng *rand.Rand) tapState {
	t.Helper()
	tp := new(tap)
	for _, line := range s.keyLog {
		tp.logged(line)
	}
	show := func(b []byte) {
		tp.wmu.Lock()
		defer tp.wmu.Unlock()
		for len(b) > 0 {
			n := len(b)
			if rng != nil {
				n = 1 + rng.IntN(min(n, 1<<(1+rng.IntN(15))))
			}
			piece := bytes.Clone(b[:n])
			tp.wrote(piece)
			for i := range piece {
				piece[i] = 0xff // what the tap keeps must be its own
			}
			b = b[n:]
		}
	}
	show(s.handshake)
	last := string(tp.last)
	tp.handshakeDone(s.version, s.suite)
	show(s.rest)
	if err := tp.prove(); err != nil {
		t.Fatal(err)
	}
	return tapState{
		records: tp.out.records, since: tp.since, next: tp.send.next, last: last,
		random: tp.random, written: tp.written, partial: tp.out.partial(), iv: tp.send.keys.IV,
	}
}

// check compares an uncut stream's state with what the records say.
func (s serverStream) check(t testing.TB) tapState {
	t.Helper()
	whole := s.follow(t, nil)
	hs := splitRecords(t, s.handshake)
	all := splitRecords(t, append(bytes.Clone(s.handshake), s.rest...))
	if whole.records != uint64(len(all)) {
		t.Errorf("%d records counted of %d", whole.records, len(all))
	}
	if whole.last != string(hs[len(hs)-1]) {
		t.Error("the last record of the handshake isn't the one that was kept")
	}
	if want := string(hs[0][RecordHeaderLen+6:][:32]); string(whole.random[:]) != want {
		t.Errorf("server random %x, want %x", whole.random, want)
	}
	if whole.partial || whole.written != nil {
		t.Errorf("partial %t, written %v", whole.partial, whole.written)
	}
	if s.updates == 0 && whole.since != uint64(len(all)-len(hs)) {
		t.Errorf("%d records since the handshake, want %d", whole.since, len(all)-len(hs))
	}
	if s.updates > 0 && whole.next+whole.since != 2 {
		t.Errorf("%d records since the last KeyUpdate, want 2", whole.next+whole.since)
	}
	return whole
}

func TestTapStateIsIndependentOfCuts(t *testing.T) {
	eachSuite(t, func(t *testing.T, s suite) {
		stream := recordStream(t, s)
		whole := stream.check(t)
		for seed := range uint64(50) {
			if got := stream.follow(t, rand.New(rand.NewPCG(seed, 1))); got != whole {
				t.Fatalf("seed %d: %+v\nuncut: %+v", seed, got, whole)
			}
		}
	})
}

func FuzzTapSplit(f *testing.F) {
	var streams []serverStream
	var whole []tapState
	for _, s := range upgradable {
		streams = append(streams, recordStream(f, s))
		whole = append(whole, streams[len(streams)-1].check(f))
	}
	for i := range streams {
		f.Add(uint8(i), uint64(i))
	}
	f.Fuzz(func(t *testing.T, i uint8, seed uint64) {
		n := int(i) % len(streams)
		if got := streams[n].follow(t, rand.New(rand.NewPCG(seed, 7))); got != whole[n] {
			t.Errorf("%v: %+v\nuncut: %+v", upgradable[n], got, whole[n])
		}
	})
}

// skip scans all of p.
func (s *scanner) skip(p []byte) {
	for len(p) > 0 {
		n, _ := s.scan(p)
		p = p[n:]
	}
}

func FuzzScanner(f *testing.F) {
	f.Add([]byte{23, 3, 3, 0, 0, 23, 3, 3, 0, 1, 9}, uint64(1))
	f.Add([]byte{23, 3, 3, 0xff, 0xff}, uint64(2))
	f.Add([]byte{}, uint64(3))
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64) {
		// Garbage on the wire, with a tap that watches for KeyUpdates.
		var whole scanner
		whole.skip(stream)
		tp := new(tap)
		tp.handshakeDone(tls.VersionTLS13, tls.TLS_AES_128_GCM_SHA256)
		rng := rand.New(rand.NewPCG(seed, 3))
		var cut scanner
		for b := stream; len(b) > 0; {
			n := 1 + rng.IntN(len(b))
			cut.skip(b[:n])
			tp.wrote(b[:n])
			b = b[n:]
		}
		if cut != whole || tp.out != whole {
			t.Errorf("cut: %+v, tap: %+v, whole: %+v", cut, tp.out, whole)
		}
		var records uint64
		rest := stream
		for len(rest) >= RecordHeaderLen {
			n := RecordHeaderLen + int(rest[3])<<8 + int(rest[4])
			if len(rest) < n {
				break
			}
			records++
			rest = rest[n:]
		}
		if whole.records != records || whole.partial() != (len(rest) > 0) {
			t.Errorf("%d records, partial %t; want %d, %t", whole.records, whole.partial(), records, len(rest) > 0)
		}
	})
}

// bigCertificate has an extension of n times the same byte.
func bigCertificate(t testing.TB, n int, fill byte) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:    big.NewInt(1),
		Subject:         pkix.Name{CommonName: "localhost"},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Value: bytes.Repeat([]byte{fill}, n)}},
	}
	der, err := x509.CreateCertificate(crand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// The second record of a large Certificate message is a handshake record that
// starts within the message, here as a ServerHello would.
func TestTapTakesServerRandomFromServerHelloOnly(t *testing.T) {
	l := setup{
		config:   &tls.Config{Certificates: []tls.Certificate{bigCertificate(t, 40_000, 2)}},
		recorded: true,
	}.connect(t)
	l.withGo(&tls.Config{MaxVersion: tls.VersionTLS12})
	records := splitRecords(t, l.record.written())
	if !slices.ContainsFunc(records[1:], func(r []byte) bool {
		return r[0] == RecordTypeHandshake && r[RecordHeaderLen] == 2 && len(r) > 100
	}) {
		t.Fatal("no record looks like a ServerHello: the test tests nothing")
	}
	if want := records[0][RecordHeaderLen+6:][:32]; !bytes.Equal(l.tap.random[:], want) {
		t.Errorf("server random %x, want %x", l.tap.random, want)
	}
	if _, err := l.proven(); err != nil {
		t.Error(err)
	}
}

// shortWriter writes only a part of what is larger than limit, and fails, or
// says nothing.
type shortWriter struct {
	net.Conn
	limit  int
	silent bool
}

var errShortWriter = errors.New("the test's own write error")

func (w *shortWriter) Write(p []byte) (int, error) {
	if w.limit == 0 || len(p) <= w.limit {
		return w.Conn.Write(p)
	}
	n, err := w.Conn.Write(p[:w.limit])
	if err == nil && !w.silent {
		err = errShortWriter
	}
	return n, err
}

// shortLink is a link through a shortWriter that is known.
func shortLink(t *testing.T) (l *link, short *shortWriter) {
	l = setup{
		opts: Options{Features: canEverything(), Below: func(c net.Conn) net.Conn {
			if w, ok := c.(*shortWriter); ok {
				return w.Conn
			}
			return nil
		}},
		wrap: func(c net.Conn) net.Conn {
			short = &shortWriter{Conn: c}
			return short
		},
	}.connect(t)
	l.withGo(nil)
	return l, short
}

func TestPartialWriteRefusesUpgrade(t *testing.T) {
	l, short := shortLink(t)
	short.limit = 100
	if _, err := l.Write(make([]byte, 1000)); !errors.Is(err, errShortWriter) {
		t.Fatalf("Write: %v", err)
	}
	checkRefused(t, l.Upgrade(), ReasonClosed)
	if _, err := l.Write(make([]byte, 1000)); !errors.Is(err, errShortWriter) {
		t.Errorf("second Write: %v", err)
	}
}

// Such a connection breaks the rules of io.Writer.
func TestUpgradeRefusedWithinARecord(t *testing.T) {
	l, short := shortLink(t)
	short.limit, short.silent = 100, true
	if _, err := l.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	checkRefused(t, l.Upgrade(), ReasonUnproven)
}

func TestServerConfigChainsToKeyLogWriter(t *testing.T) {
	outer, inner := new(lineLog), new(lineLog)
	for _, test := range []struct {
		name   string
		config func(*tls.Config)
		want   *lineLog
	}{
		{"of the config", func(c *tls.Config) { c.KeyLogWriter = outer }, outer},
		{"of the config that GetConfigForClient returns", func(c *tls.Config) {
			chosen := c.Clone()
			chosen.KeyLogWriter = inner
			c.KeyLogWriter = outer
			c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return chosen, nil }
		}, inner},
		{"none", func(c *tls.Config) {}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			outer.lines, inner.lines = nil, nil
			config := testServerConfig(t)
			test.config(config)
			l := setup{config: config}.connect(t)
			client := l.withGo(nil)
			for _, log := range []*lineLog{outer, inner} {
				all := string(bytes.Join(log.get(), nil))
				if log != test.want {
					if all != "" {
						t.Error("lines went to the wrong writer")
					}
					continue
				}
				for label, line := range client.keys.lines {
					if !strings.Contains(all, label+" ") {
						t.Errorf("%v was not logged", line)
					}
				}
				if n := strings.Count(all, "\n"); n != len(client.keys.lines) {
					t.Errorf("%d lines were logged, want %d", n, len(client.keys.lines))
				}
			}
			if _, err := l.proven(); err != nil {
				t.Errorf("the connection's own secrets: %v", err)
			}
		})
	}
}

func TestServerConfigLeavesConfigAlone(t *testing.T) {
	config := testServerConfig(t)
	ServerConfig(config)
	if config.GetConfigForClient != nil || config.KeyLogWriter != nil {
		t.Error("the caller's config was changed")
	}
}

func TestServerConfigAsksGetConfigForClient(t *testing.T) {
	refusal := errors.New("not for you")
	for _, test := range []struct {
		name string
		get  func(base *tls.Config) (*tls.Config, error)
		alpn string
		err  error
	}{
		{"nil", func(*tls.Config) (*tls.Config, error) { return nil, nil }, "base", nil},
		{"another config", func(base *tls.Config) (*tls.Config, error) {
			c := base.Clone()
			c.NextProtos = []string{"chosen"}
			return c, nil
		}, "chosen", nil},
		{"error", func(*tls.Config) (*tls.Config, error) { return nil, refusal }, "", refusal},
	} {
		t.Run(test.name, func(t *testing.T) {
			base := testServerConfig(t)
			base.NextProtos = []string{"base"}
			config := base.Clone()
			var hello *tls.ClientHelloInfo
			config.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
				hello = h
				return test.get(base)
			}
			l := setup{config: config}.connect(t)
			client := tls.Client(l.peer, &tls.Config{InsecureSkipVerify: true, ServerName: "localhost", NextProtos: []string{"base", "chosen"}})
			done := make(chan error, 1)
			go func() { done <- client.Handshake() }()
			if err := l.Handshake(); !errors.Is(err, test.err) {
				t.Fatalf("server: %v, want %v", err, test.err)
			}
			if err := <-done; (err != nil) != (test.err != nil) {
				t.Fatalf("client: %v", err)
			}
			if hello == nil || hello.ServerName != "localhost" {
				t.Errorf("GetConfigForClient got %+v", hello)
			}
			if test.err != nil {
				return
			}
			if got := l.ConnectionState().NegotiatedProtocol; got != test.alpn {
				t.Errorf("ALPN chose %q, want %q", got, test.alpn)
			}
			if _, err := l.proven(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A config of ServerConfig may also serve connections that aren't a Conn's.
func TestServerConfigServesOtherConnections(t *testing.T) {
	log := new(lineLog)
	config := testServerConfig(t)
	config.KeyLogWriter = log
	a, b := tcpPair(t)
	server := tls.Server(a, ServerConfig(config))
	client := tls.Client(b, &tls.Config{InsecureSkipVerify: true})
	go server.Handshake()
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := server.Handshake(); err != nil {
		t.Fatal(err)
	}
	if len(log.get()) == 0 {
		t.Error("nothing was logged")
	}
}

func TestServerConfigKeepsSessionTickets(t *testing.T) {
	keys := [][32]byte{{1}, {2}}
	for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		for _, test := range []struct {
			name   string
			config func(*tls.Config)
			// between is called between the first and the second connection.
			between func(*tls.Config)
			resumes bool
		}{
			{"automatic keys", nil, nil, true},
			{"SetSessionTicketKeys before", func(c *tls.Config) { c.SetSessionTicketKeys(keys[:1]) }, nil, true},
			{"keys rotated later", func(c *tls.Config) { c.SetSessionTicketKeys(keys[:1]) },
				func(c *tls.Config) { c.SetSessionTicketKeys([][32]byte{keys[1], keys[0]}) }, true},
			{"keys replaced later", func(c *tls.Config) { c.SetSessionTicketKeys(keys[:1]) },
				func(c *tls.Config) { c.SetSessionTicketKeys(keys[1:]) }, false},
			{"a config for the client", func(c *tls.Config) {
				chosen := c.Clone()
				c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return chosen, nil }
			}, nil, true},
			{"a config for the client with keys", func(c *tls.Config) {
				chosen := c.Clone()
				chosen.SetSessionTicketKeys(keys[:1])
				c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return chosen, nil }
			}, nil, true},
			{"a config for the client that has keys later", func(c *tls.Config) {
				chosen := c.Clone()
				c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return chosen, nil }
			}, func(c *tls.Config) {
				chosen, _ := c.GetConfigForClient(nil)
				chosen.SetSessionTicketKeys(keys[:1])
			}, false},
			{"sessions wrapped by the user", func(c *tls.Config) {
				c.WrapSession = func(_ tls.ConnectionState, s *tls.SessionState) ([]byte, error) { return s.Bytes() }
				c.UnwrapSession = func(b []byte, _ tls.ConnectionState) (*tls.SessionState, error) {
					if len(b) == 0 { // TLS 1.2: the client takes tickets, and has none
						return nil, nil
					}
					return tls.ParseSessionState(b)
				}
			}, nil, true},
			{"sessions refused by the user", func(c *tls.Config) {
				c.UnwrapSession = func([]byte, tls.ConnectionState) (*tls.SessionState, error) { return nil, nil }
			}, nil, false},
			{"a config for the client made anew", func(c *tls.Config) {
				certificates := c.Certificates
				c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
					return &tls.Config{Certificates: certificates}, nil
				}
			}, nil, true},
			{"disabled", func(c *tls.Config) { c.SessionTicketsDisabled = true }, nil, false},
		} {
			for _, stock := range []bool{true, false} { // crypto/tls alone must agree
				t.Run(fmt.Sprintf("%s %s stock=%t", tls.VersionName(version), test.name, stock), func(t *testing.T) {
					user := testServerConfig(t)
					if test.config != nil {
						test.config(user)
					}
					config := user
					if !stock {
						config = ServerConfig(user)
					}
					cache := tls.NewLRUClientSessionCache(1)
					for i := range 2 {
						l := setup{config: config, foreign: true}.connect(t)
						client := l.withGo(&tls.Config{MaxVersion: version, ServerName: "localhost", InsecureSkipVerify: true, ClientSessionCache: cache})
						if got, want := client.ConnectionState().DidResume, i > 0 && test.resumes; got != want {
							t.Errorf("connection %d: resumed: %t, want %t", i, got, want)
						}
						if _, err := l.proven(); err != nil && !stock {
							t.Errorf("connection %d: %v", i, err)
						}
						checkServes(t, l, client) // the client reads the ticket
						if i == 0 && test.between != nil {
							test.between(user)
						}
					}
				})
			}
		}
	}
}

func TestSecretsOfAnotherHandshakeAreMixed(t *testing.T) {
	tp := new(tap)
	line := func(label string, random, secret byte) {
		tp.logged([]byte(label + " " + strings.Repeat(string("0123456789abcdef"[random])+"0", 32) + " " + strings.Repeat(string("0123456789abcdef"[secret])+"1", 32) + "\n"))
	}
	line(LabelServerHandshake, 1, 1)
	line(LabelServerTraffic, 1, 2)
	if tp.secrets.mixed || tp.secrets.handshake == nil || tp.secrets.traffic == nil {
		t.Fatalf("the lines of one handshake: mixed %t", tp.secrets.mixed)
	}
	line(LabelClientTraffic, 2, 3) // not of interest
	if tp.secrets.mixed {
		t.Error("a line that isn't kept counts")
	}
	line(LabelServerTraffic, 2, 3)
	if !tp.secrets.mixed {
		t.Error("lines of two handshakes aren't told apart")
	}
}

// doneTap is a tap after a handshake, over a connection that takes everything.
type nullConn struct{ net.Conn }

func (nullConn) Write(p []byte) (int, error) { return len(p), nil }

func doneTap() *tap {
	tp := &tap{Conn: nullConn{}}
	tp.handshakeDone(tls.VersionTLS13, tls.TLS_AES_128_GCM_SHA256)
	return tp
}

// someRecords are n records as crypto/tls writes them.
func someRecords(n int) []byte {
	record := append([]byte{RecordTypeApplicationData, 3, 3, 0x40, 0x11}, make([]byte, 0x4011)...)
	return bytes.Repeat(record, n)
}

func TestTapWriteDoesNotAllocate(t *testing.T) {
	if lockorder.Asserted {
		t.Skip("which locks are held is noted")
	}
	tp := doneTap()
	record := someRecords(1)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := tp.Write(record); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per record", n)
	}
	if tp.since != 101 {
		t.Errorf("%d records counted", tp.since)
	}
}

func BenchmarkTapWrite(b *testing.B) {
	tp := doneTap()
	record := someRecords(1)
	b.SetBytes(int64(len(record)))
	b.ReportAllocs()
	for b.Loop() {
		tp.Write(record)
	}
}
