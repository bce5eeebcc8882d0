//go:build linux

package main

import (
	"math"
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
		collected := end.collections > 0 && r.Body <= 1<<20 // it is Go: Caddy's start alone makes some
		good := standardError(typical) <= goodError && (!collected || cycles(all) >= r.enoughCycles())
		if len(typical) > 0 && n >= r.Requests && (good || n >= r.mostRequests()) {
			r.add(typical)
			return nil
		}
	}
}

// enoughCycles is how many of the garbage collector's a measurement is to have,
// whatever its standard error: how often they come changes slowly, so that those of
// a short time are alike. With HTTP/2, two measurements of small responses that
// ended with 6 cycles and a good error differed by 6 %.
func (r *result) enoughCycles() int {
	if r.Protocol == "h2" {
		return 20
	}
	return 12
}

// goodError is the standard error that ends a measurement: then most ratios of two
// servers agree within 1 % from run to run, and one in hundreds misses by 3 %.
const goodError = 0.005

// mostRequests is when no more is done for a small error, or to see whole cycles of
// the garbage collector: next to a large body, a cycle is little. Small bodies are
// quick, and what they cost depends most on these.
func (r *result) mostRequests() int {
	switch {
	case r.here(): // enough of them, by a clock that others disturb
		return r.scenario.Requests
	case r.Body > 64<<10:
		return 8 * r.scenario.Requests
	case r.Protocol == "h2" && r.Body >= 16<<10: // with 40, two measurements differed by 6 %
		return 100 * r.scenario.Requests
	}
	return 40 * r.scenario.Requests
}

// Parts are what a standard error is made of. Fewer tell too little; and more are
// joined, as a part's cost may depend on what the one before it left, such as half
// of a garbage collector's cycle.
const (
	leastParts = 6
	mostParts  = 8
)

// standardError returns that of the mean cost of a request, as a share of it:
// that of a ratio of sums, cost to requests, over parts that follow one another. A
// part has whole cycles of the garbage collector, if there are any.
func standardError(typical []block) float64 {
	var parts []block
	joined := block{}
	whole := slices.ContainsFunc(typical, collecting)
	for _, b := range typical {
		joined.requests += b.requests
		joined.server += b.server
		if !whole || collecting(b) {
			parts = append(parts, joined)
			joined = block{}
		}
	}
	if n := len(parts); n > mostParts {
		fewer := make([]block, mostParts)
		for i, part := range parts {
			to := &fewer[i*mostParts/n]
			to.requests += part.requests
			to.server += part.server
		}
		parts = fewer
	}
	if len(parts) < leastParts {
		return math.Inf(1)
	}
	var requests, cost float64
	for _, part := range parts {
		requests += float64(part.requests)
		cost += float64(part.server)
	}
	mean := cost / requests
	var squares float64
	for _, part := range parts {
		off := float64(part.server) - mean*float64(part.requests)
		squares += off * off
	}
	n := float64(len(parts))
	return math.Sqrt(squares*n/(n-1)) / cost
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
	if err := standardError(all); !math.IsInf(err, 1) {
		r.Error = err
	}
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
