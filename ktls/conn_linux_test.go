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
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// upgradedLink is a link to crypto/tls's client, upgraded.
func upgradedLink(t testing.TB) (*link, *goClient) {
	t.Helper()
	needKTLS(t)
	l := setup{}.connect(t)
	client := l.withGo(nil)
	l.mustUpgrade()
	return l, client
}

// upgradedLink13 is a link to a client13, upgraded.
func upgradedLink13(t testing.TB) (*link, *client13) {
	t.Helper()
	needKTLS(t)
	l := setup{}.connect(t)
	client := l.with13(tls.TLS_AES_128_GCM_SHA256, clientOptions{})
	l.mustUpgrade()
	return l, client
}

func TestWriteSizes(t *testing.T) {
	for _, s := range []suite{upgradable[0], upgradable[3]} {
		for _, n := range []int{0, 1, 16383, 16384, 16385, 1 << 20} {
			t.Run(fmt.Sprintf("%v %d", s, n), func(t *testing.T) {
				needSuite(t, s)
				l := setup{}.connect(t)
				client := l.with(s)
				l.mustUpgrade()
				content := randomBytes(n)
				done := receive(client)
				if m, err := l.Write(content); m != n || err != nil {
					t.Errorf("Write: %d, %v", m, err)
				}
				if err := l.Close(); err != nil {
					t.Error(err)
				}
				checkReceived(t, <-done, content)
				if c, ok := client.(*client13); ok {
					if want := (n + MaxPlaintext - 1) / MaxPlaintext; len(c.lengths) != want {
						t.Errorf("%d records, want %d", len(c.lengths), want)
					}
				}
			})
		}
	}
}

func TestWriteMoreSizes(t *testing.T) {
	for _, n := range []int{0, 1, 16383, 16384, 16385, 1 << 20} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			l, client := upgradedLink13(t)
			content := randomBytes(n + 10)
			done := receive(client)
			if m, err := l.WriteMore(content[:n]); m != n || err != nil {
				t.Errorf("WriteMore: %d, %v", m, err)
			}
			if m, err := l.Write(content[n:]); m != 10 || err != nil {
				t.Errorf("Write: %d, %v", m, err)
			}
			l.Close()
			checkReceived(t, <-done, content)
			if want := (n + 10 + MaxPlaintext - 1) / MaxPlaintext; len(client.lengths) != want {
				t.Errorf("%d records, want %d", len(client.lengths), want)
			}
		})
	}
}

