//go:build linux

package integration

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/net/http2"
)

// TestHTTP2ChangedFile: what becomes of a download whose file changes meanwhile,
// and of another one on the same connection.
func TestHTTP2ChangedFile(t *testing.T) {
	root := t.TempDir()
	const size, first = 4*mib + 5, mib + 1
	for _, name := range []string{"truncated", "replaced", "deleted", "emptied", "other"} {
		newFile(t, root, name, size)
	}
	path := func(name string) string { return filepath.Join(root, name) }
	read := func(name string) []byte {
		b, err := os.ReadFile(path(name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	c := start(t, listener{wrappers: "ktls", sites: []site{{body: filesFrom(root)}}})
	h := c.dialHTTP2(t, 0, h2options{manual: true, window: 1 << 30, settings: []http2.Setting{windowSize(first)}})
	streams := map[string]*h2stream{}
	for _, name := range []string{"truncated", "replaced", "deleted", "emptied", "other"} {
		s := h.get("/"+name, read(name))
		s.has(t, first)
		streams[name] = s
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Truncate(path("truncated"), first+100_000))
	must(os.Truncate(path("emptied"), 0))
	newFile(t, root, "new", size)
	must(os.Rename(path("new"), path("replaced")))
	must(os.Remove(path("deleted")))
	for _, name := range []string{"truncated", "emptied", "replaced", "deleted", "other"} {
		s := streams[name]
		h.grant(s, 1<<30)
		switch name {
		case "truncated", "emptied":
			s.end(t)
			// Stock Caddy ends the stream as if nothing was missing.
			if s.ended && kernel.ulp || s.size >= size {
				t.Errorf("%s: %d bytes, and ended as if that was all: %t", name, s.size, s.ended)
			}
			if kernel.ulp {
				c.wasCut(t, "/"+name, first)
			}
		default:
			s.whole(t)
			c.tookFile(t, "/"+name, size)
		}
	}
	again := h.get("/replaced", read("replaced"))
	h.grant(again, 1<<30)
	again.whole(t)
	c.tookFile(t, "/replaced", size)
}

// TestHTTP2TruncatedFrame: the file is truncated while a frame of it is being
// sent. Nothing can be said in its place, so the connection ends.
func TestHTTP2TruncatedFrame(t *testing.T) {
	needKTLS(t)
	root := t.TempDir()
	newFile(t, root, "truncated", large.size)
	path := filepath.Join(root, "truncated")
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	body := plainFiles(root, "ktls {", "min_size 1", "http2_frame_size 1MiB", "}")
	c := start(t, listener{wrappers: "ktls", sites: []site{{body: body}}})
	// A frame is begun when a third of the send buffer is free: only a larger one
	// stalls half-way.
	h := c.dialHTTP2(t, 0, h2options{small: true, segment: 1448, window: 1 << 30, settings: []http2.Setting{windowSize(1 << 30)}})
	s := h.get("/truncated", want)
	s.has(t, 1)
	h.pause()
	awaitStall(t, h.tcp)
	if err := os.Truncate(path, 1000); err != nil {
		t.Fatal(err)
	}
	h.resume()
	if err := h.closed(t); err == nil {
		t.Error("the connection goes on")
	}
	if s.ended || s.size >= large.size {
		t.Errorf("%d bytes, and ended as if that was all: %t", s.size, s.ended)
	}
	c.wasCut(t, "/truncated", 1)
	// The server is good for more.
	newFile(t, root, "truncated", large.size)
	if want, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	c.dialHTTP2(t, 0, h2options{}).get("/truncated", want).whole(t)
	c.tookFile(t, "/truncated", large.size)
}
