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
	Instructions int64  `json:"instructions"` // of the server, kernel included
	User         int64  `json:"user"`         // of these, about how many outside the kernel
	Client       int64  `json:"client"`       // instructions of the client
	Collections  int    `json:"collections"`  // cycles of the garbage collector meanwhile
	Records      int64  `json:"records"`      // TLS records with data
	Plaintext    int64  `json:"plaintext"`    // bytes in them
	KernelTLS    int64  `json:"kernel_tls"`   // connections that the kernel came to encrypt
	Cipher       string `json:"cipher"`
	Curve        string `json:"curve"`
}

// perRequest returns instructions per request.
func (r *result) perRequest() float64 {
	return float64(r.Instructions) / float64(r.Requests)
}

// perGiB returns instructions per GiB of bodies.
func (r *result) perGiB() float64 {
	return r.perRequest() / float64(r.Body) * (1 << 30)
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
			if r.Requests <= 0 || r.Body <= 0 || r.Instructions <= 0 {
				return nil, fmt.Errorf("%s:%d: not a measurement", name, n)
			}
			all = append(all, r)
		}
		if err := lines.Err(); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return all, nil
}
