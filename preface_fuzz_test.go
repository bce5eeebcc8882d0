package caddyktls

import (
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// FuzzPreface: HTTP/2 goes on where it was negotiated and nowhere else, whatever
// is sent and however it is cut.
func FuzzPreface(f *testing.F) {
	for _, s := range []string{"", "GET / HTTP/1.1\r\n\r\n", "PRI * HTTP/1.1\r\n\r\n", http2.ClientPreface, http2.ClientPreface[:10], http2.ClientPreface[:23] + "x", http2.ClientPreface + http2.ClientPreface} {
		for _, h2 := range []bool{false, true} {
			f.Add(h2, s, []byte{1})
			f.Add(h2, s, []byte{100, 3})
		}
	}
	f.Fuzz(func(t *testing.T, h2 bool, sent string, cuts []byte) {
		c := &conn{h2: h2}
		got := true
		seen := 0
		for rest := sent; got && rest != "" && c.preface >= 0; {
			n := len(rest)
			if len(cuts) > 0 {
				n, cuts = min(n, 1+int(cuts[0])), cuts[1:]
			}
			got = c.checkPreface([]byte(rest[:n]))
			rest, seen = rest[n:], seen+n
		}
		is := strings.HasPrefix(sent, http2.ClientPreface)
		maybe := strings.HasPrefix(http2.ClientPreface, sent[:seen])
		want := h2 == is || maybe && !is
		if !h2 && !is {
			want = true
		}
		if got != want {
			t.Errorf("HTTP/2 negotiated: %t, %q goes on: %t", h2, sent[:seen], got)
		}
		if settled := c.preface < 0; settled == (maybe && !is) {
			t.Errorf("%q: settled: %t", sent[:seen], settled)
		}
	})
}
