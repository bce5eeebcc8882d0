package ktls

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// begin runs f in a goroutine, and returns when it has ended or waits for
// something: a lock, a descriptor, the network.
func begin(f func()) (done <-chan struct{}) {
	id, ended := make(chan []byte, 1), make(chan struct{})
	go func() {
		defer close(ended)
		stack := make([]byte, 64)
		stack = stack[:runtime.Stack(stack, false)]
		id <- stack[:bytes.IndexByte(stack, '[')] // "goroutine 12 "
		f()
	}()
	own := <-id
	stacks := make([]byte, 1<<20)
	for {
		select {
		case <-ended:
			return ended
		default:
		}
		_, rest, found := bytes.Cut(stacks[:runtime.Stack(stacks, true)], own)
		if found {
			for _, state := range []string{"[semacquire", "[sync.Mutex.Lock", "[IO wait"} {
				if bytes.HasPrefix(rest, []byte(state)) {
					return ended
				}
			}
		}
		runtime.Gosched()
	}
}

// await fails the test, with all stacks, if done isn't closed.
func await(t testing.TB, what string, done <-chan struct{}) {
	t.Helper()
	timer := time.NewTimer(testTimeout)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		stacks := make([]byte, 1<<20)
		t.Fatalf("%s hangs:\n%s", what, stacks[:runtime.Stack(stacks, true)])
	}
}

var errInterleaved = errors.New("the test's own reason")

// interleaved are what may happen to a connection at any time, and what a write
// may fail with afterwards.
var interleaved = []struct {
	name string
	do   func(x *session)
	errs []error
}{
	{"Close", func(x *session) { x.Close() }, []error{net.ErrClosed}},
	{"CloseWrite", func(x *session) { x.CloseWrite() }, []error{errShutdown}},
	{"Abort", func(x *session) { x.Abort(errInterleaved) }, []error{errInterleaved}},
	{"SetDeadline", func(x *session) { x.SetDeadline(time.Unix(1, 0)) }, []error{os.ErrDeadlineExceeded}},
	{"SetWriteDeadline", func(x *session) { x.SetWriteDeadline(time.Unix(1, 0)) }, []error{os.ErrDeadlineExceeded}},
	{"reset", func(x *session) {
		x.peer.SetLinger(0)
		x.peer.Close()
	}, []error{unix.ECONNRESET, unix.EPIPE}},
}

// TestInterleavings: a connection is stopped at each step of the upgrade and of a
// change of keys, and before each system call; then something happens to it, as
// far as it can, and it goes on. There is no deadlock, the client gets a beginning
// of what was sent and close_notify only behind all of it, errors say why, and
// when it is closed no descriptor and no secret is left.
func TestInterleavings(t *testing.T) {
	for _, rx := range []bool{false, true} {
		for _, s := range []suite{upgradable[0], upgradable[3]} {
			t.Run(fmt.Sprintf("%v receiving %t", s, rx), func(t *testing.T) {
				needSuite(t, s)
				if rx {
					needRX(t, s)
				}
				checkLeaks(t)
				run := func(t *testing.T, h *callHook, x *session) (sent int, whole bool, err error) {
					testHookFault = func(s upgradeStep) error {
						h.call("step "+string(s), 0)
						return nil
					}
					t.Cleanup(func() { testHookFault = nil })
					done := make(chan struct{})
					go func() {
						defer close(done)
						sent, whole, err = x.serve()
						x.Close()
					}()
					await(t, "the server", done)
					return sent, whole, err
				}
				start := func(t *testing.T, h *callHook) *session {
					h.hooked(t)
					return newSession(t, s, Options{RX: rx, RecordSize: 8000})
				}
				all := &callHook{}
				t.Run("nothing", func(t *testing.T) {
					x := start(t, all)
					_, _, err := run(t, all, x)
					if got := x.finish(); err != nil || len(got) != atEnd || !x.clean() {
						t.Errorf("%d bytes, %v, %v", len(got), err, x.end)
					}
				})
				for name, times := range all.seen {
					for _, which := range []int{1, 2, times} {
						if which > times || which == 2 && times == 2 {
							continue
						}
						for _, e := range interleaved {
							t.Run(fmt.Sprintf("%s at %s %d", e.name, name, which), func(t *testing.T) {
								h := &callHook{name: name, which: which}
								x := start(t, h)
								var happened <-chan struct{}
								h.pause = func() { happened = begin(func() { e.do(x) }) }
								sent, whole, err := run(t, h, x)
								if happened == nil {
									t.Skip("it didn't come to that") // how often depends on timing
								}
								await(t, e.name, happened)
								got := x.finish()
								if e.name != "reset" && x.clean() && (!whole || len(got) != sent) {
									t.Errorf("the client got %d bytes of %d and close_notify (%v)", len(got), sent, err)
								}
								if err == nil {
									return // all was sent before
								}
								for _, want := range e.errs {
									if errors.Is(err, want) {
										return
									}
								}
								if e.name == "CloseWrite" && !x.Offloaded() {
									return // crypto/tls has its own error
								}
								t.Errorf("the server was told %v", err)
							})
						}
					}
				}
			})
		}
	}
}
