package ktls

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/nettest"
)

func TestConnServesWithoutUpgrade(t *testing.T) {
	checkLeaks(t)
	eachSuite(t, func(t *testing.T, s suite) {
		l := setup{}.connect(t)
		client := l.with(s)
		checkServes(t, l, client)
		if i := l.Info(); i != (Info{Version: s.version, Cipher: s.cipher(), Lazy: true}) {
			t.Errorf("Info: %+v", i)
		}
		if len(l.upgrades()) != 0 || l.Offloaded() {
			t.Error("upgraded without being asked")
		}
		done := receive(client)
		if _, err := l.WriteMore([]byte("the end")); err != nil {
			t.Error(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		checkReceived(t, <-done, []byte("the end"))
	})
}

func TestHandshakeRunsAtFirstUse(t *testing.T) {
	for _, test := range []struct {
		name string
		use  func(*link) error
	}{
		{"Read", func(l *link) error { _, err := io.ReadFull(l.Conn, make([]byte, 5)); return err }},
		{"Write", func(l *link) error { _, err := l.Write([]byte("hello")); return err }},
		{"WriteMore", func(l *link) error { _, err := l.WriteMore([]byte("hello")); return err }},
		{"Handshake", func(l *link) error { return l.Handshake() }},
		{"HandshakeContext", func(l *link) error { return l.HandshakeContext(context.Background()) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := setup{}.connect(t)
			client := tls.Client(l.peer, &tls.Config{InsecureSkipVerify: true})
			go client.Write([]byte("hello"))
			if l.Info().Version != 0 {
				t.Error("there is a version before the handshake")
			}
			if err := test.use(l); err != nil {
				t.Fatal(err)
			}
			if l.Info().Version != tls.VersionTLS13 {
				t.Errorf("Info: %+v", l.Info())
			}
		})
	}
}

func TestHandshakeContextEnds(t *testing.T) {
	checkLeaks(t)
	l := setup{}.connect(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := l.HandshakeContext(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Handshake: %v", err)
	}
	checkRefused(t, l.Upgrade(), ReasonHandshake)
}

func TestConcurrentFirstUse(t *testing.T) {
	l := setup{}.connect(t)
	client := tls.Client(l.peer, &tls.Config{InsecureSkipVerify: true})
	const n = 8
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			if _, err := l.Write([]byte{'w'}); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() { l.Upgrade() }) // refused, whenever it comes
	}
	wg.Go(func() {
		if _, err := io.ReadFull(l.Conn, make([]byte, 1)); err != nil {
			t.Error(err)
		}
	})
	if _, err := client.Write([]byte{'r'}); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, n)
	if _, err := io.ReadFull(client, got); err != nil || strings.Trim(string(got), "w") != "" {
		t.Errorf("got %q, %v", got, err)
	}
	wg.Wait()
}

func TestSendFileNeedsUpgrade(t *testing.T) {
	l := setup{}.connect(t)
	f := testFile(t, []byte("content"))
	refused := func() {
		if n, err := l.SendFile(f, 0, 7, nil); n != 0 || err != ErrNotOffloaded {
			t.Errorf("SendFile: %d, %v", n, err)
		}
	}
	refused()
	client := l.withGo(nil)
	refused()
	checkServes(t, l, client)
}

func TestCloseSendsCloseNotifyBeforeUpgrade(t *testing.T) {
	l := setup{}.connect(t)
	client := l.withGo(nil)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if n, err := client.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("client read %d, %v", n, err)
	}
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
	if _, err := l.Write([]byte("x")); err == nil {
		t.Error("Write after Close")
	}
	if _, err := l.Read(make([]byte, 1)); err == nil {
		t.Error("Read after Close")
	}
}

func TestCloseBeforeHandshake(t *testing.T) {
	checkLeaks(t)
	l := setup{}.connect(t)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if n, err := l.peer.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("peer read %d, %v", n, err)
	}
}

