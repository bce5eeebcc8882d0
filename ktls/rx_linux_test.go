package ktls

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"
)

// takenOver returns the calls of OnReceive so far.
func (l *link) takenOver() []error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.taken
}

// needRX is needSuite for receiving.
func needRX(t testing.TB, s suite) {
	t.Helper()
	needSuite(t, s)
	if !Probe().CanRX(s.version, s.cipher()) {
		t.Skipf("this kernel doesn't decrypt %v", s)
	}
}

// eachRXSuite runs a test with every suite that the kernel can receive.
func eachRXSuite(t *testing.T, test func(*testing.T, suite)) {
	eachSuite(t, func(t *testing.T, s suite) {
		needRX(t, s)
		test(t, s)
	})
}

// sender is a client that sends whatever records the test wants.
type sender struct {
	net.Conn // reads and writes application data
	l        *link
	version  uint16
	seal     func(typ byte, data []byte) []byte
	c13      *client13
}

// sender runs the handshake for s and returns a client of whom nothing has been
// read yet.
func (l *link) sender(s suite) *sender {
	l.t.Helper()
	if s.version == tls.VersionTLS13 {
		c := l.with13(s.id, clientOptions{})
		return &sender{c, l, s.version, c.seal, c}
	}
	g := l.withGo(&tls.Config{MaxVersion: s.version, CipherSuites: []uint16{s.id}})
	var clientRandom, serverRandom [32]byte
	copy(clientRandom[:], g.wire.written()[RecordHeaderLen+6:])
	copy(serverRandom[:], g.wire.read()[RecordHeaderLen+6:])
	keys, _, err := TLS12Keys(s.id, g.keys.secret(LabelTLS12), clientRandom, serverRandom)
	if err != nil {
		l.t.Fatal(err)
	}
	o, err := NewOpener(keys)
	if err != nil {
		l.t.Fatal(err)
	}
	seq := uint64(1) // after Finished
	seal := func(typ byte, data []byte) []byte {
		seq++
		return o.Seal(nil, typ, data, seq-1)
	}
	return &sender{&sealingConn{g, l.peer, seal}, l, s.version, seal, nil}
}

// sealingConn is a connection whose writes are sealed by the test.
type sealingConn struct {
	net.Conn
	raw  net.Conn
	seal func(typ byte, data []byte) []byte
}

func (c *sealingConn) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		m := min(len(p), MaxPlaintext)
		_, err = c.raw.Write(c.seal(RecordTypeApplicationData, p[:m]))
		n, p = n+m, p[m:]
	}
	return n, err
}

// send sends a record.
func (s *sender) send(typ byte, data []byte) {
	s.l.t.Helper()
	s.raw(s.seal(typ, data))
}

// raw sends bytes as they are.
func (s *sender) raw(b []byte) {
	s.l.t.Helper()
	if _, err := s.l.peer.Write(b); err != nil {
		s.l.t.Fatal(err)
	}
}

// mustRead reads what was sent.
func (l *link) mustRead(want []byte) {
	l.t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(l.Conn, got); err != nil || !bytes.Equal(got, want) {
		l.t.Fatalf("read %d bytes of %d, %v", n, len(want), err)
	}
}

// mustTakeOver has client send until the kernel receives.
func (l *link) mustTakeOver(client io.Writer) {
	l.t.Helper()
	for range 2 { // the first one is the proof
		if _, err := client.Write([]byte("hello")); err != nil {
			l.t.Fatal(err)
		}
		l.mustRead([]byte("hello"))
	}
	if e := l.takenOver(); len(e) != 1 || e[0] != nil || !l.Info().Receiving {
		l.t.Fatalf("OnReceive was told %v; %+v", e, l.Info())
	}
}

// receivingLink is a link whose kernel receives.
func receivingLink(t testing.TB, s suite, opts Options) (*link, *sender) {
	t.Helper()
	needRX(t, s)
	opts.RX = true
	l := setup{opts: opts}.connect(t)
	client := l.sender(s)
	l.mustUpgrade()
	l.mustTakeOver(client)
	return l, client
}

