//go:build linux

package integration

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// variant is a configuration that differs from the others in something of ours
// or of Caddy's.
type variant struct {
	name    string
	wrapper string // none if empty
	handler string // none if empty
	protos  string
	tls     string // a directive
	more    bool   // sites, with certificates of the internal CA
	reason  string // why a file goes plain; empty: it doesn't
}

// variants go round. The first is the one to come back to.
func variants(t *testing.T) []variant {
	const handler = "ktls {\nmin_size 1\n}"
	return []variant{
		{name: "lazy", wrapper: "ktls", handler: handler},
		{name: "handshake", wrapper: "ktls {\nupgrade handshake\n}", handler: handler},
		{name: "no wrapper", handler: handler, reason: "not_wrapped"},
		{name: "more names", wrapper: "ktls", handler: handler, more: true},
		{name: "rx", wrapper: "ktls {\nrx on\nupgrade handshake\n}", handler: handler},
		{name: "HTTP/1.1 only", wrapper: "ktls", handler: handler, protos: "h1"},
		{name: "no handler", wrapper: "ktls"},
		{name: "other certificate", wrapper: "ktls {\nmax_handshakes 2\n}", handler: handler, tls: rsaCertificate(t, 2048)},
		{name: "other options", wrapper: "ktls {\nhandshake_timeout 30s\n}", handler: "ktls {\nmin_size 1\nchunk 64KiB\nhttp2_frame_size 16KiB\n}"},
		{name: "nothing of ours"},
	}
}

// reloads is a Caddy that is given one configuration after the other while
// clients download from it.
type reloads struct {
	*caddy
	stock    bool // without a word of ours
	variants []variant
	loaded   int // configurations so far
	ticks    []chan struct{}

	mu       sync.Mutex
	served   int
	notBegun map[string]int // requests that got no answer at all, by error
}

func startReloads(t *testing.T, stock bool) *reloads {
	r := &reloads{stock: stock, variants: variants(t), notBegun: map[string]int{}}
	r.caddy = setup{listeners: []listener{r.listener(0)}}.start(t)
	return r
}

// listener is that of the nth configuration, which says its number.
func (r *reloads) listener(n int) listener {
	v := r.variants[n%len(r.variants)]
	body := []string{fmt.Sprintf("header X-Config %d", n), v.tls}
	wrapper := v.wrapper
	if r.stock {
		wrapper = ""
	} else {
		body = append(body, v.handler)
	}
	l := listener{wrappers: wrapper, protos: v.protos, sites: []site{{body: plainFiles(www, body...)}}}
	for i := 0; v.more && i < 2; i++ {
		l.sites = append(l.sites, site{host: fmt.Sprintf("more%d.localhost", i), body: plainFiles(www, body...)})
	}
	return l
}

// load loads the next configuration, in one of Caddy's ways ("api", "command" or
// "signal"), and waits until it answers.
func (r *reloads) load(t *testing.T, how string) {
	t.Helper()
	r.loaded++
	n := r.loaded
	next := &caddy{setup: setup{listeners: []listener{r.listener(n)}}, dir: r.dir, ports: r.ports}
	config := strings.Replace(next.caddyfile(), "\tdebug\n", "", 1) // too many lines
	path := filepath.Join(r.dir, "Caddyfile")
	switch how {
	case "api":
		r.admin(t, "POST", "/load", "text/caddyfile", config)
	case "command", "signal":
		if err := os.WriteFile(path, []byte(config), 0o644); err != nil {
			t.Fatal(err)
		}
		if how == "command" {
			if out, err := caddyCommand(r.dir, "reload", "--config", path).CombinedOutput(); err != nil {
				t.Fatalf("caddy reload: %v: %s", err, out)
			}
			break
		}
		done := func(l *line) bool { return l.Msg == "successfully reloaded config from file" }
		before := r.log.count(done)
		if err := r.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		if _, ok := r.log.await(before, done); !ok {
			t.Fatal("Caddy doesn't reload at SIGUSR1")
		}
	}
	r.answers(t, n)
	for _, tick := range r.ticks {
		select {
		case tick <- struct{}{}:
		default:
		}
	}
}

