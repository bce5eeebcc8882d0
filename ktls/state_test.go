package ktls

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"go/ast"
	"go/doc/comment"
	"go/parser"
	"go/token"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// states are those of the table in the package's documentation.
var states = []string{"handshake", "crypto/tls", "kernel sends", "closed"}

// optionalState is a line where it makes a difference.
const optionalState = "kernel reads"

// TestStateTable: each event of the package documentation's table has a line for
// each state, and ends with the name of a test that there is, or with "-" where
// the event can't happen.
func TestStateTable(t *testing.T) {
	tests := map[string]bool{"-": true}
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	for _, name := range files {
		f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
				tests[fn.Name.Name] = true
			}
		}
	}
	f, err := parser.ParseFile(fset, "doc.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var table string
	var heading bool
	for _, block := range new(comment.Parser).Parse(f.Doc.Text()).Content {
		switch b := block.(type) {
		case *comment.Heading:
			heading = fmt.Sprint(b.Text[0]) == "Events and states"
		case *comment.Code:
			if heading {
				table += b.Text
			}
		}
	}
	events, event, missing := 0, "", []string(nil)
	end := func() {
		if len(missing) > 0 {
			t.Errorf("%s: nothing about %q", event, missing)
		}
	}
	for line := range strings.Lines(table) {
		line = strings.TrimRight(line, "\n")
		if line == "" {
			continue
		}
		cell, ok := strings.CutPrefix(line, "  ")
		if !ok {
			end()
			events++
			event, missing = line, slices.Clone(states)
			continue
		}
		fields := strings.Fields(cell)
		if test := fields[len(fields)-1]; !tests[test] {
			t.Errorf("%s: there is no %s", event, test)
		}
		if strings.HasPrefix(cell, optionalState+" ") {
			continue
		}
		i := slices.IndexFunc(states, func(s string) bool { return strings.HasPrefix(cell, s+" ") })
		if i < 0 {
			t.Errorf("%s: no state in %q", event, cell)
			continue
		}
		missing = slices.DeleteFunc(missing, func(s string) bool { return s == states[i] })
	}
	end()
	if events == 0 {
		t.Error("there is no table")
	}
}

// both are one suite of each version.
var both = []suite{upgradable[0], upgradable[3]}

// eachState runs a test with both versions, before the upgrade and after it.
func eachState(t *testing.T, test func(t *testing.T, s suite, l *link, client net.Conn)) {
	for _, s := range both {
		for _, upgraded := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v upgraded %t", s, upgraded), func(t *testing.T) {
				if upgraded {
					needSuite(t, s)
				}
				checkLeaks(t)
				l := setup{opts: Options{Features: canEverything()}}.connect(t)
				client := l.with(s)
				if upgraded {
					l.mustUpgrade()
				}
				test(t, s, l, client)
			})
		}
	}
}

// eachStateAndClosed does so before and after CloseWrite.
func eachStateAndClosed(t *testing.T, test func(t *testing.T, s suite, l *link, client net.Conn, closed bool)) {
	for _, closed := range []bool{false, true} {
		t.Run(fmt.Sprintf("closed %t", closed), func(t *testing.T) {
			eachState(t, func(t *testing.T, s suite, l *link, client net.Conn) {
				if closed {
					if err := l.CloseWrite(); err != nil {
						t.Fatal(err)
					}
				}
				test(t, s, l, client, closed)
			})
		})
	}
}

