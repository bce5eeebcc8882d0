//go:build linux

package main

import "testing"

// Blocks are told apart by their requests.
func TestRepresentativeBlocks(t *testing.T) {
	for _, test := range []struct {
		name        string
		collections []int
		from, to    int // of the blocks expected, where they follow one another
		n           int // of them
	}{
		{"one cycle", []int{0, 1, 0, 0, 1, 0}, 2, 4, 3},
		{"two cycles", []int{1, 0, 1, 0, 1, 0, 0}, 1, 4, 4},
		{"a cycle in each", []int{1, 1, 1}, 1, 2, 2},
		{"no cycle", []int{0, 0, 0}, 0, 2, 3},
		{"half a cycle", []int{0, 1, 0}, 0, 2, 2},
		{"nothing to go by", []int{1}, 0, 0, 0},
	} {
		var all []block
		for i, n := range test.collections {
			all = append(all, block{requests: i, collections: n})
		}
		got := representative(all)
		if len(got) != test.n {
			t.Errorf("%s: %d blocks, want %d", test.name, len(got), test.n)
			continue
		}
		if test.n > 0 && (got[0].requests != test.from || got[len(got)-1].requests != test.to) {
			t.Errorf("%s: from %d to %d, want %d to %d", test.name, got[0].requests, got[len(got)-1].requests, test.from, test.to)
		}
		if len(all) != len(test.collections) || all[0].requests != 0 {
			t.Errorf("%s: changed its argument", test.name)
		}
	}
}

func TestCounter(t *testing.T) {
	const text = "usage_usec 4603735\nuser_usec 597939\nTlsTxSw                         \t12\n"
	if n, err := counter(text, "TlsTxSw"); n != 12 || err != nil {
		t.Error(n, err)
	}
	if n, err := counter(text, "user_usec"); n != 597939 || err != nil {
		t.Error(n, err)
	}
	if _, err := counter(text, "usec"); err == nil {
		t.Error("found what isn't there")
	}
}