// checkAlert checks that the client gets this alert.
func checkAlert(t testing.TB, client io.Reader, desc byte) {
	t.Helper()
	_, err := client.Read(make([]byte, 1))
	if err == alertError(desc) {
		return
	}
	if err == nil || err.Error() != (&net.OpError{Op: "remote error", Err: tls.AlertError(desc)}).Error() {
		t.Errorf("the client sees %v, not alert %d", err, desc)
	}
}

// checkEnded checks that reading ended with this alert of ours, for good, and
// writing too.
func checkEnded(t testing.TB, l *link, err error, desc byte) {
	t.Helper()
	var alert tls.AlertError
	if !errors.As(err, &alert) || byte(alert) != desc {
		t.Errorf("Read: %v", err)
	}
	if n, again := l.Read(make([]byte, 10)); n != 0 || again == nil || again.Error() != err.Error() {
		t.Errorf("second Read: %d, %v", n, again)
	}
	if _, err := l.Write([]byte("x")); err == nil {
		t.Error("Write after a fatal alert")
	}
	within(t, time.Second, "Close", func() { l.Close() })
}

func TestReceiveForEverySuite(t *testing.T) {
	for _, when := range []string{"lazy", "handshake"} {
		eachRXSuite(t, func(t *testing.T, s suite) {
			t.Run(when, func(t *testing.T) {
				checkLeaks(t)
				rxSw, now := tlsStat(t, "TlsRxSw"), tlsStat(t, "TlsCurrRxSw")
				l := setup{opts: Options{RX: true, UpgradeAtHandshake: when == "handshake"}}.connect(t)
				client := l.with(s)
				if when == "lazy" {
					checkServes(t, l, client)
					if l.Info().Receiving {
						t.Error("the kernel receives before the upgrade")
					}
					l.mustUpgrade()
				}
				checkServes(t, l, client)
				checkServes(t, l, client)
				i := l.Info()
				if !i.Receiving || i.ExpectNoPad != (s.version == tls.VersionTLS13) {
					t.Errorf("Info: %+v", i)
				}
				if e := l.takenOver(); len(e) != 1 || e[0] != nil {
					t.Errorf("OnReceive was told %v", e)
				}
				if got := tlsStat(t, "TlsRxSw") - rxSw; got != 1 {
					t.Errorf("TlsRxSw rose by %d", got)
				}
				if got := tlsStat(t, "TlsCurrRxSw") - now; got != 1 {
					t.Errorf("TlsCurrRxSw rose by %d", got)
				}
				content := randomBytes(3 << 20)
				done := receive(l.Conn)
				if _, err := client.Write(content); err != nil {
					t.Fatal(err)
				}
				switch c := client.(type) {
				case *client13:
					c.closeNotify()
				case *goClient:
					c.CloseWrite()
				}
				checkReceived(t, <-done, content)
				if n, err := l.Read(make([]byte, 10)); n != 0 || err != io.EOF {
					t.Errorf("Read after close_notify: %d, %v", n, err)
				}
				if n, err := l.Read(nil); n != 0 || err != nil {
					t.Errorf("empty Read: %d, %v", n, err)
				}
				// The other direction goes on.
				sent := receive(client)
				if _, err := l.Write(content); err != nil {
					t.Fatal(err)
				}
				if err := l.Close(); err != nil {
					t.Error(err)
				}
				checkReceived(t, <-sent, content)
				checkForgotten(t, l, nil)
			})
		})
	}
}

