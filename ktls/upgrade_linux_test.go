package ktls

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// failStep makes one step of every upgrade fail until the test ends.
func failStep(t testing.TB, s upgradeStep, err error) {
	testHookFault = func(at upgradeStep) error {
		if at == s {
			return err
		}
		return nil
	}
	t.Cleanup(func() { testHookFault = nil })
}

func TestUpgradeForEverySuite(t *testing.T) {
	for _, when := range []string{"lazy", "handshake"} {
		eachSuite(t, func(t *testing.T, s suite) {
			t.Run(when, func(t *testing.T) {
				needSuite(t, s)
				checkLeaks(t)
				txSw := tlsStat(t, "TlsTxSw")
				l := setup{opts: Options{UpgradeAtHandshake: when == "handshake"}}.connect(t)
				client := l.with(s)
				content := randomBytes(300_000)
				done := receive(client)
				seq := s.after()
				rest := content
				if when == "lazy" {
					for _, n := range []int{1, 5, 300} { // a record each, by crypto/tls
						if _, err := l.Write(rest[:n]); err != nil {
							t.Fatal(err)
						}
						rest = rest[n:]
						seq++
					}
					l.mustUpgrade()
				}
				want := Info{Version: s.version, Cipher: s.cipher(), Offloaded: true, Sequence: seq, Lazy: when == "lazy", RecordSize: MaxPlaintext}
				if i := l.Info(); i != want {
					t.Errorf("Info: %+v, want %+v", i, want)
				}
				if e := l.upgrades(); len(e) != 1 || e[0] != (upgradeEvent{want, nil}) {
					t.Errorf("OnUpgrade was told %+v", e)
				}
				if got := tlsStat(t, "TlsTxSw") - txSw; got != 1 {
					t.Errorf("TlsTxSw rose by %d", got)
				}
				f := testFile(t, content)
				const header = 7000
				if n, err := l.Write(rest[:header]); n != header || err != nil {
					t.Fatalf("Write: %d, %v", n, err)
				}
				rest = rest[header:]
				off := int64(len(content) - len(rest))
				if n, err := l.SendFile(f, off, int64(len(rest)), nil); n != int64(len(rest)) || err != nil {
					t.Fatalf("SendFile: %d, %v", n, err)
				}
				if got := l.Info().SentFile; got != int64(len(rest)) {
					t.Errorf("SentFile %d, want %d", got, len(rest))
				}
				if err := l.Close(); err != nil {
					t.Error(err)
				}
				checkReceived(t, <-done, content)
				if g, ok := client.(*goClient); ok {
					g.records(t) // every nonce once
				}
			})
		})
	}
}

func TestUpgradedConnectionReads(t *testing.T) {
	eachSuite(t, func(t *testing.T, s suite) {
		needSuite(t, s)
		l := setup{}.connect(t)
		client := l.with(s)
		l.mustUpgrade()
		checkServes(t, l, client)
		checkServes(t, l, client)
	})
}

// delayed is an input that comes when it is released.
type delayed struct {
	io.Reader
	released chan struct{}
}

func (d delayed) Read(p []byte) (int, error) {
	<-d.released
	return d.Reader.Read(p)
}

func TestUpgradeWithOpenSSL(t *testing.T) {
	eachSuite(t, func(t *testing.T, s suite) {
		needSuite(t, s)
		in := delayed{strings.NewReader("to the server"), make(chan struct{})}
		l, out, wait := opensslConnect(t, setup{}, in, s.opensslArgs()...)
		content := randomBytes(500_000)
		if _, err := l.Write(content[:100]); err != nil {
			t.Fatal(err)
		}
		l.mustUpgrade()
		f := testFile(t, content)
		if _, err := l.SendFile(f, 100, int64(len(content)-100), nil); err != nil {
			t.Fatal(err)
		}
		close(in.released)
		got := make([]byte, len("to the server"))
		if _, err := io.ReadFull(l.Conn, got); err != nil || string(got) != "to the server" {
			t.Errorf("got %q, %v", got, err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if err := wait(); err != nil {
			t.Error(err)
		}
		if sumOf(out.Bytes()) != sumOf(content) {
			t.Errorf("openssl got %d other bytes", out.Len())
		}
	})
}

func TestUpgradeOnResumption(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			needKTLS(t)
			l, client := resumed(t, setup{}, version)
			l.mustUpgrade()
			checkServes(t, l, client)
			checkForgotten(t, l, nil)
		})
	}
}

func TestUpgradeAfterHelloRetryRequest(t *testing.T) {
	needKTLS(t)
	config := testServerConfig(t)
	config.CurvePreferences = []tls.CurveID{tls.CurveP384}
	l := setup{config: config}.connect(t)
	client := l.withGo(&tls.Config{CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP384}})
	if !l.ConnectionState().HelloRetryRequest {
		t.Fatal("no HelloRetryRequest was sent")
	}
	l.mustUpgrade()
	checkServes(t, l, client)
}

