//go:build linux

package integration

import (
	"fmt"
	"testing"

	"golang.org/x/net/http2"
)

func frameSize(n uint32) http2.Setting { return http2.Setting{ID: http2.SettingMaxFrameSize, Val: n} }

func windowSize(n uint32) http2.Setting {
	return http2.Setting{ID: http2.SettingInitialWindowSize, Val: n}
}

// TestHTTP2Windows: whatever a client's windows and frames are, it gets the
// file, by sendfile, and never an octet or a frame that it doesn't allow.
func TestHTTP2Windows(t *testing.T) {
	for _, upgrade := range []string{"lazy", "handshake"} {
		c := start(t, listener{wrappers: "ktls {\n\tupgrade " + upgrade + "\n}"})
		for _, test := range []struct {
			stream, connection int64
			file               file
		}{
			{1, firstWindow, small}, // as many frames as bytes
			{13, firstWindow, ofSize(65537)},
			{firstWindow, firstWindow, medium},
			{firstWindow, firstWindow, large},
			{mib, firstWindow, large},
			{firstWindow, mib, large},
			{1<<31 - 1, firstWindow, medium},
			{1<<31 - 1, 1<<31 - 1, large},
		} {
			for _, frame := range []uint32{0, 1 << 16, 1<<24 - 1} {
				if test.stream < 100 && (slow || frame > 0 || upgrade != "lazy") {
					continue // long enough; where it takes a minute, Caddy's idle time-out ends it
				}
				if (slow || raceDetector) && (frame == 1<<16) != (upgrade == "handshake") {
					continue // likewise
				}
				t.Run(fmt.Sprintf("%s/%d/%d/%s/%d", upgrade, test.stream, test.connection, test.file.name, frame), func(t *testing.T) {
					check := countUpgrades(t)
					o := h2options{settings: []http2.Setting{windowSize(uint32(test.stream))}, window: test.connection - firstWindow}
					if frame > 0 {
						o.settings = append(o.settings, frameSize(frame))
					}
					h := c.dialHTTP2(t, 0, o)
					uri := fmt.Sprintf("/%s?%d-%d-%d", test.file.name, test.stream, test.connection, frame)
					for range 2 {
						s := h.get(uri, content(t, test.file.name))
						for n := int64(1024); n < test.file.size && test.stream < 100; n += 1024 {
							s.has(t, n) // slow, but it gets on
						}
						s.whole(t)
						c.tookFile(t, uri, test.file.size)
						if test.stream < 100 || (slow || raceDetector) && test.file == large {
							break
						}
					}
					h.ping(t, [8]byte{1})
					if h.acks != h.sent {
						t.Errorf("%d acknowledgements of %d SETTINGS", h.acks, h.sent)
					}
					check(t, 1)
				})
			}
		}
	}
}