// TestTakeOverAtAnyCut: the stream may stop anywhere.
func TestTakeOverAtAnyCut(t *testing.T) {
	for _, s := range []suite{upgradable[0], upgradable[3], upgradable[5]} {
		t.Run(s.String(), func(t *testing.T) {
			needRX(t, s)
			var want []byte
			sizes := []int{7, 5, 40, 1}
			for i, n := range sizes {
				want = append(want, bytes.Repeat([]byte{byte('a' + i)}, n)...)
			}
			for cut := 0; ; cut++ {
				l := setup{opts: Options{RX: true}}.connect(t)
				client := l.sender(s)
				l.mustUpgrade()
				var stream []byte
				rest := want
				for _, n := range sizes {
					stream = append(stream, client.seal(RecordTypeApplicationData, rest[:n])...)
					rest = rest[n:]
				}
				stream = append(stream, client.seal(RecordTypeAlert, []byte{1, alertCloseNotify})...)
				if cut > len(stream) {
					break
				}
				client.raw(stream[:cut])
				var got []byte
				buf := make([]byte, 100)
				l.SetReadDeadline(time.Now().Add(2 * time.Millisecond))
				for {
					n, err := l.Read(buf)
					got = append(got, buf[:n]...)
					if errors.Is(err, os.ErrDeadlineExceeded) {
						client.raw(stream[cut:])
						l.SetReadDeadline(time.Now().Add(testTimeout))
						continue
					}
					if err == io.EOF {
						break
					}
					if err != nil {
						t.Fatalf("cut at %d: after %d bytes: %v", cut, len(got), err)
					}
				}
				if !bytes.Equal(got, want) {
					t.Fatalf("cut at %d: got %q", cut, got)
				}
				if !l.Info().Receiving {
					t.Errorf("cut at %d: %v", cut, l.takenOver())
				}
				l.Close()
				l.peer.Close()
			}
		})
	}
}

// TestReceiveIntoAnyBuffer: records and reads of all sizes, before the switch
// and after.
func TestReceiveIntoAnyBuffer(t *testing.T) {
	eachRXSuite(t, func(t *testing.T, s suite) {
		rng := rand.New(rand.NewPCG(uint64(s.id), 7))
		size := func() int {
			switch rng.IntN(4) {
			case 0:
				return 1 + rng.IntN(8)
			case 1:
				return 1 + rng.IntN(300)
			}
			return 1 + rng.IntN(MaxPlaintext)
		}
		for range 20 {
			l := setup{opts: Options{RX: true}}.connect(t)
			client := l.sender(s)
			content := randomBytes(200_000)
			var stream []byte
			for rest := content; len(rest) > 0; {
				n := min(size(), len(rest))
				stream = append(stream, client.seal(RecordTypeApplicationData, rest[:n])...)
				rest = rest[n:]
			}
			go func() {
				client.l.peer.Write(stream)
				client.l.peer.CloseWrite()
			}()
			var got []byte
			for upgrade := rng.IntN(50_000); ; {
				if len(got) > upgrade && !l.Offloaded() {
					l.mustUpgrade()
				}
				buf := make([]byte, 1+rng.IntN(40_000)>>rng.IntN(14))
				n, err := l.Read(buf)
				got = append(got, buf[:n]...)
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(got, content) {
				t.Fatalf("got %d bytes, not what was sent", len(got))
			}
			if !l.Info().Receiving {
				t.Errorf("the kernel doesn't receive: %v", l.takenOver())
			}
			l.Close()
			l.peer.Close()
		}
	})
}

// TestTakeOverWithHalfARecordRead: what crypto/tls still has of a record is read
// before the kernel takes over.
func TestTakeOverWithHalfARecordRead(t *testing.T) {
	eachRXSuite(t, func(t *testing.T, s suite) {
		l := setup{opts: Options{RX: true}}.connect(t)
		client := l.sender(s)
		l.mustUpgrade()
		content := randomBytes(3000)
		client.Write(content[:1000])
		l.mustRead(content[:10])
		client.Write(content[1000:])
		l.mustRead(content[10:999])
		if l.Info().Receiving {
			t.Error("a byte would be lost")
		}
		l.mustRead(content[999:])
		if !l.Info().Receiving {
			t.Errorf("the kernel doesn't receive: %v", l.takenOver())
		}
	})
}
