//go:build linux

package integration

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/fcgi"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// application is what stands behind reverse_proxy and php_fastcgi.
type application struct {
	http    string // address
	fastcgi string

	mu    sync.Mutex
	read  map[string]chan struct{} // by stream: the client has read what was sent
	ended map[string]chan error    // by stream: why the request ended
}

func startApplication(t *testing.T) *application {
	t.Helper()
	app := &application{read: map[string]chan struct{}{}, ended: map[string]chan error{}}
	mux := http.NewServeMux()
	mux.HandleFunc("/up/", app.receive)
	mux.HandleFunc("/up/stream", app.stream)
	mux.HandleFunc("/now/stream", app.stream)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	app.http = server.Listener.Addr().String()

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go fcgi.Serve(ln, http.HandlerFunc(app.receive))
	app.fastcgi = ln.Addr().String()
	return app
}

// receive answers with what it was sent, and with trailers.
func (app *application) receive(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, "/hints") {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
	}
	n, sum, err := sumReader(r.Body)
	w.Header().Set("Trailer", "X-Announced")
	fmt.Fprintln(w, r.Method, r.URL.Path, r.URL.RawQuery, r.Header.Get("X-Some"), n, sum, err, r.Trailer)
	w.Header().Set("X-Announced", "at the end")
	w.Header().Set(http.TrailerPrefix+"X-Unannounced", "too")
}

// parts of a stream. Each is sent after the client has read the one before.
var parts = []string{"a", strings.Repeat("b", 100), strings.Repeat("c", 20000), "d"}

// channels of a stream.
func (app *application) channels(id string) (read chan struct{}, ended chan error) {
	app.mu.Lock()
	defer app.mu.Unlock()
	if app.read[id] == nil {
		app.read[id], app.ended[id] = make(chan struct{}), make(chan error, 1)
	}
	return app.read[id], app.ended[id]
}

func (app *application) stream(w http.ResponseWriter, r *http.Request) {
	read, ended := app.channels(r.URL.Query().Get("id"))
	w.Header().Set("Content-Type", r.URL.Query().Get("type"))
	for _, part := range parts {
		io.WriteString(w, part)
		http.NewResponseController(w).Flush()
		select {
		case <-read:
		case <-r.Context().Done():
			ended <- r.Context().Err()
			return
		}
	}
	ended <- nil
}

// sites have files and the application, with and without our handler.
func (app *application) sites(t *testing.T) (with, without []site) {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "php"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "php", "index.php"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	// Where there is an access log, Caddy v2.11.9 reads how long a request's body
	// was while reverse_proxy may still be counting.
	body := []string{"respond /no 403", "@app path /up/* /now/* /php/*", "log_skip @app",
		"reverse_proxy /up/* " + app.http,
		"reverse_proxy /now/* " + app.http + " {\n\tflush_interval -1\n}",
		"php_fastcgi /php/* " + app.fastcgi + " {\n\troot " + root + "\n}"}
	return []site{{body: files(body...)}}, []site{{body: plainFiles(www, body...)}}
}

// request is one to the application.
type request struct {
	name     string
	method   string
	uri      string
	body     []byte
	chunked  bool // the body's length isn't told
	trailers bool
	headers  []string
}

func requests() []request {
	content := uploadContent()
	return []request{
		{name: "trailers", method: "GET", uri: "/up/x?a=b"},
		{name: "early hints", method: "GET", uri: "/up/hints"},
		{name: "upload", method: "POST", uri: "/up/x", body: content[:2*mib]},
		{name: "upload with trailers", method: "POST", uri: "/up/x", body: content[:100_000], trailers: true},
		{name: "100-continue", method: "PUT", uri: "/up/x", body: content[:mib], headers: []string{"Expect", "100-continue"}},
		{name: "100-continue, chunked", method: "PUT", uri: "/up/x", body: content[:mib], chunked: true, headers: []string{"Expect", "100-continue"}},
		{name: "FastCGI", method: "GET", uri: "/php/index.php/info?a=b", headers: []string{"X-Some", "thing"}},
		{name: "FastCGI, HEAD", method: "HEAD", uri: "/php/"},
		{name: "FastCGI, upload", method: "POST", uri: "/php/index.php", body: content[:2*mib]},
		{name: "FastCGI, chunked upload", method: "POST", uri: "/php/index.php", body: content[:mib], chunked: true},
	}
}

// ask sends a request and returns all that is heard of it.
func (client *goClient) ask(t *testing.T, r request, base string) string {
	t.Helper()
	req := newRequest(t, r.method, base+r.uri, r.headers...)
	if r.body != nil {
		req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(r.body)), int64(len(r.body))
	}
	if r.chunked || r.trailers {
		req.ContentLength = -1
	}
	if r.trailers {
		req.Trailer = http.Header{"X-Checksum": {sum(r.body)}}
	}
	var interim []int
	got100 := false
	resp, err := client.Do(req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		Got100Continue: func() { got100 = true },
		Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
			if code != http.StatusContinue { // reverse_proxy passes the backend's on, or doesn't: it is a race
				interim = append(interim, code)
			}
			return nil
		},
	})))
	if err != nil {
		t.Errorf("%s %s: %v", req.Method, req.URL, err)
		return ""
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, proto: resp.Proto, header: resp.Header}
	a.size, a.sum, err = sumReader(resp.Body)
	return fmt.Sprintf("%v, 100: %t, %s, trailers %v", interim, got100, describe(a, err), resp.Trailer)
}

