//go:build linux

package integration

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// backend is an HTTP server behind reverse_proxy. It answers an upload with its
// length and SHA-256, and echoes what comes after an upgrade of the protocol.
func backend(t *testing.T) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			n, sum, err := sumReader(r.Body)
			fmt.Fprint(w, n, sum, err)
			return
		}
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		io.Copy(conn, buf)
	})}
	go server.Serve(ln)
	t.Cleanup(func() { server.Close() })
	return ln.Addr().String()
}

// receipt is the backend's answer to the upload of content.
func receipt(content []byte) string { return fmt.Sprint(int64(len(content)), sum(content), nil) }

// proxied is a site with the fixtures whose path /to/ leads to a backend. It has
// no access log: to write the length of a request's body into it, Caddy v2.11.9
// reads what reverse_proxy may still be counting.
func proxied(t *testing.T) []site {
	body := files("reverse_proxy /to/* "+backend(t)+" {", "\ttransport http {", "\t\tkeepalive off", "\t}", "}")
	return []site{{body: strings.TrimPrefix(body, "log\n")}}
}

// upload sends content; chunked without telling its length.
func (client *goClient) upload(t *testing.T, url string, content []byte, chunked bool) {
	t.Helper()
	var body io.Reader = bytes.NewReader(content)
	if chunked {
		body = struct{ io.Reader }{body}
	}
	req, err := http.NewRequest("POST", url, body)
	if err != nil {
		t.Fatal(err)
	}
	a, err := client.do(req)
	if err != nil {
		t.Fatalf("%s: %v", url, err)
	}
	if a.status != http.StatusOK || string(a.body) != receipt(content) {
		t.Errorf("%d bytes arrived as %d: %s", len(content), a.status, a.body)
	}
}

// countReceivers returns a function that checks for how many connections the
// kernel decrypts since.
func countReceivers(t *testing.T) func(t *testing.T, want int) {
	t.Helper()
	before := tlsStat(t, "TlsRxSw")
	return func(t *testing.T, want int) {
		t.Helper()
		if !kernel.ulp {
			want = 0
		}
		if got := tlsStat(t, "TlsRxSw") - before; got != want {
			t.Errorf("TlsRxSw rose by %d, want %d", got, want)
		}
	}
}

func uploadContent() []byte {
	size := 9*mib + 12345
	if slow {
		size = 3*mib + 12345
	}
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{'u', 'p'}).Read(b)
	return b
}

// TestUploads: what the kernel decrypts arrives at the backend byte for byte,
// request by request on the same connection, and downloads go on as ever.
func TestUploads(t *testing.T) {
	sites := proxied(t)
	c := start(t,
		listener{wrappers: "ktls {\n\trx on\n\tupgrade handshake\n}", sites: sites},
		listener{wrappers: "ktls {\n\trx on\n}", sites: sites},
		listener{wrappers: "ktls {\n\trx on\n\tmax_handshakes 2\n}", sites: sites},
	)
	content := uploadContent()
	for i, how := range []string{"handshake", "lazy", "max_handshakes"} {
		for _, proto := range []string{"h1", "h2"} {
			for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
				if how == "max_handshakes" && proto+tls.VersionName(version) != "h1TLS 1.3" {
					continue
				}
				t.Run(fmt.Sprintf("%s %s %s", how, proto, tls.VersionName(version)), func(t *testing.T) {
					client := c.goClient(t, i, proto, func(tr *http.Transport) { tr.TLSClientConfig.MaxVersion = version })
					receivers := countReceivers(t)
					url := c.url(i, "/to/backend")
					client.upload(t, url, content[:100], false)
					if how != "handshake" {
						client.upload(t, url, content[:3*mib], false)
						receivers(t, 0)
						client.get(t, c.url(i, "/"+large.name+"?"+t.Name())).isFile(t, large)
					}
					client.upload(t, url, content, false)
					client.upload(t, url, content, true)
					client.get(t, c.url(i, "/"+big.name+"?"+t.Name())).isFile(t, big)
					client.upload(t, url, content[:1], true)
					client.upload(t, url, nil, false)
					client.get(t, c.url(i, "/"+medium.name+"?"+t.Name())).isFile(t, medium)
					if n := client.conns.Load(); n != 1 {
						t.Errorf("%d connections", n)
					}
					receivers(t, 1)
				})
			}
		}
	}
	if kernel.ulp {
		eventually(t, "the metrics count the connections", func() bool {
			return c.scrape(t)[`caddy_ktls_receiving_total{outcome="upgraded",reason=""`] == 9
		})
	}
}

// TestUploadsAtOnce: many streams and connections.
func TestUploadsAtOnce(t *testing.T) {
	c := start(t, listener{wrappers: "ktls {\n\trx on\n\tupgrade handshake\n}", sites: proxied(t)})
	before := c.settled(t)
	content := uploadContent()[:3*mib]
	for _, proto := range []string{"h1", "h2"} {
		t.Run(proto, func(t *testing.T) {
			client := c.goClient(t, 0, proto)
			var wg sync.WaitGroup
			for n := range 12 {
				wg.Go(func() {
					if n%3 == 0 {
						client.get(t, c.url(0, fmt.Sprintf("/%s?%s-%d", large.name, proto, n))).isFile(t, large)
						return
					}
					client.upload(t, c.url(0, "/to/backend"), content[n:], n%2 == 0)
				})
			}
			wg.Wait()
			client.CloseIdleConnections()
		})
	}
	c.awaitFootprint(t, before)
}

