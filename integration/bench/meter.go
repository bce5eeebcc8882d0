//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A reading is what had been counted at one moment.
type reading struct {
	server, user int64 // instructions of a control group; of these, outside the kernel
	client       int64 // instructions of this process
	collections  int   // cycles of the server's garbage collector that have ended
}

// perMicrosecond is how many instructions a guest runs in a microsecond of its
// time: with -icount shift=0, one each nanosecond.
const perMicrosecond = 1000

// read reads the counters of the control group in a folder.
func read(group string) (r reading, err error) {
	text, err := os.ReadFile(filepath.Join(group, "cpu.stat"))
	if err != nil {
		return r, err
	}
	if r.server, err = counter(string(text), "usage_usec"); err != nil {
		return r, err
	}
	if r.user, err = counter(string(text), "user_usec"); err != nil {
		return r, err
	}
	var own unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &own); err != nil {
		return r, fmt.Errorf("getrusage: %w", err)
	}
	r.server *= perMicrosecond
	r.user *= perMicrosecond
	r.client = own.Utime.Nano() + own.Stime.Nano()
	return r, nil
}

// kernelTLS returns how many connections the kernel came to encrypt, since it
// booted.
func kernelTLS() (int64, error) {
	text, err := os.ReadFile("/proc/net/tls_stat")
	if err != nil {
		return 0, err
	}
	return counter(string(text), "TlsTxSw")
}

// counter finds a number in lines of names and numbers.
func counter(text, name string) (int64, error) {
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[0] == name {
			return strconv.ParseInt(fields[1], 10, 64)
		}
	}
	return 0, fmt.Errorf("no counter %s", name)
}
