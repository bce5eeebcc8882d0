package ktls

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"
)

// suite is a protocol version with a cipher suite.
type suite struct{ version, id uint16 }

func (s suite) String() string {
	return tls.VersionName(s.version) + " " + s.cipher().String()
}

func (s suite) cipher() Cipher {
	c, _ := CipherOf(s.id)
	return c
}

// upgradable are the suites that crypto/tls and the kernel have in common, one
// for each version and cipher.
var upgradable = []suite{
	{tls.VersionTLS13, tls.TLS_AES_128_GCM_SHA256},
	{tls.VersionTLS13, tls.TLS_AES_256_GCM_SHA384},
	{tls.VersionTLS13, tls.TLS_CHACHA20_POLY1305_SHA256},
	{tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
	{tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384},
	{tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256},
}

// eachSuite runs a test with every suite that can be upgraded.
func eachSuite(t *testing.T, test func(*testing.T, suite)) {
	for _, s := range upgradable {
		t.Run(s.String(), func(t *testing.T) { test(t, s) })
	}
}

// needSuite is needKTLS for one version and cipher.
func needSuite(t testing.TB, s suite) {
	t.Helper()
	needKTLS(t)
	if Probe().CanTX(s.version, s.cipher()) {
		return
	}
	msg := fmt.Sprintf("this kernel doesn't encrypt %v: %v", s, Probe().TX[Combination{s.version, s.cipher()}])
	if os.Getenv("KTLS_REQUIRED") != "" {
		t.Fatal(msg)
	}
	t.Skip(msg)
}

// canEverything are Features that promise what the kernel may not have, to
// reach the steps behind that question on any kernel.
func canEverything() *Features {
	f := &Features{TX: map[Combination]Answer{}}
	for _, c := range Combinations() {
		f.TX[c] = Answer{Support: Yes}
	}
	return f
}

func testServerConfig(t testing.TB) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{testCertificate(t, false)},
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA,
		},
	}
}

// checkLeaks fails the test if goroutines or file descriptors are left when
// all that was registered with Cleanup after it is cleaned up.
func checkLeaks(t testing.TB) {
	t.Helper()
	Probe()
	a, b := net.Pipe() // whatever the runtime opens at first use
	a.Close()
	b.Close()
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close()
	}
	files, goroutines := openFiles(), runtime.NumGoroutine()
	t.Cleanup(func() {
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			f, g := openFiles(), runtime.NumGoroutine()
			if f <= files && g <= goroutines {
				return
			}
			if time.Now().After(deadline) {
				stacks := make([]byte, 1<<20)
				stacks = stacks[:runtime.Stack(stacks, true)]
				t.Errorf("%d descriptors (before: %d), %d goroutines (before: %d) are left:\n%s", f, files, g, goroutines, stacks)
				return
			}
		}
	})
}

// openFiles counts this process's descriptors where the system tells.
func openFiles() int {
	names, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		return 0
	}
	return len(names)
}

// upgradeEvent is one call of Options.OnUpgrade.
type upgradeEvent struct {
	info Info
	err  error
}

// link is a connection under test with the sockets of both its ends.
type link struct {
	*Conn
	t      testing.TB
	sock   *net.TCPConn // the server's
	peer   *net.TCPConn // the client's
	record *recorder    // between tap and sock, if asked for

	mu     sync.Mutex
	events []upgradeEvent
	rekeys []rekeyEvent
	taken  []error // calls of OnReceive
}

// rekeyEvent is one call of Options.OnRekey.
type rekeyEvent struct {
	byPeer bool
	err    error
}

// rekeyed returns the calls of OnRekey so far.
func (l *link) rekeyed() []rekeyEvent {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rekeys
}

// setup says how to make a link; the zero value will do.
type setup struct {
	config   *tls.Config // default: testServerConfig; ServerConfig is applied to it
	foreign  bool        // don't apply ServerConfig
	opts     Options     // OnUpgrade, OnReceive and OnRekey are the link's
	recorded bool        // put a recorder between tap and socket
	wrap     func(net.Conn) net.Conn
}