// answers waits until new connections get the nth configuration, and checks
// which way it sends a file.
func (r *reloads) answers(t *testing.T, n int) {
	t.Helper()
	v := r.variants[n%len(r.variants)]
	f := ofSize(65537)
	client := r.newClient(t, n%2 == 0)
	client.Transport.(*http.Transport).DisableKeepAlives = true
	host := "localhost"
	if v.more {
		host = "more1.localhost"
	}
	var uri string
	attempt := 0
	eventually(t, fmt.Sprintf("configuration %d (%s) answers", n, v.name), func() bool {
		attempt++
		uri = fmt.Sprintf("/%s?config%d-%d", f.name, n, attempt)
		a, err := client.do(newRequest(t, "GET", fmt.Sprintf("https://%s:%d%s", host, r.ports[0], uri)))
		if err != nil || a.header.Get("X-Config") != fmt.Sprint(n) {
			return false
		}
		a.isFile(t, f)
		return (a.tls.PeerCertificates[0].Subject.CommonName != "") == (v.tls != "")
	})
	l := r.response(t, uri)
	switch {
	case r.stock || v.handler == "":
		if l.KTLS != nil {
			t.Errorf("%s: %+v without the handler", v.name, *l.KTLS)
		}
	case v.reason != "":
		l.isPlain(t, v.reason)
	default:
		l.isFile(t, f.size)
	}
}

// newClient is a client that accepts any certificate.
func (r *reloads) newClient(t *testing.T, http2 bool) *goClient {
	return r.goClient(t, 0, "h1", func(tr *http.Transport) {
		tr.Protocols.SetHTTP2(http2) // if the server has it
		anyCertificate(tr.TLSClientConfig)
	})
}

// underLoad runs f while files are downloaded over HTTP/1.1 and HTTP/2: small
// ones quickly, and large ones so slowly that several reloads fall into each.
// What has an answer must get it whole.
func (r *reloads) underLoad(t *testing.T, f func()) {
	t.Helper()
	var clients sync.WaitGroup
	var over atomic.Bool
	quick := []file{tiny, small, ofSize(65537)}
	for _, http2 := range []bool{false, true} {
		client := r.newClient(t, http2)
		clients.Go(func() {
			for n := 0; !over.Load(); n++ {
				f := quick[n%len(quick)]
				a, err := client.do(newRequest(t, "GET", r.url(0, "/"+f.name)))
				if a.status == 0 {
					r.fails(err)
					continue
				}
				if err != nil {
					t.Errorf("%s, %s: %v after %d bytes", a.proto, f.name, err, a.size)
				}
				a.isFile(t, f)
				r.succeeds()
			}
			client.CloseIdleConnections()
		})
		tick := make(chan struct{}, 1)
		r.ticks = append(r.ticks, tick)
		slow := r.newClient(t, http2)
		slow.Transport.(*http.Transport).DialContext = func(context.Context, string, string) (net.Conn, error) {
			conn, err := net.Dial("tcp", r.addr(0))
			if err == nil {
				err = conn.(*net.TCPConn).SetReadBuffer(64 * kib)
			}
			return conn, err
		}
		clients.Go(func() {
			for !over.Load() {
				resp, err := slow.Do(newRequest(t, "GET", r.url(0, "/"+large.name)))
				if err != nil {
					r.fails(err)
					continue
				}
				hash := sha256.New()
				var size int64
				for size < large.size && err == nil {
					<-tick
					var n int64
					n, err = io.CopyN(hash, resp.Body, min(large.size/10, large.size-size))
					size += n
				}
				if err != nil {
					t.Errorf("%s, slowly: %v after %d bytes", resp.Proto, err, size)
				}
				resp.Body.Close()
				checkBody(t, resp.Proto+", slowly", size, hex.EncodeToString(hash.Sum(nil)), large.size, large.sum)
				r.succeeds()
			}
			slow.CloseIdleConnections()
		})
	}
	f()
	over.Store(true)
	for _, tick := range r.ticks {
		close(tick)
	}
	r.ticks = nil
	clients.Wait()
}

func (r *reloads) succeeds() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.served++
}

func (r *reloads) fails(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := err.Error()
	if wasReset(err) {
		text = ": connection reset by peer"
	}
	r.notBegun[text[strings.LastIndex(text, ": ")+2:]]++
}

