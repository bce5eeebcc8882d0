//go:build linux

package integration

import (
	"compress/gzip"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
)

// TestReason gives each reason that a client can bring about, on a server that
// sends the same file by sendfile otherwise.
func TestReason(t *testing.T) {
	needKTLS(t)
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip") // and no Content-Length
		z := gzip.NewWriter(w)
		io.WriteString(z, strings.Repeat("from upstream", 1000))
		z.Close()
	}))
	defer upstream.Close()
	ktls := func(options ...string) string {
		return "ktls {\nmin_size 1\n" + strings.Join(options, "\n") + "\n}\n"
	}
	from := func(directives ...string) string { return plainFiles(www, directives...) }
	// between puts a handler between ours and the file server.
	between := func(handler string) string {
		return from("route {\n" + ktls() + handler + "\nfile_server\n}")
	}
	bodies := []struct{ host, body string }{
		{"localhost", from(ktls())},
		{"disabled.localhost", from("ktls off")},
		{"h2.localhost", from(ktls("http2 off"))},
		{"small.localhost", from(ktls("min_size 1GiB"))},
		{"fs.localhost", from(ktls("deny_fs ext4 xfs btrfs f2fs zfs tmpfs overlay hostfs"))},
		{"cbc.localhost", from(ktls(), "tls {", "protocols tls1.2 tls1.2", "ciphers TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA", "}")},
		{"length.localhost", between("header {\nContent-Length 99999999\ndefer\n}")},
		{"chunked.localhost", between("header {\n-Content-Length\ndefer\n}")},
		{"type.localhost", between("header {\n-Content-Type\ndefer\n}")},
		{"transformed.localhost", from(ktls(), "encode gzip", "templates")},
		{"below.localhost", from("route {\nencode {\ngzip\nmatch {\nheader Content-Type *\n}\n}\n" + ktls() + "file_server\n}")},
		{"generated.localhost", from(ktls(), "encode gzip", `respond /hello "hello"`,
			"reverse_proxy /upstream "+strings.TrimPrefix(upstream.URL, "http://"), "file_server browse")},
	}
	var sites []site
	index := map[string]int{}
	for _, b := range bodies {
		index[b.host] = len(sites)
		sites = append(sites, site{host: b.host, body: b.body})
	}
	socket := "unix/" + filepath.Join(scratch, "reason.sock")
	c := start(t,
		listener{wrappers: "ktls", sites: sites},
		listener{sites: []site{{body: from(ktls())}}},
		listener{wrappers: "ktls", bind: socket},
		listener{wrappers: "ktls {\nkey_limit 64\n}", sites: []site{{body: from(ktls())}}},
	)
	client := c.goClient(t, 0, "h1")
	client.get(t, c.url(0, "/"+medium.name+"?control")).isFile(t, medium)
	c.tookFile(t, "/"+medium.name+"?control", medium.size)

	// file checks that the file comes whole from a site, and why not by sendfile.
	file := func(t *testing.T, client *goClient, i int, host, reason string) {
		t.Helper()
		uri := "/" + medium.name + "?" + reason
		j := 0
		if i == 0 {
			j = index[host]
		}
		client.get(t, c.urlOf(i, j, uri)).isFile(t, medium)
		c.tookPlain(t, uri, reason)
	}
	// other asks for what is no whole file.
	other := func(t *testing.T, method, host, uri, reason string, headers ...string) answer {
		t.Helper()
		uri += "?" + reason
		a := client.request(t, method, c.urlOf(0, index[host], uri), headers...)
		c.tookPlain(t, uri, reason)
		return a
	}

	t.Run("disabled", func(t *testing.T) { file(t, client, 0, "disabled.localhost", "disabled") })
	t.Run("not_wrapped", func(t *testing.T) { file(t, c.goClient(t, 1, "h1"), 1, "localhost", "not_wrapped") })
	t.Run("not_tcp", func(t *testing.T) {
		file(t, c.goClient(t, 2, "h1", func(tr *http.Transport) { tr.DialContext = dialUnix(socket) }), 2, "localhost", "not_tcp")
	})
	t.Run("cipher", func(t *testing.T) {
		file(t, c.goClient(t, 0, "h1", func(tr *http.Transport) {
			tr.TLSClientConfig.CipherSuites = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
		}), 0, "cbc.localhost", "cipher")
	})
	t.Run("key_limit", func(t *testing.T) { // in TLS 1.2 keys are for good
		for _, proto := range []string{"h1", "h2"} {
			tls12 := func() *goClient {
				return c.goClient(t, 3, proto, func(tr *http.Transport) { tr.TLSClientConfig.MaxVersion = tls.VersionTLS12 })
			}
			file(t, tls12(), 3, "localhost", "key_limit")
			uri := "/" + small.name + "?" + proto // that much a key may encrypt
			tls12().get(t, c.url(3, uri)).isFile(t, small)
			c.tookFile(t, uri, small.size)
		}
	})
	t.Run("http2_off", func(t *testing.T) {
		check := countUpgrades(t)
		uri := "/" + large.name + "?http2_off" // large enough to gain from the kernel
		c.goClient(t, 0, "h2").get(t, c.urlOf(0, index["h2.localhost"], uri)).isFile(t, large)
		c.tookPlain(t, uri, "http2_off")
		check(t, 0)
		uri += "1" // HTTP/1.1 isn't HTTP/2
		client.get(t, c.urlOf(0, index["h2.localhost"], uri)).isFile(t, large)
		c.tookFile(t, uri, large.size)
	})
	t.Run("method", func(t *testing.T) {
		other(t, "HEAD", "localhost", "/"+medium.name, "method")
		other(t, "POST", "localhost", "/"+medium.name, "method")
	})
	t.Run("no_body", func(t *testing.T) {
		if a := other(t, "GET", "localhost", "/"+medium.name, "no_body", "If-None-Match", "*"); a.status != http.StatusNotModified {
			t.Errorf("status %d", a.status)
		}
	})
	t.Run("too_small", func(t *testing.T) { file(t, client, 0, "small.localhost", "too_small") })
	t.Run("chunked", func(t *testing.T) { file(t, client, 0, "chunked.localhost", "chunked") })
	t.Run("length", func(t *testing.T) {
		uri := "/" + medium.name + "?length"
		a, err := client.do(newRequest(t, "GET", c.urlOf(0, index["length.localhost"], uri)))
		if err != io.ErrUnexpectedEOF || a.size != medium.size {
			t.Errorf("%d bytes, %v; want the file and no more, as from stock Caddy", a.size, err)
		}
		c.tookPlain(t, uri, "length")
	})
	t.Run("no_content_type", func(t *testing.T) { file(t, client, 0, "type.localhost", "no_content_type") })
	t.Run("multi_range", func(t *testing.T) {
		a := other(t, "GET", "localhost", "/"+medium.name, "multi_range", "Range", "bytes=0-99999,200000-")
		if a.status != http.StatusPartialContent || a.size < medium.size-100_000 {
			t.Errorf("status %d, %d bytes", a.status, a.size)
		}
	})
	t.Run("transformed", func(t *testing.T) {
		a := other(t, "GET", "transformed.localhost", "/page.txt", "transformed", "Accept-Encoding", "gzip")
		if a.header.Get("Content-Encoding") != "gzip" {
			t.Error("the page was not encoded")
		}
		other(t, "GET", "transformed.localhost", "/template.html", "transformed").isBytes(t, "template", []byte("<p>templated</p>"))
		// What they leave alone is a file as ever.
		uri := "/" + medium.name + "?alone"
		client.get(t, c.urlOf(0, index["transformed.localhost"], uri)).isFile(t, medium)
		if l := c.response(t, uri); l.KTLS.Path != "sendfile" || l.KTLS.Sent != medium.size-512 { // encode looks at the first
			t.Errorf("%+v; want all but 512 bytes by sendfile", *l.KTLS)
		}
	})
	t.Run("not_a_file", func(t *testing.T) {
		other(t, "GET", "generated.localhost", "/hello", "not_a_file").isBytes(t, "hello", []byte("hello"))
		other(t, "GET", "generated.localhost", "/", "not_a_file")
		other(t, "GET", "generated.localhost", "/upstream", "not_a_file", "Accept-Encoding", "gzip")
	})
	t.Run("unknown_writer", func(t *testing.T) {
		uri := "/" + medium.name + "?unknown_writer"
		encoded := c.goClient(t, 0, "h1", func(tr *http.Transport) { tr.DisableCompression = false })
		encoded.get(t, c.urlOf(0, index["below.localhost"], uri)).isFile(t, medium)
		c.tookPlain(t, uri, "unknown_writer:*github.com/caddyserver/caddy/v2/modules/caddyhttp/encode.responseWriter")
	})
	t.Run("filesystem", func(t *testing.T) {
		uri := "/" + medium.name + "?filesystem"
		client.get(t, c.urlOf(0, index["fs.localhost"], uri)).isFile(t, medium)
		l := c.tookPlain(t, uri, "")
		if name, ok := strings.CutPrefix(l.KTLS.Reason, "filesystem:"); !ok || !strings.Contains(bodies[index["fs.localhost"]].body, name) {
			t.Errorf("reason %q", l.KTLS.Reason)
		}
	})
	t.Run("cut", func(t *testing.T) {
		uri := "/" + large.name + "?cut"
		d := c.stalled(t, 0, uri)
		d.tcp.SetLinger(0)
		d.tcp.Close()
		if l := c.response(t, uri); l.KTLS == nil || l.KTLS.Path != "sendfile" || l.KTLS.Reason != "cut" || l.KTLS.Sent >= large.size {
			t.Errorf("want a cut response by sendfile: %s", l.raw)
		}
	})
}
