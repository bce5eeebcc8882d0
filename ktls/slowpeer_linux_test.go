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
				l := &link{t: t}
				l.sock, l.peer = narrowPair(t)
				l.start(setup{}, l.sock)
				client := l.with13(tls.TLS_AES_128_GCM_SHA256, clientOptions{})
				l.mustUpgrade()
				if err := l.sock.SetWriteBuffer(buffer); err != nil {
					t.Fatal(err)
				}
				send := l.sends(testFile(t, content), content)[how]
				sent := make(chan error, 1)
				go func() {
					err := send()
					if err == nil && how == "SendFramed" { // the others do it themselves
						err = l.Settle()
					}
					sent <- err
				}()
				wire := make([]byte, 0, 2*len(content))
				for done := false; !done; {
					select {
					case err := <-sent:
						if err != nil {
							t.Fatal(err)
						}
						done = true
					case <-time.After(10 * time.Millisecond):
						l.peer.SetReadDeadline(time.Now().Add(10 * time.Millisecond)) // it may have all
						n, err := l.peer.Read(wire[len(wire):min(len(wire)+2000, cap(wire))])
						if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
							t.Fatal(err)
						}
						wire = wire[:len(wire)+n]
					}
				}
				l.peer.SetReadDeadline(time.Now().Add(testTimeout))
				cerr := l.Close()
				before, _ := client.r.Peek(client.r.Buffered())
				client.r = bufio.NewReader(io.MultiReader(bytes.NewReader(before), bytes.NewReader(wire), l.peer))
				if got, err := io.ReadAll(client); !bytes.Equal(got, content) {
					t.Errorf("the peer got %d bytes of %d, then %v; Close: %v", len(got), len(content), err, cerr)
				}
			})
		}
	}
}
