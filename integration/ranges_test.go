//go:build linux

package integration

import (
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"
)

// TestRanges asks for parts of a file of 2 MiB + 100 bytes.
func TestRanges(t *testing.T) {
	all := content(t, medium.name)
	size := len(all)
	type span struct{ from, to int } // to is excluded
	tests := []struct {
		name   string
		header string
		want   span
	}{
		{"first byte", "bytes=0-0", span{0, 1}},
		{"last byte", "bytes=-1", span{size - 1, size}},
		{"whole", "bytes=0-", span{0, size}},
		{"suffix", "bytes=-70001", span{size - 70001, size}},
		{"suffix longer than the file", "bytes=-99999999", span{0, size}},
		{"open-ended", "bytes=16383-", span{16383, size}},
		{"open-ended at the last byte", fmt.Sprintf("bytes=%d-", size-1), span{size - 1, size}},
		{"middle", "bytes=1000-70000", span{1000, 70001}},
		{"one record", "bytes=16384-32767", span{16384, 32768}},
		{"across records", "bytes=16383-32768", span{16383, 32769}},
		{"across pages", "bytes=4095-8192", span{4095, 8193}},
		{"across chunks of 64 KiB", "bytes=65535-131073", span{65535, 131074}},
		{"across 1 MiB", "bytes=1048575-1114113", span{mib - 1, mib + 65538}},
		{"across 2 MiB", "bytes=2097151-2097200", span{2*mib - 1, 2*mib + 49}},
		{"odd and longer than a chunk", "bytes=13-2097190", span{13, 2*mib + 39}},
		{"beyond the end", "bytes=2000000-99999999", span{2000000, size}},
	}
	c := start(t, listener{wrappers: "ktls"})
	for _, proto := range []string{"h1", "h2"} {
		client := c.goClient(t, 0, proto)
		for n, test := range tests {
			t.Run(proto+"/"+test.name, func(t *testing.T) {
				uri := fmt.Sprintf("/%s?%s-%d", medium.name, proto, n)
				a := client.get(t, c.url(0, uri), "Range", test.header)
				if a.status != http.StatusPartialContent {
					t.Errorf("status %d", a.status)
				}
				want := fmt.Sprintf("bytes %d-%d/%d", test.want.from, test.want.to-1, size)
				if got := a.header.Get("Content-Range"); got != want {
					t.Errorf("Content-Range %q, want %q", got, want)
				}
				a.isBytes(t, test.header, all[test.want.from:test.want.to])
				c.tookFile(t, uri, int64(test.want.to-test.want.from))
			})
		}

		t.Run(proto+"/several", func(t *testing.T) {
			uri := "/" + medium.name + "?several-" + proto
			spans := []span{{0, 100}, {16000, 17000}, {size - 70000, size}}
			req := newRequest(t, "GET", c.url(0, uri), "Range", "bytes=0-99,16000-16999,-70000")
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			_, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
			if err != nil || resp.StatusCode != http.StatusPartialContent {
				t.Fatalf("%s, %v", resp.Status, err)
			}
			r := multipart.NewReader(resp.Body, params["boundary"])
			for _, s := range spans {
				part, err := r.NextPart()
				if err != nil {
					t.Fatal(err)
				}
				n, got, err := sumReader(part)
				if err != nil {
					t.Fatal(err)
				}
				checkBody(t, fmt.Sprint(s), n, got, int64(s.to-s.from), sum(all[s.from:s.to]))
			}
			if _, err := r.NextPart(); err != io.EOF {
				t.Errorf("after the last part: %v", err)
			}
			c.tookPlain(t, uri, "")
		})

		for _, header := range []string{"bytes=99999999-", fmt.Sprintf("bytes=%d-", size), "bytes=nonsense"} {
			t.Run(proto+"/unsatisfiable/"+header, func(t *testing.T) {
				uri := "/" + medium.name + "?416-" + proto + header
				a := client.get(t, c.url(0, uri), "Range", header)
				if a.status != http.StatusRequestedRangeNotSatisfiable {
					t.Errorf("status %d", a.status)
				}
				if got := a.header.Get("Content-Range"); header != "bytes=nonsense" && got != fmt.Sprintf("bytes */%d", size) {
					t.Errorf("Content-Range %q", got)
				}
				c.tookPlain(t, uri, "")
			})
		}
		client.get(t, c.url(0, "/"+tiny.name+"?after-"+proto)).isFile(t, tiny)
		if n := client.conns.Load(); n != 1 {
			t.Errorf("%s: %d connections, want all over one", proto, n)
		}
	}
}

