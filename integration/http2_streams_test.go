//go:build linux

package integration

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// TestHTTP2Cancel: a client gives up many downloads, at any point of them, while
// another one on the same connection goes on. What it got of each is right, and
// the two sides agree on the connection's window in the end.
func TestHTTP2Cancel(t *testing.T) {
	rounds := 400 // 1,000 cancelled downloads
	switch {
	case slow:
		rounds = 60
	case raceDetector && kernel.ulp:
		rounds = 40 // in User-Mode Linux each takes longer than the one before
	}
	c := start(t, listener{wrappers: "ktls"})
	want := content(t, large.name)
	random := rand.New(rand.NewPCG(5, 5))
	const window = 1 << 20
	h := c.dialHTTP2(t, 0, h2options{window: window - firstWindow, settings: []http2.Setting{windowSize(window)}})

	// The other one takes what a window of its own allows, a piece each round.
	steady := h.get("/"+large.name+"?steady", want)
	for n := range rounds {
		var streams []*h2stream
		for range 1 + random.IntN(4) {
			streams = append(streams, h.get("/"+large.name+"?cancelled", want))
		}
		for _, s := range streams {
			switch random.IntN(4) {
			case 0: // perhaps before the server has seen the request
			case 1:
				s.has(t, 1)
			default:
				s.has(t, random.Int64N(1<<19))
			}
			s.cancel()
		}
		if n%40 == 0 {
			steady.whole(t)
			c.tookFile(t, "/"+large.name+"?steady", large.size)
			steady = h.get("/"+large.name+"?steady", want)
		}
	}
	steady.whole(t)
	c.tookFile(t, "/"+large.name+"?steady", large.size)
	h.ping(t, [8]byte{9}) // what was on its way has come

	// The server sends as much as the window has, and then waits.
	h.mu.Lock()
	h.manual = true
	h.mu.Unlock()
	s := h.get("/"+large.name+"?after", want)
	h.grant(s, large.size)
	h.await(t, "the connection's window is used up", func() bool { return h.window == 0 })
	h.ping(t, [8]byte{10})
	h.grant(nil, 1<<30)
	s.whole(t)
	c.tookFile(t, "/"+large.name+"?after", large.size)
	if h.goAway != nil {
		t.Errorf("the server said %v", h.goAway)
	}
}

// TestHTTP2Streams: many downloads at once on one connection, of all sizes.
func TestHTTP2Streams(t *testing.T) {
	c := start(t, listener{wrappers: "ktls"})
	check := countUpgrades(t)
	h := c.dialHTTP2(t, 0, h2options{window: 1 << 20, settings: []http2.Setting{frameSize(1 << 15)}})
	for round := range 3 {
		var streams []*h2stream
		var uris []string
		var of []file
		for n := range 40 {
			f := whole[(n*7+round)%(len(whole)-2)] // not the largest
			uri := fmt.Sprintf("/%s?%d-%d", f.name, round, n)
			streams, uris, of = append(streams, h.get(uri, content(t, f.name))), append(uris, uri), append(of, f)
		}
		for n, s := range streams {
			s.whole(t)
			if of[n].size > 0 {
				c.tookFile(t, uris[n], of[n].size)
			}
		}
	}
	check(t, 1)
}

