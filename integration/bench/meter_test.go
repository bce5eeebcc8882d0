//go:build linux

package main

import (
	"os"
	"slices"
	"syscall"
	"testing"
	"time"
)

func TestCPUTimeGrows(t *testing.T) {
	group := syscall.Getpgrp()
	pids, err := processes(group)
	if err != nil || !slices.Contains(pids, os.Getpid()) {
		t.Fatal(pids, err)
	}
	before, err := cpuTime(group)
	if err != nil {
		t.Fatal(err)
	}
	var sum, n int64
	for sum <= before { // until it is noticed
		if n++; n%(1<<20) == 0 {
			if sum, err = cpuTime(group); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestProcessGroup(t *testing.T) {
	if n, err := processGroup([]byte("12 (a) b) c) S 1 77 12 0 -1")); n != 77 || err != nil {
		t.Error(n, err)
	}
	for _, text := range []string{"", "12 (a) S", "12 a S 1 77"} {
		if n, err := processGroup([]byte(text)); err == nil {
			t.Errorf("%q: %d", text, n)
		}
	}
}

func TestTCPPages(t *testing.T) {
	const sockstat = "sockets: used 40\nTCP: inuse 3 orphan 0 tw 1 alloc 4 mem 17\nUDP: inuse 0 mem 2\n"
	if n, err := tcpPages(sockstat); n != 17 || err != nil {
		t.Error(n, err)
	}
	if _, err := tcpPages("UDP: inuse 0 mem 2\n"); err == nil {
		t.Error("found what isn't there")
	}
}

func TestPercentile(t *testing.T) {
	var all []time.Duration
	for i := range 200 {
		all = append(all, time.Duration(i+1))
	}
	if p50, p99 := percentile(all, 50), percentile(all, 99); p50 != 100 || p99 != 198 {
		t.Error(p50, p99)
	}
	if one := percentile(all[:1], 99); one != 1 {
		t.Error(one)
	}
}
