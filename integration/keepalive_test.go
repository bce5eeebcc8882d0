//go:build linux

package integration

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestKeepAliveMixed sends all kinds of answers over one connection: those of
// the kernel and those of Go must not get into each other's way.
func TestKeepAliveMixed(t *testing.T) {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for i := range 3 { // no Content-Length: chunked
			fmt.Fprintf(w, "from upstream %d\n", i)
			w.(http.Flusher).Flush()
		}
	}))
	defer upstream.Close()
	body := files(
		`respond /hello "hello from a handler"`,
		"reverse_proxy /upstream "+strings.TrimPrefix(upstream.URL, "http://"),
	)
	steps := []struct {
		method string
		file   file
		uri    string
		status int
		want   string // what a body that is no file holds
	}{
		{method: "GET", uri: "/hello", status: 200, want: "hello from a handler"},
		{method: "GET", file: medium},
		{method: "GET", uri: "/hello", status: 200, want: "hello from a handler"},
		{method: "GET", file: small},
		{method: "GET", file: tiny},
		{method: "GET", uri: "/nothing-here", status: 404},
		{method: "GET", file: empty},
		{method: "GET", file: large},
		{method: "HEAD", uri: "/" + large.name, status: 200},
		{method: "GET", uri: "/upstream", status: 200, want: "from upstream 0\nfrom upstream 1\nfrom upstream 2\n"},
		{method: "GET", file: medium},
		{method: "POST", uri: "/" + medium.name, status: 405},
		{method: "GET", file: tiny},
		{method: "GET", file: tiny},
		{method: "GET", file: medium},
	}
	c := start(t, listener{wrappers: "ktls", sites: []site{{body: body}}})
	for _, proto := range []string{"h1", "h2"} {
		t.Run(proto, func(t *testing.T) {
			check := countUpgrades(t)
			client := c.goClient(t, 0, proto, func(tr *http.Transport) { tr.MaxConnsPerHost = 1 })
			port := ""
			sameConn := func(step any, l line) {
				if port != "" && l.Request.RemotePort != port {
					t.Errorf("%+v came over another connection", step)
				}
				port = l.Request.RemotePort
			}
			for n, step := range steps {
				query := fmt.Sprintf("?%s-%d", proto, n)
				if step.file.name != "" {
					uri := "/" + step.file.name + query
					client.request(t, step.method, c.url(0, uri)).isFile(t, step.file)
					if step.file.size == 0 {
						c.tookPlain(t, uri, "")
						continue
					}
					sameConn(step, c.tookFile(t, uri, step.file.size))
					continue
				}
				a := client.request(t, step.method, c.url(0, step.uri+query))
				if a.status != step.status {
					t.Errorf("%s %s: status %d", step.method, step.uri, a.status)
				}
				a.isBytes(t, step.uri, []byte(step.want))
				sameConn(step, c.tookPlain(t, step.uri+query, ""))
			}
			check(t, 1)
		})
	}
}

// TestUpload: requests with a body, before and after the upgrade. What is read
// stays with crypto/tls.
func TestUpload(t *testing.T) {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, sum, err := sumReader(r.Body)
		fmt.Fprintln(w, n, sum, err)
	}))
	defer upstream.Close()
	body := files("reverse_proxy /upload " + strings.TrimPrefix(upstream.URL, "http://"))
	c := start(t, listener{wrappers: "ktls", sites: []site{{body: body}}})
	for _, proto := range []string{"h1", "h2"} {
		check := countUpgrades(t)
		client := c.goClient(t, 0, proto)
		for n := range 3 {
			uri := fmt.Sprintf("/%s?%s-%d", large.name, proto, n)
			for _, expect := range []string{"", "100-continue"} {
				upload, err := os.Open(filepath.Join(www, medium.name))
				if err != nil {
					t.Fatal(err)
				}
				req := newRequest(t, "POST", c.url(0, "/upload"), "Expect", expect)
				req.Body, req.ContentLength = upload, medium.size
				a, err := client.do(req)
				if want := fmt.Sprintln(medium.size, medium.sum, error(nil)); err != nil || string(a.body) != want {
					t.Errorf("%s, Expect %q: %v, %s; want %s", proto, expect, err, a.body, want)
				}
			}
			client.get(t, c.url(0, uri)).isFile(t, large)
			c.tookFile(t, uri, large.size)
		}
		if n := client.conns.Load(); n != 1 {
			t.Errorf("%s: %d connections", proto, n)
		}
		check(t, 1)
	}
}

// TestHijackedConnection: after a file, the connection becomes a stream of
// bytes in both directions, as with WebSocket.
func TestHijackedConnection(t *testing.T) {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		io.Copy(conn, rw)
	}))
	defer upstream.Close()
	body := files("reverse_proxy /echo " + strings.TrimPrefix(upstream.URL, "http://"))
	site := []site{{body: body}}
	c := start(t, listener{wrappers: "ktls", sites: site}, listener{wrappers: "ktls {\n\tupgrade handshake\n}", sites: site})
	for i, upgrade := range []string{"lazy", "handshake"} {
		t.Run(upgrade, func(t *testing.T) {
			conn := c.dialTLS(t, i)
			r := bufio.NewReader(conn)
			uri := "/" + medium.name + "?" + upgrade
			fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", uri)
			a, err := readAnswer(r)
			if err != nil {
				t.Fatal(err)
			}
			a.isFile(t, medium)
			c.tookFile(t, uri, medium.size)

			io.WriteString(conn, "GET /echo HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			resp, err := http.ReadResponse(r, nil)
			if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
				t.Fatal(resp, err)
			}
			sent := content(t, medium.name)
			go conn.Write(sent)
			got := make([]byte, len(sent))
			if _, err := io.ReadFull(r, got); err != nil {
				t.Fatal(err)
			}
			if sum(got) != medium.sum {
				t.Error("the echo isn't what was sent")
			}
		})
	}
}

// TestPipelining: requests that arrive together are answered in order.
func TestPipelining(t *testing.T) {
	c := start(t, listener{wrappers: "ktls"})
	check := countUpgrades(t)
	conn := c.dialTLS(t, 0)
	order := []file{medium, small, tiny, empty, small, medium, tiny}
	var requests strings.Builder
	for n, f := range order {
		fmt.Fprintf(&requests, "GET /%s?%d HTTP/1.1\r\nHost: localhost\r\n\r\n", f.name, n)
	}
	if _, err := io.WriteString(conn, requests.String()); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	for n, f := range order {
		a, err := readAnswer(r)
		if err != nil {
			t.Fatalf("answer %d: %v", n, err)
		}
		a.isFile(t, f)
		if f.size > 0 {
			c.tookFile(t, fmt.Sprintf("/%s?%d", f.name, n), f.size)
		}
	}
	check(t, 1)
}

// TestHTTP10: without keep-alive by default, and with it when asked for.
func TestHTTP10(t *testing.T) {
	c := start(t, listener{wrappers: "ktls"})
	conn := c.dialTLS(t, 0)
	r := bufio.NewReader(conn)
	for n, header := range []string{"Connection: keep-alive\r\n", ""} {
		uri := fmt.Sprintf("/%s?%d", medium.name, n)
		fmt.Fprintf(conn, "GET %s HTTP/1.0\r\nHost: localhost\r\n%s\r\n", uri, header)
		a, err := readAnswer(r)
		if err != nil {
			t.Fatal(err)
		}
		a.isFile(t, medium)
		c.tookFile(t, uri, medium.size)
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("after the last answer: %v, want the end of the connection", err)
	}
}
