//go:build linux

package integration

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// slowDownload is one of many that go on at once.
type slowDownload struct {
	name string
	body io.ReadCloser
	hash hash.Hash
	size int64
}

// atOnce calls f for 0 to n-1, some at a time.
func atOnce(n int, f func(i int)) {
	next := make(chan int)
	var workers sync.WaitGroup
	for range 8 {
		workers.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	workers.Wait()
}

// used is what /proc/PID/status tells of Caddy's memory, in bytes: VmHWM, the most
// that was resident, or VmData, what is mapped for its data.
func (c *caddy) used(t *testing.T, name string) (n int64) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "\n"+name+":")
	if _, err := fmt.Sscanf(rest, "%d kB", &n); err != nil {
		t.Fatal(err)
	}
	return n * kib
}

// socketMemory is what all TCP sockets of the system hold, in bytes.
func socketMemory(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/net/sockstat")
	if err != nil {
		t.Fatal(err)
	}
	var inuse, orphan, tw, alloc, mem int64
	_, rest, _ := strings.Cut(string(b), "\nTCP: ")
	if _, err := fmt.Sscanf(rest, "inuse %d orphan %d tw %d alloc %d mem %d", &inuse, &orphan, &tw, &alloc, &mem); err != nil {
		t.Fatal(err)
	}
	return mem * int64(os.Getpagesize())
}

// TestManyConnections: with many idle connections, each of which has been served
// by sendfile, and many slow downloads at once, every download comes whole and
// every connection serves again. KTLS_MANY=1 makes it 10,000 and 1,000, for which
// clients and server, being on one machine, want more memory for TCP than a system
// allows by default: else either waits for the other until it gives up. In a guest
// with KTLS_LAB_MEM=10240,
//
//	sysctl -w net.ipv4.tcp_mem='500000 750000 1000000'
func TestManyConnections(t *testing.T) {
	idle, slowly, wait := 150, 30, patience
	if os.Getenv("KTLS_MANY") != "" {
		idle, slowly, wait = 10_000, 1_000, time.Hour
	} else if slow || raceDetector {
		idle, slowly = 40, 8
	}
	f := large
	if slow || slowly >= 1000 {
		f = medium // three times of what is on its way at first
	}
	c := start(t, listener{wrappers: "ktls", options: "timeouts {\n\tidle 2h\n\twrite_idle 1h\n}"})
	protos := []string{"h1", "h1", "h1", "h2"}
	began := time.Now()
	phase := func(what string) {
		t.Logf("%s: %v, Caddy's peak %d MiB, heap %d MiB, kernel: %d connections, small objects %d MiB, TCP %d MiB", what,
			time.Since(began).Round(10*time.Millisecond), c.used(t, "VmHWM")/mib, c.heap(t)/mib, tlsStat(t, "TlsCurrTxSw"), slab(t)/mib, socketMemory(t)/mib)
		began = time.Now()
	}
	phase("nobody")

	clients := make([]*goClient, idle)
	first := ofSize(65537)
	for i := range clients {
		clients[i] = c.goClient(t, 0, protos[i%len(protos)])
		clients[i].Timeout = wait
	}
	atOnce(idle, func(i int) {
		a, err := clients[i].do(newRequest(t, "GET", c.url(0, "/"+first.name)))
		if err != nil {
			t.Errorf("connection %d: %v", i, err)
		}
		a.isFile(t, first)
	})
	phase(fmt.Sprintf("%d idle connections", idle))

	downloads := make([]*slowDownload, slowly)
	for i := range downloads {
		downloads[i] = &slowDownload{name: fmt.Sprintf("download %d, %s", i, protos[i%len(protos)]), hash: sha256.New()}
	}
	atOnce(slowly, func(i int) {
		client := c.goClient(t, 0, protos[i%len(protos)], func(tr *http.Transport) {
			tr.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 256 * kib}
			tr.DialContext = func(context.Context, string, string) (net.Conn, error) { return connectSmall(c.addr(0), 0) }
		})
		client.Timeout = wait
		resp, err := client.Do(newRequest(t, "GET", c.url(0, "/"+f.name)))
		if err != nil {
			t.Errorf("%s: %v", downloads[i].name, err)
			return
		}
		downloads[i].body = resp.Body
	})
	if t.Failed() {
		return
	}
	phase(fmt.Sprintf("and %d downloads begun", slowly))

	// Each gets a little in its turn, so that all of them last until the end.
	for rest := downloads; len(rest) > 0; {
		atOnce(len(rest), func(i int) { rest[i].read(t, 128*kib) })
		var left []*slowDownload
		for _, d := range rest {
			if d.body != nil {
				left = append(left, d)
			} else {
				checkBody(t, d.name, d.size, hex.EncodeToString(d.hash.Sum(nil)), f.size, f.sum)
			}
		}
		rest = left
	}
	phase("all of them ended")

	atOnce(idle, func(i int) {
		a, err := clients[i].do(newRequest(t, "GET", c.url(0, "/"+first.name)))
		if err != nil || !a.reused {
			t.Errorf("connection %d, which idled: reused %t, %v", i, a.reused, err)
		}
		a.isFile(t, first)
	})
	phase("idle connections served again")
	if _, ok := c.log.await(2*idle+slowly-1, (*line).isAccess); !ok {
		t.Fatal("lines are missing in the access log")
	}
	lines, _, _ := c.log.snapshot()
	for i := range lines {
		switch l := &lines[i]; {
		case l.isAccess() && l.Request.URI == "/"+f.name:
			l.isFile(t, f.size)
		case l.isAccess():
			l.isFile(t, first.size)
		case l.Level == "error":
			t.Error(l.raw)
		}
	}
}

// read reads n bytes, or what is left; at the end body is nil.
func (d *slowDownload) read(t *testing.T, n int64) {
	n, err := io.CopyN(d.hash, d.body, n)
	d.size += n
	if err == nil {
		return
	}
	if err != io.EOF {
		t.Errorf("%s: %v after %d bytes", d.name, err, d.size)
	}
	d.body.Close()
	d.body = nil
}