// connect returns a link whose handshake has not been run. The peer's
// connection is closed with the test, the server's too.
func (s setup) connect(t testing.TB) *link {
	t.Helper()
	l := &link{t: t}
	l.sock, l.peer = tcpPair(t)
	l.start(s, l.sock)
	return l
}

// start puts the server's end on conn.
func (l *link) start(s setup, conn net.Conn) {
	if s.config == nil {
		s.config = testServerConfig(l.t)
	}
	if !s.foreign {
		s.config = ServerConfig(s.config)
	}
	if s.recorded {
		l.record = &recorder{Conn: conn}
		conn = l.record
	}
	if s.wrap != nil {
		conn = s.wrap(conn)
	}
	opts := s.opts
	opts.OnUpgrade = func(c *Conn, info Info, err error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if c != l.Conn {
			l.t.Error("OnUpgrade got another connection")
		}
		l.events = append(l.events, upgradeEvent{info, err})
	}
	opts.OnReceive = func(c *Conn, err error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if c != l.Conn {
			l.t.Error("OnReceive got another connection")
		}
		l.taken = append(l.taken, err)
	}
	opts.OnRekey = func(c *Conn, byPeer bool, err error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if c != l.Conn {
			l.t.Error("OnRekey got another connection")
		}
		l.rekeys = append(l.rekeys, rekeyEvent{byPeer, err})
	}
	l.Conn = Server(conn, s.config, &opts)
	l.t.Cleanup(func() { l.Abort(net.ErrClosed) })
}

// upgrades returns the calls of OnUpgrade so far.
func (l *link) upgrades() []upgradeEvent {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.events
}

// handshake runs the server's handshake and the client's.
func (l *link) handshake(client func() error) {
	l.t.Helper()
	server := make(chan error, 1)
	go func() {
		err := l.Handshake()
		if err != nil {
			l.tap.Conn.Close() // not every error comes with an alert: the client would wait
		}
		server <- err
	}()
	if err := client(); err != nil {
		l.peer.Close()
		l.t.Fatalf("client: %v; server: %v", err, <-server)
	}
	if err := <-server; err != nil {
		l.t.Fatal(err)
	}
}

// goClient is crypto/tls's client, with a record of what it got.
type goClient struct {
	*tls.Conn
	wire *recorder
	keys *testKeyLog
}

// withGo runs the handshake with crypto/tls's client, one that accepts session
// tickets. config may be nil; it is changed.
func (l *link) withGo(config *tls.Config) *goClient {
	l.t.Helper()
	if config == nil {
		config = new(tls.Config)
	}
	c := &goClient{wire: &recorder{Conn: l.peer}, keys: &testKeyLog{t: l.t}}
	if config.RootCAs == nil && config.ServerName == "" {
		config.InsecureSkipVerify = true
	}
	if config.ClientSessionCache == nil {
		config.ClientSessionCache = tls.NewLRUClientSessionCache(1) // else TLS 1.3 gets no ticket
	}
	config.KeyLogWriter = c.keys
	c.Conn = tls.Client(c.wire, config)
	l.handshake(c.Handshake)
	return c
}

// with13 runs the handshake with a client13.
func (l *link) with13(id uint16, o clientOptions) *client13 {
	l.t.Helper()
	var c *client13
	l.handshake(func() (err error) {
		c, err = dial13(l.peer, id, o)
		return err
	})
	return c
}

// with runs the handshake with whichever client can be made to take s.
func (l *link) with(s suite) net.Conn {
	l.t.Helper()
	if s.version == tls.VersionTLS13 {
		return l.with13(s.id, clientOptions{})
	}
	return l.withGo(&tls.Config{MaxVersion: s.version, CipherSuites: []uint16{s.id}})
}

