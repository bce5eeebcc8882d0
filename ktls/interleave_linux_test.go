package ktls

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// goroutine is what names this goroutine in the stacks of all: "goroutine 12 ".
func goroutine() string {
	stack := make([]byte, 64)
	id, _, _ := strings.Cut(string(stack[:runtime.Stack(stack, false)]), "[")
	return id
}

// begin runs f in a goroutine, and returns when it has ended or waits for
// something: a lock, a descriptor, the network.
func begin(f func()) (done <-chan struct{}) {
	id, ended := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(ended)
		id <- goroutine()
		f()
	}()
	own := <-id
	for {
		select {
		case <-ended:
			return ended
		default:
		}
		if waits(own, "semacquire", "sync.Mutex.Lock", "IO wait") {
			return ended
		}
		runtime.Gosched()
	}
}

// waits reports whether a goroutine waits for one of these.
func waits(id string, states ...string) bool {
	stacks := make([]byte, 1<<16)
	_, rest, _ := bytes.Cut(stacks[:runtime.Stack(stacks, true)], []byte(id))
	return slices.ContainsFunc(states, func(s string) bool { return bytes.HasPrefix(rest, []byte("["+s)) })
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
	name   string
	do     func(x *session, reading bool) // reading: the goroutine that reads is the one stopped
	errs   []error
	closes bool
}{
	{"Close", func(x *session, _ bool) { x.Close() }, []error{net.ErrClosed}, true},
	{"CloseWrite", func(x *session, _ bool) { x.CloseWrite() }, []error{errShutdown}, false},
	{"Abort", func(x *session, _ bool) { x.Abort(errInterleaved) }, []error{errInterleaved}, true},
	{"SetDeadline", func(x *session, _ bool) { x.SetDeadline(time.Unix(1, 0)) }, []error{os.ErrDeadlineExceeded}, false},
	{"SetWriteDeadline", func(x *session, _ bool) { x.SetWriteDeadline(time.Unix(1, 0)) }, []error{os.ErrDeadlineExceeded}, false},
	{"reset", func(x *session, _ bool) {
		x.peer.SetLinger(0)
		x.peer.Close()
	}, []error{unix.ECONNRESET, unix.EPIPE}, false},
	{"KeyUpdate", func(x *session, reading bool) {
		x.askForKeys()
		for !reading && !x.drained() && !waits(x.id, "sync.Mutex.Lock") {
			runtime.Gosched()
		}
	}, nil, false},
}

// TestInterleavings: a connection is stopped at each step of the upgrade and of a
// change of keys, and before each system call; then something happens to it, as
// far as it can, and it goes on. There is no deadlock, the client gets a beginning
// of what was sent and close_notify only behind all of it, errors say why, and
// when it is closed no descriptor and no secret is left.
func TestInterleavings(t *testing.T) {
	const mostOfFile = 9000 // several calls for each
	for _, s := range bothVersions() {
		sends := map[string]bool{}
		for _, rx := range []bool{false, true} {
			if rx && s.version != tls.VersionTLS13 {
				continue // less of the same
			}
			t.Run(fmt.Sprintf("%v receiving %t", s, rx), func(t *testing.T) {
				needSuite(t, s)
				if rx {
					needRX(t, s)
				}
				checkLeaks(t)
				run := func(t *testing.T, h *callHook, x *session, closes bool) (sent int, whole bool, err error) {
					testHookFault = func(s upgradeStep) error {
						h.call("step "+string(s), 0)
						return nil
					}
					t.Cleanup(func() { testHookFault = nil })
					done := make(chan struct{})
					go func() {
						defer close(done)
						sent, whole, err = x.serve()
						if !closes || !h.hit() {
							x.Close()
						}
					}()
					await(t, "the server", done)
					return sent, whole, err
				}
				start := func(t *testing.T, h *callHook) *session {
					h.hooked(t)
					return newSession(t, s, Options{RX: rx, RecordSize: 8000})
				}
				all := &callHook{most: mostOfFile}
				t.Run("nothing", func(t *testing.T) {
					x := start(t, all)
					_, _, err := run(t, all, x, false)
					if got := x.finish(); err != nil || len(got) != atEnd || !x.clean() {
						t.Errorf("%d bytes, %v, %v", len(got), err, x.end)
					}
				})
				for name, times := range all.seen {
					if rx && sends[name] {
						continue // as without
					}
					sends[name] = !rx && name != "sendmsg" && name != "setsockopt TLS_TX"
					for _, which := range slices.Compact([]int{1, times}) {
						for _, e := range interleaved {
							if slow && (e.name == "SetDeadline" || e.name == "Abort") {
								continue // much like SetWriteDeadline and Close
							}
							if e.name == "KeyUpdate" && (s.version != tls.VersionTLS13 || Probe().Rekey.Support != Yes || rx && Probe().RekeyRX.Support != Yes) {
								continue
							}
							t.Run(fmt.Sprintf("%s at %s %d", e.name, name, which), func(t *testing.T) {
								h := &callHook{name: name, which: which, most: mostOfFile}
								x := start(t, h)
								happened := make(chan (<-chan struct{}), 1)
								h.pause = func() {
									reading := goroutine() == x.id
									happened <- begin(func() { e.do(x, reading) })
								}
								sent, whole, err := run(t, h, x, e.closes)
								x.readEnd()
								select {
								case done := <-happened:
									await(t, e.name, done)
								default:
									t.Skip("it didn't come to that") // how often depends on timing
								}
								got := x.finish()
								if e.name != "reset" && x.clean() && (!whole || len(got) != sent) {
									t.Errorf("the client got %d bytes of %d and close_notify (%v)", len(got), sent, err)
								}
								if err == nil { // all was sent before
									// Closing with something unread is a reset.
									if len(e.errs) == 0 && name != "sendmsg" && (len(got) != atEnd || !x.clean()) {
										t.Errorf("the client got %d bytes, %v", len(got), x.end)
									}
									return
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