func TestCloseWipesSecretsWithoutUpgrade(t *testing.T) {
	l := setup{}.connect(t)
	l.withGo(nil)
	kept := [][]byte{l.tap.secrets.handshake, l.tap.secrets.traffic, l.tap.last}
	for _, b := range kept {
		if len(b) == 0 {
			t.Fatal("there are no secrets: the test tests nothing")
		}
	}
	l.Close()
	checkForgotten(t, l, kept)
}

// checkForgotten checks that what only an upgrade needs is gone, from the tap
// and from the memory where it stood.
func checkForgotten(t testing.TB, l *link, kept [][]byte) {
	t.Helper()
	tp := l.tap
	if tp.secrets.handshake != nil || tp.secrets.traffic != nil || tp.secrets.master != nil || tp.last != nil {
		t.Error("the tap still has secrets")
	}
	if tp.send != nil && tp.send.opener != nil {
		t.Error("the tap still has an opener")
	}
	if tp.send != nil && !tp.key.change && bytes.Trim(tp.send.secret, "\x00") != nil {
		t.Error("the tap still has a traffic secret")
	}
	if tp.kernel == nil && tp.send != nil {
		t.Error("the tap still has keys")
	}
	for i, b := range kept {
		if len(bytes.Trim(b, "\x00")) != 0 {
			t.Errorf("secret %d was not overwritten", i)
		}
	}
}

func TestAbortEndsBlockedCalls(t *testing.T) {
	checkLeaks(t)
	l := setup{opts: Options{Features: canEverything()}}.connect(t)
	client := l.with13(tls.TLS_AES_128_GCM_SHA256, clientOptions{})
	why := errors.New("the test's own reason")
	read := make(chan error, 1)
	go func() {
		_, err := l.Read(make([]byte, 1))
		read <- err
	}()
	write := make(chan error, 1)
	go func() {
		var err error
		for err == nil {
			_, err = l.Write(make([]byte, 1<<16))
		}
		write <- err
	}()
	time.Sleep(20 * time.Millisecond)
	within(t, time.Second, "Abort", func() { l.Abort(why) })
	if err := <-read; !errors.Is(err, why) {
		t.Errorf("blocked Read: %v", err)
	}
	if err := <-write; !errors.Is(err, why) {
		t.Errorf("blocked Write: %v", err)
	}
	if _, err := l.Write([]byte("x")); !errors.Is(err, why) {
		t.Errorf("later Write: %v", err)
	}
	if _, err := l.Read(make([]byte, 1)); !errors.Is(err, why) {
		t.Errorf("later Read: %v", err)
	}
	if _, err := io.Copy(io.Discard, client); err != io.ErrUnexpectedEOF {
		t.Errorf("the client sees %v", err)
	}
	checkRefused(t, l.Upgrade(), ReasonClosed)
}

func TestAbortWithoutReason(t *testing.T) {
	l := setup{}.connect(t)
	l.withGo(nil)
	l.Abort(nil)
	if _, err := l.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read: %v", err)
	}
}

func TestAddressesAreThoseOfTheSocket(t *testing.T) {
	l := setup{}.connect(t)
	if l.LocalAddr() != l.sock.LocalAddr() || l.RemoteAddr().String() != l.peer.LocalAddr().String() {
		t.Errorf("%v, %v", l.LocalAddr(), l.RemoteAddr())
	}
}

// Refusals that no kernel is asked for.

func TestUpgradeRefusedBeforeHandshakeMayBeTriedAgain(t *testing.T) {
	l := setup{opts: Options{Features: new(Features)}}.connect(t)
	checkRefused(t, l.Upgrade(), ReasonHandshake)
	if n := len(l.upgrades()); n != 0 {
		t.Errorf("OnUpgrade was called %d times", n)
	}
	l.withGo(nil)
	checkRefused(t, l.Upgrade(), ReasonKernel)
}

