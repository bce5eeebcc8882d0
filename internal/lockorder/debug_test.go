//go:build ktlsdebug

package lockorder

import (
	"fmt"
	"strings"
	"testing"
)

// panics returns what f panics with.
func panics(f func()) (with string) {
	defer func() {
		if r := recover(); r != nil {
			with = fmt.Sprint(r)
		}
	}()
	f()
	return ""
}

func TestOrder(t *testing.T) {
	var handshake Mutex[Handshake]
	var stream, reading Mutex[Stream]
	var write Mutex[Write]
	checkPanic := func(f func(), words ...string) {
		t.Helper()
		got := panics(f)
		for _, w := range words {
			if !strings.Contains(got, w) {
				t.Errorf("panic %q, without %q", got, w)
			}
		}
		if len(words) == 0 && got != "" {
			t.Errorf("panic %q", got)
		}
	}
	checkPanic(func() { handshake.Lock(); stream.Lock(); write.Lock() })
	checkPanic(func() { handshake.Unlock(); write.Unlock() }) // in whatever order
	checkPanic(func() { handshake.Lock() }, "Handshake", "Stream")
	checkPanic(func() { reading.Lock() }, "lockorder.Stream is taken with lockorder.Stream held")
	done := make(chan struct{})
	go func() { // another goroutine holds nothing
		defer close(done)
		checkPanic(func() { handshake.Lock(); defer handshake.Unlock() })
		checkPanic(func() { stream.Unlock() }, "doesn't hold")
		if stream.TryLock() {
			t.Error("TryLock of what is locked")
		}
	}()
	<-done
	checkPanic(func() {
		if !handshake.TryLock() {
			t.Error("TryLock of what is free")
		}
		write.Lock()
	})
	checkPanic(func() { write.Unlock(); handshake.Unlock(); stream.Unlock() })
	if len(held.by) != 0 {
		t.Errorf("held: %v", held.by)
	}
}