func TestUpgradeWithoutSessionTicket(t *testing.T) {
	needKTLS(t)
	l := setup{}.connect(t)
	client := l.with13(tls.TLS_AES_128_GCM_SHA256, clientOptions{noTicket: true})
	l.mustUpgrade()
	if got := l.Info().Sequence; got != 0 {
		t.Errorf("first sequence number %d", got)
	}
	checkServes(t, l, client)
}

func TestUpgradeAfterKeyUpdate(t *testing.T) {
	for _, s := range upgradable[:3] {
		t.Run(s.String(), func(t *testing.T) {
			needSuite(t, s)
			l := setup{}.connect(t)
			client := l.with13(s.id, clientOptions{})
			checkServes(t, l, client)
			for range 2 {
				if err := client.keyUpdate(true); err != nil {
					t.Fatal(err)
				}
				checkReads(t, l, client)
			}
			if _, err := l.Write([]byte("12345")); err != nil {
				t.Fatal(err)
			}
			l.mustUpgrade()
			if got := l.Info().Sequence; got != 1 {
				t.Errorf("first sequence number %d, want 1", got)
			}
			drained(t, client, 5)
			checkServes(t, l, client)
			if client.updates != 2 {
				t.Errorf("the client got %d KeyUpdates", client.updates)
			}
		})
	}
}

func TestUpgradeThroughKnownWrapper(t *testing.T) {
	needKTLS(t)
	l := setup{
		wrap: func(c net.Conn) net.Conn { return &shortWriter{Conn: &shortWriter{Conn: c}} },
		opts: Options{Below: func(c net.Conn) net.Conn { return c.(*shortWriter).Conn }},
	}.connect(t)
	client := l.withGo(nil)
	l.mustUpgrade()
	checkServes(t, l, client)
}

