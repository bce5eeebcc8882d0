//go:build linux

package integration

import (
	"crypto/tls"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestHTTP2FrameSize: whatever http2_frame_size is, clients get the file in
// frames of their own size.
func TestHTTP2FrameSize(t *testing.T) {
	var sites []site
	values := []string{"16KiB", "65500", "114625", "1MiB"}
	for n, size := range values {
		body := plainFiles(www, "ktls {", "min_size 1", "http2_frame_size "+size, "}")
		sites = append(sites, site{host: fmt.Sprintf("f%d.localhost", n), body: body})
	}
	c := start(t, listener{wrappers: "ktls", sites: sites})
	for n, size := range values {
		check := countUpgrades(t)
		client := c.goClient(t, 0, "h2")
		for _, f := range []file{small, ofSize(16385), medium, large} {
			uri := "/" + f.name + "?" + size
			client.get(t, c.urlOf(0, n, uri)).isFile(t, f)
			c.tookFile(t, uri, f.size)
		}
		check(t, 1)
	}
	// The largest that was asked for on a connection stays, for all sites.
	h := c.dialHTTP2(t, 0, h2options{
		window: 1 << 20, settings: []http2.Setting{windowSize(1 << 20)},
		tls: func(config *tls.Config) { config.ServerName = sites[0].host },
	})
	for n := range values {
		uri := fmt.Sprintf("/%s?one-%d", large.name, n)
		s := h.request("GET", sites[n].host, uri, content(t, large.name))
		s.whole(t)
		c.tookFile(t, uri, large.size)
	}
}

// TestHTTP2FrameMemory: buffers for large frames take a sixteenth of Go's memory
// limit at most. Connections beyond that have their files by sendfile too, and
// those that come when others have gone have large frames again.
func TestHTTP2FrameMemory(t *testing.T) {
	needKTLS(t)
	const buffers, connections = 4, 16
	c := setup{
		listeners: []listener{{wrappers: "ktls", sites: []site{{body: plainFiles(www, "ktls {", "min_size 1", "http2_frame_size 1MiB", "}")}}}},
		command:   func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "GOMEMLIMIT=64MiB") },
	}.start(t)
	inUse := func() int64 { return int64(c.scrape(t)["caddy_ktls_frame_buffers_bytes"]) }
	var clients []*goClient
	get := func(n int) {
		client := c.goClient(t, 0, "h2")
		clients = append(clients, client)
		uri := fmt.Sprintf("/%s?memory-%d", large.name, n)
		client.get(t, c.url(0, uri)).isFile(t, large)
		c.tookFile(t, uri, large.size)
	}
	for n := range buffers {
		get(n)
	}
	if got := inUse(); got != buffers*mib {
		t.Errorf("buffers of %d bytes for %d connections", got, buffers)
	}
	before := c.heap(t)
	for n := buffers; n < connections; n++ {
		if n%2 == 0 {
			get(n)
			continue
		}
		// It isn't for the client to say how large the buffer is.
		h := c.dialHTTP2(t, 0, h2options{settings: []http2.Setting{windowSize(1 << 30), frameSize(1<<24 - 1)}, window: 1 << 30})
		uri := fmt.Sprintf("/%s?memory-%d", large.name, n)
		h.get(uri, content(t, large.name)).whole(t)
		c.tookFile(t, uri, large.size)
	}
	if got := inUse(); got != buffers*mib {
		t.Errorf("buffers of %d bytes for %d connections", got, connections)
	}
	if each := (c.heap(t) - before) / (connections - buffers); each > mib/4 {
		t.Errorf("%d bytes of the heap for each connection more", each)
	}
	for _, client := range clients[:2] {
		client.CloseIdleConnections()
	}
	eventually(t, "two have given back theirs", func() bool { return inUse() == (buffers-2)*mib })
	get(connections)
	if got := inUse(); got != (buffers-1)*mib {
		t.Errorf("buffers of %d bytes after two have gone and one has come", got)
	}
	for _, client := range clients {
		client.CloseIdleConnections()
	}
	eventually(t, "nothing is left", func() bool { return inUse() == 0 })
}

