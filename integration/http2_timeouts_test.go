//go:build linux

package integration

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestHTTP2SlowClient: a client whose windows let a chunk of Caddy's through
// within each write_idle, and which needs twice as long, gets all of it; one that
// lets nothing through loses that stream, and only that one. The same is asked of
// stock Caddy.
func TestHTTP2SlowClient(t *testing.T) {
	const idle, chunk, rounds = 8 * time.Second, 64 * kib, 4
	options := fmt.Sprintf("timeouts {\n\twrite_idle %v\n}", idle)
	c := start(t,
		listener{wrappers: "ktls", options: options},
		listener{options: options, sites: []site{{body: plainFiles(www)}}},
	)
	want := content(t, medium.name)
	type client struct {
		*h2client
		slow, stopped *h2stream
		name          string
	}
	var clients []client
	for i, name := range []string{"ktls", "stock"} {
		for _, by := range []string{"stream", "connection"} {
			o := h2options{manual: true}
			if by == "stream" {
				o.settings = []http2.Setting{windowSize(0)}
				o.window = 1 << 30
			} else {
				o.settings = []http2.Setting{windowSize(1 << 30)}
			}
			h := c.dialHTTP2(t, i, o)
			name := name + "-" + by
			cl := client{h2client: h, slow: h.get("/"+medium.name+"?slow-"+name, want), name: name}
			if by == "stream" {
				cl.stopped = h.get("/"+medium.name+"?stopped-"+name, want)
			}
			clients = append(clients, cl)
		}
	}
	for n := range rounds {
		time.Sleep(idle / 2) // it is the client's pace that is tested
		for _, cl := range clients {
			s := cl.slow
			if cl.stopped == nil {
				s = nil
			}
			cl.grant(s, chunk)
		}
		for _, cl := range clients {
			cl.await(t, cl.name+" gets a chunk", func() bool { return cl.slow.size >= int64(n+1)*chunk || cl.slow.reset })
		}
	}
	for _, cl := range clients {
		cl.mu.Lock()
		if cl.slow.reset {
			t.Errorf("%s: the slow stream was reset (%v) after %d bytes", cl.name, cl.slow.code, cl.slow.size)
		}
		cl.mu.Unlock()
		s := cl.slow
		if cl.stopped == nil {
			s = nil
		} else {
			cl.stopped.end(t)
			if !cl.stopped.reset || cl.stopped.size > 0 {
				t.Errorf("%s: the stopped stream has %d bytes, and was reset: %t", cl.name, cl.stopped.size, cl.stopped.reset)
			}
		}
		cl.grant(s, 1<<29)
		cl.slow.whole(t)
		if cl.name == "ktls-stream" || cl.name == "ktls-connection" {
			c.tookFile(t, "/"+medium.name+"?slow-"+cl.name, medium.size)
		}
	}
	c.wasCut(t, "/"+medium.name+"?stopped-ktls-stream", 0)
	// The connections are good for more.
	for _, cl := range clients {
		cl.get("/"+tiny.name, content(t, tiny.name)).has(t, 0)
		s := cl.get("/"+medium.name+"?again", want)
		cl.grant(nil, 1<<29)
		cl.grant(s, 1<<29)
		s.whole(t)
	}
}

// wasCut checks that a response by sendfile ended within its body.
func (c *caddy) wasCut(t *testing.T, uri string, least int64) {
	t.Helper()
	if l := c.response(t, uri); kernel.ulp && (l.KTLS == nil || l.KTLS.Path != "sendfile" || l.KTLS.Reason != "cut" || l.KTLS.Sent < least) {
		t.Errorf("want a response by sendfile that was cut after %d bytes: %s", least, l.raw)
	}
}

// TestHTTP2StoppedClient: a client that reads nothing for longer than write_idle,
// with windows wide open, finds its stream reset when it reads again, and the
// connection as good as ever. The same is asked of stock Caddy, which can't end
// the stream before TCP takes something either.
func TestHTTP2StoppedClient(t *testing.T) {
	const idle = 2 * time.Second
	options := fmt.Sprintf("timeouts {\n\twrite_idle %v\n}", idle)
	c := start(t,
		listener{wrappers: "ktls", options: options},
		listener{options: options, sites: []site{{body: plainFiles(www)}}},
	)
	c.goClient(t, 0, "h2", func(tr *http.Transport) { tr.DisableKeepAlives = true }).
		get(t, c.url(0, "/"+large.name+"?before")).isFile(t, large)
	before := c.settled(t)
	want := content(t, large.name)
	for i := range 2 {
		h := c.dialHTTP2(t, i, h2options{small: true, window: 1 << 30, settings: []http2.Setting{windowSize(1 << 30)}})
		uri := fmt.Sprintf("/%s?stopped-%d", large.name, i)
		s := h.get(uri, want)
		s.has(t, 1)
		h.pause()
		awaitStall(t, h.tcp)
		time.Sleep(2 * idle) // the client's doing
		h.resume()
		s.end(t)
		if s.ended || !s.reset {
			t.Errorf("listener %d: ended %t, reset %t after %d bytes", i, s.ended, s.reset, s.size)
		}
		if i == 0 {
			c.wasCut(t, uri, 1)
		}
		h.get("/"+medium.name, content(t, medium.name)).whole(t)
		h.ping(t, [8]byte{1})
		h.close()
	}
	c.awaitFootprint(t, before)
}

// TestHTTP2Silent: a client that negotiates HTTP/2 and doesn't begin to speak it, or
// not to its preface's end, is sent away as by stock Caddy, though no time-out for
// headers would do it.
func TestHTTP2Silent(t *testing.T) {
	notEmulated(t)
	options := "timeouts {\n\tread_header -1s\n}"
	c := start(t,
		listener{wrappers: "ktls", options: options},
		listener{options: options, sites: []site{{body: plainFiles(www)}}},
	)
	for i := range 2 {
		for _, begin := range []string{"", http2.ClientPreface[:20]} {
			t.Run(fmt.Sprintf("%d/%q", i, begin), func(t *testing.T) {
				t.Parallel()
				conn := c.dialTLS(t, i, func(config *tls.Config) { config.NextProtos = []string{"h2"} })
				if _, err := io.WriteString(conn, begin); err != nil {
					t.Fatal(err)
				}
				conn.SetReadDeadline(time.Now().Add(patience))
				if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error("the connection is still open")
				}
			})
		}
	}
}

// TestHTTP2ResetsAreNotErrors: clients that leave in the middle of downloads are
// nothing to tell the administrator, as without the module.
func TestHTTP2ResetsAreNotErrors(t *testing.T) {
	c := start(t, listener{wrappers: "ktls"}, listener{wrappers: "ktls", sites: []site{{body: plainFiles(www)}}})
	clients := 20
	if slow {
		clients = 5
	}
	want := content(t, large.name)
	before := c.settled(t)
	told := func(l *line) bool { return l.Level == "error" || l.Level == "warn" }
	atStart := c.log.count(told) // that the second one has no handler
	for i := range 2 {
		for n := range clients {
			h := c.dialHTTP2(t, i, h2options{window: 1 << 30})
			for s := range 6 {
				h.get(fmt.Sprintf("/%s?%d-%d-%d", large.name, i, n, s), want)
			}
			h.await(t, "some of it", func() bool { return h.octets > int64(n)*10*kib })
			h.tcp.SetLinger(0)
			h.tcp.Close()
		}
	}
	c.awaitFootprint(t, before)
	if n := c.log.count(told) - atStart; n > 0 {
		t.Errorf("%d errors and warnings", n)
	}
}