// checkLastWords writes and closes, and checks what the client gets.
func checkLastWords(t *testing.T, l *link, client net.Conn, closed bool) {
	t.Helper()
	words := []byte("last words")
	n, err := l.Write(words)
	switch {
	case closed && (n != 0 || err == nil):
		t.Errorf("Write after CloseWrite: %d, %v", n, err)
	case !closed && err != nil:
		t.Errorf("Write: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	checkReceived(t, <-receive(client), words[:n])
}

// clientSends sends a record of the client's, properly encrypted.
func clientSends(t testing.TB, client net.Conn, typ byte, data []byte) {
	t.Helper()
	var err error
	switch c := client.(type) {
	case *client13:
		err = c.send(typ, data)
	case *goClient:
		_, err = c.wire.Write(c.seal12(t, typ, data))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// seal12 returns the next record of a TLS 1.2 client, which crypto/tls knows
// nothing of: it must not write any more.
func (c *goClient) seal12(t testing.TB, typ byte, data []byte) []byte {
	t.Helper()
	keys, _ := c.keys12(t)
	o, err := NewOpener(keys)
	if err != nil {
		t.Fatal(err)
	}
	records := splitRecords(t, c.wire.written())
	ccs := slices.IndexFunc(records, func(r []byte) bool { return r[0] == RecordTypeChangeCipherSpec })
	return o.Seal(nil, typ, data, uint64(len(records)-ccs-1))
}

// keys12 returns the keys of a TLS 1.2 connection, the client's and the server's.
func (c *goClient) keys12(t testing.TB) (client, server *Keys) {
	t.Helper()
	var clientRandom, serverRandom [32]byte
	copy(clientRandom[:], c.wire.written()[RecordHeaderLen+6:])
	copy(serverRandom[:], c.wire.read()[RecordHeaderLen+6:])
	client, server, err := TLS12Keys(c.ConnectionState().CipherSuite, c.keys.secret(LabelTLS12), clientRandom, serverRandom)
	if err != nil {
		t.Fatal(err)
	}
	return client, server
}

// isAlert reports whether err is how a client says that it got an alert.
func isAlert(err error, desc byte) bool {
	var a alertError
	if errors.As(err, &a) {
		return byte(a) == desc
	}
	var oe *net.OpError
	return errors.As(err, &oe) && oe.Op == "remote error" && oe.Err.Error() == tls.AlertError(desc).Error()
}

// What the peer does to a handshake ends it, and the connection with it.
func TestHandshakeFaults(t *testing.T) {
	plain := func(typ byte, data ...byte) []byte {
		return append([]byte{typ, 3, 3, byte(len(data) >> 8), byte(len(data))}, data...)
	}
	raw := func(record ...byte) func(*testing.T, *link) error {
		return func(t *testing.T, l *link) error {
			l.peer.Write(record)
			return nil
		}
	}
	after := func(do func(c *client13) error) func(*testing.T, *link) error {
		return func(t *testing.T, l *link) error {
			c, err := dial13(l.peer, tls.TLS_AES_128_GCM_SHA256, clientOptions{instead: do})
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Read(make([]byte, 1))
			return err
		}
	}
	for _, test := range []struct {
		name  string
		peer  func(*testing.T, *link) error // returns what the client sees, if anything
		err   string                        // of Handshake
		alert byte                          // that the client gets, if any
	}{
		{"fatal alert", raw(plain(RecordTypeAlert, alertLevelFatal, alertInternalError)...), "remote error: tls: internal error", 0},
		{"fatal alert after ServerHello", after(func(c *client13) error {
			defer c.Conn.(*net.TCPConn).CloseWrite()
			return c.send(RecordTypeAlert, []byte{alertLevelFatal, alertInternalError})
		}), "remote error: tls: internal error", 0},
		{"close_notify", raw(plain(RecordTypeAlert, 1, alertCloseNotify)...), "EOF", 0},
		{"end", func(t *testing.T, l *link) error { return l.peer.CloseWrite() }, "EOF", 0},
		{"end after ServerHello", after(func(c *client13) error { return c.Conn.(*net.TCPConn).CloseWrite() }), "EOF", 0},
		{"end within a record", func(t *testing.T, l *link) error {
			l.peer.Write([]byte{RecordTypeHandshake, 3, 1})
			return l.peer.CloseWrite()
		}, "unexpected EOF", 0},
		{"reset", func(t *testing.T, l *link) error { l.peer.SetLinger(0); return l.peer.Close() }, "reset", 0},
		{"KeyUpdate", after(func(c *client13) error { return c.keyUpdate(false) }), "unexpected", alertUnexpectedMessage},
		{"KeyUpdate with request", after(func(c *client13) error { return c.keyUpdate(true) }), "unexpected", alertUnexpectedMessage},
		{"forged record", after(func(c *client13) error {
			_, err := c.Conn.Write(garbage)
			return err
		}), "bad record MAC", alertBadRecordMAC},
		{"second ClientHello", func(t *testing.T, l *link) error {
			client := tls.Client(&twice{Conn: l.peer}, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
			return client.Handshake()
		}, "unexpected", alertUnexpectedMessage},
	} {
		t.Run(test.name, func(t *testing.T) {
			checkLeaks(t)
			l := setup{}.connect(t)
			server := make(chan error, 1)
			go func() { server <- l.Handshake() }()
			client := make(chan error, 1)
			go func() { client <- test.peer(t, l) }()
			err := <-server
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("Handshake: %v", err)
			}
			l.CloseWrite()
			l.sock.CloseWrite()
			if err := <-client; test.alert != 0 && !isAlert(err, test.alert) {
				t.Errorf("the client sees %v", err)
			}
			if n, err := l.Write([]byte("x")); n != 0 || err == nil {
				t.Errorf("Write: %d, %v", n, err)
			}
			checkRefused(t, l.Upgrade(), ReasonHandshake)
			if err := l.Close(); err != nil && test.name != "reset" {
				t.Errorf("Close: %v", err)
			}
		})
	}
}

// twice sends its first record, a TLS 1.2 ClientHello, two times.
type twice struct {
	net.Conn
	done bool
}

func (w *twice) Write(p []byte) (int, error) {
	n, err := w.Conn.Write(p)
	if err == nil && !w.done {
		w.done = true
		p = slices.Clone(p)
		p[2] = 3 // the first one may say TLS 1.0, the others may not
		_, err = w.Conn.Write(p)
	}
	return n, err
}

func TestWarningDuringHandshake(t *testing.T) {
	for _, s := range both {
		t.Run(s.String(), func(t *testing.T) {
			l := setup{}.connect(t)
			const noCertificate = 41
			if _, err := l.peer.Write([]byte{RecordTypeAlert, 3, 1, 0, 2, 1, noCertificate}); err != nil {
				t.Fatal(err)
			}
			checkServes(t, l, l.with(s))
		})
	}
}

func TestHandshakeDeadlines(t *testing.T) {
	past := time.Now().Add(-time.Second)
	for name, set := range map[string]func(*link) error{
		"read":  func(l *link) error { return l.SetReadDeadline(past) },
		"write": func(l *link) error { return l.SetWriteDeadline(past) },
	} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			l := setup{}.connect(t)
			if err := set(l); err != nil {
				t.Fatal(err)
			}
			client := make(chan error, 1)
			go func() { client <- tls.Client(l.peer, &tls.Config{InsecureSkipVerify: true}).Handshake() }()
			if err := l.Handshake(); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("Handshake: %v", err)
			}
			l.SetDeadline(time.Now().Add(testTimeout))
			if _, err := l.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("Write: %v", err)
			}
			l.Close()
			if err := <-client; err == nil {
				t.Error("the client has a connection")
			}
		})
	}
}

