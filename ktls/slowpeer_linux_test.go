package ktls

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// narrowPair is a TCP connection whose receiver never announces a window of more
// than 1 or 2 KiB, so that TCP at the sender (a) has small segments.
func narrowPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	return dialPair(t, &net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		return controlRaw(c, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1) })
	}})
}

// narrowLink is an upgraded connection over a narrowPair, with a send buffer of so
// many bytes, of which the kernel makes twice as many.
func narrowLink(t *testing.T, buffer int) (*link, *client13) {
	t.Helper()
	l := &link{t: t}
	l.sock, l.peer = narrowPair(t)
	// TCP asks more and more rarely whether the window is open again.
	l.sock.SetDeadline(time.Now().Add(5 * testTimeout))
	l.start(setup{}, l.sock)
	client := l.with13(tls.TLS_AES_128_GCM_SHA256, clientOptions{})
	l.mustUpgrade()
	if err := l.sock.SetWriteBuffer(buffer); err != nil {
		t.Fatal(err)
	}
	return l, client
}

// readRaw appends to wire at most n bytes that the peer receives within a moment: it
// may have all.
func (l *link) readRaw(wire []byte, n int) []byte {
	l.t.Helper()
	l.peer.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	p := make([]byte, n)
	n, err := l.peer.Read(p)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		l.t.Fatal(err)
	}
	return append(wire, p[:n]...)
}

// goOn has the client read what readRaw has read, and then on.
func (l *link) goOn(client *client13, wire []byte) {
	l.peer.SetReadDeadline(time.Now().Add(5 * testTimeout))
	before, _ := client.r.Peek(client.r.Buffered())
	client.r = bufio.NewReader(io.MultiReader(bytes.NewReader(before), bytes.NewReader(wire), l.peer))
}

// TestSlowPeerGetsAllAfterClose: what was sent without an error reaches a peer that
// stops reading then, and goes on only after Close has returned, as with crypto/tls.
// close_notify alone may be missing.
func TestSlowPeerGetsAllAfterClose(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 5 s")
	}
	needKTLS(t)
	content := randomBytes(8 * MaxPlaintext)
	for _, buffer := range []int{1, 8 << 10, 32 << 10, 64 << 10, 128 << 10} {
		for _, how := range []string{"Write", "SendFile", "WriteMore", "SendFramed"} {
			t.Run(fmt.Sprintf("%s with %d bytes of buffer", how, buffer), func(t *testing.T) {
				t.Parallel()
				l, client := narrowLink(t, buffer)
				send := l.sends(testFile(t, content), content)[how]
				sent := make(chan error, 1)
				go func() {
					err := send()
					if err == nil && how == "SendFramed" { // the others do it themselves
						err = l.Settle()
					}
					sent <- err
				}()
				var wire []byte
				for done := false; !done; {
					select {
					case err := <-sent:
						if err != nil {
							t.Fatal(err)
						}
						done = true
					case <-time.After(10 * time.Millisecond):
						wire = l.readRaw(wire, 2000)
					}
				}
				cerr := l.Close()
				l.goOn(client, wire)
				if got, err := io.ReadAll(client); !bytes.Equal(got, content) {
					t.Errorf("the peer got %d bytes of %d, then %v; Close: %v", len(got), len(content), err, cerr)
				}
			})
		}
	}
}

// waitingForTCP has a connection with a send buffer of 8 KiB whose kernel TLS took
// a record that TCP has no room for, and returns what Write returns when TCP has all.
// hook is asked for every call.
func waitingForTCP(t *testing.T, hook func(name string, n int) (int, error)) (l *link, client *client13, content []byte, sent <-chan error) {
	t.Helper()
	needKTLS(t)
	l, client = narrowLink(t, 4<<10)
	waits := make(chan struct{})
	var once sync.Once
	testHookCall = func(name string, n int) (int, error) {
		if name == "ioctl SIOCOUTQ" { // as follows when the socket turned out to be full
			once.Do(func() { close(waits) })
		}
		return hook(name, n)
	}
	t.Cleanup(func() { testHookCall = nil })
	content = randomBytes(MaxPlaintext)
	errs := make(chan error, 1)
	go func() {
		_, err := l.Write(content)
		errs <- err
	}()
	select {
	case <-waits:
	case err := <-errs:
		t.Fatalf("Write returns %v, and TCP had no room", err)
	case <-time.After(testTimeout):
		t.Fatal("Write doesn't look whether TCP has all")
	}
	return l, client, content, errs
}

// TestInterruptedSettle: a signal that interrupts the question whether TCP has all
// isn't the answer.
func TestInterruptedSettle(t *testing.T) {
	var polls atomic.Int32
	_, client, content, sent := waitingForTCP(t, func(name string, n int) (int, error) {
		if name == "poll" && polls.Add(1) <= 3 {
			return 0, unix.EINTR
		}
		return n, nil
	})
	select {
	case err := <-sent:
		t.Fatalf("Write returns %v, and TCP had no room", err)
	case <-time.After(200 * time.Millisecond):
	}
	got := make([]byte, len(content))
	if _, err := io.ReadFull(client, got); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the client got something else, or %v", err)
	}
	if err := <-sent; err != nil || polls.Load() < 4 {
		t.Errorf("%v, %d polls", err, polls.Load())
	}
}

// TestResetWhileSettling: the peer is gone before TCP had all.
func TestResetWhileSettling(t *testing.T) {
	l, _, _, sent := waitingForTCP(t, func(_ string, n int) (int, error) { return n, nil })
	if err := l.peer.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	l.peer.Close()
	select {
	case err := <-sent:
		if !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("Write returns %v", err)
		}
	case <-time.After(testTimeout):
		t.Error("Write doesn't return")
	}
}

// TestSettleIsCalm: while a client takes its time, a small buffer isn't looked at
// again and again.
func TestSettleIsCalm(t *testing.T) {
	var looks atomic.Int32
	l, client, content, sent := waitingForTCP(t, func(name string, n int) (int, error) {
		if name == "getsockopt SO_SNDBUF" {
			looks.Add(1)
		}
		return n, nil
	})
	var wire []byte
	for looks.Load() < 3 { // there is room, but not all has gone
		time.Sleep(30 * time.Millisecond)
		wire = l.readRaw(wire, 1000)
		if len(wire) > len(content) {
			t.Skip("the kernel took all at once")
		}
	}
	before := looks.Load()
	time.Sleep(time.Second)
	select {
	case <-sent:
		t.Skip("TCP had all")
	default:
	}
	if n := looks.Load() - before; n > 40 {
		t.Errorf("looked %d times in a second", n)
	}
	l.goOn(client, wire)
	got := make([]byte, len(content))
	if _, err := io.ReadFull(client, got); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the client got something else, or %v", err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}
