package ktls

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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
	c13      *client13 // nil in TLS 1.2
	g        *goClient // nil in TLS 1.3
}

// sender runs the handshake for s and returns a client of whom nothing has been
// read yet.
func (l *link) sender(s suite) *sender {
	l.t.Helper()
	if s.version == tls.VersionTLS13 {
		c := l.with13(s.id, clientOptions{})
		return &sender{c, l, s.version, c.seal, c, nil}
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
	return &sender{&sealingConn{g, l.peer, seal}, l, s.version, seal, nil, g}
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
				if !i.Receiving {
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

// TestReceiveIntoAnyBuffer: records and reads of all sizes, with all that may come
// between records, before the switch and after.
func TestReceiveIntoAnyBuffer(t *testing.T) {
	eachRXSuite(t, func(t *testing.T, s suite) {
		rng := rand.New(rand.NewPCG(uint64(s.id), 7))
		size := func(int) int {
			switch rng.IntN(4) {
			case 0:
				return 1 + rng.IntN(8)
			case 1:
				return 1 + rng.IntN(300)
			}
			return 1 + rng.IntN(MaxPlaintext)
		}
		rounds := 20
		if slow {
			rounds = 3
		}
		for range rounds {
			l := setup{opts: Options{RX: true}}.connect(t)
			client := l.sender(s)
			content := randomBytes(200_000)
			stream := mixedStreamOf(t, client, content, size)
			go func() {
				for len(stream) > 0 {
					n := min(len(stream), 1+rng.IntN(30_000)>>rng.IntN(15))
					l.peer.Write(stream[:n])
					stream = stream[n:]
				}
			}()
			var got []byte
			buf := make([]byte, 40_000)
			reads := rand.New(rand.NewPCG(uint64(s.id), 8))
			for upgrade := reads.IntN(50_000); ; {
				if len(got) > upgrade && !l.Offloaded() {
					l.mustUpgrade()
				}
				n, err := l.Read(buf[:1+reads.IntN(len(buf))>>reads.IntN(15)])
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

// TestReceivedRecordErrors: what isn't the client's next record ends the
// connection both ways, with the alert that the RFCs ask for.
func TestReceivedRecordErrors(t *testing.T) {
	type record struct {
		name string
		raw  func(s *sender) []byte
		desc byte
	}
	header := func(typ byte, version uint16, n int) []byte {
		return []byte{typ, byte(version >> 8), byte(version), byte(n >> 8), byte(n)}
	}
	sealed := func(typ byte, data ...byte) func(*sender) []byte {
		return func(s *sender) []byte { return s.seal(typ, data) }
	}
	either := []record{
		{"forged", func(s *sender) []byte {
			r := s.seal(RecordTypeApplicationData, []byte("hello"))
			r[len(r)-1] ^= 1
			return r
		}, alertBadRecordMAC},
		{"sent before", func(s *sender) []byte {
			s.seal(RecordTypeApplicationData, []byte("left out"))
			return s.seal(RecordTypeApplicationData, []byte("hello"))
		}, alertBadRecordMAC},
		{"too short", func(*sender) []byte {
			return append(header(RecordTypeApplicationData, tls.VersionTLS12, 8), make([]byte, 8)...)
		}, alertBadRecordMAC},
		{"too long", func(*sender) []byte {
			return append(header(RecordTypeApplicationData, tls.VersionTLS12, MaxCiphertext12+1), make([]byte, 100)...)
		}, alertRecordOverflow},
		{"HTTP", func(*sender) []byte { return []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") }, 0},
		{"other version", func(*sender) []byte {
			return append(header(RecordTypeApplicationData, tls.VersionTLS10, 100), make([]byte, 100)...)
		}, alertProtocolVersion},
		{"plain alert", func(*sender) []byte {
			alert := append(header(RecordTypeAlert, tls.VersionTLS12, 2), alertLevelFatal, alertInternalError)
			return append(alert, alert...) // the kernel wants a header and a nonce before it looks
		}, alertBadRecordMAC},
		{"unknown type", sealed(99, 1, 2, 3), alertUnexpectedMessage},
		{"ChangeCipherSpec", sealed(RecordTypeChangeCipherSpec, 1), alertUnexpectedMessage},
		{"alert of one byte", sealed(RecordTypeAlert, alertLevelFatal), alertUnexpectedMessage},
		{"alert of three bytes", sealed(RecordTypeAlert, alertLevelFatal, alertInternalError, 0), alertUnexpectedMessage},
		{"two alerts", sealed(RecordTypeAlert, 1, alertCloseNotify, 1, alertCloseNotify), alertUnexpectedMessage},
		{"Finished", sealed(RecordTypeHandshake, append([]byte{msgFinished, 0, 0, 32}, make([]byte, 32)...)...), alertUnexpectedMessage},
		{"ClientHello", sealed(RecordTypeHandshake, append([]byte{msgClientHello, 0, 0, 100}, make([]byte, 100)...)...), alertUnexpectedMessage},
	}
	only13 := []record{
		{"no type", func(s *sender) []byte { return s.c13.sealPadded(0, nil, 20) }, alertBadRecordMAC},
		{"two KeyUpdates", sealed(RecordTypeHandshake, msgKeyUpdate, 0, 0, 1, 0, msgKeyUpdate, 0, 0, 1, 0), alertUnexpectedMessage},
		{"begin of a KeyUpdate", sealed(RecordTypeHandshake, msgKeyUpdate, 0, 0), alertUnexpectedMessage},
		{"KeyUpdate with another request", sealed(RecordTypeHandshake, msgKeyUpdate, 0, 0, 1, 2), alertDecodeError},
		{"KeyUpdate of another length", sealed(RecordTypeHandshake, msgKeyUpdate, 0, 0, 2, 0, 0), alertUnexpectedMessage},
	}
	only12 := []record{
		{"KeyUpdate", sealed(RecordTypeHandshake, msgKeyUpdate, 0, 0, 1, 0), alertUnexpectedMessage},
		{"HelloRequest", sealed(RecordTypeHandshake, 0, 0, 0, 0), alertNoRenegotiation},
		{"alert of an unknown level", sealed(RecordTypeAlert, 3, alertInternalError), alertUnexpectedMessage},
	}
	eachRXSuite(t, func(t *testing.T, s suite) {
		all := append(either[:len(either):len(either)], only13...)
		if s.version == tls.VersionTLS12 {
			all = append(either[:len(either):len(either)], only12...)
		}
		for _, r := range all {
			t.Run(r.name, func(t *testing.T) {
				checkLeaks(t)
				l, client := receivingLink(t, s, Options{})
				content := randomBytes(1000)
				client.Write(content)
				client.raw(r.raw(client))
				l.mustRead(content) // what came before is right
				n, err := l.Read(make([]byte, 10))
				if n != 0 || err == nil {
					t.Fatalf("Read: %d, %v", n, err)
				}
				desc := r.desc
				if r.name == "HTTP" { // its header is wrong in two ways
					desc = alertProtocolVersion
					if errors.Is(err, tls.AlertError(alertRecordOverflow)) {
						desc = alertRecordOverflow
					}
				}
				checkEnded(t, l, err, desc)
				if desc == alertNoRenegotiation { // a warning
					io.Copy(io.Discard, client)
					if a := alerts(client.g.records(t)); len(a) != 1 || string(a[0]) != "\x01\x64" {
						t.Errorf("alerts %x", a)
					}
					return
				}
				checkAlert(t, client, desc)
			})
		}
	})
}

// TestReceivedAlerts: what the client's alerts do.
func TestReceivedAlerts(t *testing.T) {
	eachRXSuite(t, func(t *testing.T, s suite) {
		l, client := receivingLink(t, s, Options{})
		ignored := []byte{1, alertUserCanceled}
		client.send(RecordTypeAlert, ignored)
		client.Write([]byte("after it"))
		l.mustRead([]byte("after it"))
		client.send(RecordTypeAlert, ignored)
		client.send(RecordTypeAlert, ignored)
		client.send(RecordTypeAlert, []byte{alertLevelFatal, alertBadRecordMAC})
		want := "remote error: tls: bad record MAC"
		for range 2 {
			if n, err := l.Read(make([]byte, 10)); n != 0 || err == nil || err.Error() != want {
				t.Errorf("Read: %d, %v", n, err)
			}
		}
		if _, err := l.Write([]byte("x")); err != nil {
			t.Errorf("Write: %v", err)
		}
	})
}

func TestReceiveCloseNotifyAtOnceAfterAnotherAlert(t *testing.T) {
	l, client := receivingLink(t, upgradable[0], Options{})
	client.raw(append(client.seal(RecordTypeAlert, []byte{1, alertUserCanceled}), client.seal(RecordTypeAlert, []byte{1, alertCloseNotify})...))
	if n, err := l.Read(make([]byte, 10)); n != 0 || err != io.EOF {
		t.Errorf("Read: %d, %v", n, err)
	}
}

// TestUselessRecords: as many as crypto/tls accepts, and not one more.
func TestUselessRecords(t *testing.T) {
	eachRXSuite(t, func(t *testing.T, s suite) {
		checkLeaks(t)
		l, client := receivingLink(t, s, Options{})
		for range 2 {
			for range maxUseless {
				client.send(RecordTypeAlert, []byte{1, alertUserCanceled})
			}
			client.Write([]byte("data"))
			l.mustRead([]byte("data"))
		}
		for range maxUseless + 1 {
			client.send(RecordTypeAlert, []byte{1, alertUserCanceled})
		}
		if n, err := l.Read(make([]byte, 10)); n != 0 || err != errUseless {
			t.Errorf("Read: %d, %v", n, err)
		}
		checkAlert(t, client, alertUnexpectedMessage)
	})
}

// TestEmptyRecords: the kernel skips them wherever they come.
func TestEmptyRecords(t *testing.T) {
	eachRXSuite(t, func(t *testing.T, s suite) {
		l, client := receivingLink(t, s, Options{})
		empty := func() []byte { return client.seal(RecordTypeApplicationData, nil) }
		for _, between := range []int{0, 1, 5} {
			stream := empty()
			stream = append(stream, client.seal(RecordTypeApplicationData, []byte("da"))...)
			for range between {
				stream = append(stream, empty()...)
			}
			stream = append(stream, client.seal(RecordTypeAlert, []byte{1, alertUserCanceled})...)
			stream = append(stream, empty()...)
			stream = append(stream, client.seal(RecordTypeApplicationData, []byte("ta"))...)
			client.raw(stream)
			l.mustRead([]byte("data"))
		}
		client.raw(empty())
		client.raw(append(empty(), client.seal(RecordTypeAlert, []byte{1, alertCloseNotify})...))
		if n, err := l.Read(make([]byte, 10)); n != 0 || err != io.EOF {
			t.Errorf("Read: %d, %v", n, err)
		}
	})
}

// TestPaddedRecords: padding is removed, before the switch and after.
func TestPaddedRecords(t *testing.T) {
	for _, s := range upgradable[:3] {
		t.Run(s.String(), func(t *testing.T) {
			needRX(t, s)
			l := setup{opts: Options{RX: true}}.connect(t)
			client := l.sender(s)
			l.mustUpgrade()
			content := randomBytes(MaxPlaintext)
			for _, n := range []int{1, 10, 1000, MaxPlaintext} {
				for _, pad := range []int{0, 1, 100, MaxPlaintext - n} {
					if n+pad > MaxPlaintext {
						continue
					}
					client.raw(client.c13.sealPadded(RecordTypeApplicationData, content[:n], pad))
					l.mustRead(content[:n])
				}
			}
			if !l.Info().Receiving {
				t.Errorf("the kernel doesn't receive: %v", l.takenOver())
			}
			client.raw(client.c13.sealPadded(RecordTypeAlert, []byte{1, alertCloseNotify}, 300))
			if n, err := l.Read(make([]byte, 10)); n != 0 || err != io.EOF {
				t.Errorf("Read: %d, %v", n, err)
			}
		})
	}
}

// TestReceiveEndOfStream: as with crypto/tls the end of the stream is an end
// between two records, and unexpected within one.
func TestReceiveEndOfStream(t *testing.T) {
	eachRXSuite(t, func(t *testing.T, s suite) {
		for _, test := range []struct {
			name  string
			bytes int // of a last record
			want  error
		}{{"between records", 0, io.EOF}, {"within a header", 3, io.ErrUnexpectedEOF}, {"within a record", 100, io.ErrUnexpectedEOF}} {
			t.Run(test.name, func(t *testing.T) {
				l, client := receivingLink(t, s, Options{})
				client.Write([]byte("hello"))
				client.raw(client.seal(RecordTypeApplicationData, randomBytes(200))[:test.bytes])
				l.peer.CloseWrite()
				l.mustRead([]byte("hello"))
				for range 2 {
					if n, err := l.Read(make([]byte, 10)); n != 0 || err != test.want {
						t.Errorf("Read: %d, %v", n, err)
					}
				}
				if _, err := l.Write([]byte("still there")); err != nil {
					t.Errorf("Write: %v", err)
				}
			})
		}
	})
}

func TestReceiveReset(t *testing.T) {
	l, _ := receivingLink(t, upgradable[0], Options{})
	l.peer.SetLinger(0)
	l.peer.Close()
	var op *net.OpError
	if n, err := l.Read(make([]byte, 10)); n != 0 || !errors.Is(err, unix.ECONNRESET) || !errors.As(err, &op) || op.Op != "read" {
		t.Errorf("Read: %d, %v", n, err)
	}
}

func TestReceiveDeadline(t *testing.T) {
	checkLeaks(t)
	l, client := receivingLink(t, upgradable[0], Options{})
	for range 2 {
		l.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		n, err := l.Read(make([]byte, 10))
		var ne net.Error
		if n != 0 || !errors.As(err, &ne) || !ne.Timeout() {
			t.Errorf("Read: %d, %v", n, err)
		}
		l.SetReadDeadline(time.Now().Add(testTimeout))
		client.Write([]byte("hello"))
		l.mustRead([]byte("hello"))
	}
	read := readAll(l)
	l.SetReadDeadline(time.Unix(1, 0)) // as net/http ends its background read
	if err := <-read; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read: %v", err)
	}
	l.SetReadDeadline(time.Time{})
	client.Write([]byte("hello"))
	l.mustRead([]byte("hello"))
}

// TestCloseWakesReader: in each state of the receiving side.
func TestCloseWakesReader(t *testing.T) {
	own := errors.New("the test's own reason")
	for _, state := range []int32{rxCount, rxSingle, rxKernel} {
		for _, test := range []struct {
			name string
			end  func(*link)
			want error
		}{
			{"Close", func(l *link) { l.Close() }, net.ErrClosed},
			{"Abort", func(l *link) { l.Abort(own) }, own},
		} {
			t.Run(fmt.Sprintf("%s in state %d", test.name, state), func(t *testing.T) {
				needRX(t, upgradable[0])
				checkLeaks(t)
				l := setup{opts: Options{RX: true}}.connect(t)
				client := l.sender(upgradable[0])
				if state > rxCount {
					l.mustUpgrade()
				}
				if state == rxKernel {
					l.mustTakeOver(client)
				}
				read := readAll(l)
				test.end(l)
				if err := <-read; !errors.Is(err, test.want) {
					t.Errorf("Read: %v", err)
				}
				if n, err := l.Read(make([]byte, 1)); n != 0 || !errors.Is(err, test.want) {
					t.Errorf("later Read: %d, %v", n, err)
				}
				if got := l.tap.rxState.Load(); state == rxKernel && got != state {
					t.Errorf("state %d", got)
				}
			})
		}
	}
}

// TestForgedRecordDuringSendFile: the alert comes after what was sent, and the
// download ends.
func TestForgedRecordDuringSendFile(t *testing.T) {
	checkLeaks(t)
	l, client := receivingLink(t, upgradable[0], Options{})
	content := randomBytes(bigFile)
	sent, stalled := sendStalled(t, l, testFile(t, content), bigFile)
	<-stalled
	read := readAll(l)
	client.raw(garbage)
	got, err := io.ReadAll(client)
	if err != alertError(alertBadRecordMAC) {
		t.Errorf("the client sees %v", err)
	}
	if !bytes.HasPrefix(content, got) {
		t.Error("the client got other bytes than were sent")
	}
	if err := <-sent; err == nil {
		t.Error("SendFile succeeded")
	}
	if err := <-read; err == nil {
		t.Error("garbage was read")
	}
	within(t, time.Second, "Close", func() { l.Close() })
}

// TestWriterLearnsOfAForgedRecord: the kernel tells one caller alone, who may be a
// writer.
func TestWriterLearnsOfAForgedRecord(t *testing.T) {
	checkLeaks(t)
	l, client := receivingLink(t, upgradable[0], Options{})
	client.raw(append([]byte{RecordTypeApplicationData, 3, 3, 255, 255}, make([]byte, 100)...))
	var err error
	for err == nil { // until the kernel has looked at the record
		_, err = l.Write([]byte("x"))
	}
	if !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("Write: %v", err)
	}
	if n, err := l.Read(make([]byte, 10)); n != 0 || !errors.Is(err, tls.AlertError(alertRecordOverflow)) {
		t.Errorf("Read: %d, %v", n, err)
	}
	if got, err := io.ReadAll(client); err != alertError(alertRecordOverflow) {
		t.Errorf("after %q the client sees %v", got, err)
	}
}

// receivingRekeyLink is a receivingLink of a kernel that can change keys.
func receivingRekeyLink(t testing.TB, s suite) (*link, *sender) {
	t.Helper()
	needRekey(t)
	return receivingLink(t, s, Options{})
}

// TestReceiveKeyUpdates: with and without a request, by themselves and among
// data that is there already.
func TestReceiveKeyUpdates(t *testing.T) {
	for _, s := range upgradable[:3] {
		t.Run(s.String(), func(t *testing.T) {
			checkLeaks(t)
			needRekey(t)
			ok := tlsStat(t, "TlsRxRekeyOk")
			l, client := receivingRekeyLink(t, s)
			var stream []byte
			update := func(request byte) {
				stream = append(stream, client.seal(RecordTypeHandshake, []byte{msgKeyUpdate, 0, 0, 1, request})...)
				if err := client.c13.out.next(); err != nil {
					t.Fatal(err)
				}
			}
			content := randomBytes(100_000)
			for i, rest := 0, content; len(rest) > 0; i++ {
				n := min(len(rest), 1+i*97)
				stream = append(stream, client.seal(RecordTypeApplicationData, rest[:n])...)
				rest = rest[n:]
				update(byte(i % 2))
				if i%5 == 0 {
					update(1)
				}
			}
			stream = append(stream, client.seal(RecordTypeAlert, []byte{1, alertCloseNotify})...)
			got := receive(client) // the answers
			go client.l.peer.Write(stream)
			checkReceived(t, <-receive(l.Conn), content)
			if _, err := l.Write(content); err != nil {
				t.Fatal(err)
			}
			l.Close()
			checkReceived(t, <-got, content)
			if client.c13.updates != len(l.rekeyed()) || client.c13.updates < 10 {
				t.Errorf("%d answers, OnRekey was told of %d", client.c13.updates, len(l.rekeyed()))
			}
			for _, r := range l.rekeyed() {
				if r != (rekeyEvent{true, nil}) {
					t.Errorf("OnRekey was told %+v", r)
				}
			}
			if n := tlsStat(t, "TlsRxRekeyOk") - ok; n < client.c13.updates {
				t.Errorf("TlsRxRekeyOk rose by %d", n)
			}
		})
	}
}

// TestReceiveKeyUpdateBeforeTheSwitch: those that crypto/tls has followed count
// too.
func TestReceiveKeyUpdateBeforeTheSwitch(t *testing.T) {
	for _, s := range upgradable[:3] {
		for _, when := range []string{"at once", "before the upgrade", "after it"} {
			t.Run(s.String()+" "+when, func(t *testing.T) {
				needRX(t, s)
				l := setup{opts: Options{RX: true}}.connect(t)
				client := l.sender(s)
				updates := func() {
					for _, request := range []bool{false, true, false} {
						if err := client.c13.keyUpdate(request); err != nil {
							t.Fatal(err)
						}
					}
				}
				if when != "at once" {
					client.Write([]byte("12345")) // as long as a KeyUpdate
					l.mustRead([]byte("12345"))
				}
				if when == "after it" {
					needRekey(t)
					l.mustUpgrade()
				}
				updates()
				client.Write([]byte("12345"))
				l.mustRead([]byte("12345"))
				if when != "after it" {
					l.mustUpgrade()
				}
				l.mustTakeOver(client)
				checkServes(t, l, client)
			})
		}
	}
}

// TestReceiveKeyUpdateUnnoticed: one that the tap can't tell by its length leaves
// reading with crypto/tls.
func TestReceiveKeyUpdateUnnoticed(t *testing.T) {
	s := upgradable[0]
	needRX(t, s)
	l := setup{opts: Options{RX: true}}.connect(t)
	client := l.sender(s)
	client.raw(client.c13.sealPadded(RecordTypeHandshake, []byte{msgKeyUpdate, 0, 0, 1, 0}, 3))
	if err := client.c13.out.next(); err != nil {
		t.Fatal(err)
	}
	client.Write([]byte("hello"))
	l.mustRead([]byte("hello"))
	l.mustUpgrade()
	checkStays(t, l, client, ReasonUnproven)
}

// checkStays checks that the kernel doesn't take over for reason, and that all
// goes on without.
func checkStays(t testing.TB, l *link, client net.Conn, reason string) {
	t.Helper()
	rx := tlsStat(t, "TlsCurrRxSw")
	for range 3 {
		checkServes(t, l, client)
	}
	e := l.takenOver()
	if len(e) != 1 || l.Info().Receiving {
		t.Fatalf("OnReceive was told %v; %+v", e, l.Info())
	}
	checkRefused(t, e[0], reason)
	if n := tlsStat(t, "TlsCurrRxSw"); n != rx {
		t.Errorf("TlsCurrRxSw rose by %d", n-rx)
	}
	if l.tap.rx.secret != nil || l.tap.rx.keys != nil || l.tap.rx.opener != nil {
		t.Error("the client's keys are still there")
	}
}

func TestReceiveKeyUpdateWhereTheKernelCantRekey(t *testing.T) {
	for _, s := range upgradable[:3] {
		for _, request := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v %t", s, request), func(t *testing.T) {
				needRX(t, s)
				checkLeaks(t)
				l, client := receivingLink(t, s, Options{Features: noRekey()})
				client.Write([]byte("before"))
				if err := client.c13.keyUpdate(request); err != nil {
					t.Fatal(err)
				}
				client.Write([]byte("after"))
				l.mustRead([]byte("before"))
				for range 2 {
					if n, err := l.Read(make([]byte, 10)); n != 0 || !errors.Is(err, ErrKeyUpdate) {
						t.Errorf("Read: %d, %v", n, err)
					}
				}
				checkAlert(t, client, alertInternalError)
				if _, err := client.c13.rawRecord(); err != io.EOF {
					t.Errorf("after the alert the client sees %v", err)
				}
				if r := l.rekeyed(); len(r) != 1 || r[0] != (rekeyEvent{true, ErrKeyUpdate}) {
					t.Errorf("OnRekey was told %+v", r)
				}
				if _, err := l.Write([]byte("x")); !errors.Is(err, ErrKeyUpdate) {
					t.Errorf("Write: %v", err)
				}
				within(t, time.Second, "Close", func() { l.Close() })
			})
		}
	}
}

// TestReceiveKeyUpdatesDuringSendFile: the answers come within the download.
func TestReceiveKeyUpdatesDuringSendFile(t *testing.T) {
	checkLeaks(t)
	l, client := receivingRekeyLink(t, upgradable[0])
	const updates = 200
	content := randomBytes(4 * bigFile)
	sent, stalled := sendStalled(t, l, testFile(t, content), int64(len(content)))
	<-stalled
	read := readAll(l)
	asked := make(chan error, 1)
	go func() {
		for range updates {
			if err := client.c13.keyUpdate(true); err != nil {
				asked <- err
				return
			}
			client.Write([]byte("x"))
		}
		asked <- nil
	}()
	got := make([]byte, len(content))
	if _, err := io.ReadFull(client, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, content) {
		t.Error("the client got other bytes than were sent")
	}
	if client.c13.updates == 0 {
		t.Error("no answer came before the end")
	}
	if err := errors.Join(<-sent, <-asked); err != nil {
		t.Error(err)
	}
	client.send(RecordTypeAlert, []byte{1, alertCloseNotify})
	if err := <-read; err != nil {
		t.Error(err)
	}
	l.Close()
	if _, err := io.ReadAll(client); err != nil || client.c13.updates != updates {
		t.Errorf("%d answers, %v", client.c13.updates, err)
	}
}

// TestReceiveKeyUpdateFlood: too many in a row, or over and over.
func TestReceiveKeyUpdateFlood(t *testing.T) {
	for _, test := range []struct {
		name    string
		request bool
		data    bool
		want    error
	}{
		{"in a row", false, false, errUseless},
		{"with data between", false, true, ErrKeyUpdateFlood},
		{"with requests", true, true, ErrKeyUpdateFlood},
	} {
		t.Run(test.name, func(t *testing.T) {
			checkLeaks(t)
			l, client := receivingRekeyLink(t, upgradable[0])
			ended := make(chan error, 1)
			go func() {
				err := <-readAll(l)
				l.Close() // else the client could not write on
				ended <- err
			}()
			stop := receive(client)
			n := 0
			for ; ; n++ {
				if err := client.c13.keyUpdate(test.request); err != nil {
					break
				}
				if !test.data {
					continue
				}
				if _, err := client.Write([]byte("x")); err != nil {
					break
				}
			}
			if err := <-ended; !errors.Is(err, test.want) {
				t.Errorf("Read: %v", err)
			}
			if got := <-stop; got.err == nil || got.n != 0 {
				t.Errorf("the client sees %d bytes, %v", got.n, got.err)
			}
		})
	}
}

// TestReceiveFaults: whichever step fails, reading goes on with crypto/tls.
func TestReceiveFaults(t *testing.T) {
	for step, reason := range map[upgradeStep]string{stepProveRX: ReasonUnproven, stepInfoRX: ReasonKernel, stepRX: ReasonKernel} {
		for _, s := range []suite{upgradable[0], upgradable[3]} {
			t.Run(fmt.Sprintf("%v %s", s, step), func(t *testing.T) {
				needRX(t, s)
				checkLeaks(t)
				failStep(t, step, errors.New("the test's own fault"))
				l := setup{opts: Options{RX: true}}.connect(t)
				client := l.with(s)
				l.mustUpgrade()
				checkStays(t, l, client, reason)
			})
		}
	}
}

// TestReceiveRekeyFault: a kernel that doesn't take the client's next key ends the
// connection.
func TestReceiveRekeyFault(t *testing.T) {
	checkLeaks(t)
	l, client := receivingRekeyLink(t, upgradable[0])
	fault := errors.New("the test's own fault")
	failStep(t, stepRekeyRX, fault)
	client.c13.keyUpdate(false)
	client.Write([]byte("x"))
	if n, err := l.Read(make([]byte, 1)); n != 0 || !errors.Is(err, fault) {
		t.Errorf("Read: %d, %v", n, err)
	}
	checkAlert(t, client, alertInternalError)
	if r := l.rekeyed(); len(r) != 1 || r[0] != (rekeyEvent{true, fault}) {
		t.Errorf("OnRekey was told %+v", r)
	}
}

// TestReceiveUnproven: a wrong secret or a miscounted record.
func TestReceiveUnproven(t *testing.T) {
	eachRXSuite(t, func(t *testing.T, s suite) {
		for name, spoil := range map[string]func(r *receiver){
			"other key": func(r *receiver) {
				if r.keys != nil {
					r.keys.Key[0] ^= 1
				} else {
					r.secret[0] ^= 1
				}
			},
			"other sequence number": func(r *receiver) { r.sealed++; r.protected += 2 * maxHandshakeRecords },
			"no secret":             func(r *receiver) { r.wipe() },
			"too many records":      func(r *receiver) { r.missed = true },
		} {
			t.Run(name, func(t *testing.T) {
				l := setup{opts: Options{RX: true}}.connect(t)
				client := l.with(s)
				l.mustUpgrade()
				spoil(l.tap.rx)
				checkStays(t, l, client, ReasonUnproven)
			})
		}
	})
}

// TestReceiveRefused: what can be known at the upgrade is.
func TestReceiveRefused(t *testing.T) {
	needKTLS(t)
	cant := *Probe()
	cant.RX = map[Combination]Answer{}
	for _, test := range []struct {
		name   string
		setup  setup
		reason string
	}{
		{"kernel", setup{opts: Options{RX: true, Features: &cant}}, ReasonKernel},
		{"wrapper", setup{
			opts: Options{RX: true, Below: func(c net.Conn) net.Conn { return c.(*shortWriter).Conn }},
			wrap: func(c net.Conn) net.Conn { return &shortWriter{Conn: c} },
		}, ReasonNotTCP},
	} {
		t.Run(test.name, func(t *testing.T) {
			checkLeaks(t)
			l := test.setup.connect(t)
			client := l.withGo(nil)
			l.mustUpgrade()
			checkStays(t, l, client, test.reason)
		})
	}
}

func TestReceiveThroughUnbufferedWrapper(t *testing.T) {
	needRX(t, upgradable[0])
	l := setup{
		wrap: func(c net.Conn) net.Conn { return &shortWriter{Conn: &shortWriter{Conn: c}} },
		opts: Options{
			RX:         true,
			Below:      func(c net.Conn) net.Conn { return c.(*shortWriter).Conn },
			Unbuffered: func(net.Conn) bool { return true },
		},
	}.connect(t)
	client := l.with(upgradable[0])
	l.mustUpgrade()
	l.mustTakeOver(client)
	checkServes(t, l, client)
}

// TestReceiveWithoutUpgrade: a refused upgrade leaves both sides with crypto/tls.
func TestReceiveWithoutUpgrade(t *testing.T) {
	l := setup{opts: Options{RX: true, Features: canEverything()}, foreign: true}.connect(t)
	client := l.withGo(nil)
	checkRefused(t, l.Upgrade(), ReasonUnproven)
	checkServes(t, l, client)
	checkServes(t, l, client)
	if len(l.takenOver()) != 0 || l.Info().Receiving {
		t.Errorf("OnReceive was told %v", l.takenOver())
	}
}

func TestReceiveOnResumption(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			needRX(t, upgradable[0])
			l, client := resumed(t, setup{opts: Options{RX: true}}, version)
			l.mustUpgrade()
			l.mustTakeOver(client)
			checkServes(t, l, client)
		})
	}
}

// TestReceiveWithClientCertificate: the client's handshake takes several records.
func TestReceiveWithClientCertificate(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			needRX(t, upgradable[0])
			config := testServerConfig(t)
			config.ClientAuth = tls.RequireAnyClientCert
			l := setup{config: config, opts: Options{RX: true}}.connect(t)
			client := l.withGo(&tls.Config{MaxVersion: version, Certificates: []tls.Certificate{testCertificate(t, true)}})
			checkServes(t, l, client)
			l.mustUpgrade()
			l.mustTakeOver(client)
			checkServes(t, l, client)
		})
	}
}