// Each Write arrives in one piece, also between SendFile's.
func TestConcurrentWrites(t *testing.T) {
	checkLeaks(t)
	l, client := upgradedLink(t)
	const writers, each = 6, 20
	// A message: writer, number, length, bytes that say where they belong.
	message := func(rng *rand.Rand, writer, number int) []byte {
		b := make([]byte, 8+rng.IntN(40_000))
		b[0], b[1] = byte(writer), byte(number)
		binary.BigEndian.PutUint32(b[4:], uint32(len(b)))
		for i := 8; i < len(b); i++ {
			b[i] = byte(writer*31 + number*7 + i)
		}
		return b
	}
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 0))
			for n := range each {
				m := message(rng, w, n)
				var err error
				if n%4 == 3 {
					_, err = l.SendFile(testFile(t, m), 0, int64(len(m)), nil)
				} else {
					_, err = l.Write(m)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	go func() {
		wg.Wait()
		l.Close()
	}()
	var next [writers]int
	for {
		head := make([]byte, 8)
		if _, err := io.ReadFull(client, head); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		w, n := int(head[0]), int(head[1])
		size := int(binary.BigEndian.Uint32(head[4:]))
		if w >= writers || n != next[w] || size < 8 || size > 41_000 {
			t.Fatalf("message %d of writer %d, %d bytes: not one that was sent", n, w, size)
		}
		next[w]++
		body := make([]byte, size-8)
		if _, err := io.ReadFull(client, body); err != nil {
			t.Fatal(err)
		}
		for i, b := range body {
			if b != byte(w*31+n*7+i+8) {
				t.Fatalf("message %d of writer %d: byte %d is wrong", n, w, i+8)
			}
		}
	}
	for w, n := range next {
		if n != each {
			t.Errorf("%d messages of writer %d", n, w)
		}
	}
}

func TestSendFile(t *testing.T) {
	big := maxSendfile + 4<<20 // more than one system call's
	if slow {
		big = 8 << 20
	}
	for _, test := range []struct {
		size, off, n int
	}{
		{0, 0, 0}, {10, 0, 0}, {10, 10, 0}, {1, 0, 1}, {10, 9, 1}, {10, 3, 4},
		{16383, 0, 16383}, {16384, 0, 16384}, {16385, 0, 16385}, {40000, 16384, 16384}, {40000, 1, 39999},
		{1<<20 - 1, 0, 1<<20 - 1}, {1 << 20, 0, 1 << 20}, {1<<20 + 1, 0, 1<<20 + 1},
		{1 << 20, 4095, 1<<20 - 4095}, {1 << 20, 12345, 54321}, {big, 0, big}, {4 << 20, 4097, 4<<20 - 9999},
	} {
		t.Run(fmt.Sprintf("%d bytes at %d of %d", test.n, test.off, test.size), func(t *testing.T) {
			l, client := upgradedLink13(t)
			content := randomBytes(test.size)
			f := testFile(t, content)
			offset := int64(test.size / 2)
			f.Seek(offset, io.SeekStart)
			done := receive(client)
			sent, err := l.SendFile(f, int64(test.off), int64(test.n), nil)
			if sent != int64(test.n) || err != nil {
				t.Errorf("sent %d, %v", sent, err)
			}
			if l.Info().SentFile != sent {
				t.Errorf("SentFile %d", l.Info().SentFile)
			}
			if at, err := f.Seek(0, io.SeekCurrent); at != offset || err != nil {
				t.Errorf("the file's offset became %d", at)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			checkReceived(t, <-done, content[test.off:][:test.n])
		})
	}
}

func TestSendFileForEverySuite(t *testing.T) {
	eachSuite(t, func(t *testing.T, s suite) {
		needSuite(t, s)
		l := setup{}.connect(t)
		client := l.with(s)
		l.mustUpgrade()
		content := randomBytes(3 << 20)
		f := testFile(t, content)
		done := receive(client)
		for off := 0; off < len(content); off += 1 << 20 {
			if _, err := l.SendFile(f, int64(off), 1<<20, nil); err != nil {
				t.Fatal(err)
			}
		}
		l.Close()
		checkReceived(t, <-done, content)
	})
}

func TestSendFileSendsFullRecords(t *testing.T) {
	l, client := upgradedLink13(t)
	content := randomBytes(5*MaxPlaintext + 100)
	f := testFile(t, content)
	done := receive(client)
	if _, err := l.SendFile(f, 0, int64(len(content)), nil); err != nil {
		t.Fatal(err)
	}
	l.Close()
	checkReceived(t, <-done, content)
	if want := []int{MaxPlaintext, MaxPlaintext, MaxPlaintext, MaxPlaintext, MaxPlaintext, 100}; !slices.Equal(client.lengths, want) {
		t.Errorf("records of %v", client.lengths)
	}
}

func TestWriteMoreSharesItsRecordWithSendFile(t *testing.T) {
	const header = 300
	for _, n := range []int{1, 5000, MaxPlaintext - header, 2*MaxPlaintext - header, 100_000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			l, client := upgradedLink13(t)
			content := randomBytes(header + n)
			f := testFile(t, content)
			done := receive(client)
			if _, err := l.WriteMore(content[:header]); err != nil {
				t.Fatal(err)
			}
			if _, err := l.SendFile(f, header, int64(n), nil); err != nil {
				t.Fatal(err)
			}
			l.Close()
			checkReceived(t, <-done, content)
			if first := min(header+n, MaxPlaintext); client.lengths[0] != first {
				t.Errorf("first record of %d bytes, want %d", client.lengths[0], first)
			}
			if want := (header + n + MaxPlaintext - 1) / MaxPlaintext; len(client.lengths) != want {
				t.Errorf("%d records, want %d", len(client.lengths), want)
			}
		})
	}
}

