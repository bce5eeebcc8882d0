package ktls

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFaultsOfReceivingCalls: whichever system call fails in whatever way, Read
// returns all bytes in their order, or an error, and the end is told as one only
// where it is.
func TestFaultsOfReceivingCalls(t *testing.T) {
	for _, s := range bothVersions() {
		for _, how := range []string{"Read", "WriteTo"} {
			t.Run(s.String()+" "+how, func(t *testing.T) {
				needRX(t, s)
				checkLeaks(t)
				content := randomBytes(60_000)
				run := func(t *testing.T, h *callHook) (l *link, got []byte, err, werr error) {
					l = setup{opts: Options{RX: true}}.connect(t)
					client := l.sender(s)
					l.mustUpgrade()
					var mu sync.Mutex // of client.seal
					client.Write([]byte("proof"))
					l.mustRead([]byte("proof"))
					h.hooked(t)
					client.Write(content[:5]) // the switch comes with it
					got = make([]byte, 5)
					if n, err := io.ReadFull(l.Conn, got); err != nil {
						_, werr = l.Write([]byte("x"))
						l.Abort(net.ErrClosed)
						return l, got[:n], err, werr
					}
					far := net.Conn(nil)
					h.again = func() { // wakes whoever waits for either connection
						mu.Lock()
						defer mu.Unlock()
						client.raw(client.seal(RecordTypeAlert, []byte{1, alertUserCanceled}))
						if far != nil {
							far.Write([]byte("x"))
						}
					}
					send := func() {
						mu.Lock()
						defer mu.Unlock()
						client.raw(mixedStreamOf(t, client, content[5:], func(i int) int { return 1 + i*i*57%MaxPlaintext }))
					}
					var rest []byte
					var sent sync.WaitGroup
					sent.Go(send)
					if how == "Read" {
						rest, err = io.ReadAll(l.Conn)
					} else {
						var dst *net.TCPConn
						var peer *net.TCPConn
						dst, peer = tcpPair(t)
						far = peer
						done := make(chan struct{})
						go func() {
							rest, _ = io.ReadAll(peer)
							close(done)
						}()
						_, err = l.WriteTo(dst)
						dst.CloseWrite()
						<-done
					}
					_, werr = l.Write([]byte("x"))
					if err != nil { // of what is sent, nobody reads the rest
						l.Abort(net.ErrClosed)
					}
					sent.Wait()
					return l, append(got, rest...), err, werr
				}
				count := func(t *testing.T, h *callHook) {
					l, got, err, werr := run(t, h)
					if err != nil || werr != nil || !bytes.Equal(got, content) || !l.Info().Receiving {
						t.Errorf("without a fault: %d bytes, %v, %v, %+v", len(got), err, werr, l.Info())
					}
				}
				eachFault(t, count, func(t *testing.T, h *callHook) {
					l, got, err, werr := run(t, h)
					whole := h.fault.again()
					if !h.hit() { // how often depends on how much comes at once
						if whole = true; h.which == 1 {
							t.Fatal("the call wasn't made")
						}
						h.name = ""
					}
					switch h.name {
					case "setsockopt TLS_RX":
						whole = h.which == 1 // crypto/tls goes on
					case "pipe2", "poll", "getsockopt SO_SNDBUF":
						whole = true
					case "setsockopt TLS_TX", "ioctl SIOCINQ":
						whole = false
					case "sendmsg", "write": // is the next writer's
						if again := whole && (h.fault.errno != 0 || h.name == "write"); again != (werr == nil) {
							t.Errorf("Write: %v", werr)
						}
						whole = true
					case "write to pipe":
						whole = h.fault.errno == unix.EINTR
					case "recvmsg":
						// Of what comes in one record, two calls may read; between them
						// there is no EAGAIN.
						whole = h.fault.errno == unix.EINTR || h.fault.again() && err == nil
					}
					switch h.name {
					case "read", "recvmsg", "splice in": // what a socket tells once ends both directions
						if err != nil && werr == nil {
							t.Errorf("writing goes on after %v", err)
						}
					}
					next := make([]byte, 1)
					if !bytes.HasPrefix(content, got) {
						t.Errorf("%d bytes that aren't a beginning of what was sent", len(got))
					}
					switch {
					case whole && (err != nil || len(got) != len(content)):
						t.Errorf("%d bytes of %d, %v", len(got), len(content), err)
					case !whole && err == nil && len(got) != len(content):
						t.Errorf("%d bytes of %d, and no error", len(got), len(content))
					case !whole && err == nil:
						t.Error("no error was told")
					}
					if h.name == "write to pipe" && !whole { // nothing is lost
						if _, err := io.ReadFull(l.Conn, next); err != nil || next[0] != content[len(got)] {
							t.Errorf("a later Read: %d, %v", next, err)
						}
					} else if !whole && h.name != "splice out" { // what the pipe held is lost
						if n, again := l.Read(next); n != 0 || again == nil || errors.Is(again, io.EOF) {
							t.Errorf("a later Read: %d, %v", n, again)
						}
					}
				})
			})
		}
	}
}