// A handshake that is closed ends without a word. CloseWrite is for later.
func TestCloseDuringHandshake(t *testing.T) {
	why := errors.New("the test's own reason")
	for name, end := range map[string]struct {
		close func(*link)
		err   error
	}{
		"Close": {func(l *link) { l.Close() }, net.ErrClosed},
		"Abort": {func(l *link) { l.Abort(why) }, why},
	} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			l := setup{}.connect(t)
			read := make(chan error, 1)
			go func() {
				_, err := l.Read(make([]byte, 1))
				read <- err
			}()
			l.peer.Write([]byte{RecordTypeHandshake, 3, 1, 1}) // of a hello that never comes
			if err := l.CloseWrite(); err == nil {
				t.Error("CloseWrite before the handshake")
			}
			within(t, time.Second, name, func() { end.close(l) })
			if err := <-read; !errors.Is(err, end.err) {
				t.Errorf("Read: %v", err)
			}
			if b, err := io.ReadAll(l.peer); len(b) > 0 {
				t.Errorf("the client got %x, %v", b, err)
			}
		})
	}
}

// A fatal alert of the peer's ends reading. Writing goes on, as with crypto/tls,
// until the caller closes or the peer does.
func TestFatalAlertReceived(t *testing.T) {
	eachStateAndClosed(t, func(t *testing.T, s suite, l *link, client net.Conn, closed bool) {
		clientSends(t, client, RecordTypeAlert, []byte{alertLevelFatal, alertInternalError})
		for range 2 {
			if n, err := l.Read(make([]byte, 1)); n != 0 || !isAlert(err, alertInternalError) {
				t.Errorf("Read: %d, %v", n, err)
			}
		}
		checkLastWords(t, l, client, closed)
	})
}

