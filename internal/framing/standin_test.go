package framing

import (
	"bytes"
	"sync"
	"testing"
)

func TestStandInIsDeterminedByItsPosition(t *testing.T) {
	all := bytes.Clone(StandIn(0, MaxStandIn))
	for _, n := range []int{0, 1, 15, 16, 17, 5000, nineRecords, MaxStandIn - 100} {
		for pos := range 40 {
			p := StandIn(int64(pos)+1<<40, n)
			if len(p) != n || cap(p) != n || !bytes.Equal(p, all[pos:pos+n]) {
				t.Fatalf("%d at %d", n, pos)
			}
			if !isStandIn(p, int64(pos)) {
				t.Fatalf("%d at %d isn't recognized", n, pos)
			}
			if n > 0 && pos%blockLen != 3 && n >= blockLen && isStandIn(p, 3) {
				t.Fatalf("%d at %d is taken for those at 3", n, pos)
			}
			if looksLikeStandIn(p[:min(n, blockLen)]) != (n >= minRecognized) {
				t.Fatalf("%d at %d: looks like stand-in bytes: %v", n, pos, n < minRecognized)
			}
		}
	}
	if n := len(StandIn(0, MaxStandIn+1)); n != MaxStandIn {
		t.Errorf("%d bytes", n)
	}
}

// The buffer grows while others use it.
func TestStandInConcurrently(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := 1000 * i; n < MaxStandIn; n += 99_999 {
				if p := StandIn(int64(i), n); len(p) != n || !isStandIn(p, int64(i)) {
					t.Errorf("%d at %d", n, i)
				}
			}
		})
	}
	wg.Wait()
}