// The reader pauses; meanwhile the callback moves the deadline on.
func TestStalledIsCalledWhileThePeerDoesNotRead(t *testing.T) {
	l, client := upgradedLink(t)
	content := randomBytes(bigFile)
	f := testFile(t, content)
	var counts []int64
	read := make(chan (<-chan received), 1)
	const patience = 300 * time.Millisecond
	l.SetWriteDeadline(time.Now().Add(patience))
	sent, err := l.SendFile(f, 0, bigFile, func(n int64) {
		l.SetWriteDeadline(time.Now().Add(testTimeout))
		if len(counts) == 0 {
			time.AfterFunc(2*patience, func() { read <- receive(client) })
		}
		counts = append(counts, n)
	})
	if sent != bigFile || err != nil {
		t.Fatalf("sent %d, %v", sent, err)
	}
	if len(counts) == 0 || counts[0] <= 0 || counts[len(counts)-1] > bigFile || !slices.IsSorted(counts) {
		t.Errorf("stalled was called with %v", counts)
	}
	l.Close()
	checkReceived(t, <-<-read, content)
}

func TestStalledIsNotCalledWhenAllFits(t *testing.T) {
	l, client := upgradedLink(t)
	content := randomBytes(10_000)
	sent, err := l.SendFile(testFile(t, content), 0, 10_000, func(n int64) { t.Errorf("stalled at %d", n) })
	if sent != 10_000 || err != nil {
		t.Errorf("sent %d, %v", sent, err)
	}
	drained(t, client, 10_000)
}

// stuck is an upgraded link with a SendFile that waits for the peer.
func stuck(t *testing.T) (l *link, client *client13, content []byte, done <-chan error) {
	t.Helper()
	l, client = upgradedLink13(t)
	content = randomBytes(bigFile)
	f := testFile(t, content)
	stalled := make(chan struct{}, 1000)
	errs := make(chan error, 1)
	go func() {
		sent, err := l.SendFile(f, 0, bigFile, func(int64) { stalled <- struct{}{} })
		if sent >= bigFile {
			err = errors.New("all was sent")
		}
		errs <- err
	}()
	<-stalled
	return l, client, content, errs
}

func TestSendFileWriteDeadline(t *testing.T) {
	checkLeaks(t)
	l, client, content, done := stuck(t)
	l.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	err := <-done
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("SendFile: %v", err)
	}
	var ne net.Error
	if !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("%v isn't a timeout of package net", err)
	}
	l.SetWriteDeadline(time.Time{})
	if n, err := l.Write([]byte("more")); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("later Write: %d, %v", n, err)
	}
	if n, err := l.WriteMore([]byte("more")); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("later WriteMore: %d, %v", n, err)
	}
	if n, err := l.SendFile(testFile(t, content[:9]), 0, 9, nil); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("later SendFile: %d, %v", n, err)
	}
	within(t, time.Second, "Close", func() { l.Close() })
	checkTruncated(t, client, content)
}

func TestWriteDeadlineInThePast(t *testing.T) {
	for _, test := range []struct {
		name string
		send func(l *link, f *os.File) error
	}{
		{"Write", func(l *link, _ *os.File) error { _, err := l.Write([]byte("x")); return err }},
		{"WriteMore", func(l *link, _ *os.File) error { _, err := l.WriteMore([]byte("x")); return err }},
		{"SendFile", func(l *link, f *os.File) error { _, err := l.SendFile(f, 0, 1, nil); return err }},
	} {
		t.Run(test.name, func(t *testing.T) {
			l, client := upgradedLink(t)
			f := testFile(t, []byte("x"))
			l.SetWriteDeadline(time.Now().Add(-time.Second))
			if err := test.send(l, f); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("got %v", err)
			}
			checkReads(t, l, client)
		})
	}
}

func TestSendFileOfShorterFile(t *testing.T) {
	for _, test := range []struct{ size, off, n int64 }{
		{1000, 0, 1001}, {1000, 1, 1000}, {1000, 2000, 1}, {0, 0, 1}, {1000, 1, 1<<63 - 1},
	} {
		t.Run(fmt.Sprintf("%d bytes at %d of %d", test.n, test.off, test.size), func(t *testing.T) {
			l, client := upgradedLink13(t)
			sent, err := l.SendFile(testFile(t, randomBytes(int(test.size))), test.off, test.n, nil)
			if sent != 0 || err != io.ErrUnexpectedEOF {
				t.Errorf("sent %d, %v", sent, err)
			}
			if _, err := l.Write([]byte("padding")); err != io.ErrUnexpectedEOF {
				t.Errorf("later Write: %v", err)
			}
			l.Close()
			if got := <-receive(client); got.n != 0 || got.err != io.ErrUnexpectedEOF {
				t.Errorf("the client got %d bytes, %v", got.n, got.err)
			}
		})
	}
}

