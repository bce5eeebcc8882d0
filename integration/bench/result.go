//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
)

// A result is one measurement.
type result struct {
	Kernel  string `json:"kernel"`
	Server  string `json:"server"`
	Version string `json:"version"`
	scenario
	Instructions int64   `json:"instructions,omitempty"` // of the server, kernel included
	User         int64   `json:"user,omitempty"`         // of these, about how many outside the kernel
	Client       int64   `json:"client,omitempty"`       // instructions of the client
	Error        float64 `json:"error,omitempty"`        // standard error of Instructions (or CPU) per request, as a share of it
	Collections  int     `json:"collections"`            // cycles of the garbage collector meanwhile
	Records      int64   `json:"records"`                // TLS records with data
	Plaintext    int64   `json:"plaintext"`              // bytes in them
	KernelTLS    int64   `json:"kernel_tls"`             // connections that the kernel came to encrypt
	Cipher       string  `json:"cipher"`
	Curve        string  `json:"curve"`

	Time   *times `json:"time,omitempty"`   // in place of instructions, where time is measured
	Memory *usage `json:"memory,omitempty"` // where memory is measured
}

// times are what is measured where a clock shows time, all in nanoseconds.
type times struct {
	CPU       int64 `json:"cpu_ns"`         // of the server, kernel included
	ClientCPU int64 `json:"client_cpu_ns"`  // of the client
	Busy      int64 `json:"busy_ns"`        // from the first request to the last byte, without pauses
	Median    int64 `json:"latency_p50_ns"` // from a request to its last byte
	P99       int64 `json:"latency_p99_ns"` // the same of the slowest hundredth
}

// here says whether time was measured.
func (r *result) here() bool {
	return r.Time != nil
}

// perRequest returns instructions, or nanoseconds of CPU, per request.
func (r *result) perRequest() float64 {
	cost := r.Instructions
	if r.here() {
		cost = r.Time.CPU
	}
	return float64(cost) / float64(r.Requests)
}

// perGiB returns instructions, or nanoseconds of CPU, per GiB of bodies.
func (r *result) perGiB() float64 {
	return r.perRequest() / float64(r.Body) * (1 << 30)
}

// throughput returns bytes of bodies per second.
func (r *result) throughput() float64 {
	return float64(r.Body) * float64(r.Requests) / (float64(r.Time.Busy) / 1e9)
}

// measured says whether it is a measurement.
func (r *result) measured() bool {
	if r.Requests <= 0 || r.Body <= 0 {
		return false
	}
	if r.ofMemory() {
		return r.Memory != nil
	}
	return r.perRequest() > 0
}

// readResults reads files of JSON objects, one on each line.
func readResults(files []string) (all []result, err error) {
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		for n := 1; lines.Scan(); n++ {
			var r result
			if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
				return nil, fmt.Errorf("%s:%d: %w", name, n, err)
			}
			if !r.measured() {
				return nil, fmt.Errorf("%s:%d: not a measurement", name, n)
			}
			if r.TLS == "" {
				r.TLS = "1.3" // before there were others
			}
			all = append(all, r)
		}
		if err := lines.Err(); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return all, nil
}