func TestUpgradeRefusals(t *testing.T) {
	for _, test := range []struct {
		name   string
		setup  setup
		client *tls.Config
		before func(*link)
		reason string
	}{
		{name: "kernel can't", setup: setup{opts: Options{Features: new(Features)}}, reason: ReasonKernel},
		{
			name: "kernel can't do this cipher",
			setup: setup{opts: Options{Features: &Features{TX: map[Combination]Answer{
				{tls.VersionTLS13, AES128GCM}: {Support: Yes}, {tls.VersionTLS12, AES256GCM}: {Support: Yes},
			}}}},
			client: &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}},
			reason: ReasonKernel,
		},
		{
			name:   "CBC",
			client: &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}},
			reason: ReasonCipher,
		},
		{
			name:   "TLS 1.1",
			setup:  setup{config: &tls.Config{MinVersion: tls.VersionTLS10}},
			client: &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
			reason: ReasonVersion,
		},
		{
			name:   "TLS 1.0",
			setup:  setup{config: &tls.Config{MinVersion: tls.VersionTLS10}},
			client: &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10},
			reason: ReasonVersion,
		},
		{
			name:   "wrapper that isn't known",
			setup:  setup{wrap: func(c net.Conn) net.Conn { return struct{ net.Conn }{c} }},
			reason: ReasonNotTCP,
		},
		{
			name: "wrapper that isn't known below one that is",
			setup: setup{
				wrap: func(c net.Conn) net.Conn { return &shortWriter{Conn: struct{ net.Conn }{c}} },
				opts: Options{Below: func(c net.Conn) net.Conn {
					if w, ok := c.(*shortWriter); ok {
						return w.Conn
					}
					return nil
				}},
			},
			reason: ReasonNotTCP,
		},
		{name: "config not of ServerConfig", setup: setup{foreign: true}, reason: ReasonUnproven},
		{name: "after CloseWrite", before: func(l *link) { l.CloseWrite() }, reason: ReasonClosed},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := test.setup
			if s.config == nil {
				s.config = testServerConfig(t)
			} else {
				s.config.Certificates = testServerConfig(t).Certificates
			}
			if s.opts.Features == nil {
				s.opts.Features = canEverything()
			}
			l := s.connect(t)
			client := l.withGo(test.client)
			if test.before != nil {
				test.before(l)
			}
			first := l.Upgrade()
			checkRefused(t, first, test.reason)
			if second := l.Upgrade(); second != first {
				t.Errorf("second Upgrade: %v, want %v again", second, first)
			}
			if e := l.upgrades(); len(e) != 1 || e[0].err != first || e[0].info != l.Info() || e[0].info.Offloaded {
				t.Errorf("OnUpgrade was told %+v", e)
			}
			if test.before == nil {
				checkServes(t, l, client)
			}
			checkForgotten(t, l, nil)
		})
	}
}

func TestUpgradeAtHandshakeRefused(t *testing.T) {
	l := setup{opts: Options{Features: new(Features), UpgradeAtHandshake: true}}.connect(t)
	client := l.withGo(nil) // fails if the handshake does
	if e := l.upgrades(); len(e) != 1 || e[0].info.Lazy {
		t.Fatalf("OnUpgrade was told %+v", e)
	} else {
		checkRefused(t, e[0].err, ReasonKernel)
	}
	checkServes(t, l, client)
}

// TestUpgradeAtHandshakeOfChallenge: a connection of an ACME CA ends with its
// handshake, and isn't moved before.
func TestUpgradeAtHandshakeOfChallenge(t *testing.T) {
	for _, proto := range []string{"acme-tls/1", "http/1.1"} {
		t.Run(proto, func(t *testing.T) {
			config := testServerConfig(t)
			config.NextProtos = []string{proto}
			l := setup{config: config, opts: Options{Features: new(Features), UpgradeAtHandshake: true}}.connect(t)
			client := l.withGo(&tls.Config{NextProtos: []string{proto}})
			if tried := len(l.upgrades()); tried != map[string]int{"http/1.1": 1}[proto] {
				t.Errorf("%d upgrades were tried", tried)
			}
			checkServes(t, l, client)
		})
	}
}

func TestUpgradeRefusedAfterClose(t *testing.T) {
	l := setup{opts: Options{Features: canEverything()}}.connect(t)
	l.withGo(nil)
	l.Close()
	checkRefused(t, l.Upgrade(), ReasonClosed)
}