// follow reads a stream part by part: the next one isn't sent before the client
// has read the last.
func (client *goClient) follow(t *testing.T, app *application, uri, contentType string) {
	t.Helper()
	id := t.Name() + uri
	read, _ := app.channels(id)
	q := url.Values{"id": {id}, "type": {contentType}}
	resp, err := client.Do(newRequest(t, "GET", uri+"?"+q.Encode()))
	if err != nil {
		t.Errorf("%s: %v", uri, err)
		return
	}
	defer resp.Body.Close()
	for n, part := range parts {
		got := make([]byte, len(part))
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != part {
			t.Errorf("%s, part %d: %v, %d bytes", uri, n, err, len(got))
			return
		}
		read <- struct{}{}
	}
	if n, err := io.Copy(io.Discard, resp.Body); n != 0 || err != nil {
		t.Errorf("%s: %d bytes more, %v", uri, n, err)
	}
}

// startWithApplication starts Caddy with every connection in the kernel from the
// handshake on, with some from the first file on, and without a word of ours.
func startWithApplication(t *testing.T) (*caddy, *application) {
	app := startApplication(t)
	with, without := app.sites(t)
	return start(t,
		listener{wrappers: "ktls {\n\tupgrade handshake\n}", sites: with},
		listener{wrappers: "ktls", sites: with},
		listener{sites: without},
	), app
}

// TestOtherHandlers: what doesn't come from files goes over the same connections
// as files do, and is what stock Caddy makes of it.
func TestOtherHandlers(t *testing.T) {
	c, app := startWithApplication(t)
	c.leaves = true // reverse_proxy keeps connections to the application
	f := ofSize(65537)
	for _, proto := range []string{"h1", "h2"} {
		var clients [3]*goClient
		for i := range clients {
			clients[i] = c.goClient(t, i, proto, func(tr *http.Transport) { tr.ExpectContinueTimeout = patience })
		}
		// file is one that lies between two others.
		file := func(t *testing.T) {
			for i, client := range clients {
				uri := fmt.Sprintf("/%s?%s", f.name, t.Name())
				client.get(t, c.url(i, uri)).isFile(t, f)
				if l := c.response(t, uri); i < 2 {
					l.isFile(t, f.size)
				}
			}
		}
		for _, r := range requests() {
			t.Run(proto+"/"+r.name, func(t *testing.T) {
				var heard [3]string
				for i, client := range clients {
					heard[i] = client.ask(t, r, c.url(i, ""))
				}
				for i, how := range []string{"handshake", "lazy"} {
					if heard[i] != heard[2] {
						t.Errorf("%s: %s\nstock: %s", how, heard[i], heard[2])
					}
				}
				file(t)
			})
		}
		for _, s := range []struct{ name, uri, contentType string }{
			{"flush_interval", "/now/stream", "text/plain"},
			{"SSE", "/up/stream", "text/event-stream"},
		} {
			t.Run(proto+"/"+s.name, func(t *testing.T) {
				for i, client := range clients {
					client.follow(t, app, c.url(i, s.uri), s.contentType)
				}
				file(t)
			})
		}
		for i := range 2 {
			if got, want := clients[i].conns.Load(), clients[2].conns.Load(); got != want {
				t.Errorf("%s: %d connections, with stock Caddy %d", proto, got, want)
			}
		}
	}
}

// TestClientLeavesStream: when the client goes in the middle of a stream, what
// makes the stream is told.
func TestClientLeavesStream(t *testing.T) {
	c, app := startWithApplication(t)
	before := c.settled(t)
	var clients []*goClient
	for _, proto := range []string{"h1", "h2"} {
		for i, how := range []string{"handshake", "lazy", "stock"} {
			t.Run(proto+"/"+how, func(t *testing.T) {
				client := c.goClient(t, i, proto)
				clients = append(clients, client)
				client.get(t, c.url(i, "/"+medium.name)).isFile(t, medium)
				id := t.Name()
				_, ended := app.channels(id)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				resp, err := client.Do(newRequest(t, "GET", c.url(i, "/now/stream?id="+id)).WithContext(ctx))
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				if _, err := io.ReadFull(resp.Body, make([]byte, len(parts[0]))); err != nil {
					t.Fatal(err)
				}
				cancel()
				select {
				case err := <-ended:
					if err == nil {
						t.Error("the stream ended by itself")
					}
				case <-time.After(patience):
					t.Error("the stream goes on")
				}
				client.get(t, c.url(i, "/"+medium.name)).isFile(t, medium)
			})
		}
	}
	eventually(t, "the connections are idle", func() bool { // until then, they aren't closed
		for _, client := range clients {
			client.CloseIdleConnections()
		}
		return c.descriptors(t) <= before.descriptors
	})
	c.awaitFootprint(t, before)
}