func TestUpgradeConcurrently(t *testing.T) {
	needKTLS(t)
	checkLeaks(t)
	txSw := tlsStat(t, "TlsTxSw")
	l := setup{}.connect(t)
	client := l.withGo(nil)
	content := randomBytes(200_000)
	done := receive(client)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := l.Upgrade(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Go(func() {
		for rest := content; len(rest) > 0; {
			n := min(len(rest), 3000)
			if _, err := l.Write(rest[:n]); err != nil {
				t.Error(err)
				return
			}
			rest = rest[n:]
		}
	})
	wg.Wait()
	if n := len(l.upgrades()); n != 1 {
		t.Errorf("OnUpgrade was called %d times", n)
	}
	if got := tlsStat(t, "TlsTxSw") - txSw; got != 1 {
		t.Errorf("TlsTxSw rose by %d", got)
	}
	l.Close()
	checkReceived(t, <-done, content)
}

// slowWriter takes its time for every write while slow is set.
type slowWriter struct {
	net.Conn
	slow   atomic.Bool
	writes atomic.Int32
	first  sync.Once
	began  chan struct{} // closed when the first slow write has begun
}

func (w *slowWriter) Write(p []byte) (int, error) {
	if w.slow.Load() {
		w.writes.Add(1)
		w.first.Do(func() { close(w.began) })
		time.Sleep(5 * time.Millisecond) // a waiting Upgrade gets the lock next
	}
	return w.Conn.Write(p)
}

// A Write of many records began with crypto/tls; the upgrade comes between two
// of them, and the tap passes the rest on, before anything else is written.
func TestUpgradeDuringWrite(t *testing.T) {
	eachSuite(t, func(t *testing.T, s suite) {
		needSuite(t, s)
		w := &slowWriter{began: make(chan struct{})}
		l := setup{
			wrap: func(c net.Conn) net.Conn { w.Conn = c; return w },
			opts: Options{Below: func(c net.Conn) net.Conn {
				if w, ok := c.(*slowWriter); ok {
					return w.Conn
				}
				return nil
			}},
		}.connect(t)
		client := l.with(s)
		content := randomBytes(1_000_000)
		done := receive(client)
		w.slow.Store(true)
		written := make(chan error, 1)
		go func() {
			n, err := l.Write(content[:len(content)-9])
			if err == nil && n != len(content)-9 {
				err = io.ErrShortWrite
			}
			written <- err
		}()
		<-w.began
		l.mustUpgrade()
		passed := w.writes.Load()
		// Another Write waits for the one under way, or the content would differ.
		if _, err := l.Write(content[len(content)-9:]); err != nil {
			t.Fatal(err)
		}
		if err := <-written; err != nil {
			t.Fatal(err)
		}
		if w.writes.Load() != passed {
			t.Error("crypto/tls wrote to the socket after the upgrade")
		}
		if passed > 30 { // of more than 60 records
			t.Errorf("the upgrade waited for %d records", passed)
		}
		l.Close()
		checkReceived(t, <-done, content)
		if g, ok := client.(*goClient); ok {
			g.records(t)
		}
	})
}

// Every step that can fail leaves a connection that serves. The steps before
// TLS_TX don't need a kernel that has it.
func TestUpgradeFaults(t *testing.T) {
	reasons := map[upgradeStep]string{
		stepProve: ReasonUnproven, stepOpen: ReasonKernel, stepRawConn: ReasonKernel,
		stepLowat: ReasonKernel, stepULP: ReasonKernel, stepTX: ReasonKernel,
	}
	for _, at := range []upgradeStep{stepProve, stepOpen, stepRawConn, stepLowat, stepULP, stepTX} {
		for _, s := range upgradable {
			t.Run(fmt.Sprintf("%s %v", at, s), func(t *testing.T) {
				if at == stepTX {
					needSuite(t, s)
				}
				checkLeaks(t)
				fault := errors.New("the test's own fault")
				failStep(t, at, fault)
				l := setup{opts: Options{Features: canEverything()}}.connect(t)
				client := l.with(s)
				checkServes(t, l, client)
				err := l.Upgrade()
				checkRefused(t, err, reasons[at])
				if !errors.Is(err, fault) {
					t.Errorf("the error isn't the fault but %v", err)
				}
				testHookFault = nil // a second attempt would succeed
				if again := l.Upgrade(); again != err {
					t.Errorf("second Upgrade: %v", again)
				}
				if e := l.upgrades(); len(e) != 1 || e[0].err != err {
					t.Errorf("OnUpgrade was told %+v", e)
				}
				if l.Offloaded() || l.Info().Offloaded {
					t.Error("offloaded")
				}
				checkForgotten(t, l, nil)
				checkServes(t, l, client)
				if _, err := l.SendFile(testFile(t, []byte("x")), 0, 1, nil); err != ErrNotOffloaded {
					t.Errorf("SendFile: %v", err)
				}
				done := receive(client)
				if err := l.Close(); err != nil {
					t.Error(err)
				}
				checkReceived(t, <-done, nil)
			})
		}
	}
}

func TestUpgradeFaultAtHandshake(t *testing.T) {
	failStep(t, stepULP, errors.New("the test's own fault"))
	l := setup{opts: Options{Features: canEverything(), UpgradeAtHandshake: true}}.connect(t)
	client := l.withGo(nil)
	checkRefused(t, l.Upgrade(), ReasonKernel)
	if e := l.upgrades(); len(e) != 1 {
		t.Errorf("OnUpgrade was told %+v", e)
	}
	checkServes(t, l, client)
}

// Refusals of the kernel itself.

func TestUpgradeRefusedByForeignULP(t *testing.T) {
	needKTLS(t)
	l := setup{}.connect(t)
	client := l.withGo(nil)
	if err := control(l.sock, setULP); err != nil {
		t.Fatal(err)
	}
	err := l.Upgrade()
	checkRefused(t, err, ReasonKernel)
	if !errors.Is(err, unix.EEXIST) {
		t.Errorf("got %v, want EEXIST", err)
	}
	checkServes(t, l, client)
}

func TestUpgradeRefusedForHalfClosedPeer(t *testing.T) {
	needKTLS(t)
	l := setup{}.connect(t)
	client := l.withGo(nil)
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := l.peer.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Read(make([]byte, 1)); err != io.EOF {
		t.Fatal(err)
	}
	waitFor(t, "the FIN", func() bool { return tcpState(t, l.sock) == unix.BPF_TCP_CLOSE_WAIT })
	err := l.Upgrade()
	checkRefused(t, err, ReasonClosed)
	if !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("got %v, want ENOTCONN", err)
	}
	done := receive(client)
	if _, err := l.Write([]byte("still there")); err != nil {
		t.Error(err)
	}
	l.Close()
	checkReceived(t, <-done, []byte("still there"))
}