func TestSendFileRejectsNegativeNumbers(t *testing.T) {
	for _, test := range []struct{ off, n int64 }{{-1, 10}, {0, -1}, {-1 << 63, 1 << 62}} {
		l, _ := upgradedLink(t)
		if sent, err := l.SendFile(testFile(t, randomBytes(1000)), test.off, test.n, nil); sent != 0 || err == nil {
			t.Errorf("%d bytes at %d: sent %d, %v", test.n, test.off, sent, err)
		}
	}
}

func TestSendFileOfWhatIsNoFile(t *testing.T) {
	l, client := upgradedLink13(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if sent, err := l.SendFile(r, 0, 10, nil); sent != 0 || err == nil {
		t.Errorf("sent %d of a pipe, %v", sent, err)
	}
	closed := testFile(t, []byte("x"))
	closed.Close()
	if sent, err := l.SendFile(closed, 0, 1, nil); sent != 0 || err == nil {
		t.Errorf("sent %d of a closed file, %v", sent, err)
	}
	l.Close()
	if got := <-receive(client); got.n != 0 || got.err != io.ErrUnexpectedEOF {
		t.Errorf("the client got %d bytes, %v", got.n, got.err)
	}
}

func TestSendFileOfFileTruncatedMeanwhile(t *testing.T) {
	for _, left := range []int64{0, 1, 100_000, -1 << 20} {
		t.Run(fmt.Sprintf("%+d", left), func(t *testing.T) {
			l, client := upgradedLink13(t)
			content := randomBytes(bigFile)
			f := testFile(t, content)
			var done <-chan received
			var most int64 // bytes that may have been sent
			sent, err := l.SendFile(f, 0, bigFile, func(n int64) {
				if done == nil {
					most = max(n, n+left)
					if err := os.Truncate(f.Name(), n+left); err != nil {
						t.Error(err)
					}
					done = receive(client)
				}
			})
			if err != io.ErrUnexpectedEOF || sent != most {
				t.Errorf("sent %d of %d, %v", sent, most, err)
			}
			l.Close()
			got := <-done
			if got.err != io.ErrUnexpectedEOF || got.n > most || got.sum != sha256.Sum256(content[:got.n]) {
				t.Errorf("the client got %d bytes, of at most %d, %v", got.n, most, got.err)
			}
		})
	}
}

func TestPeerResetDuringSendFile(t *testing.T) {
	checkLeaks(t)
	l, _, _, done := stuck(t)
	l.peer.SetLinger(0)
	l.peer.Close()
	err := <-done
	if !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
		t.Errorf("SendFile: %v", err)
	}
	var oe *net.OpError
	if !errors.As(err, &oe) {
		t.Errorf("%T isn't of package net", err)
	}
	if _, err := l.Read(make([]byte, 1)); err == nil {
		t.Error("Read from a reset connection")
	}
	within(t, time.Second, "Close", func() { l.Close() })
}

// A reader learns of the reset first: the kernel, which tells it but once, must
// not be given all of a large file then.
func TestPeerResetReadDuringSendFile(t *testing.T) {
	checkLeaks(t)
	l, _ := upgradedLink(t)
	const size = 4 << 30
	f := testFile(t, nil)
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	sent, stalled := sendStalled(t, l, f, size)
	<-stalled
	read := readAll(l)
	l.peer.SetLinger(0)
	l.peer.Close()
	if err := <-read; err == nil {
		t.Error("Read from a reset connection")
	}
	if err := <-sent; err == nil {
		t.Error("SendFile to a reset connection")
	}
	if n := l.Info().SentFile; n > 2*maxSendfile {
		t.Errorf("%d bytes were sent", n)
	}
}

func TestCloseDuringSendFile(t *testing.T) {
	checkLeaks(t)
	l, client, content, done := stuck(t)
	within(t, time.Second, "Close", func() { l.Close() })
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("SendFile: %v", err)
	}
	checkTruncated(t, client, content)
	if _, err := l.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write after Close: %v", err)
	}
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
}