// mustUpgrade upgrades, and checks that all say so.
func (l *link) mustUpgrade() {
	l.t.Helper()
	if err := l.Upgrade(); err != nil {
		l.t.Fatal(err)
	}
	if !l.Offloaded() || !l.Info().Offloaded {
		l.t.Fatal("upgraded, but not offloaded")
	}
}

// wireRecord is a record that the server sent under its application keys (TLS
// 1.2: after ChangeCipherSpec).
type wireRecord struct {
	typ  byte
	data []byte
	seq  uint64
}

// records opens all complete records that the client got after the handshake,
// whoever encrypted them, and fails if one doesn't open in its place or a nonce
// comes twice.
func (c *goClient) records(t testing.TB) []wireRecord {
	t.Helper()
	stream := c.wire.read()
	var records [][]byte
	for len(stream) >= RecordHeaderLen {
		end := RecordHeaderLen + int(binary.BigEndian.Uint16(stream[3:]))
		if len(stream) < end {
			break
		}
		records, stream = append(records, stream[:end]), stream[end:]
	}
	state := c.ConnectionState()
	if state.Version == tls.VersionTLS12 {
		return c.records12(t, records, state.CipherSuite)
	}
	hs, err := newHalf13(state.CipherSuite, c.keys.secret(LabelServerHandshake))
	if err != nil {
		t.Fatal(err)
	}
	app, err := newHalf13(state.CipherSuite, c.keys.secret(LabelServerTraffic))
	if err != nil {
		t.Fatal(err)
	}
	var out []wireRecord
	for i, r := range records {
		if r[0] != RecordTypeApplicationData {
			if len(out) > 0 {
				t.Fatalf("record %d is in plain text: %x", i, r[:RecordHeaderLen])
			}
			continue
		}
		if len(out) == 0 {
			if _, _, err := hs.opener.Open(nil, r, hs.seq); err == nil {
				hs.seq++
				continue
			}
		}
		typ, data, err := app.opener.Open(nil, r, app.seq)
		if err != nil {
			t.Fatalf("record %d, of %d bytes, doesn't open with sequence number %d", i, len(r), app.seq)
		}
		out = append(out, wireRecord{typ, data, app.seq})
		app.seq++
		if typ == RecordTypeHandshake && isKeyUpdate(data) {
			if err := app.next(); err != nil {
				t.Fatal(err)
			}
		}
	}
	return out
}

func (c *goClient) records12(t testing.TB, records [][]byte, id uint16) []wireRecord {
	t.Helper()
	var clientRandom, serverRandom [32]byte
	copy(clientRandom[:], c.wire.written()[RecordHeaderLen+6:])
	copy(serverRandom[:], records[0][RecordHeaderLen+6:])
	_, keys, err := TLS12Keys(id, c.keys.secret(LabelTLS12), clientRandom, serverRandom)
	if err != nil {
		t.Fatal(err)
	}
	opener, err := NewOpener(keys)
	if err != nil {
		t.Fatal(err)
	}
	var out []wireRecord
	nonces := map[string]bool{}
	encrypted := false
	for i, r := range records {
		if !encrypted {
			encrypted = r[0] == RecordTypeChangeCipherSpec
			continue
		}
		seq := uint64(len(out))
		typ, data, err := opener.Open(nil, r, seq)
		if err != nil {
			t.Fatalf("record %d, of %d bytes, doesn't open with sequence number %d", i, len(r), seq)
		}
		if opener.explicit {
			nonce := string(r[RecordHeaderLen : RecordHeaderLen+explicitNonceLen])
			if nonces[nonce] {
				t.Fatalf("record %d has a nonce that was used before", i)
			}
			nonces[nonce] = true
		}
		out = append(out, wireRecord{typ, data, seq})
	}
	return out
}

// alerts returns the alerts among records.
func alerts(records []wireRecord) (all [][]byte) {
	for _, r := range records {
		if r.typ == RecordTypeAlert {
			all = append(all, r.data)
		}
	}
	return all
}

