//go:build linux

package integration

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// TestWritersBelow puts other handlers before ours: what they do with a body is
// not known to us, so that they must get the body itself.
func TestWritersBelow(t *testing.T) {
	const unknown = "unknown_writer:"
	tests := []struct {
		name    string
		handler string // goes before ktls
		text    string // why a text goes plain, if it is not known to leave it alone
		binary  string // why other files do
	}{
		{"encode", "encode {\ngzip\nminimum_length 1\nmatch {\nheader Content-Type *\n}\n}", unknown, unknown},
		{"intercept", "intercept {\n@never status 599\nhandle_response @never {\nrespond never\n}\n}", unknown, unknown},
		{"templates", "templates {\nmime text/plain\n}", unknown, ""},
		{"push", "push /other", "", ""},
		{"header", "header X-Some thing", "", ""},
		{"deferred header", "header {\n-X-Other\ndefer\n}", "", ""},
		{"ktls", "ktls {\nmin_size 1\n}", "", ""},
		{"timeouts", "timeouts {\nwrite_timeout 10s\n}", "", ""},
		{"max_write_chunk", "timeouts {\nwrite_timeout 10s\nmax_write_chunk 4KiB\n}", "", ""},
		{"request_body", "request_body {\nmax_size 1MB\n}", "", ""},
		{"handle", "handle {\nvars a b\n}", "", ""},
	}
	var sites []site
	for n, test := range tests {
		body := fmt.Sprintf("log\nroot * %s\nroute {\n%s\nktls {\nmin_size 1\n}\nfile_server\n}", www, test.handler)
		sites = append(sites, site{host: fmt.Sprintf("w%d.localhost", n), body: body})
	}
	c := start(t, listener{wrappers: "ktls", sites: sites})
	for n, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			// Go's client asks for gzip and undoes it by itself.
			client := c.goClient(t, 0, "h1", func(tr *http.Transport) { tr.DisableCompression = false })
			for name, reason := range map[string]string{"page.txt": test.text, medium.name: test.binary} {
				want := content(t, name)
				uri := fmt.Sprintf("/%s?%d", name, n)
				client.get(t, c.urlOf(0, n, uri)).isBytes(t, name, want)
				if reason == "" {
					c.tookFile(t, uri, int64(len(want)))
				} else if l := c.tookPlain(t, uri, ""); kernel.ulp && (l.KTLS == nil || !strings.HasPrefix(l.KTLS.Reason, reason)) {
					t.Errorf("%s: %s; want reason %s...", uri, l.raw, reason)
				}
			}
		})
	}
}
