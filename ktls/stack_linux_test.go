package ktls

import (
	"testing"
	"unsafe" // for addresses that don't escape
)

var raceDetector bool // is built in

// here is an address on the stack of whoever calls it.
//
//go:noinline
func here() uintptr {
	var x byte
	return uintptr(unsafe.Pointer(&x))
}

// withRoom calls f where the stack has room, so that it stays where it is.
//
//go:noinline
func withRoom(f func()) (last byte) {
	var room [64 << 10]byte
	f()
	return room[len(room)-1]
}

// TestStack: a write and a sendfile take little of the stack. An HTTP/2 server has a
// new goroutine for most frames, whose stack is copied when it is full; who calls
// this package reserves 4 KiB for it at once (stack.go of the module), of which
// 1.5 KiB are its own and the system calls'.
func TestStack(t *testing.T) {
	if raceDetector {
		t.Skip("its code takes more")
	}
	const most = 2560
	for _, how := range []string{"Write", "SendFile", "WriteMore", "SendFramed", "Settle"} {
		t.Run(how, func(t *testing.T) {
			needSuite(t, upgradable[0])
			l := setup{}.connect(t)
			client := l.with(upgradable[0])
			l.mustUpgrade()
			content := randomBytes(40_000)
			send := l.sends(testFile(t, content), content)[how]
			if how == "Settle" {
				send = l.Settle
			}
			go func() {
				p := make([]byte, 1<<10)
				for {
					if _, err := client.Read(p); err != nil {
						return
					}
				}
			}()
			var calls int
			var deepest uintptr
			testHookCall = func(_ string, n int) (int, error) {
				calls++
				deepest = min(deepest, here())
				return n, nil
			}
			defer func() { testHookCall = nil }()
			withRoom(func() {
				begin := here()
				deepest = begin
				if err := send(); err != nil {
					t.Error(err)
				}
				t.Logf("%d calls, at a depth of %d bytes", calls, begin-deepest)
				if calls == 0 || begin-deepest > most {
					t.Errorf("%d calls, at a depth of %d bytes; want less than %d", calls, begin-deepest, most)
				}
			})
		})
	}
}
