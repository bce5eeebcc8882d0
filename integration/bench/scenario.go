//go:build linux

package main

import "slices"

// A mode is what a client does with a connection.
type mode string

const (
	// Keep-alive; each response is decrypted as it arrives.
	decrypting mode = "decrypting"

	// Keep-alive; the encrypted records are stored as they arrive, and decrypted
	// when the measurement is over: else a client that shares the CPU with
	// the server would decide how the server's data is spread over time.
	storing mode = "storing"

	// One connection for each request, without resumption.
	handshaking mode = "handshaking"

	// Connections that were sent one body each and stay open: memory.
	idling mode = "idling"

	// Connections of clients that read slowly, a body each: memory.
	slow mode = "slow"
)

// A scenario is what the clients ask for.
type scenario struct {
	Protocol    string `json:"protocol"` // h1 or h2
	Mode        mode   `json:"mode"`
	Body        int64  `json:"body"`        // bytes of a response's body
	Connections int    `json:"connections"` // at the same time
	Streams     int    `json:"streams"`     // requests at the same time on a connection
	Requests    int    `json:"requests"`    // measured ones (before: at least), over all connections
	TLS         string `json:"tls"`         // the version: 1.3, 1.2, or none
}

// ofMemory says whether it is memory that is measured.
func (s *scenario) ofMemory() bool {
	return s.Mode == idling || s.Mode == slow
}

// A size is a file's, in bytes, with how many requests a measurement has at least.
type size struct {
	body     int64
	requests int
}

var sizes = []size{
	{1 << 10, 480},
	{4 << 10, 400},
	{16 << 10, 320},
	{32 << 10, 240},
	{64 << 10, 160},
	{256 << 10, 160},
	{1 << 20, 48},
	{16 << 20, 8},
}

// storingFrom is the smallest body, in bytes, whose records are stored.
const storingFrom = 256 << 10

// sizesTLS12 are those that are measured with TLS 1.2 too, in bytes: its records
// differ by some bytes from those of TLS 1.3, and its handshake by a round trip.
var sizesTLS12 = []int64{1 << 10, 64 << 10, 1 << 20, 16 << 20}

// idleBody and slowBody are the bodies, in bytes, of the connections whose memory
// is measured; idleBody is enough for each server to use kernel TLS.
const (
	idleBody = 256 << 10
	slowBody = 16 << 20
)

// A plan is what is to be measured.
type plan struct {
	protocols []string
	versions  []string // of TLS
	bodies    []int64  // in bytes; empty: all of sizes
	quick     bool     // one connection and stream only, fewer requests
	here      bool     // on this machine, in seconds
	memory    int      // connections of which the memory is measured; 0: none
	known     []result // these are there already
}

// hereFactor is how many times more requests are measured where time is: a clock
// that others disturb needs more of them than a count of instructions.
const hereFactor = 20

// knows says whether a measurement is there already.
func (p *plan) knows(kernel, server, version string, sc scenario) bool {
	sc.Requests = 0
	return slices.ContainsFunc(p.known, func(r result) bool {
		r.Requests = 0
		return r.Kernel == kernel && r.Server == server && r.Version == version && r.scenario == sc &&
			(r.here() == p.here || r.ofMemory()) // which is the same by any clock
	})
}

// has says whether a body's size is measured.
func (p *plan) has(body int64) bool {
	return len(p.bodies) == 0 || slices.Contains(p.bodies, body)
}

// scenarios returns what is measured of a server.
func (p *plan) scenarios(kind serverKind) (all []scenario) {
	add := func(sc scenario) {
		if sc.Body >= storingFrom && sc.Mode == decrypting {
			sc.Mode = storing
		}
		if p.quick && !sc.ofMemory() {
			sc.Requests /= 2
		}
		if p.here && !sc.ofMemory() {
			sc.Requests *= hereFactor
		}
		if kind.matters == nil || kind.matters(sc) {
			all = append(all, sc)
		}
	}
	shapes := []struct{ connections, streams int }{{1, 1}, {8, 1}, {1, 8}}
	versions := p.versions
	if kind.clear {
		versions = []string{"none"}
	}
	for _, protocol := range p.protocols {
		if kind.clear && protocol != "h1" {
			continue
		}
		for _, version := range versions {
			for _, size := range sizes {
				if !p.has(size.body) || version == "1.2" && !slices.Contains(sizesTLS12, size.body) {
					continue
				}
				for _, shape := range shapes {
					if (p.quick || version == "1.2") && shape != shapes[0] || protocol == "h1" && shape.streams > 1 {
						continue
					}
					add(scenario{protocol, decrypting, size.body, shape.connections, shape.streams, size.requests, version})
				}
			}
			if p.has(sizes[0].body) {
				add(scenario{protocol, handshaking, sizes[0].body, 1, 1, 160, version})
			}
		}
		if p.memory > 0 {
			add(scenario{protocol, idling, idleBody, p.memory, 1, p.memory, versions[0]})
			add(scenario{protocol, slow, slowBody, p.memory, 1, p.memory, versions[0]})
		}
	}
	return all
}