func TestUpgradeRefusedOnPipe(t *testing.T) {
	checkLeaks(t)
	a, b := net.Pipe()
	defer b.Close()
	l := &link{t: t}
	l.start(setup{opts: Options{Features: canEverything()}}, a)
	client := tls.Client(b, &tls.Config{InsecureSkipVerify: true})
	l.handshake(client.Handshake)
	checkRefused(t, l.Upgrade(), ReasonNotTCP)
	checkServes(t, l, client)
}

func TestUpgradeRefusedOnUnixSocket(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no need")
	}
	checkLeaks(t)
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	b, err := net.Dial("unix", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	a, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	l := &link{t: t}
	l.start(setup{opts: Options{Features: canEverything()}}, a)
	client := tls.Client(b, &tls.Config{InsecureSkipVerify: true})
	l.handshake(client.Handshake)
	checkRefused(t, l.Upgrade(), ReasonNotTCP)
	checkServes(t, l, client)
}

// What crypto/tls answers to garbage ends writing for good, with kernel or
// without: an upgrade must not bring the connection back to life.
func TestUpgradeRefusedAfterFatalAlert(t *testing.T) {
	for _, s := range []suite{upgradable[0], upgradable[3]} {
		t.Run(s.String(), func(t *testing.T) {
			l := setup{opts: Options{Features: canEverything()}}.connect(t)
			client := l.with(s)
			if _, err := l.peer.Write(garbage); err != nil {
				t.Fatal(err)
			}
			if _, err := l.Read(make([]byte, 1)); err == nil {
				t.Fatal("garbage was read")
			}
			checkRefused(t, l.Upgrade(), ReasonClosed)
			checkBadRecordMAC(t, client)
			if _, err := l.Write([]byte("x")); err == nil {
				t.Error("Write after a fatal alert")
			}
		})
	}
}

// garbage is a record that no key opens.
var garbage = append([]byte{RecordTypeApplicationData, 3, 3, 0, 40}, make([]byte, 40)...)

// checkBadRecordMAC checks that the client gets this alert, properly encrypted.
func checkBadRecordMAC(t testing.TB, client net.Conn) {
	t.Helper()
	_, err := client.Read(make([]byte, 1))
	switch client.(type) {
	case *client13:
		if err != alertError(alertBadRecordMAC) {
			t.Errorf("the client sees %v", err)
		}
	default:
		if err == nil || err.Error() != "remote error: tls: bad record MAC" {
			t.Errorf("the client sees %v", err)
		}
	}
}

func TestErrorsHaveNoSecrets(t *testing.T) {
	for _, s := range []suite{upgradable[0], upgradable[3]} {
		l := setup{opts: Options{Features: canEverything()}}.connect(t)
		l.with(s)
		var secrets []string
		for _, b := range [][]byte{l.tap.secrets.handshake, l.tap.secrets.traffic, l.tap.secrets.master} {
			if len(b) > 0 {
				secrets = append(secrets, fmt.Sprintf("%x", b[:8]), fmt.Sprintf("%v", b[:8])[1:20], string(b[:8]))
			}
		}
		if len(secrets) == 0 {
			t.Fatal("no secrets")
		}
		l.tap.last[10] ^= 1
		err := l.Upgrade()
		checkRefused(t, err, ReasonUnproven)
		for e := err; e != nil; e = errors.Unwrap(e) {
			text := fmt.Sprintf("%v %+v %#v", e, e, e)
			for _, secret := range secrets {
				if strings.Contains(text, secret) {
					t.Errorf("%T has a secret in it", e)
				}
			}
		}
	}
}

// The conformance suite for connections, with and without the upgrade. Four of
// its tests go on writing after a write has timed out, which no TLS connection
// can: they are left out, and fail (or hang for a minute) with crypto/tls alone.
// As nettest can't leave a test out, it runs in a process of its own.
var nettestSkip = []string{"PastTimeout", "PresentTimeout", "FutureTimeout", "ConcurrentMethods"}