// A warning of TLS 1.2 changes nothing; TLS 1.3 has none.
func TestWarningReceived(t *testing.T) {
	eachStateAndClosed(t, func(t *testing.T, s suite, l *link, client net.Conn, closed bool) {
		const noRenegotiation = 100
		clientSends(t, client, RecordTypeAlert, []byte{1, noRenegotiation})
		clientSends(t, client, RecordTypeApplicationData, []byte("x"))
		n, err := l.Read(make([]byte, 1))
		if s.version == tls.VersionTLS12 && (n != 1 || err != nil) || s.version == tls.VersionTLS13 && !isAlert(err, noRenegotiation) {
			t.Errorf("Read: %d, %v", n, err)
		}
		checkLastWords(t, l, client, closed)
	})
}

// The peer's close_notify is the end of reading alone.
func TestCloseNotifyReceived(t *testing.T) {
	eachStateAndClosed(t, func(t *testing.T, s suite, l *link, client net.Conn, closed bool) {
		clientSends(t, client, RecordTypeAlert, []byte{1, alertCloseNotify})
		for range 2 {
			if n, err := l.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("Read: %d, %v", n, err)
			}
		}
		checkLastWords(t, l, client, closed)
	})
}

// An end of TCP without close_notify ends reading: with an error within a
// record, and else as crypto/tls has it.
func TestEndWithoutCloseNotify(t *testing.T) {
	for part, want := range map[int]error{0: io.EOF, 3: io.ErrUnexpectedEOF, len(garbage) - 1: io.ErrUnexpectedEOF} {
		t.Run(fmt.Sprintf("%d bytes of a record", part), func(t *testing.T) {
			eachStateAndClosed(t, func(t *testing.T, s suite, l *link, client net.Conn, closed bool) {
				l.peer.Write(garbage[:part])
				if err := l.peer.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				if n, err := l.Read(make([]byte, 1)); n != 0 || err != want {
					t.Errorf("Read: %d, %v", n, err)
				}
				checkLastWords(t, l, client, closed)
			})
		})
	}
}

// A read that times out is no harm.
func TestReadDeadline(t *testing.T) {
	eachStateAndClosed(t, func(t *testing.T, s suite, l *link, client net.Conn, closed bool) {
		l.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if _, err := l.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read: %v", err)
		}
		l.SetReadDeadline(time.Now().Add(testTimeout))
		checkReads(t, l, client)
		checkLastWords(t, l, client, closed)
	})
}

// A reset ends all.
func TestPeerReset(t *testing.T) {
	eachStateAndClosed(t, func(t *testing.T, s suite, l *link, client net.Conn, closed bool) {
		l.peer.SetLinger(0)
		l.peer.Close()
		if n, err := l.Read(make([]byte, 1)); n != 0 || err == nil || err == io.EOF {
			t.Errorf("Read: %d, %v", n, err)
		}
		if n, err := l.Write([]byte("x")); n != 0 || err == nil {
			t.Errorf("Write: %d, %v", n, err)
		}
		if !l.Offloaded() {
			checkRefused(t, l.Upgrade(), ReasonClosed)
		}
		within(t, time.Second, "Close", func() { l.Close() })
	})
}