// TestReceiveWipesSecrets: what is needed for rekeying stays until Close, all else
// goes with the switch.
func TestReceiveWipesSecrets(t *testing.T) {
	eachRXSuite(t, func(t *testing.T, s suite) {
		l := setup{opts: Options{RX: true}}.connect(t)
		client := l.with(s)
		l.mustUpgrade()
		r := l.tap.rx
		secret, keys := r.secret, r.keys
		if s.version == tls.VersionTLS13 && bytes.Count(secret, []byte{0}) == len(secret) {
			t.Error("no secret")
		}
		if s.version == tls.VersionTLS12 && *keys == (Keys{}) {
			t.Error("no keys")
		}
		l.mustTakeOver(client)
		rekey := s.version == tls.VersionTLS13 && Probe().RekeyRX.Support == Yes
		if wiped := bytes.Count(secret, []byte{0}) == len(secret); s.version == tls.VersionTLS13 && wiped == rekey {
			t.Errorf("secret wiped: %t", wiped)
		}
		if r.opener != nil || r.keys != nil || keys != nil && *keys != (Keys{}) {
			t.Error("keys are left")
		}
		l.Close()
		if r.secret != nil || bytes.Count(secret, []byte{0}) != len(secret) {
			t.Error("the secret is left")
		}
	})
}