func TestAbortDuringSendFile(t *testing.T) {
	checkLeaks(t)
	l, client, content, done := stuck(t)
	why := errors.New("the test's own reason")
	within(t, time.Second, "Abort", func() { l.Abort(why) })
	if err := <-done; !errors.Is(err, why) {
		t.Errorf("SendFile: %v", err)
	}
	if _, err := l.Read(make([]byte, 1)); !errors.Is(err, why) {
		t.Errorf("Read: %v", err)
	}
	if _, err := l.Write([]byte("x")); !errors.Is(err, why) {
		t.Errorf("Write: %v", err)
	}
	checkTruncated(t, client, content)
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Close after Abort: %v", err)
	}
}

func TestAbortSendsNoCloseNotify(t *testing.T) {
	l, client := upgradedLink13(t)
	if _, err := l.Write([]byte("half of")); err != nil {
		t.Fatal(err)
	}
	l.Abort(errors.New("enough"))
	checkTruncated(t, client, []byte("half of it"))
}

func TestCloseSendsOneCloseNotifyAfterTheLastByte(t *testing.T) {
	eachSuite(t, func(t *testing.T, s suite) {
		needSuite(t, s)
		checkLeaks(t)
		l := setup{}.connect(t)
		client := l.with(s)
		l.mustUpgrade()
		content := randomBytes(100_000)
		f := testFile(t, content)
		done := receive(client)
		if _, err := l.SendFile(f, 0, int64(len(content)), nil); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		checkReceived(t, <-done, content) // up to close_notify, with a client13
		switch c := client.(type) {
		case *client13:
			if r, err := c.rawRecord(); err != io.EOF {
				t.Errorf("after close_notify came %x, %v", r, err)
			}
		case *goClient:
			io.Copy(io.Discard, c.wire) // the rest, if any
			r := c.records(t)
			if a := alerts(r); len(a) != 1 || !bytes.Equal(a[0], []byte{1, alertCloseNotify}) || r[len(r)-1].typ != RecordTypeAlert {
				t.Errorf("alerts %v, last record of type %d", a, r[len(r)-1].typ)
			}
		}
	})
}

// What WriteMore left open goes out before close_notify.
func TestCloseFlushesWriteMore(t *testing.T) {
	l, client := upgradedLink13(t)
	done := receive(client)
	if _, err := l.WriteMore([]byte("the end")); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	checkReceived(t, <-done, []byte("the end"))
}

func TestCloseWriteLeavesReading(t *testing.T) {
	checkLeaks(t)
	for _, upgraded := range []bool{false, true} {
		t.Run(fmt.Sprintf("upgraded %t", upgraded), func(t *testing.T) {
			var l *link
			var client *goClient
			if upgraded {
				l, client = upgradedLink(t)
			} else {
				l = setup{}.connect(t)
				client = l.withGo(nil)
			}
			done := receive(client)
			if _, err := l.Write([]byte("last words")); err != nil {
				t.Fatal(err)
			}
			if err := l.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			checkReceived(t, <-done, []byte("last words"))
			if n, err := l.Write([]byte("x")); n != 0 || err == nil {
				t.Errorf("Write after CloseWrite: %d, %v", n, err)
			}
			if n, err := l.WriteMore([]byte("x")); n != 0 || err == nil {
				t.Errorf("WriteMore after CloseWrite: %d, %v", n, err)
			}
			if n, err := l.SendFile(testFile(t, []byte("x")), 0, 1, nil); n != 0 || err == nil {
				t.Errorf("SendFile after CloseWrite: %d, %v", n, err)
			}
			checkReads(t, l, client)
			if err := l.CloseWrite(); err != nil {
				t.Errorf("second CloseWrite: %v", err)
			}
			if err := l.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			io.Copy(io.Discard, client.wire)
			if a := alerts(client.records(t)); len(a) != 1 {
				t.Errorf("alerts %v", a)
			}
		})
	}
}

func TestPeerHalfClosesAfterUpgrade(t *testing.T) {
	l, client := upgradedLink(t)
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("Read: %v", err)
	}
	content := randomBytes(100_000)
	done := receive(client)
	if _, err := l.SendFile(testFile(t, content), 0, int64(len(content)), nil); err != nil {
		t.Error(err)
	}
	l.Close()
	checkReceived(t, <-done, content)
}