// A KeyUpdate that wants no answer changes the key of reading alone. TLS 1.2 has
// none.
func TestKeyUpdateReceived(t *testing.T) {
	eachState(t, func(t *testing.T, s suite, l *link, client net.Conn) {
		c, ok := client.(*client13)
		if !ok {
			clientSends(t, client, RecordTypeHandshake, keyUpdateMsg)
			if _, err := l.Read(make([]byte, 1)); err == nil {
				t.Error("a KeyUpdate of TLS 1.2")
			}
			checkFatal(t, l, client, alertUnexpectedMessage)
			return
		}
		for range 3 {
			if err := c.keyUpdate(false); err != nil {
				t.Fatal(err)
			}
			checkServes(t, l, client)
		}
		if c.updates != 0 {
			t.Errorf("%d KeyUpdates answered", c.updates)
		}
	})
}

var keyUpdateMsg = []byte{msgKeyUpdate, 0, 0, 1, 0}

// After a fatal alert not even close_notify is sent.
func TestFatalAlertIsTheLastRecord(t *testing.T) {
	eachState(t, func(t *testing.T, s suite, l *link, client net.Conn) {
		if _, err := l.peer.Write(garbage); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Read(make([]byte, 1)); err == nil {
			t.Error("garbage was read")
		}
		checkFatal(t, l, client, alertBadRecordMAC)
	})
}

// checkFatal checks that the server has sent an alert as its last record, and
// closes it.
func checkFatal(t testing.TB, l *link, client net.Conn, desc byte) {
	t.Helper()
	if n, err := l.Write([]byte("x")); n != 0 || err == nil {
		t.Errorf("Write: %d, %v", n, err)
	}
	if !l.Offloaded() {
		checkRefused(t, l.Upgrade(), ReasonClosed)
	}
	within(t, time.Second, "Close", func() { l.Close() })
	if _, err := client.Read(make([]byte, 1)); !isAlert(err, desc) {
		t.Errorf("the client sees %v", err)
	}
	switch c := client.(type) {
	case *client13:
		if r, err := c.rawRecord(); err != io.EOF {
			t.Errorf("after the alert came %x, %v", r, err)
		}
	case *goClient:
		io.Copy(io.Discard, c.wire)
		if a := alerts(c.records(t)); len(a) != 1 || a[0][0] != alertLevelFatal || a[0][1] != desc {
			t.Errorf("alerts %v", a)
		}
	}
}

// Nothing follows our close_notify: no alert, no answer to a KeyUpdate, no
// second one. Reading goes on, under the peer's next key too.
func TestNothingFollowsCloseNotify(t *testing.T) {
	for name, fault := range map[string]func(t *testing.T, l *link, client net.Conn){
		"forged record": func(t *testing.T, l *link, client net.Conn) { l.peer.Write(garbage) },
		// Of TLS 1.2 a renegotiation; neither is for a server of TLS 1.3.
		"ClientHello": func(t *testing.T, l *link, client net.Conn) {
			clientSends(t, client, RecordTypeHandshake, clientHello13(tls.TLS_AES_128_GCM_SHA256, make([]byte, 32), clientOptions{}))
		},
		"two KeyUpdates in a record": func(t *testing.T, l *link, client net.Conn) {
			clientSends(t, client, RecordTypeHandshake, append(keyUpdateMsg, keyUpdateMsg...))
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachState(t, func(t *testing.T, s suite, l *link, client net.Conn) {
				for range 2 { // neither does a second one
					if err := l.CloseWrite(); err != nil {
						t.Fatalf("CloseWrite: %v", err)
					}
				}
				checkReads(t, l, client)
				if c, ok := client.(*client13); ok {
					for _, request := range []bool{true, false, true} {
						if err := c.keyUpdate(request); err != nil {
							t.Fatal(err)
						}
						checkReads(t, l, client)
					}
				}
				fault(t, l, client)
				if n, err := l.Read(make([]byte, 1)); n != 0 || err == nil || err == io.EOF {
					t.Errorf("Read: %d, %v", n, err)
				}
				if err := l.Upgrade(); !l.Offloaded() {
					checkRefused(t, err, ReasonClosed)
				}
				if err := l.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
				checkOnlyCloseNotify(t, client)
			})
		})
	}
}