// TestHTTP2Others: answers of other handlers come right on a connection that is
// upgraded, and whose server writes large frames, while files are sent on it.
func TestHTTP2Others(t *testing.T) {
	huge := strings.Repeat("0123456789abcdef", 8*kib) // 128 KiB
	long := strings.Repeat("header:", 12_000)         // 84 KB
	end := strings.Repeat("end", 1000)                // Go takes no long trailers
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Long", long)
		switch r.URL.Path {
		case "/trailer":
			w.Header().Set("Trailer", "X-End")
			io.WriteString(w, huge)
			w.Header().Set("X-End", end)
		case "/pieces":
			for at := 0; at < len(huge); at += 10_000 {
				io.WriteString(w, huge[at:min(at+10_000, len(huge))])
				w.(http.Flusher).Flush()
			}
		case "/empty":
		}
	}))
	defer upstream.Close()
	body := files(`respond /hello "hello"`, "handle /trailer {", "reverse_proxy "+upstream.Listener.Addr().String(), "}",
		"handle /pieces {", "reverse_proxy "+upstream.Listener.Addr().String(), "}",
		"handle /empty {", "reverse_proxy "+upstream.Listener.Addr().String(), "}",
		"file_server browse", "encode /page.txt gzip")
	c := start(t, listener{wrappers: "ktls", sites: []site{{body: body}}})
	for _, settings := range [][]http2.Setting{nil, {frameSize(40_000), windowSize(1 << 20)}} {
		h := c.dialHTTP2(t, 0, h2options{settings: settings, window: 1 << 20})
		all := func() {
			t.Helper()
			var streams []*h2stream
			ask := func(uri string, want []byte, fields ...string) *h2stream {
				s := h.get(uri, want, fields...)
				streams = append(streams, s)
				return s
			}
			ask("/hello", []byte("hello"))
			trailer := ask("/trailer", []byte(huge))
			pieces := ask("/pieces", []byte(huge))
			empty := ask("/empty", []byte{})
			ask("/"+tiny.name, content(t, tiny.name))
			ask("/page.txt", content(t, "page.txt"))
			gzipped := ask("/page.txt", nil, "accept-encoding", "gzip")
			listing := ask("/", nil)
			ask("/"+medium.name, content(t, medium.name)[1000:201_000], "range", "bytes=1000-200999")
			head := h.request("HEAD", "localhost", "/"+medium.name, []byte{})
			missing := h.get("/missing", nil)
			missing.end(t)
			head.whole(t)
			if missing.fields[":status"] != "404" {
				t.Errorf("status %s of what isn't there", missing.fields[":status"])
			}
			for _, s := range streams {
				s.whole(t)
			}
			for _, s := range []*h2stream{trailer, pieces, empty} {
				if s.fields["x-long"] != long {
					t.Errorf("stream %d: %d bytes of a header of %d", s.id, len(s.fields["x-long"]), len(long))
				}
			}
			if trailer.trailer["x-end"] != end {
				t.Errorf("%d bytes of a trailer of %d", len(trailer.trailer["x-end"]), len(end))
			}
			if !bytes.Contains(listing.body, []byte(medium.name)) {
				t.Error("the listing lacks a file")
			}
			z, err := gzip.NewReader(bytes.NewReader(gzipped.body))
			if err != nil {
				t.Fatalf("the page was not compressed: %v", err)
			}
			if _, got, err := sumReader(z); err != nil || got != sum(content(t, "page.txt")) {
				t.Errorf("the compressed page isn't what it was: %v", err)
			}
		}
		all()
		for round := range 4 {
			uri := fmt.Sprintf("/%s?%d-%d", large.name, len(settings), round)
			big := h.get(uri, content(t, large.name))
			big.has(t, 1+int64(round)*300_000)
			all()
			big.whole(t)
			c.tookFile(t, uri, large.size)
		}
	}
}

// TestHTTP2Ping: many PINGs during a download are all answered, in order.
func TestHTTP2Ping(t *testing.T) {
	c := start(t, listener{wrappers: "ktls"})
	h := c.dialHTTP2(t, 0, h2options{})
	s := h.get("/"+large.name, content(t, large.name))
	const n = 2000
	data := func(n int) (b [8]byte) {
		binary.BigEndian.PutUint64(b[:], uint64(n))
		return b
	}
	for i := range n {
		h.write(func(w *http2.Framer) error { return w.WritePing(false, data(i)) })
		if i == 0 || i == n/2 { // not one too many, nor one that isn't ours
			h.await(t, "PING is answered", func() bool { return len(h.pongs) > 0 })
		}
	}
	s.whole(t)
	c.tookFile(t, "/"+large.name, large.size)
	h.await(t, "all are answered", func() bool { return len(h.pongs) >= n })
	h.ping(t, data(n))
	for i, got := range h.pongs {
		if got != data(i) {
			t.Fatalf("answer %d is %x", i, got)
		}
	}
}

// TestHTTP2GoAway: a client that says GOAWAY gets what it has asked for, and
// then the end of the connection.
func TestHTTP2GoAway(t *testing.T) {
	c := start(t, listener{wrappers: "ktls"})
	h := c.dialHTTP2(t, 0, h2options{manual: true, window: 1 << 30})
	s := h.get("/"+large.name, content(t, large.name))
	s.has(t, firstWindow)
	h.write(func(w *http2.Framer) error { return w.WriteGoAway(0, http2.ErrCodeNo, []byte("enough")) })
	h.await(t, "the server says GOAWAY too", func() bool { return h.goAway != nil })
	h.grant(s, 1<<30)
	if err := h.closed(t); err != io.EOF {
		t.Errorf("the connection ended with %v", err)
	}
	s.isWhole(t)
	c.tookFile(t, "/"+large.name, large.size)
}
