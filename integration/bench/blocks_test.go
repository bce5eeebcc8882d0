//go:build linux

package main

import (
	"math"
	"math/rand/v2"
	"testing"
)

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

// The error that is told is the one that is seen when the same is measured often.
func TestStandardError(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, test := range []struct {
		name string
		n    int
		cost func(i int) (server int64, collections int)
		want float64
	}{
		{"each costs the same", 16, func(int) (int64, int) { return 1000, 0 }, 0},
		{"chance", 16, func(int) (int64, int) { return 1000 + int64(80*random.NormFloat64()), 0 }, 0.02},
		{"every second one is dear", 17, func(i int) (int64, int) { return 1000 + int64(i%2)*200, 1 + i%2 }, 0},
		{"a cycle in every fourth", 33, func(i int) (int64, int) {
			if i%4 == 0 {
				return 3000, 1
			}
			return 1000, 0
		}, 0},
	} {
		const times = 400
		var told, means []float64
		for range times {
			var all []block
			for i := range test.n {
				b := block{requests: 1}
				b.server, b.collections = test.cost(i)
				all = append(all, b)
			}
			all = representative(all)
			var sum float64
			for _, b := range all {
				sum += float64(b.server)
			}
			told = append(told, standardError(all))
			means = append(means, sum/float64(len(all)))
		}
		mean, spread := meanAndDeviation(means)
		stated, _ := meanAndDeviation(told)
		if seen := spread / mean; math.Abs(stated-test.want) > 0.1*test.want || math.Abs(seen-test.want) > 0.1*test.want {
			t.Errorf("%s: told %.4f, seen %.4f, want %.4f", test.name, stated, seen, test.want)
		}
	}
	few := make([]block, leastParts-1)
	for i := range few {
		few[i] = block{requests: 1, server: 1000}
	}
	if got := standardError(few); !math.IsInf(got, 1) {
		t.Errorf("of %d parts: %f", len(few), got)
	}
}

func meanAndDeviation(all []float64) (mean, deviation float64) {
	for _, v := range all {
		mean += v / float64(len(all))
	}
	for _, v := range all {
		deviation += (v - mean) * (v - mean) / float64(len(all)-1)
	}
	return mean, math.Sqrt(deviation)
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