// checkOnlyCloseNotify checks that the client gets close_notify, and nothing
// else before or after it.
func checkOnlyCloseNotify(t testing.TB, client net.Conn) {
	t.Helper()
	checkReceived(t, <-receive(client), nil)
	switch c := client.(type) {
	case *client13:
		if r, err := c.rawRecord(); err != io.EOF {
			t.Errorf("after close_notify came %x, %v", r, err)
		}
		if c.updates != 0 {
			t.Errorf("%d KeyUpdates", c.updates)
		}
	case *goClient:
		io.Copy(io.Discard, c.wire)
		if a := alerts(c.records(t)); len(a) != 1 || a[0][1] != alertCloseNotify {
			t.Errorf("alerts %v", a)
		}
	}
}

// What comes after Close or Abort fails, and says which of the two it was.
func TestCallsAfterTheEnd(t *testing.T) {
	why := errors.New("the test's own reason")
	for _, end := range []struct {
		name string
		end  func(*link)
		err  error
	}{
		{"Close", func(l *link) { l.Close() }, net.ErrClosed},
		{"Abort", func(l *link) { l.Abort(why) }, why},
		{"Close, Abort", func(l *link) { l.Close(); l.Abort(why) }, nil},
	} {
		t.Run(end.name, func(t *testing.T) {
			eachState(t, func(t *testing.T, s suite, l *link, client net.Conn) {
				offloaded := l.Offloaded()
				end.end(l)
				fails := func(call string, err error) {
					if err == nil || end.err != nil && !errors.Is(err, end.err) {
						t.Errorf("%s: %v", call, err)
					}
				}
				_, err := l.Read(make([]byte, 1))
				fails("Read", err)
				_, err = l.Write([]byte("x"))
				fails("Write", err)
				_, err = l.WriteMore([]byte("x"))
				fails("WriteMore", err)
				if offloaded {
					_, err = l.SendFile(testFile(t, []byte("x")), 0, 1, nil)
					fails("SendFile", err)
				} else {
					checkRefused(t, l.Upgrade(), ReasonClosed)
				}
				within(t, time.Second, "CloseWrite", func() { l.CloseWrite() })
				if err := l.Close(); !errors.Is(err, net.ErrClosed) {
					t.Errorf("second Close: %v", err)
				}
				if end.name != "Abort" {
					checkOnlyCloseNotify(t, client)
				} else if got := <-receive(client); got.n != 0 || s.version == tls.VersionTLS13 && got.err != io.ErrUnexpectedEOF {
					t.Errorf("the client sees %+v", got)
				}
			})
		})
	}
}

// blocked has a Write in flight, of which the client has got a byte and not yet
// the rest.
func blocked(t *testing.T, l *link, client net.Conn) (content []byte, done <-chan error) {
	t.Helper()
	return blockedIn(t, l.Write, client)
}

func blockedIn(t *testing.T, write func([]byte) (int, error), client net.Conn) (content []byte, done <-chan error) {
	t.Helper()
	content = randomBytes(bigFile)
	errs := make(chan error, 1)
	go func(p []byte) {
		_, err := write(p)
		errs <- err
	}(content)
	if _, err := io.ReadFull(client, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return content[1:], errs
}

// checkCut checks that the client gets a beginning of content and no
// close_notify.
func checkCut(t testing.TB, client net.Conn, content []byte) {
	t.Helper()
	if c, ok := client.(*client13); ok {
		checkTruncated(t, c, content)
		return
	}
	// crypto/tls's client takes an end between two records for close_notify.
	got, err := io.ReadAll(client)
	if err != nil && err != io.ErrUnexpectedEOF {
		t.Errorf("the client sees %v", err)
	}
	if len(got) >= len(content) || !bytes.HasPrefix(content, got) {
		t.Errorf("the client got %d bytes that aren't a beginning of what was sent", len(got))
	}
	if a := alerts(client.(*goClient).records(t)); len(a) > 0 {
		t.Errorf("the client got alerts %v", a)
	}
}

func TestCloseDuringWrite(t *testing.T) {
	eachState(t, func(t *testing.T, s suite, l *link, client net.Conn) {
		content, done := blocked(t, l, client)
		within(t, time.Second, "Close", func() { l.Close() })
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Write: %v", err)
		}
		checkCut(t, client, content)
	})
}