// TestReloads: a hundred configurations while clients download. No answer breaks
// off, and at the end nothing is left of them. Stock Caddy is asked the same for
// a few, so that no more is asked of us than it does: a connection that is made
// during a reload may be reset, or closed before its first answer, for the old
// listener is closed with what waits in its queue; and a handshake fails where
// the certificate isn't loaded yet.
func TestReloads(t *testing.T) {
	rounds := 10
	if slow {
		rounds = 2
	}
	for _, test := range []struct {
		name   string
		rounds int
	}{{"ktls", rounds}, {"stock", 2}} {
		t.Run(test.name, func(t *testing.T) {
			r := startReloads(t, test.name == "stock")
			before := r.settled(t)
			r.underLoad(t, func() {
				for n := range r.variants {
					r.load(t, []string{"signal", "command", "signal", "api"}[min(n, 3)])
				}
			})
			heap := r.heap(t)
			r.underLoad(t, func() {
				for r.loaded < test.rounds*len(r.variants) {
					r.load(t, "api")
				}
			})
			t.Logf("%d reloads, %d answers; without an answer: %v", r.loaded, r.served, r.notBegun)
			for _, known := range []string{"EOF", "connection reset by peer", "broken pipe", "internal error"} {
				delete(r.notBegun, known)
			}
			if len(r.notBegun) > 0 || r.served == 0 {
				t.Errorf("%d answers; requests failed with %v", r.served, r.notBegun)
			}
			r.awaitFootprint(t, before)
			// What a configuration leaves on the heap goes in a minute or so, with stock
			// Caddy too; servers and connections that stayed would be more.
			loads := int64(r.loaded - len(r.variants))
			grown := r.heap(t) - heap
			t.Logf("the heap grew by %d bytes in %d reloads", grown, loads)
			if grown > 4*mib+32*kib*loads {
				t.Errorf("the heap grew by %d bytes in %d reloads", grown, loads)
			}
		})
	}
}

// TestGracePeriod: when Caddy ends, downloads over HTTP/1.1 have the grace period
// to end, and no more; as with stock Caddy.
func TestGracePeriod(t *testing.T) {
	for _, test := range []struct {
		name, grace string
		whole       bool
	}{{"in time", "10m", true}, {"too late", "1s", false}} {
		t.Run(test.name, func(t *testing.T) {
			c := setup{
				listeners: []listener{{wrappers: "ktls"}, {sites: []site{{body: plainFiles(www)}}}},
				global:    "grace_period " + test.grace,
			}.start(t)
			uri := "/" + large.name
			downloads := []*download{c.stalled(t, 0, uri), c.stalled(t, 1, uri)}
			c.terminate(t)
			c.awaitLine(t, "the grace period", func(l *line) bool { return strings.Contains(l.Msg, "grace period initiated") })
			if !test.whole {
				c.awaitExit(t)
				for _, d := range downloads {
					checkPrefix(t, d.resp.Body, content(t, large.name))
				}
				return
			}
			for i, d := range downloads {
				n, got, err := sumReader(d.resp.Body)
				if err != nil {
					t.Error(err)
				}
				checkBody(t, uri, n, got, large.size, large.sum)
				if l := c.response(t, uri); l.KTLS != nil {
					l.isFile(t, large.size)
				} else if i == 0 {
					t.Error("no ktls in the access log")
				}
			}
			c.awaitExit(t)
		})
	}
}

// TestShutdownDelay: during shutdown_delay Caddy serves as ever; then the grace
// period begins.
func TestShutdownDelay(t *testing.T) {
	notEmulated(t)
	delay := "2s"
	if raceDetector {
		delay = "10s"
	}
	c := setup{
		listeners: []listener{{wrappers: "ktls", sites: []site{{body: files("header X-Leaving {http.shutting_down}")}}}},
		global:    "shutdown_delay " + delay + "\ngrace_period 10m",
	}.start(t)
	uri := "/" + large.name
	d := c.stalled(t, 0, uri)
	c.terminate(t)
	c.awaitLine(t, "the delay", func(l *line) bool { return l.Msg == "shutdown scheduled" })
	for _, proto := range []string{"h1", "h2"} {
		uri := "/" + medium.name + "?" + proto
		a := c.goClient(t, 0, proto).get(t, c.url(0, uri))
		a.isFile(t, medium)
		c.tookFile(t, uri, medium.size)
		if got := a.header.Get("X-Leaving"); got != "true" {
			t.Errorf("{http.shutting_down} is %q", got)
		}
	}
	c.awaitLine(t, "the grace period", func(l *line) bool { return strings.Contains(l.Msg, "grace period initiated") })
	n, got, err := sumReader(d.resp.Body)
	if err != nil {
		t.Error(err)
	}
	checkBody(t, uri, n, got, large.size, large.sum)
	c.tookFile(t, uri, large.size)
	c.awaitExit(t)
}