// fill sends to the socket, past the Conn, until it takes not one byte
// more, nor after a while. No write of the Conn's has failed or waits then.
func (l *link) fill() (sent []byte) {
	l.t.Helper()
	// Fixed sizes: the kernel would find room by making buffers larger.
	if err := errors.Join(l.sock.SetWriteBuffer(64<<10), l.peer.SetReadBuffer(64<<10)); err != nil {
		l.t.Fatal(err)
	}
	for quiet := 0; quiet < 10; quiet++ {
		err := control(l.sock, func(fd int) error {
			chunk := randomBytes(16000)
			for len(chunk) > 0 {
				n, err := unix.SendmsgN(fd, chunk, nil, nil, unix.MSG_NOSIGNAL)
				switch {
				case err == unix.EAGAIN:
					chunk = chunk[:len(chunk)/2]
				case err != nil:
					return err
				default:
					sent = append(sent, chunk[:n]...)
					quiet = 0
				}
			}
			return nil
		})
		if err != nil {
			l.t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond) // for what is on its way to the peer
	}
	return sent
}

func TestCloseNotifyWaitsForRoom(t *testing.T) {
	checkLeaks(t)
	l, client := upgradedLink13(t)
	content := l.fill()
	closed := make(chan error, 1)
	go func() { closed <- l.Close() }()
	select {
	case err := <-closed:
		t.Fatalf("Close didn't wait: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	checkReceived(t, <-receive(client), content) // up to close_notify
	if err := <-closed; err != nil {
		t.Errorf("Close: %v", err)
	}
	if r, err := client.rawRecord(); err != io.EOF {
		t.Errorf("after close_notify came %x, %v", r, err)
	}
}

// An alert of crypto/tls that the peer doesn't take holds all its locks.
func TestCloseWhileAnAlertIsBlocked(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 5 s")
	}
	eachStateAtOnce(t, func(t *testing.T, l *link, client *client13) {
		l.SetDeadline(time.Time{})
		content := l.fill()
		if _, err := l.peer.Write(garbage); err != nil {
			t.Fatal(err)
		}
		read := readAll(l)
		l.awaitBlocked()
		within(t, 8*time.Second, "Close", func() { l.Close() })
		if err := <-read; err == nil {
			t.Error("garbage was read")
		}
		if l.Offloaded() {
			checkTruncated(t, client, append(content, 0))
		}
	})
}

// awaitBlocked waits until what crypto/tls writes by itself is blocked.
func (l *link) awaitBlocked() {
	l.t.Helper()
	waitFor(l.t, "a write of crypto/tls", func() bool {
		if l.tap.wmu.TryLock() {
			l.tap.wmu.Unlock()
			return false
		}
		return true
	})
}

// An Upgrade that comes while crypto/tls's answer to a KeyUpdate is blocked waits
// for it no longer than the write deadline, or until somebody ends the connection.
func TestUpgradeWhileAnAnswerIsBlocked(t *testing.T) {
	for name, end := range map[string]func(*link){
		"write deadline": func(l *link) { l.SetWriteDeadline(time.Now().Add(20 * time.Millisecond)) },
		"Abort":          func(l *link) { l.Abort(net.ErrClosed) },
	} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			l := setup{opts: Options{Features: canEverything()}}.connect(t)
			client := l.with13(tls.TLS_AES_128_GCM_SHA256, clientOptions{})
			l.SetDeadline(time.Time{})
			l.fill()
			if err := client.keyUpdate(true); err != nil {
				t.Fatal(err)
			}
			read := readAll(l)
			l.awaitBlocked()
			upgraded := make(chan error, 1)
			go func() { upgraded <- l.Upgrade() }()
			end(l)
			checkRefused(t, <-upgraded, ReasonClosed)
			if n, err := l.Write([]byte("x")); n != 0 || err == nil {
				t.Errorf("Write: %d, %v", n, err)
			}
			within(t, time.Second, "Close", func() { l.Close() })
			<-read
		})
	}
}

