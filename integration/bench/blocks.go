//go:build linux

package main

import (
	"slices"
	"time"
)

// A block is a part of a measurement.
//
// A cycle of Go's garbage collector costs as much as a hundred small requests and
// comes after some hundreds of them: by chance, a measurement would have one more
// or one less. So the cycles are counted, block by block.
type block struct {
	requests             int
	server, user, client int64 // instructions, or nanoseconds of CPU
	collections          int   // cycles that ended in it
	records, plaintext   int64
	busy                 time.Duration   // of the connection that had most to wait
	latencies            []time.Duration // of each request (with streams, of all that were sent at once)
	check                func() error    // of what it stored
}

// blocks is how many a measurement is cut into, where requests suffice.
const blocks = 32

// collect measures blocks of as many requests, and makes them the result.
func (r *result) collect(srv *server, requests int, f func(*block) error) error {
	var all []block
	for {
		b := block{requests: requests}
		begin, err := srv.idle()
		if err != nil {
			return err
		}
		if err := f(&b); err != nil {
			return err
		}
		end, err := srv.idle()
		if err != nil {
			return err
		}
		b.server, b.user, b.client = end.server-begin.server, end.user-begin.user, end.client-begin.client
		b.collections = end.collections - begin.collections
		if b.check != nil {
			if err := b.check(); err != nil {
				return err
			}
		}
		all = append(all, b)
		n := 0
		for _, b := range all {
			n += b.requests
		}
		typical := representative(all)
		collected := end.collections > 0 // it is Go: Caddy's start alone makes some
		more := n < r.Requests || len(typical) == 0 || collected && cycles(all) < r.enoughCycles() && n < r.mostRequests()
		if !more {
			r.add(typical)
			return nil
		}
	}
}

// enoughCycles is how many of the garbage collector's a measurement is to have.
// With HTTP/2, more requests or fewer fall into one by chance: two measurements
// of small responses differed by 7 % with 4 cycles, and by 2 % with 24.
func (r *result) enoughCycles() int {
	if r.Protocol == "h2" {
		return 20
	}
	return 8
}

// mostRequests is when no more is done to see enough cycles. Where bodies are
// large, a cycle is little next to them.
func (r *result) mostRequests() int {
	switch {
	case r.Body > 1<<20:
		return r.scenario.Requests
	case r.Body > 64<<10:
		return 4 * r.scenario.Requests
	}
	return 40 * r.scenario.Requests
}

func collecting(b block) bool {
	return b.collections > 0
}

// cycles returns how many whole cycles blocks contain: all that happens from the
// end of one collection to that of another.
func cycles(all []block) (n int) {
	first := slices.IndexFunc(all, collecting)
	if first < 0 {
		return 0
	}
	for _, b := range all[first+1:] {
		n += b.collections
	}
	return n
}

// representative returns the blocks that show what a request costs in the long
// run: those after one with a collector's cycle, up to the last one with a cycle.
// Where there are none, cycles are so rare (large bodies need little memory) that
// the long run has next to nothing of them: then those without.
func representative(all []block) []block {
	if cycles(all) > 0 {
		first := slices.IndexFunc(all, collecting)
		last := len(all) - 1
		for !collecting(all[last]) {
			last--
		}
		return all[first+1 : last+1]
	}
	return slices.DeleteFunc(slices.Clone(all), collecting)
}

// add makes blocks the result.
func (r *result) add(all []block) {
	r.Requests = 0
	var latencies []time.Duration
	for _, b := range all {
		r.Requests += b.requests
		r.Instructions += b.server
		r.User += b.user
		r.Client += b.client
		r.Collections += b.collections
		r.Records += b.records
		r.Plaintext += b.plaintext
		latencies = append(latencies, b.latencies...)
		if r.here() {
			r.Time.Busy += b.busy.Nanoseconds()
		}
	}
	if r.here() {
		r.Time.CPU, r.Time.ClientCPU = r.Instructions, r.Client
		r.Instructions, r.User, r.Client = 0, 0, 0
		slices.Sort(latencies)
		r.Time.Median, r.Time.P99 = percentile(latencies, 50).Nanoseconds(), percentile(latencies, 99).Nanoseconds()
	}
}

// percentile returns the smallest of sorted values that p percent don't exceed.
func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[max((len(sorted)*p+99)/100, 1)-1]
}

// pause is how often, in the guest's time, a server is looked at.
const pause = 5 * time.Millisecond

// idle waits until the server has nothing to do, and returns what was counted.
func (s *server) idle() (reading, error) {
	before, err := s.read()
	for err == nil {
		time.Sleep(pause)
		var now reading
		if now, err = s.read(); err == nil && now.server-before.server < pause.Nanoseconds()/20 {
			now.collections, err = s.collections()
			return now, err
		}
		before = now
	}
	return reading{}, err
}