// TestHTTP2Reload: a new config while files are sent over HTTP/2. What was begun
// is sent to its end; then the client is told to go.
func TestHTTP2Reload(t *testing.T) {
	c := start(t, listener{wrappers: "ktls"})
	h := c.dialHTTP2(t, 0, h2options{manual: true, window: 1 << 30})
	s := h.get("/"+large.name+"?during", content(t, large.name))
	s.has(t, firstWindow)
	idle := c.goClient(t, 0, "h2")
	idle.get(t, c.url(0, "/"+medium.name+"?before")).isFile(t, medium)

	config := strings.Replace(c.caddyfile(), "grace_period 2s", "grace_period 10m", 1)
	config = strings.Replace(config, "\tfile_server\n", "\theader X-Config new\n\tfile_server\n", 1)
	done := make(chan bool)
	go func() {
		defer close(done)
		c.admin(t, "POST", "/load", "text/caddyfile", config)
	}()
	h.await(t, "the server says GOAWAY", func() bool { return h.goAway != nil })
	h.grant(s, 1<<30)
	if err := h.closed(t); err != io.EOF {
		t.Errorf("the connection ended with %v", err)
	}
	s.isWhole(t)
	c.tookFile(t, "/"+large.name+"?during", large.size)
	<-done

	eventually(t, "the new config answers", func() bool {
		a, err := idle.do(newRequest(t, "GET", c.url(0, "/"+tiny.name)))
		return err == nil && a.header.Get("X-Config") == "new"
	})
	check := countUpgrades(t)
	after := c.dialHTTP2(t, 0, h2options{})
	after.get("/"+large.name+"?after", content(t, large.name)).whole(t)
	c.tookFile(t, "/"+large.name+"?after", large.size)
	check(t, 1)
}

// TestHTTP2Shutdown: when Caddy ends, downloads over HTTP/2 have the grace period
// to end, and no more.
func TestHTTP2Shutdown(t *testing.T) {
	for _, test := range []struct {
		name, grace string
		whole       bool
	}{{"in time", "10m", true}, {"too late", "2s", false}} {
		t.Run(test.name, func(t *testing.T) {
			c := setup{listeners: []listener{{wrappers: "ktls"}}, global: "grace_period " + test.grace}.start(t)
			h := c.dialHTTP2(t, 0, h2options{manual: true, window: 1 << 30})
			s := h.get("/"+large.name, content(t, large.name))
			s.has(t, firstWindow)
			c.terminate(t)
			h.await(t, "the server says GOAWAY", func() bool { return h.goAway != nil })
			if test.whole {
				h.grant(s, 1<<30)
			}
			err := h.closed(t)
			if test.whole {
				s.isWhole(t)
				c.tookFile(t, "/"+large.name, large.size)
				if err != io.EOF {
					t.Errorf("the connection ended with %v", err)
				}
			} else if s.ended || s.size != firstWindow {
				t.Errorf("%d bytes, ended %t", s.size, s.ended)
			}
			select {
			case err := <-c.exit:
				c.exit <- err // for stop
			case <-time.After(patience):
				t.Error("caddy still runs")
			}
		})
	}
}

// TestHTTP2Memory: a connection that a file was sent on costs at most 128 KiB
// more than with stock Caddy.
func TestHTTP2Memory(t *testing.T) {
	conns := 40
	if slow {
		conns = 30
	}
	const most = 128 * kib
	var each [2]int64
	for i, l := range []listener{{wrappers: "ktls"}, {sites: []site{{body: plainFiles(www)}}}} {
		c := start(t, l)
		get := func() {
			uri := "/" + medium.name
			h := c.dialHTTP2(t, 0, h2options{window: 1 << 20, settings: []http2.Setting{windowSize(1 << 20)}})
			h.get(uri, content(t, medium.name)).whole(t)
			if i == 0 {
				c.tookFile(t, uri, medium.size)
			}
			h.ping(t, [8]byte{1})
		}
		get() // what is made once
		before := c.heap(t)
		for range conns {
			get()
		}
		each[i] = (c.heap(t) - before) / int64(conns)
	}
	t.Logf("bytes for each connection: %d, with stock Caddy %d", each[0], each[1])
	if each[0] > each[1]+most {
		t.Errorf("a connection costs %d bytes, with stock Caddy %d", each[0], each[1])
	}
}
