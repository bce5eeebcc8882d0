package ktls

import (
	"testing"

	"github.com/caddy-ktls/caddy-ktls/internal/lockorder"
)

// TestKernelWriteDoesNotAllocate: what is written through the kernel takes no
// memory of Go's.
func TestKernelWriteDoesNotAllocate(t *testing.T) {
	if lockorder.Asserted {
		t.Skip("finding out which locks a goroutine holds allocates")
	}
	l, client := benchLink(t, true)
	p := randomBytes(4 << 10)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := l.Write(p); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for a write", n)
	}
	l.Close()
	<-client
}

// TestSendFileAllocations: sending a file allocates for a call of SendFile, not for
// its records.
func TestSendFileAllocations(t *testing.T) {
	if lockorder.Asserted {
		t.Skip("finding out which locks a goroutine holds allocates")
	}
	l, client := benchLink(t, true)
	const size = 512 << 10
	f := testFile(t, randomBytes(size))
	allocations := func(n int64) float64 {
		return testing.AllocsPerRun(20, func() {
			if _, err := l.SendFile(f, 0, n, nil); err != nil {
				t.Fatal(err)
			}
		})
	}
	one, many := allocations(MaxPlaintext), allocations(size)
	if one > 8 {
		t.Errorf("%v allocations for one record", one)
	}
	if many > one+4 { // waiting may cost some; there are 32 records
		t.Errorf("%v allocations for %d bytes, %v for one record", many, size, one)
	}
	l.Close()
	<-client
}