func tcpState(t testing.TB, conn *net.TCPConn) (state int) {
	t.Helper()
	err := control(conn, func(fd int) error {
		info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
		if err == nil {
			state = int(info.State)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// waitFor polls until ok.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(testTimeout); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// Where the kernel has no TLS but was believed to have it.
func TestUpgradeRefusedWithoutModule(t *testing.T) {
	if Probe().ULP.Errno != "ENOENT" {
		t.Skip("this kernel has TLS")
	}
	l := setup{opts: Options{Features: canEverything()}}.connect(t)
	client := l.withGo(nil)
	err := l.Upgrade()
	checkRefused(t, err, ReasonKernel)
	if !errors.Is(err, unix.ENOENT) {
		t.Errorf("got %v, want ENOENT", err)
	}
	checkServes(t, l, client)
}

func TestUpgradeWipesSecrets(t *testing.T) {
	for _, s := range []suite{upgradable[0], upgradable[3]} {
		t.Run(s.String(), func(t *testing.T) {
			needSuite(t, s)
			l := setup{}.connect(t)
			l.with(s)
			kept := [][]byte{l.tap.last}
			for _, b := range [][]byte{l.tap.secrets.handshake, l.tap.secrets.traffic, l.tap.secrets.master} {
				if b != nil {
					kept = append(kept, b)
				}
			}
			if len(kept) < 2 {
				t.Fatal("there are no secrets: the test tests nothing")
			}
			l.mustUpgrade()
			checkForgotten(t, l, kept)
		})
	}
}

func TestUpgradeRaisesNotsentLowat(t *testing.T) {
	needKTLS(t)
	const sysctl = "/proc/sys/net/ipv4/tcp_notsent_lowat"
	old, err := os.ReadFile(sysctl)
	if err != nil {
		t.Skip(err)
	}
	if err := os.WriteFile(sysctl, []byte("16384"), 0); err != nil {
		t.Skip(err)
	}
	defer os.WriteFile(sysctl, old, 0)
	l := setup{}.connect(t)
	l.withGo(nil)
	// notsentLowat has the value from before: what it would do is called here.
	if err := control(l.sock, func(fd int) error { return setNotsentLowat(fd, minNotsentLowat) }); err != nil {
		t.Fatal(err)
	}
	l.mustUpgrade()
	err = control(l.sock, func(fd int) error {
		n, err := unix.GetsockoptInt(fd, unix.SOL_TCP, unix.TCP_NOTSENT_LOWAT)
		if err == nil && n < minNotsentLowat {
			t.Errorf("TCP_NOTSENT_LOWAT is %d", n)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// What crypto/tls writes after the upgrade.

func TestAlertsOfCryptoTLSReachTheClient(t *testing.T) {
	eachSuite(t, func(t *testing.T, s suite) {
		needSuite(t, s)
		checkLeaks(t)
		l := setup{}.connect(t)
		client := l.with(s)
		l.mustUpgrade()
		checkServes(t, l, client)
		if _, err := l.peer.Write(garbage); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "bad record MAC") {
			t.Errorf("Read: %v", err)
		}
		checkBadRecordMAC(t, client)
		if _, err := l.Write([]byte("x")); err == nil {
			t.Error("Write after a fatal alert")
		}
		within(t, time.Second, "Close", func() { l.Close() })
		if g, ok := client.(*goClient); ok {
			if a := alerts(g.records(t)); len(a) != 1 || !bytes.Equal(a[0], []byte{alertLevelFatal, alertBadRecordMAC}) {
				t.Errorf("alerts %v", a)
			}
		}
	})
}

// crypto/tls refuses renegotiation by an alert that is a warning, and writes
// nothing more after it. The kernel must not either.
func TestRenegotiationEndsWriting(t *testing.T) {
	for _, upgraded := range []bool{false, true} {
		t.Run(fmt.Sprintf("upgraded %t", upgraded), func(t *testing.T) {
			if upgraded {
				needKTLS(t)
			}
			s := upgradable[3]
			l := setup{opts: Options{Features: canEverything()}}.connect(t)
			client := l.withGo(&tls.Config{MaxVersion: s.version, CipherSuites: []uint16{s.id}})
			if upgraded {
				l.mustUpgrade()
			}
			clientSends(t, client, RecordTypeHandshake, splitRecords(t, client.wire.written())[0][RecordHeaderLen:])
			if _, err := l.Read(make([]byte, 1)); err == nil {
				t.Error("the server renegotiates")
			}
			if _, err := l.Write([]byte("x")); err == nil {
				t.Error("Write after no_renegotiation")
			}
			if !upgraded {
				checkRefused(t, l.Upgrade(), ReasonClosed)
			}
		})
	}
}

// A record from crypto/tls that doesn't open under the proven key means that
// something is very wrong: nothing of it may be sent.
func TestInterceptRefusesUnknownRecords(t *testing.T) {
	l, client := upgradedLink13(t)
	if _, err := l.tap.Write(garbage); err == nil {
		t.Error("garbage was sent on")
	}
	if _, err := l.Read(make([]byte, 1)); err == nil {
		t.Error("the connection goes on")
	}
	if _, err := client.Read(make([]byte, 1)); err != io.ErrUnexpectedEOF {
		t.Errorf("the client sees %v", err)
	}
}
