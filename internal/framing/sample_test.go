package framing

import (
	"slices"
	"testing"
)

// Samples notice bytes that were left out, put in or replaced, wherever as many
// are gone as between two of them.
func TestSamples(t *testing.T) {
	const n, pos = 100_000, 7
	good := slices.Clone(StandIn(pos, n))
	if !isStandInSampled(good, pos) {
		t.Fatal("stand-in bytes aren't recognized")
	}
	for at := 0; at < n-sampleStride; at += 1000 {
		if isStandInSampled(slices.Concat(good[:at], good[at+1:]), pos) {
			t.Errorf("the byte at %d was left out", at)
		}
		if isStandInSampled(slices.Insert(slices.Clone(good), at, 'x'), pos) {
			t.Errorf("a byte was put in at %d", at)
		}
		other := slices.Clone(good)
		clear(other[at : at+sampleStride])
		if isStandInSampled(other, pos) {
			t.Errorf("the bytes from %d on were replaced", at)
		}
	}
	for _, at := range []int{0, sampleLen - 1, sampleStride, n - 1} {
		other := slices.Clone(good)
		other[at]++
		if isStandInSampled(other, pos) {
			t.Errorf("the byte at %d was changed", at)
		}
	}
}