// A fatal alert of crypto/tls's own goes out between two records of a file, which
// ends with it.
func TestAlertDuringSendFile(t *testing.T) {
	for _, s := range both {
		t.Run(s.String(), func(t *testing.T) {
			needSuite(t, s)
			checkLeaks(t)
			l := setup{}.connect(t)
			client := l.with(s)
			l.mustUpgrade()
			content := randomBytes(4 * bigFile)
			sent, stalled := sendStalled(t, l, testFile(t, content), int64(len(content)))
			<-stalled
			if _, err := l.peer.Write(garbage); err != nil {
				t.Fatal(err)
			}
			read := readAll(l)
			l.awaitWaiting("the alert", func() bool { return len(read) > 0 })
			got, err := io.ReadAll(client)
			if !isAlert(err, alertBadRecordMAC) {
				t.Errorf("the client sees %v", err)
			}
			if len(got) >= len(content) || !bytes.HasPrefix(content, got) {
				t.Errorf("the client got %d bytes that aren't a beginning of what was sent", len(got))
			}
			if err := <-sent; err == nil {
				t.Error("SendFile went on")
			}
			if err := <-read; err == nil {
				t.Error("garbage was read")
			}
			within(t, time.Second, "Close", func() { l.Close() })
		})
	}
}

func TestInfoDuringSendFile(t *testing.T) {
	l, _, _, _ := stuck(t)
	within(t, time.Second, "Info", func() {
		if i := l.Info(); !i.Offloaded || i.Sequence != 1 {
			t.Errorf("Info: %+v", i)
		}
	})
}

func TestCloseOfPeerThatNeverReads(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 5 s")
	}
	eachStateAtOnce(t, func(t *testing.T, l *link, client *client13) {
		content := l.fill()
		start := time.Now()
		err := l.Close()
		if took := time.Since(start); took < 4*time.Second || took > 8*time.Second {
			t.Errorf("Close took %v", took)
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Close: %v", err)
		}
		if l.Offloaded() {
			checkTruncated(t, client, append(content, 0))
		}
	})
}

// cpuTime is what this thread, which is the benchmark's own from now on, has taken
// of CPUs: not what its peer does.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	runtime.LockOSThread() // until its goroutine ends
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// reportCPU reports the CPU time of each operation since begin.
func reportCPU(b *testing.B, begin time.Duration) {
	b.Helper()
	b.ReportMetric(float64(cpuTime(b)-begin)/float64(b.N), "cpu-ns/op")
}

// BenchmarkConnWrite is 64 KiB of memory: encrypted by crypto/tls, and by the kernel.
func BenchmarkConnWrite(b *testing.B) {
	for name, upgraded := range map[string]bool{"caddy": false, "ktls": true} {
		b.Run("with="+name, func(b *testing.B) {
			l, client := benchLink(b, upgraded)
			p := randomBytes(64 << 10)
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			begin := cpuTime(b)
			for b.Loop() {
				if _, err := l.Write(p); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			reportCPU(b, begin)
			l.Close()
			<-client
		})
	}
}

// BenchmarkSendFile is 1 MiB of a file: read and written 64 KiB at a time, as Caddy
// does it, and by sendfile.
func BenchmarkSendFile(b *testing.B) {
	const size = 1 << 20
	for _, name := range []string{"caddy", "ktls"} {
		b.Run("with="+name, func(b *testing.B) {
			l, client := benchLink(b, name == "ktls")
			f := testFile(b, randomBytes(size))
			send := func() error {
				_, err := l.SendFile(f, 0, size, nil)
				return err
			}
			if name == "caddy" {
				p := make([]byte, 64<<10)
				send = func() error {
					for at := int64(0); at < size; at += int64(len(p)) {
						if _, err := f.ReadAt(p, at); err != nil {
							return err
						}
						if _, err := l.Write(p); err != nil {
							return err
						}
					}
					return nil
				}
			}
			b.SetBytes(size)
			b.ReportAllocs()
			begin := cpuTime(b)
			for b.Loop() {
				if err := send(); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			reportCPU(b, begin)
			l.Close()
			<-client
		})
	}
}

// benchLink is a link to a client that throws away what it gets, still sealed.
func benchLink(b testing.TB, upgraded bool) (*link, <-chan received) {
	b.Helper()
	if upgraded {
		needKTLS(b)
	}
	l := setup{}.connect(b)
	l.withGo(nil)
	if upgraded {
		l.mustUpgrade()
	}
	l.SetDeadline(time.Time{})
	l.peer.SetDeadline(time.Time{})
	return l, receive(l.peer)
}
