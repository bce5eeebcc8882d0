//go:build !ktlsdebug

package lockorder

import (
	"reflect"
	"sync"
	"testing"
)

// TestMutexIsPlain: without the tag there is nothing but the lock.
func TestMutexIsPlain(t *testing.T) {
	if m := reflect.TypeFor[Mutex[Write]](); m.Size() != reflect.TypeFor[sync.Mutex]().Size() || m.NumMethod() != 0 {
		t.Errorf("%v has %d bytes", m, m.Size())
	}
	var first Mutex[Handshake]
	var second Mutex[Write]
	second.Lock()
	defer second.Unlock()
	first.Lock() // says nothing
	defer first.Unlock()
}