func TestPeerResetDuringWrite(t *testing.T) {
	eachState(t, func(t *testing.T, s suite, l *link, client net.Conn) {
		_, done := blocked(t, l, client)
		l.peer.SetLinger(0)
		l.peer.Close()
		err := <-done
		var oe *net.OpError
		if !errors.As(err, &oe) || oe.Timeout() {
			t.Errorf("Write: %v", err)
		}
		if _, again := l.Write([]byte("x")); again == nil {
			t.Error("Write after a write that failed")
		}
		if !l.Offloaded() {
			checkRefused(t, l.Upgrade(), ReasonClosed)
		}
		within(t, time.Second, "Close", func() { l.Close() })
	})
}

// A write that times out is the last one, and not even close_notify follows: the
// record may be there in part.
func TestWriteDeadline(t *testing.T) {
	eachState(t, func(t *testing.T, s suite, l *link, client net.Conn) {
		content, done := blocked(t, l, client)
		l.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		err := <-done
		var ne net.Error
		if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &ne) || !ne.Timeout() {
			t.Errorf("Write: %v", err)
		}
		l.SetWriteDeadline(time.Time{})
		if n, err := l.Write([]byte("more")); n != 0 || !errors.As(err, &ne) || !ne.Timeout() {
			t.Errorf("later Write: %d, %v", n, err)
		}
		if !l.Offloaded() {
			checkRefused(t, l.Upgrade(), ReasonClosed)
		}
		within(t, time.Second, "Close", func() { l.Close() })
		checkCut(t, client, content)
	})
}

// The deadline that crypto/tls sets for close_notify must not end what is being
// written: CloseWrite waits for it, however long it takes.
func TestCloseWriteDuringWriteAndSendFile(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 5 s")
	}
	eachStateAtOnce(t, func(t *testing.T, l *link, client *client13) {
		write := l.Write
		if l.Offloaded() {
			write = func(p []byte) (int, error) {
				n, err := l.SendFile(testFile(t, p), 0, int64(len(p)), nil)
				return int(n), err
			}
		}
		content, done := blockedIn(t, write, client)
		closed := make(chan error, 1)
		go func() { closed <- l.CloseWrite() }()
		select {
		case err := <-closed:
			t.Errorf("CloseWrite didn't wait: %v", err)
		case <-time.After(closeNotifyTimeout + 500*time.Millisecond):
		}
		checkReceived(t, <-receive(client), content)
		if err := <-done; err != nil {
			t.Errorf("Write or SendFile: %v", err)
		}
		if err := <-closed; err != nil {
			t.Errorf("CloseWrite: %v", err)
		}
		checkReads(t, l, client)
		if err := l.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if r, err := client.rawRecord(); err != io.EOF {
			t.Errorf("after close_notify came %x, %v", r, err)
		}
	})
}

// eachStateAtOnce runs a test that takes long before and after the upgrade, both
// at once.
func eachStateAtOnce(t *testing.T, test func(t *testing.T, l *link, client *client13)) {
	checkLeaks(t)
	for _, upgraded := range []bool{false, true} {
		t.Run(fmt.Sprintf("upgraded %t", upgraded), func(t *testing.T) {
			t.Parallel()
			if upgraded {
				needKTLS(t)
			}
			l := setup{opts: Options{Features: canEverything()}}.connect(t)
			client := l.with13(tls.TLS_AES_128_GCM_SHA256, clientOptions{})
			if upgraded {
				l.mustUpgrade()
			}
			test(t, l, client)
		})
	}
}