// TestConditionalRequests: what answers without a body, and what a validator
// turns into another body.
func TestConditionalRequests(t *testing.T) {
	c := start(t, listener{wrappers: "ktls"})
	client := c.goClient(t, 0, "h1")
	url, all := c.url(0, "/"+medium.name), content(t, medium.name)
	first := client.get(t, url)
	first.isFile(t, medium)
	etag, modified := first.header.Get("Etag"), first.header.Get("Last-Modified")
	if etag == "" || modified == "" {
		t.Fatalf("Etag %q, Last-Modified %q", etag, modified)
	}
	const past = "Thu, 01 Jan 2015 00:00:00 GMT"
	tests := []struct {
		name    string
		method  string
		headers []string
		status  int
		body    []byte // nil: none of a file
	}{
		{"If-None-Match", "GET", []string{"If-None-Match", etag}, 304, nil},
		{"If-None-Match of another", "GET", []string{"If-None-Match", `"other"`}, 200, all},
		{"If-Modified-Since", "GET", []string{"If-Modified-Since", modified}, 304, nil},
		{"If-Modified-Since long ago", "GET", []string{"If-Modified-Since", past}, 200, all},
		{"If-Match of another", "GET", []string{"If-Match", `"other"`}, 412, nil},
		{"If-Unmodified-Since long ago", "GET", []string{"If-Unmodified-Since", past}, 412, nil},
		{"If-Range", "GET", []string{"Range", "bytes=5-70004", "If-Range", etag}, 206, all[5:70005]},
		{"If-Range of another", "GET", []string{"Range", "bytes=5-70004", "If-Range", `"other"`}, 200, all},
		{"If-Range by date", "GET", []string{"Range", "bytes=5-70004", "If-Range", modified}, 206, all[5:70005]},
		{"If-Range by a date long ago", "GET", []string{"Range", "bytes=5-70004", "If-Range", past}, 200, all},
		{"HEAD", "HEAD", nil, 200, nil},
		{"HEAD of a range", "HEAD", []string{"Range", "bytes=5-70004"}, 206, nil},
	}
	for n, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			uri := fmt.Sprintf("/%s?%d", medium.name, n)
			a := client.request(t, test.method, c.url(0, uri), test.headers...)
			if a.status != test.status {
				t.Errorf("status %d, want %d", a.status, test.status)
			}
			if test.body == nil {
				if a.size != 0 {
					t.Errorf("a body of %d bytes", a.size)
				}
				c.tookPlain(t, uri, "")
			} else {
				a.isBytes(t, uri, test.body)
				c.tookFile(t, uri, int64(len(test.body)))
			}
			if test.name == "HEAD" && a.header.Get("Content-Length") != fmt.Sprint(medium.size) {
				t.Errorf("Content-Length %q", a.header.Get("Content-Length"))
			}
		})
	}
	if n := client.conns.Load(); n != 1 {
		t.Errorf("%d connections, want all over one", n)
	}
}

// TestEncodings: sidecar files are files; what is made on the fly is not.
func TestEncodings(t *testing.T) {
	body := files("file_server {", "precompressed br gzip", "}")
	encoded := files("encode gzip", "templates")
	c := start(t, listener{wrappers: "ktls", sites: []site{{body: body}, {host: "encode.localhost", body: encoded}}})
	text := content(t, "page.txt")

	t.Run("sidecars", func(t *testing.T) {
		client := c.goClient(t, 0, "h1")
		for _, test := range []struct{ accept, file, encoding string }{
			{"gzip", "page.txt.gz", "gzip"},
			{"br, gzip", "page.txt.br", "br"},
			{"zstd", "page.txt", ""},
			{"identity", "page.txt", ""},
		} {
			uri := "/page.txt?" + strings.ReplaceAll(test.accept, ", ", "+")
			a := client.get(t, c.url(0, uri), "Accept-Encoding", test.accept)
			if got := a.header.Get("Content-Encoding"); got != test.encoding {
				t.Errorf("%s: Content-Encoding %q", test.accept, got)
			}
			want := content(t, test.file)
			a.isBytes(t, test.file, want)
			c.tookFile(t, uri, int64(len(want)))
		}
	})

	client := c.goClient(t, 0, "h1", func(tr *http.Transport) { tr.DisableCompression = false })
	t.Run("encode transforms", func(t *testing.T) {
		// Go's client asks for gzip and undoes it by itself.
		a := client.get(t, c.urlOf(0, 1, "/page.txt"))
		a.isBytes(t, "page.txt", text)
		if a.header.Get("Content-Length") != "" {
			t.Error("the page was not encoded")
		}
		c.tookPlain(t, "/page.txt", "")
	})
	t.Run("encode leaves alone", func(t *testing.T) {
		client.get(t, c.urlOf(0, 1, "/"+medium.name)).isFile(t, medium)
		// encode writes the first 512 bytes by itself, to look at them.
		l := c.response(t, "/"+medium.name)
		if kernel.ulp && (l.KTLS == nil || l.KTLS.Path != "sendfile" || l.KTLS.Sent != medium.size-512) {
			t.Errorf("%s; want all but 512 bytes by sendfile", l.raw)
		}
	})
	t.Run("templates", func(t *testing.T) {
		client.get(t, c.urlOf(0, 1, "/template.html")).isBytes(t, "template", []byte("<p>templated</p>"))
		c.tookPlain(t, "/template.html", "")
	})
}