var nettestKinds = map[string]func(t *testing.T) func(net.Conn, *tls.Config) (net.Conn, error){
	"crypto_tls": func(t *testing.T) func(net.Conn, *tls.Config) (net.Conn, error) {
		return func(c net.Conn, config *tls.Config) (net.Conn, error) {
			conn := tls.Server(c, config)
			return conn, conn.Handshake()
		}
	},
	"plain": func(t *testing.T) func(net.Conn, *tls.Config) (net.Conn, error) {
		return func(c net.Conn, config *tls.Config) (net.Conn, error) {
			conn := Server(c, ServerConfig(config), nil)
			return conn, conn.Handshake()
		}
	},
	"lazy": func(t *testing.T) func(net.Conn, *tls.Config) (net.Conn, error) {
		needKTLS(t)
		return func(c net.Conn, config *tls.Config) (net.Conn, error) {
			conn := Server(c, ServerConfig(config), nil)
			if err := conn.Handshake(); err != nil {
				return nil, err
			}
			return conn, conn.Upgrade()
		}
	},
	"handshake": func(t *testing.T) func(net.Conn, *tls.Config) (net.Conn, error) {
		needKTLS(t)
		return func(c net.Conn, config *tls.Config) (net.Conn, error) {
			conn := Server(c, ServerConfig(config), &Options{UpgradeAtHandshake: true})
			err := conn.Handshake()
			if err == nil && !conn.Offloaded() {
				err = errors.New("not offloaded")
			}
			return conn, err
		}
	},
	"rx": func(t *testing.T) func(net.Conn, *tls.Config) (net.Conn, error) {
		needKTLS(t)
		return func(c net.Conn, config *tls.Config) (net.Conn, error) {
			conn := Server(c, ServerConfig(config), &Options{RX: true, UpgradeAtHandshake: true})
			err := conn.Handshake()
			if err == nil && conn.tap.rxState.Load() != rxSingle {
				err = errors.New("the kernel won't receive")
			}
			return conn, err
		}
	},
}

func TestNettest(t *testing.T) {
	if kind := os.Getenv("KTLS_NETTEST"); kind != "" {
		makeServer := nettestKinds[kind](t)
		config := testServerConfig(t)
		listener := listenLoopback(t)
		nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
			b, err := net.Dial("tcp", listener.Addr().String())
			if err != nil {
				return nil, nil, nil, err
			}
			a, err := listener.Accept()
			if err != nil {
				return nil, nil, nil, err
			}
			client := tls.Client(b, &tls.Config{InsecureSkipVerify: true})
			go client.Handshake()
			server, err := makeServer(a, config)
			if err != nil {
				return nil, nil, nil, err
			}
			return server, client, func() { server.Close(); client.Close() }, nil
		})
		return
	}
	if testing.Short() {
		t.Skip("takes seconds")
	}
	for _, kind := range []string{"crypto_tls", "plain", "lazy", "handshake", "rx"} {
		t.Run(kind, func(t *testing.T) {
			nettestKinds[kind](t) // skips
			cmd := exec.Command(os.Args[0], "-test.run=^TestNettest$/", "-test.v", "-test.count=1",
				"-test.timeout=100s", "-test.skip=/^("+strings.Join(nettestSkip, "|")+")$")
			cmd.Env = append(os.Environ(), "KTLS_NETTEST="+kind)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if n := strings.Count(string(out), "--- PASS: TestNettest/"); n != 11-len(nettestSkip) {
				t.Errorf("%d tests passed:\n%s", n, out)
			}
		})
	}
}

// The proof costs as much as a good part of a handshake: the close_notify of a
// connection that never needed it must not ask for one.
func TestCloseNeedsNoProof(t *testing.T) {
	l := setup{}.connect(t)
	client := l.withGo(nil)
	checkServes(t, l, client)
	l.tap.secrets.wipe() // a proof would fail, and leave its mark
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if l.tap.lost != nil {
		t.Errorf("Close wanted a proof: %v", l.tap.lost)
	}
}
