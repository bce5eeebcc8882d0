//go:build linux

package integration

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// limit changes a resource limit of the running Caddy and returns what undoes it.
func (c *caddy) limit(t *testing.T, resource int, n uint64) (restore func()) {
	t.Helper()
	pid := c.cmd.Process.Pid
	var old unix.Rlimit
	if err := unix.Prlimit(pid, resource, nil, &old); err != nil {
		t.Fatal(err)
	}
	restore = sync.OnceFunc(func() {
		if err := unix.Prlimit(pid, resource, &old, nil); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Error(err)
		}
	})
	t.Cleanup(restore)
	if err := unix.Prlimit(pid, resource, &unix.Rlimit{Cur: n, Max: old.Max}, nil); err != nil {
		t.Fatal(err)
	}
	return restore
}

// awaitAcceptError waits until a listener could not accept a connection, for the
// nth time (from 0).
func (c *caddy) awaitAcceptError(t *testing.T, nth int) {
	t.Helper()
	if _, ok := c.log.await(nth, func(l *line) bool {
		return strings.Contains(l.Msg, "ccept error") && strings.Contains(l.raw, "too many open files")
	}); !ok {
		t.Fatal("no listener complains that it can't accept")
	}
}

// TestNoDescriptors: without a descriptor left no file can be opened and no
// connection accepted. What is being sent goes on; what is asked for gets stock
// Caddy's answer; who connects waits until there are descriptors again.
func TestNoDescriptors(t *testing.T) {
	notEmulated(t)
	c := withAndWithout(t, "ktls")
	type waiting struct {
		*goClient
		i    int
		name string
	}
	var clients []waiting
	for i := range 2 {
		for _, proto := range []string{"h1", "h2"} {
			// One connection that is offloaded, one that isn't yet.
			for _, f := range []file{medium, tiny} {
				w := waiting{c.goClient(t, i, proto), i, fmt.Sprintf("%s-%d", proto, f.size)}
				w.get(t, c.url(i, "/"+f.name)).isFile(t, f)
				clients = append(clients, w)
			}
		}
	}
	downloads := []*download{c.stalled(t, 0, "/"+large.name+"?ktls"), c.stalled(t, 1, "/"+large.name+"?stock")}
	restore := c.limit(t, unix.RLIMIT_NOFILE, 3) // those that it has stay

	answers := map[string]string{}
	for _, w := range clients {
		uri := fmt.Sprintf("/%s?full-%d-%s", medium.name, w.i, w.name)
		a := w.get(t, c.url(w.i, uri))
		if a.status < 400 || !a.reused {
			t.Errorf("listener %d, %s: status %d, on the same connection: %t", w.i, w.name, a.status, a.reused)
		}
		answer := describe(a, nil)
		if w.i == 0 {
			c.tookPlain(t, uri, "no_body")
			answers[w.name] = answer
		} else if answer != answers[w.name] {
			t.Errorf("%s: the answer is %s, stock Caddy's %s", w.name, answers[w.name], answer)
		}
	}
	var late sync.WaitGroup
	for n := range 4 {
		late.Go(func() {
			client := c.goClient(t, n%2, []string{"h1", "h2"}[n/2])
			a, err := client.do(newRequest(t, "GET", c.url(n%2, fmt.Sprintf("/%s?late-%d", large.name, n))))
			if err != nil {
				t.Errorf("client %d, which had to wait: %v", n, err)
			}
			a.isFile(t, large)
		})
	}
	c.awaitAcceptError(t, 1)
	for i, d := range downloads {
		n, got, err := sumReader(d.resp.Body)
		if err != nil {
			t.Errorf("listener %d: what was being sent: %v", i, err)
		}
		checkBody(t, "what was being sent", n, got, large.size, large.sum)
	}
	c.tookFile(t, "/"+large.name+"?ktls", large.size)

	restore()
	late.Wait()
	for _, n := range []int{0, 2} {
		c.tookFile(t, fmt.Sprintf("/%s?late-%d", large.name, n), large.size)
	}
	for _, w := range clients {
		uri := fmt.Sprintf("/%s?again-%s", medium.name, w.name)
		a := w.get(t, c.url(w.i, uri))
		if a.isFile(t, medium); !a.reused {
			t.Errorf("listener %d, %s: not on the same connection", w.i, w.name)
		}
		if w.i == 0 {
			c.tookFile(t, uri, medium.size)
		}
	}
}

// TestFewDescriptors: clients that come and go are more than there are
// descriptors for. Each gets all of the file, or stock Caddy's answer that there
// is nothing to open it with.
func TestFewDescriptors(t *testing.T) {
	notEmulated(t)
	c := withAndWithout(t, "ktls")
	before := c.settled(t)
	const clients, rounds = 12, 3
	restore := c.limit(t, unix.RLIMIT_NOFILE, uint64(before.descriptors+clients*2/3))
	answers := map[string]int{}
	var mu sync.Mutex
	var running sync.WaitGroup
	for n := range clients {
		i := n % 2
		client := c.goClient(t, i, []string{"h1", "h2"}[n/2%2], func(tr *http.Transport) { tr.DisableKeepAlives = true })
		running.Go(func() {
			for round := range rounds {
				f := []file{small, medium, ofSize(65537)}[round]
				uri := fmt.Sprintf("/%s?%d-%d", f.name, n, round)
				a, err := client.do(newRequest(t, "GET", c.url(i, uri)))
				switch {
				case err != nil:
					t.Errorf("%s: %v after %d bytes", uri, err, a.size)
				case a.status < 400:
					a.isFile(t, f)
				}
				mu.Lock()
				answers[fmt.Sprint([]string{"ktls", "stock"}[i], a.status)]++
				mu.Unlock()
			}
		})
	}
	running.Wait()
	t.Logf("answers: %v; %d times a connection could not be accepted", answers,
		c.log.count(func(l *line) bool { return strings.Contains(l.Msg, "ccept error") }))
	restore()
	if answers["ktls200"] == 0 || answers["stock200"] == 0 {
		t.Error("nobody got anything")
	}
	c.awaitFootprint(t, before)
	c.stillServes(t)
}
