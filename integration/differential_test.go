//go:build linux

package integration

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
)

// TestSameAsStock sends the same requests, in the same order over the same
// number of connections, to a listener with ktls and to one without a word of
// it. Everything but the date must be the same.
func TestSameAsStock(t *testing.T) {
	more := []string{
		`respond /hello "hello" 202`,
		"header /65537.bin X-Set-By handler",
		`redir /moved /65537.bin 302`,
		`error /broken "broken" 503`,
		"request_body {", "max_size 1KB", "}",
		"file_server {", "browse", "precompressed br gzip", "}",
	}
	encode := []string{"encode gzip"}
	c := start(t,
		listener{wrappers: "ktls", sites: []site{{body: files(more...)}, {host: "encode.localhost", body: files(encode...)}}},
		listener{wrappers: "ktls {\n\tupgrade handshake\n}", sites: []site{{body: files(more...)}, {host: "encode.localhost", body: files(encode...)}}},
		listener{sites: []site{{body: plainFiles(www, more...)}, {host: "encode.localhost", body: plainFiles(www, encode...)}}},
	)
	type request struct {
		method  string
		uri     string
		headers []string
	}
	var requests []request
	for _, f := range whole {
		if f.size >= large.size {
			continue // others have looked at it
		}
		requests = append(requests, request{"GET", "/" + f.name, nil}, request{"HEAD", "/" + f.name, nil})
	}
	m := "/" + ofSize(65537).name
	for _, r := range []string{"0-0", "5-60004", "-50001", "16383-", "0-99,30000-40000", "99999999-", "nonsense", "5-1"} {
		requests = append(requests,
			request{"GET", m, []string{"Range", "bytes=" + r}},
			request{"HEAD", m, []string{"Range", "bytes=" + r}},
			request{"GET", m, []string{"Range", "bytes=" + r, "If-Range", `"other"`}},
		)
	}
	requests = append(requests,
		request{"GET", m, []string{"If-None-Match", "*"}},
		request{"GET", m, []string{"If-Match", `"other"`}},
		request{"GET", m, []string{"If-Modified-Since", "Thu, 01 Jan 2015 00:00:00 GMT"}},
		request{"GET", m, []string{"If-Modified-Since", "Thu, 01 Jan 2099 00:00:00 GMT"}},
		request{"GET", m, []string{"Connection", "close"}},
		request{"GET", "/page.txt", nil},
		request{"GET", "/page.txt", []string{"Accept-Encoding", "gzip"}},
		request{"GET", "/page.txt", []string{"Accept-Encoding", "br"}},
		request{"GET", "/page.txt", []string{"Accept-Encoding", "gzip", "Range", "bytes=10-20"}},
		request{"GET", "/?limit=3", []string{"Accept", "application/json"}},
		request{"GET", "/nothing-here", nil},
		request{"GET", "/../../etc/passwd", nil},
		request{"GET", "/hello", nil},
		request{"GET", "/moved", nil},
		request{"GET", "/broken", nil},
		request{"POST", m, nil},
		request{"PUT", m, nil},
		request{"DELETE", m, nil},
		request{"OPTIONS", m, nil},
		request{"OPTIONS", "*", nil},
		request{"GET", m, []string{"Expect", "100-continue"}},
		request{"GET", m, nil},
	)
	names := []string{"lazy", "handshake"}
	for _, proto := range []string{"h1", "h2"} {
		for j, host := range []string{"localhost", "encode.localhost"} {
			t.Run(proto+"/"+host, func(t *testing.T) {
				var clients [3]*goClient
				for i := range clients {
					clients[i] = c.goClient(t, i, proto)
					clients[i].CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
				}
				for n, r := range requests {
					var got [3]string
					for i, client := range clients {
						req := newRequest(t, r.method, c.urlOf(i, j, "/"), r.headers...)
						req.URL.Opaque = r.uri
						req.Host = host
						a, err := client.do(req)
						got[i] = describe(a, err)
					}
					for i, name := range names {
						if got[i] != got[2] {
							t.Errorf("%d %s %s %q:\n%s: %s\nstock: %s", n, r.method, r.uri, r.headers, name, got[i], got[2])
						}
					}
				}
				for i, name := range names {
					if got, want := clients[i].conns.Load(), clients[2].conns.Load(); got != want {
						t.Errorf("%s: %d connections, %d to stock Caddy", name, got, want)
					}
				}
			})
		}
	}
}

// describe is all of an answer that must be the same.
func describe(a answer, err error) string {
	header := maps.Clone(a.header)
	delete(header, "Date")
	body := a.sum
	if v := header.Get("Content-Type"); strings.HasPrefix(v, "multipart/byteranges") {
		_, boundary, _ := strings.Cut(v, "boundary=") // it is random
		header.Set("Content-Type", "multipart/byteranges")
		body = sum(bytes.ReplaceAll(a.body, []byte(boundary), nil))
	}
	return fmt.Sprintf("%s %d %v, %d bytes %s, reused %v, %v", a.proto, a.status, header, a.size, body, a.reused, err)
}