// TestUpgradeWhileReaderWaits: a reader that waits in crypto/tls isn't disturbed.
func TestUpgradeWhileReaderWaits(t *testing.T) {
	needRX(t, upgradable[0])
	l := setup{opts: Options{RX: true}}.connect(t)
	client := l.sender(upgradable[0])
	got := make(chan string)
	go func() {
		defer close(got)
		buf := make([]byte, 100)
		for {
			n, err := l.Read(buf)
			if err != nil {
				if err != io.EOF {
					t.Error(err)
				}
				return
			}
			got <- string(buf[:n])
		}
	}()
	expect := func(want string) {
		t.Helper()
		if s := <-got; s != want {
			t.Fatalf("read %q, want %q", s, want)
		}
	}
	client.Write([]byte("first"))
	expect("first")
	l.mustUpgrade() // the reader is back in Read, or soon will be
	for _, s := range []string{"second", "third", "fourth"} {
		client.Write([]byte(s))
		expect(s)
	}
	client.send(RecordTypeAlert, []byte{1, alertCloseNotify})
	if s, open := <-got; open {
		t.Errorf("read %q", s)
	}
	if !l.Info().Receiving {
		t.Errorf("the kernel doesn't receive: %v", l.takenOver())
	}
}

// TestCloseWhileReadersAlertIsBlocked: as with an alert of crypto/tls.
func TestCloseWhileReadersAlertIsBlocked(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 5 s")
	}
	checkLeaks(t)
	l, client := receivingLink(t, upgradable[0], Options{})
	l.SetDeadline(time.Time{})
	content := l.fill()
	client.send(99, []byte("no such type"))
	read := readAll(l)
	for l.tap.wmu.TryLock() { // until the reader holds it
		l.tap.wmu.Unlock()
		time.Sleep(time.Millisecond)
	}
	within(t, 8*time.Second, "Close", func() { l.Close() })
	if err := <-read; err == nil {
		t.Error("an unknown record was read")
	}
	checkTruncated(t, client.c13, append(content, 0))
}

// TestReceiveAfterCloseWrite: nothing follows close_notify, no answer to a
// KeyUpdate and no alert.
func TestReceiveAfterCloseWrite(t *testing.T) {
	checkLeaks(t)
	l, client := receivingRekeyLink(t, upgradable[0])
	if err := l.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the client sees %v", err)
	}
	client.c13.keyUpdate(true)
	client.Write([]byte("more"))
	l.mustRead([]byte("more"))
	client.raw(garbage)
	if n, err := l.Read(make([]byte, 1)); n != 0 || !errors.Is(err, tls.AlertError(alertBadRecordMAC)) {
		t.Errorf("Read: %d, %v", n, err)
	}
	if r, err := client.c13.rawRecord(); err != io.EOF {
		t.Errorf("after close_notify came %x, %v", r, err)
	}
}
