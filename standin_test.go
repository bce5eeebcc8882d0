package caddyktls

import (
	"bytes"
	"testing"
)

func TestIsStandInKnowsTheSliceNotItsContent(t *testing.T) {
	for name, test := range map[string]struct {
		p    []byte
		want bool
	}{
		"all":             {standIn, true},
		"begin":           {standIn[:10], true},
		"middle":          {standIn[10:20], true},
		"last byte":       {standIn[len(standIn)-1:], true},
		"empty":           {standIn[:0], false},
		"nil":             {nil, false},
		"a copy":          {bytes.Clone(standIn[:100]), false},
		"other zeros":     {make([]byte, len(standIn)), false},
		"larger capacity": {make([]byte, 10, 2*len(standIn)), false},
		"capacity cut":    {standIn[10:20:20], false},
	} {
		if got := isStandIn(test.p); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestStandInStaysZero(t *testing.T) {
	if len(bytes.Trim(standIn, "\x00")) > 0 {
		t.Error("somebody wrote to the stand-in bytes")
	}
}

// The steps cover the body exactly, fit the stand-in bytes, and none is so
// small that net/http would copy it.
func TestNextStandInCoversTheBody(t *testing.T) {
	for _, limit := range []int64{minStandIn, minChunk, maxChunk} {
		for _, n := range []int64{minStandIn, minStandIn + 1, limit - 1, limit, limit + 1, limit + minStandIn - 1,
			limit + minStandIn, 3 * limit, 3*limit + 1, 5*limit + minStandIn - 1, 64 << 20} {
			if n < minStandIn {
				continue
			}
			left := n
			for left > 0 {
				step := nextStandIn(left, limit)
				if step < minStandIn || step > limit+minStandIn || step > left || step > int64(len(standIn)) {
					t.Fatalf("body %d, limit %d: step of %d with %d left", n, limit, step, left)
				}
				left -= step
			}
		}
	}
}

// The net/http built in here hands large writes on uncopied: what HTTP/1.1
// sendfile stands on. Fails when a new Go changes it.
func TestNetHTTPHandsLargeWritesOn(t *testing.T) {
	if err := standInWorks(); err != nil {
		t.Fatal(err)
	}
}