// terminate tells Caddy to end.
func (c *caddy) terminate(t *testing.T) {
	t.Helper()
	c.leaves = true
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
}

// awaitExit waits until Caddy has ended by itself.
func (c *caddy) awaitExit(t *testing.T) {
	t.Helper()
	select {
	case err := <-c.exit:
		c.exit <- err // for stop
	case <-time.After(patience):
		t.Error("caddy still runs")
	}
}

// TestHandedOverSocket: Caddy restarts, as with a systemd socket, on a listening
// socket that isn't its own: the next one serves before the last one goes. A
// running download ends, new connections are accepted all the time.
func TestHandedOverSocket(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	socket, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	defer socket.Close()
	// Without close-on-exec, each Caddy has it under the same number.
	fd, err := unix.Dup(int(socket.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	launch := func(global string) *caddy {
		s := setup{listeners: []listener{{wrappers: "ktls"}}, global: global}
		s.patch = func(config map[string]any) {
			servers := config["apps"].(map[string]any)["http"].(map[string]any)["servers"].(map[string]any)
			servers["srv0"].(map[string]any)["listen"] = []string{fmt.Sprintf("fd/%d", fd)}
		}
		c := s.start(t)
		c.ports[0] = ln.Addr().(*net.TCPAddr).Port
		return c
	}
	first := launch("grace_period 10m")
	get := func(c *caddy, uri string) {
		client := c.goClient(t, 0, "h1", func(tr *http.Transport) { tr.DisableKeepAlives = true })
		client.get(t, c.url(0, uri)).isFile(t, medium)
	}
	uri := "/" + medium.name + "?first"
	get(first, uri)
	first.tookFile(t, uri, medium.size)
	d := first.stalled(t, 0, "/"+large.name)

	second := launch("")
	first.terminate(t)
	// One that the first has accepted, but not answered, when it goes may be
	// closed; none may be refused.
	client := second.goClient(t, 0, "h1", func(tr *http.Transport) { tr.DisableKeepAlives = true })
	served := 0
	eventually(t, "the second answers alone", func() bool {
		if _, err := client.do(newRequest(t, "GET", second.url(0, "/"+medium.name))); errors.Is(err, syscall.ECONNREFUSED) {
			t.Error(err)
		}
		n := second.log.count((*line).isAccess)
		gone := first.log.count(func(l *line) bool { return strings.Contains(l.Msg, "grace period initiated") }) > 0
		if gone && n > served {
			return true
		}
		served = n
		return false
	})
	uri = "/" + medium.name + "?second"
	get(second, uri)
	second.tookFile(t, uri, medium.size)

	n, got, err := sumReader(d.resp.Body)
	if err != nil {
		t.Error(err)
	}
	checkBody(t, "what was being sent", n, got, large.size, large.sum)
	first.tookFile(t, "/"+large.name, large.size)
	first.awaitExit(t)

	config, err := os.ReadFile(filepath.Join(second.dir, "caddy.json"))
	if err != nil {
		t.Fatal(err)
	}
	second.admin(t, "POST", "/load", "application/json", strings.Replace(string(config), `"wrapper":"ktls"`, `"wrapper":"ktls","upgrade":"handshake"`, 1))
	eventually(t, "the new configuration serves on the same socket", func() bool {
		a, err := client.do(newRequest(t, "GET", second.url(0, "/"+tiny.name)))
		new := second.log.count(func(l *line) bool { return l.isUpgrade() && l.Upgrade == "handshake" })
		return err == nil && a.sum == tiny.sum && (new > 0 || !kernel.ulp)
	})
	uri = "/" + medium.name + "?alone"
	get(second, uri)
	second.tookFile(t, uri, medium.size)
}
