package caddyktls

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/net/http2"

	"github.com/caddy-ktls/caddy-ktls/ktls"
)

// BenchmarkRequest is a file of 1 KiB, under every min_size: what the module costs
// where it has nothing to do. "caddy" is without it, "wrapper" and "handler" have
// one half of it each. Allocations are the server's and the client's, which is the
// same for all. On a kernel without TLS the wrapper stays away, so that "wrapper"
// is Caddy; to see it, run this in a guest:
//
//	go test -run '^$' -bench Request -exec "$PWD/integration/lab/exec uml" .
func BenchmarkRequest(b *testing.B) {
	const body = 1024
	root := b.TempDir()
	if err := os.WriteFile(filepath.Join(root, "file.bin"), make([]byte, body), 0o644); err != nil {
		b.Fatal(err)
	}
	kinds := []struct{ name, wrapper, handler string }{
		{"caddy", "", ""},
		{"wrapper", "listener_wrappers {\n\t\t\tktls\n\t\t}", ""},
		{"handler", "", "ktls"},
		{"ktls", "listener_wrappers {\n\t\t\tktls\n\t\t}", "ktls"},
	}
	ports := freePorts(b, len(kinds))
	dir, servers, sites := selfSigned(b), "", ""
	for i, kind := range kinds {
		servers += fmt.Sprintf(`	servers 127.0.0.1:%d {
		protocols h1 h2
		%s
	}
`, ports[i], kind.wrapper)
		sites += fmt.Sprintf(`https://localhost:%d {
	bind 127.0.0.1
	tls %[2]s/cert.pem %[2]s/key.pem
	root %[3]s
	%[4]s
	file_server
}
`, ports[i], dir, root, kind.handler)
	}
	config, _, err := adapt(fmt.Sprintf(`{
	admin off
	persist_config off
	storage file_system %s
	auto_https off
	log {
		level ERROR
	}
%s}
%s`, dir, servers, sites))
	if err != nil {
		b.Fatal(err)
	}
	load(b, config)
	for _, how := range []struct {
		name string
		run  func(b *testing.B, port, body int)
	}{{"h1", benchmarkHTTP1}, {"h2", benchmarkHTTP2}, {"new", benchmarkNew}} {
		for i, kind := range kinds {
			b.Run(how.name+"/"+kind.name, func(b *testing.B) {
				if kind.wrapper != "" && !ktls.Probe().Usable() {
					b.Skip(ktls.Probe().Reason())
				}
				b.ReportAllocs()
				how.run(b, ports[i], body)
			})
		}
	}
}

// fetch1 asks for the file over HTTP/1.1 and reads it.
func fetch1(b *testing.B, c net.Conn, r *bufio.Reader, body int) {
	if _, err := io.WriteString(c, "GET /file.bin HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		b.Fatal(err)
	}
	for end := false; !end; {
		line, err := r.ReadSlice('\n')
		if err != nil {
			b.Fatal(err)
		}
		end = len(line) == len("\r\n")
	}
	if n, err := r.Discard(body); err != nil {
		b.Fatalf("%d bytes: %v", n, err)
	}
}

// dialTLS opens a connection for one protocol, without resumption.
func dialTLS(b *testing.B, port int, protocol string) *tls.Conn {
	c, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port), &tls.Config{
		ServerName:         "localhost",
		InsecureSkipVerify: true,
		NextProtos:         []string{protocol},
		CurvePreferences:   []tls.CurveID{tls.X25519},
	})
	if err != nil {
		b.Fatal(err)
	}
	return c
}

func benchmarkHTTP1(b *testing.B, port, body int) {
	c := dialTLS(b, port, "http/1.1")
	defer c.Close()
	r := bufio.NewReader(c)
	for b.Loop() {
		fetch1(b, c, r, body)
	}
}

func benchmarkNew(b *testing.B, port, body int) {
	for b.Loop() {
		c := dialTLS(b, port, "http/1.1")
		fetch1(b, c, bufio.NewReader(c), body)
		c.Close()
	}
}

func benchmarkHTTP2(b *testing.B, port, body int) {
	c := dialTLS(b, port, "h2")
	defer c.Close()
	//lint:ignore SA1019 http.Transport gives no single connection back.
	client, err := new(http2.Transport).NewClientConn(c)
	if err != nil {
		b.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodGet, fmt.Sprintf("https://localhost:%d/file.bin", port), nil)
	if err != nil {
		b.Fatal(err)
	}
	req.Header["Accept-Encoding"] = []string{"identity"}
	for b.Loop() {
		resp, err := client.RoundTrip(req)
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		if err != nil || n != int64(body) {
			b.Fatalf("%d bytes of %d: %v", n, body, err)
		}
		resp.Body.Close()
	}
}
