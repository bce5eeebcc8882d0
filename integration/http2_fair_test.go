//go:build linux

package integration

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestHTTP2Fairness: a small answer waits for a download on the same connection
// not much longer than with stock Caddy. Its time is counted in octets of the
// download that come between request and answer.
func TestHTTP2Fairness(t *testing.T) {
	const frame = 7 * 16375 // the default of http2_frame_size
	hello := `respond /hello "hello"`
	c := start(t,
		listener{wrappers: "ktls", sites: []site{{body: files(hello)}}},
		listener{sites: []site{{body: plainFiles(www, hello)}}},
	)
	want := content(t, big.name)
	for _, test := range []struct {
		name  string
		small bool
		pace  time.Duration
	}{
		{"fast", false, 0},
		{"small buffer", true, 0},
		{"slow", true, 2 * time.Millisecond},
	} {
		t.Run(test.name, func(t *testing.T) {
			var median [2]int64
			for i := range median {
				h := c.dialHTTP2(t, i, h2options{small: test.small, window: 1 << 30, settings: []http2.Setting{windowSize(1 << 30)}})
				h.mu.Lock()
				h.pace = test.pace
				h.mu.Unlock()
				var waited []int64
				for n := 0; len(waited) < 15; n++ {
					uri := fmt.Sprintf("/%s?%s-%d-%d", big.name, test.name[:4], i, n)
					s := h.get(uri, want)
					s.has(t, mib)
					for len(waited) < 15 {
						hello := h.get("/hello", []byte("hello"))
						hello.whole(t)
						if s.size == big.size {
							break
						}
						waited = append(waited, hello.came-hello.asked)
					}
					if s.size < big.size {
						s.cancel()
						h.ping(t, [8]byte{1})
					}
				}
				slices.Sort(waited)
				median[i] = waited[len(waited)/2]
				t.Logf("listener %d: %d", i, waited)
			}
			if median[0] > median[1]+frame {
				t.Errorf("a small answer comes after %d octets, with stock Caddy after %d", median[0], median[1])
			}
		})
	}
}