// TestHTTP2Settings: SETTINGS that come in the middle of downloads.
func TestHTTP2Settings(t *testing.T) {
	c := start(t, listener{wrappers: "ktls"})
	want := content(t, large.name)
	// acked sends SETTINGS and waits for the one acknowledgement.
	acked := func(t *testing.T, h *h2client, list ...http2.Setting) {
		t.Helper()
		h.mu.Lock()
		n := h.acks
		h.mu.Unlock()
		h.settings(list...)
		h.await(t, "SETTINGS are acknowledged", func() bool { return h.acks > n })
	}
	count := func(t *testing.T, h *h2client, most, least int) {
		t.Helper()
		h.ping(t, [8]byte{2})
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.acks > most || h.acks < least || most > h.sent {
			t.Errorf("%d acknowledgements of %d SETTINGS; want %d to %d", h.acks, h.sent, least, most)
		}
	}

	t.Run("frames", func(t *testing.T) {
		h := c.dialHTTP2(t, 0, h2options{manual: true, window: 1 << 30, settings: []http2.Setting{windowSize(0)}})
		h.await(t, "the first SETTINGS are acknowledged", func() bool { return h.acks == 1 })
		s := h.get("/"+large.name+"?frames", want)
		for n, size := range []uint32{1 << 16, 1 << 14, 1<<24 - 1, 1 << 20, 100_000, 1 << 14, 1 << 14} {
			h.grant(s, 300_001)
			s.has(t, int64(n)*600_001+300_001)
			acked(t, h, frameSize(size))
			count(t, h, n+2, n+2)
			h.grant(s, 300_000)
			s.has(t, int64(n+1)*600_001)
		}
		h.grant(s, 1<<30)
		s.whole(t)
		c.tookFile(t, "/"+large.name+"?frames", large.size)
		count(t, h, 8, 8)
	})
	t.Run("windows", func(t *testing.T) {
		h := c.dialHTTP2(t, 0, h2options{manual: true, window: 1 << 30})
		s := h.get("/"+large.name+"?windows", want)
		s.has(t, firstWindow)
		h.await(t, "the first SETTINGS are acknowledged", func() bool { return h.acks == 1 })
		acked(t, h, windowSize(200_000)) // up: that much in all
		s.has(t, 200_000)
		acked(t, h, windowSize(50_000)) // down: 150,000 below zero
		h.grant(s, 150_000)
		h.ping(t, [8]byte{3}) // nothing was allowed
		h.grant(s, 1)
		s.has(t, 200_001)
		acked(t, h, windowSize(0))
		h.grant(s, 50_100)
		s.has(t, 200_101)
		acked(t, h, windowSize(1<<20))
		s.has(t, 200_101+1<<20)
		other := h.get("/"+medium.name+"?windows", content(t, medium.name))
		other.has(t, 1<<20)
		acked(t, h, windowSize(1<<28))
		s.whole(t)
		other.whole(t)
		c.tookFile(t, "/"+large.name+"?windows", large.size)
		c.tookFile(t, "/"+medium.name+"?windows", medium.size)
		count(t, h, 6, 6)
	})
	t.Run("many", func(t *testing.T) {
		h := c.dialHTTP2(t, 0, h2options{})
		s := h.get("/"+large.name+"?many", want)
		for n := range 200 {
			h.settings(frameSize(1<<14 + uint32(n%7)*10_000))
			if n%20 == 0 {
				s.has(t, int64(n)*20_000)
			}
		}
		s.whole(t)
		c.tookFile(t, "/"+large.name+"?many", large.size)
		count(t, h, 201, 2)
		h.mu.Lock()
		n := h.acks
		h.mu.Unlock()
		acked(t, h, frameSize(1<<14))
		acked(t, h)
		count(t, h, n+2, n+2)
	})
	t.Run("before", func(t *testing.T) { // all at once, before the connection is used
		h := c.dialHTTP2(t, 0, h2options{settings: []http2.Setting{frameSize(1 << 20)}})
		for range 10 {
			h.settings(frameSize(1<<15), windowSize(1<<20))
		}
		h.get("/"+large.name+"?before", want).whole(t)
		c.tookFile(t, "/"+large.name+"?before", large.size)
		count(t, h, 11, 1)
	})
	t.Run("single", func(t *testing.T) { // bytes, each in a record of its own
		h := c.dialHTTP2(t, 0, h2options{single: true, settings: []http2.Setting{frameSize(1 << 16), windowSize(1 << 20)}})
		s := h.get("/"+medium.name+"?single", content(t, medium.name))
		h.await(t, "the first SETTINGS are acknowledged", func() bool { return h.acks == 1 })
		for range 5 {
			acked(t, h, frameSize(1<<15))
		}
		s.whole(t)
		h.get("/"+large.name+"?single", want).whole(t)
		c.tookFile(t, "/"+medium.name+"?single", medium.size)
		c.tookFile(t, "/"+large.name+"?single", large.size)
		count(t, h, 6, 6)
	})
}
