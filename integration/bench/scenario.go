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
)

// A scenario is what the clients ask for.
type scenario struct {
	Protocol    string `json:"protocol"` // h1 or h2
	Mode        mode   `json:"mode"`
	Body        int64  `json:"body"`        // bytes of a response's body
	Connections int    `json:"connections"` // at the same time
	Streams     int    `json:"streams"`     // requests at the same time on a connection
	Requests    int    `json:"requests"`    // measured ones, over all connections
}

// sizes are those of the files, in bytes, with how many requests make a
// measurement.
var sizes = []struct {
	body     int64
	requests int
}{
	{1 << 10, 480},
	{16 << 10, 320},
	{64 << 10, 160},
	{256 << 10, 48},
	{1 << 20, 24},
	{16 << 20, 4},
}

// storingFrom is the smallest body, in bytes, whose records are stored.
const storingFrom = 256 << 10

// A plan is what is to be measured.
type plan struct {
	protocols []string
	quick     bool     // one connection and stream only, fewer requests
	known     []result // these are there already
}

// knows says whether a measurement is there already.
func (p *plan) knows(kernel, server, version string, sc scenario) bool {
	sc.Requests = 0
	return slices.ContainsFunc(p.known, func(r result) bool {
		r.Requests = 0
		return r.Kernel == kernel && r.Server == server && r.Version == version && r.scenario == sc
	})
}

// scenarios returns what is measured of each server.
func (p *plan) scenarios() (all []scenario) {
	shapes := []struct{ connections, streams int }{{1, 1}, {8, 1}, {1, 8}}
	for _, protocol := range p.protocols {
		for _, size := range sizes {
			for _, shape := range shapes {
				if p.quick && shape != shapes[0] || protocol == "h1" && shape.streams > 1 {
					continue
				}
				s := scenario{protocol, decrypting, size.body, shape.connections, shape.streams, size.requests}
				if s.Body >= storingFrom {
					s.Mode = storing
				}
				if p.quick {
					s.Requests /= 2
				}
				all = append(all, s)
			}
		}
		s := scenario{protocol, handshaking, sizes[0].body, 1, 1, 160}
		if p.quick {
			s.Requests /= 2
		}
		all = append(all, s)
	}
	return all
}