// TestUploadByCurl: a client with another TLS stack.
func TestUploadByCurl(t *testing.T) {
	c := start(t, listener{wrappers: "ktls {\n\trx on\n\tupgrade handshake\n}", sites: proxied(t)})
	content := uploadContent()
	path := filepath.Join(t.TempDir(), "content")
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"--http1.1", "--tlsv1.3"}, {"--http1.1", "--tls-max", "1.2"}, {"--http2", "--tlsv1.3"}, {"--http1.1", "-H", "Transfer-Encoding: chunked"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			receivers := countReceivers(t)
			url := c.url(0, "/to/backend")
			args := append(args, "-sS", "--cacert", rootFile(), "-T", path, url, "-T", path, url)
			out, err := exec.Command(command(t, "curl"), args...).Output()
			if err != nil {
				t.Fatal(err)
			}
			if want := receipt(content) + receipt(content); string(out) != want {
				t.Errorf("got %s", out)
			}
			receivers(t, 1)
		})
	}
}

// TestUpgradedProtocol: a connection that becomes something else than HTTP, as
// with WebSocket, is passed on both ways.
func TestUpgradedProtocol(t *testing.T) {
	c := start(t, listener{wrappers: "ktls {\n\trx on\n\tupgrade handshake\n}", sites: proxied(t)})
	before := c.settled(t)
	content := uploadContent()[:3*mib]
	for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			receivers := countReceivers(t)
			conn := c.dialTLS(t, 0, func(config *tls.Config) { config.MaxVersion = version })
			defer conn.Close()
			r := bufio.NewReader(conn)
			fmt.Fprintf(conn, "GET /to/backend HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			resp, err := http.ReadResponse(r, nil)
			if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
				t.Fatal(resp, err)
			}
			buf := make([]byte, 1000)
			for n := range 20 { // to and fro
				part := content[n : 1+n*n*2]
				conn.Write(part)
				if _, err := io.ReadFull(r, buf[:len(part)]); err != nil || !bytes.Equal(buf[:len(part)], part) {
					t.Fatalf("echo %d: %v", n, err)
				}
			}
			sent := make(chan error, 1)
			go func() {
				_, err := conn.Write(content)
				sent <- firstError(err, conn.CloseWrite())
			}()
			n, got, err := sumReader(r)
			if err != nil {
				t.Error(err)
			}
			checkBody(t, "echo", n, got, int64(len(content)), sum(content))
			if err := <-sent; err != nil {
				t.Error(err)
			}
			receivers(t, 1)
		})
	}
	c.awaitFootprint(t, before)
}

// TestUploadThroughWrapperThatReadsAhead: receiving stays with Go, and says why.
func TestUploadThroughWrapperThatReadsAhead(t *testing.T) {
	c := start(t, listener{wrappers: "http_redirect\ntls\nktls {\n\trx on\n\tupgrade handshake\n}", sites: proxied(t)})
	client := c.goClient(t, 0, "h1")
	receivers := countReceivers(t)
	content := uploadContent()[:mib]
	for range 3 {
		client.upload(t, c.url(0, "/to/backend"), content, false)
	}
	receivers(t, 0)
	if !kernel.ulp {
		return
	}
	c.awaitLine(t, "receiving", func(l *line) bool {
		var says struct{ Reason string }
		json.Unmarshal([]byte(l.raw), &says)
		return l.Msg == "receiving stays in user space" && says.Reason == "not_tcp"
	})
	if n := c.scrape(t)[`caddy_ktls_receiving_total{outcome="refused",reason="not_tcp"`]; n != 1 {
		t.Errorf("counted %v times", n)
	}
}

// TestReloadDuringUpload: the old configuration goes on receiving.
func TestReloadDuringUpload(t *testing.T) {
	c := start(t, listener{wrappers: "ktls {\n\trx on\n\tupgrade handshake\n}", sites: proxied(t)})
	client := c.goClient(t, 0, "h1")
	client.upload(t, c.url(0, "/to/backend"), []byte("first"), false)
	content := uploadContent()
	r, w := io.Pipe()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "POST", c.url(0, "/to/backend"), r)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan string, 1)
	go func() {
		a, err := client.do(req)
		if err != nil {
			done <- err.Error()
			return
		}
		done <- string(a.body)
	}()
	w.Write(content[:mib])
	config := strings.Replace(c.caddyfile(), "grace_period 2s", "grace_period 10m", 1)
	config = strings.Replace(config, "rx on", "rx off", 1)
	config = strings.Replace(config, "\tfile_server\n", "\theader X-Config new\n\tfile_server\n", 1)
	reloaded := make(chan bool)
	go func() {
		defer close(reloaded)
		c.admin(t, "POST", "/load", "text/caddyfile", config)
	}()
	probe := c.goClient(t, 0, "h1", func(tr *http.Transport) { tr.DisableKeepAlives = true })
	eventually(t, "new connections get the new config", func() bool {
		a, err := probe.do(newRequest(t, "GET", c.url(0, "/"+tiny.name)))
		return err == nil && a.header.Get("X-Config") == "new"
	})
	w.Write(content[mib:])
	w.Close()
	if got := <-done; got != receipt(content) {
		t.Errorf("got %s", got)
	}
	<-reloaded
}