// bigFile is the size of a file that doesn't fit the buffers of a connection.
const bigFile = 8 << 20

// randomBytes returns n bytes that are the same in every run.
func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1, 2, 3}).Read(b)
	return b
}

// testFile returns a file with content, deleted with the test.
func testFile(t testing.TB, content []byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(content); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	return f
}

// received is what a reader got.
type received struct {
	n   int64
	sum [sha256.Size]byte
	err error
}

func sumOf(content []byte) received {
	return received{n: int64(len(content)), sum: sha256.Sum256(content)}
}

// receive reads r to its end. The channel gets the result.
func receive(r io.Reader) <-chan received {
	done := make(chan received, 1)
	go func() {
		h := sha256.New()
		n, err := io.Copy(h, r)
		res := received{n: n, err: err}
		h.Sum(res.sum[:0])
		done <- res
	}()
	return done
}

// checkReceived compares what was received with what was sent.
func checkReceived(t testing.TB, got received, want []byte) {
	t.Helper()
	if got.err != nil {
		t.Errorf("after %d bytes: %v", got.n, got.err)
	}
	w := sumOf(want)
	if got.n != w.n || got.sum != w.sum {
		t.Errorf("got %d bytes %x, want %d bytes %x", got.n, got.sum, w.n, w.sum)
	}
}

// checkTruncated checks that the client gets a beginning of content, and sees
// that it was cut off.
// (crypto/tls's client takes the end of TCP for close_notify where it comes
// between two records.)
func checkTruncated(t testing.TB, client *client13, content []byte) {
	t.Helper()
	got, err := io.ReadAll(client)
	if err != io.ErrUnexpectedEOF {
		t.Errorf("the client sees %v", err)
	}
	if len(got) >= len(content) || sha256.Sum256(got) != sha256.Sum256(content[:min(len(got), len(content))]) {
		t.Errorf("the client got %d bytes that aren't a beginning of what was sent", len(got))
	}
}

// checkServes checks that bytes pass both ways as they are.
func checkServes(t testing.TB, l *link, client net.Conn) {
	t.Helper()
	out := randomBytes(70_000)
	errs := make(chan error, 1)
	go func() {
		_, err := l.Write(out)
		errs <- err
	}()
	got := make([]byte, len(out))
	if _, err := io.ReadFull(client, got); err != nil {
		t.Fatalf("to the client: %v", err)
	}
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	if sha256.Sum256(got) != sha256.Sum256(out) {
		t.Error("the client got other bytes than were sent")
	}
	checkReads(t, l, client)
}

// checkReads checks that bytes pass from client to server.
func checkReads(t testing.TB, l *link, client net.Conn) {
	t.Helper()
	in := randomBytes(40_000)
	errs := make(chan error, 1)
	go func() {
		_, err := client.Write(in)
		errs <- err
	}()
	got := make([]byte, len(in))
	if _, err := io.ReadFull(l.Conn, got); err != nil {
		t.Fatalf("to the server: %v", err)
	}
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, in) {
		t.Error("the server got other bytes than were sent")
	}
}

// checkRefused checks that an upgrade was refused for reason.
func checkRefused(t testing.TB, err error, reason string) {
	t.Helper()
	var u *UpgradeError
	if !errors.As(err, &u) {
		t.Fatalf("got %v, want an UpgradeError for %s", err, reason)
	}
	if u.Reason != reason {
		t.Errorf("refused for %s (%v), want %s", u.Reason, u.Err, reason)
	}
}

// within fails the test if f takes longer than d.
func within(t testing.TB, d time.Duration, what string, f func()) {
	t.Helper()
	if slow {
		d *= 4
	}
	start := time.Now()
	f()
	if took := time.Since(start); took > d {
		t.Errorf("%s took %v, more than %v", what, took, d)
	}
}
