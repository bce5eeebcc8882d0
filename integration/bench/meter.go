//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A reading is what had been counted at one moment.
type reading struct {
	server, user int64 // instructions (or nanoseconds of CPU) of a server; of these, outside the kernel
	client       int64 // the same of this process
	collections  int   // cycles of the server's garbage collector that have ended
}

// perMicrosecond is how many instructions a guest runs in a microsecond of its
// time: with -icount shift=0, one each nanosecond. And so it is the number of
// nanoseconds too.
const perMicrosecond = 1000

// read reads the server's counters: those of its control group, if it has one, and
// else those of its processes.
func (s *server) read() (r reading, err error) {
	if s.group != "" {
		r.server, r.user, err = readGroup(s.group)
	} else {
		r.server, err = cpuTime(s.cmd.Process.Pid)
	}
	if err != nil {
		return r, err
	}
	var own unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &own); err != nil {
		return r, fmt.Errorf("getrusage: %w", err)
	}
	r.client = own.Utime.Nano() + own.Stime.Nano()
	return r, nil
}

func readGroup(group string) (all, user int64, err error) {
	text, err := os.ReadFile(filepath.Join(group, "cpu.stat"))
	if err != nil {
		return 0, 0, err
	}
	if all, err = counter(string(text), "usage_usec"); err != nil {
		return 0, 0, err
	}
	user, err = counter(string(text), "user_usec")
	return all * perMicrosecond, user * perMicrosecond, err
}

// processes returns those of a process group.
func processes(group int) (pids []int, err error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	for _, name := range stats {
		text, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return nil, err
		}
		if in, err := processGroup(text); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		} else if in != group {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// processGroup finds the process group in /proc/PID/stat: proc_pid_stat(5).
func processGroup(stat []byte) (int, error) {
	name := bytes.LastIndexByte(stat, ')') // which may contain anything
	fields := bytes.Fields(stat[name+1:])  // state, parent, process group
	if name < 0 || len(fields) < 3 {
		return 0, fmt.Errorf("not a process's state: %q", stat)
	}
	return strconv.Atoi(string(fields[2]))
}

// cpuTime returns for how long the threads of a process group have run, in
// nanoseconds. A thread that ends takes its time with it: Go's and nginx's stay.
func cpuTime(group int) (total int64, err error) {
	pids, err := processes(group)
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		if err != nil {
			return 0, err
		}
		if len(threads) == 0 {
			return 0, fmt.Errorf("no /proc/%d/task/*/schedstat: has the kernel no CONFIG_SCHED_INFO?", pid)
		}
		for _, name := range threads {
			text, err := os.ReadFile(name)
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
				continue
			}
			if err != nil {
				return 0, err
			}
			ran, _, _ := strings.Cut(string(text), " ")
			n, err := strconv.ParseInt(ran, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", name, err)
			}
			total += n
		}
	}
	return total, nil
}

// kernelTLS returns how many connections the kernel came to encrypt, since it
// booted.
func kernelTLS() (int64, error) {
	text, err := os.ReadFile("/proc/net/tls_stat")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // no module, no connections
	}
	if err != nil {
		return 0, err
	}
	return counter(string(text), "TlsTxSw")
}

// counter finds a number in lines of names and numbers.
func counter(text, name string) (int64, error) {
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) >= 2 && strings.TrimSuffix(fields[0], ":") == name {
			return strconv.ParseInt(fields[1], 10, 64)
		}
	}
	return 0, fmt.Errorf("no counter %s", name)
}
