//go:build linux

package integration

import (
	"fmt"
	"slices"
	"testing"

	"golang.org/x/net/http2"
)

// TestHTTP2Fairness: to a client that is slow to read, a small answer comes no
// later behind a download on the same connection than with stock Caddy, but for
// one frame. That is counted in octets of the download that come before it. All
// but two frames of them were in the sockets when the request was sent: the
// server's frame under way, and one more when each stream has its turn.
func TestHTTP2Fairness(t *testing.T) {
	const frame = 7 * 16375  // the default of http2_frame_size
	const buffers = 64 * kib // what the client's TLS and HTTP/2 have read, and a record begun
	hello := `respond /hello "hello"`
	c := start(t,
		listener{wrappers: "ktls", sites: []site{{body: files(hello)}}},
		listener{sites: []site{{body: plainFiles(www, hello)}}},
	)
	var waited [2][]int64
	for i := range waited {
		h := c.dialHTTP2(t, i, h2options{small: true, window: 1 << 30, settings: []http2.Setting{windowSize(1 << 30)}})
		for n := range 5 {
			s := h.get(fmt.Sprintf("/%s?%d-%d", large.name, i, n), content(t, large.name))
			s.has(t, int64(n)*100_000+1)
			h.pause()
			awaitStall(t, h.tcp)
			held := int64(sendQueue(t, h.tcp) + receiveQueue(t, h.tcp))
			uri := fmt.Sprintf("/hello?%d-%d", i, n)
			hello := h.get(uri, []byte("hello"))
			c.response(t, uri)
			awaitStall(t, h.tcp) // the server has long had its answer ready
			h.resume()
			hello.whole(t)
			came := hello.came - hello.asked
			waited[i] = append(waited[i], came)
			if most := held + 2*frame + buffers; kernel.ulp && i == 0 && came > most {
				t.Errorf("a small answer comes after %d octets of a download; the sockets held %d", came, held)
			}
			s.cancel()
			h.ping(t, [8]byte{1})
		}
	}
	t.Logf("octets before the answer: %d, with stock Caddy %d", waited[0], waited[1])
	// The sockets of kernel TLS hold up to some 50 KB more.
	if slices.Max(waited[0]) > slices.Max(waited[1])+2*frame {
		t.Errorf("a small answer comes after %d octets of a download; with stock Caddy after %d", waited[0], waited[1])
	}
}
