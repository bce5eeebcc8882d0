//go:build linux

package integration

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestHalfClosed: a client that says it won't send any more still gets what it
// asked for, as from stock Caddy.
func TestHalfClosed(t *testing.T) {
	c := withAndWithout(t, "ktls")
	for i, name := range []string{"ktls", "stock"} {
		for _, f := range []file{tiny, small, large} {
			uri := "/" + f.name + "?" + name
			conn := c.dialTLS(t, i)
			if _, err := io.WriteString(conn, lastRequest(uri)); err != nil {
				t.Fatal(err)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			r := bufio.NewReader(conn)
			a, err := readAnswer(r)
			if err != nil {
				t.Errorf("%s, %s: %v", name, f.name, err)
			}
			a.isFile(t, f)
			if _, err := r.ReadByte(); err != io.EOF {
				t.Errorf("%s, %s: %v instead of close_notify", name, f.name, err)
			}
			if name == "ktls" {
				c.tookFile(t, uri, f.size)
			}
		}
	}
}

// TestCloseNotify: the end of a connection is announced, after the last byte,
// with and without an upgrade before it.
func TestCloseNotify(t *testing.T) {
	c := start(t, listener{wrappers: "ktls", sites: []site{{body: files(`respond /hello "hello"`)}}})
	hello := file{name: "hello", size: 5, sum: sum([]byte("hello"))}
	for _, version := range []struct {
		name    string
		number  uint16
		openssl string
		gnutls  string
	}{
		{"TLS 1.2", tls.VersionTLS12, "-tls1_2", "--priority=NORMAL:-VERS-ALL:+VERS-TLS1.2"},
		{"TLS 1.3", tls.VersionTLS13, "-tls1_3", "--priority=NORMAL:-VERS-ALL:+VERS-TLS1.3"},
	} {
		clients := map[string]func(t *testing.T, request string) answer{
			"openssl":    func(t *testing.T, request string) answer { return c.openssl(t, 0, request, version.openssl) },
			"gnutls-cli": func(t *testing.T, request string) answer { return c.gnutls(t, 0, request, version.gnutls) },
		}
		t.Run(version.name+"/curl", func(t *testing.T) {
			for _, f := range []file{hello, small, large} {
				uri := fmt.Sprintf("/%s?%d-curl", f.name, version.number)
				flags := []string{"--http1.1", "--header", "Connection: close", "--tlsv1.2", "--tls-max", strings.TrimPrefix(version.name, "TLS ")}
				c.curl(t, 0, []string{c.url(0, uri)}, flags...)[0].isFile(t, f)
				if f != hello {
					c.tookFile(t, uri, f.size)
				}
			}
		})
		for name, client := range clients {
			t.Run(version.name+"/"+name, func(t *testing.T) {
				client(t, lastRequest("/hello")).isFile(t, hello)
				for _, f := range []file{small, ofSize(16385)} {
					uri := fmt.Sprintf("/%s?%d-%s", f.name, version.number, name)
					client(t, lastRequest(uri)).isFile(t, f)
					c.tookFile(t, uri, f.size)
				}
			})
		}
		t.Run(version.name+"/go", func(t *testing.T) {
			for _, f := range []file{small, medium} {
				conn := c.dialTLS(t, 0, func(config *tls.Config) {
					config.MinVersion, config.MaxVersion = version.number, version.number
				})
				uri := fmt.Sprintf("/%s?%d-go", f.name, version.number)
				if _, err := io.WriteString(conn, lastRequest(uri)); err != nil {
					t.Fatal(err)
				}
				// io.ReadAll returns no error only if close_notify came.
				all, err := io.ReadAll(conn)
				if err != nil {
					t.Errorf("%s: %v", f.name, err)
				}
				if n := int64(len(all)) - f.size; n < 0 || sum(all[n:]) != f.sum {
					t.Errorf("%s: %d bytes with the header, not ending in the file", f.name, len(all))
				}
				c.tookFile(t, uri, f.size)
			}
		})
	}
}

// TestTruncationIsSeen: when a file gets shorter while it is sent, the connection
// ends without close_notify, and clients that look for that say so.
func TestTruncationIsSeen(t *testing.T) {
	needKTLS(t) // stock Caddy sends close_notify even then
	root := t.TempDir()
	c := start(t, listener{wrappers: "ktls", sites: []site{{body: filesFrom(root)}}})
	addr := narrow(t, c.addr(0))
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	notes := filepath.Join(root, "gnutls.log")
	clients := []struct {
		name string
		args func(version, uri string) []string
		says []string // one of these
	}{
		{"curl", func(version, uri string) []string {
			return []string{"--silent", "--show-error", "--include", "--http1.1", "--tlsv" + version, "--tls-max", version,
				"--cacert", rootFile(), "--connect-to", fmt.Sprintf("::[%s]:%s", host, port), c.url(0, uri)}
		}, []string{"unexpected eof while reading", "bytes remaining to read"}},
		{"gnutls-cli", func(version, _ string) []string {
			return []string{"--priority=NORMAL:-VERS-ALL:+VERS-TLS" + version, "--x509cafile=" + rootFile(),
				"--sni-hostname=localhost", "--verify-hostname=localhost", "--port=" + port, "--logfile=" + notes, host}
			// The end between two records, and within one.
		}, []string{"The TLS connection was non-properly terminated", "Error decoding the received TLS packet"}},
		{"openssl", func(version, _ string) []string {
			return []string{"s_client", "-tls" + strings.Replace(version, ".", "_", 1), "-connect", addr, "-servername", "localhost",
				"-CAfile", rootFile(), "-verify_return_error", "-quiet"}
		}, []string{"unexpected eof while reading"}},
	}
	for _, version := range versions {
		for _, client := range clients {
			t.Run(version.name+"/"+client.name, func(t *testing.T) {
				f := newFile(t, root, fmt.Sprintf("%s-%d.bin", client.name, version.number), 4*large.size)
				path := filepath.Join(root, f.name)
				whole, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				uri := "/" + f.name
				cmd := exec.Command(command(t, client.name), client.args(strings.TrimPrefix(version.name, "TLS "), uri)...)
				stdin, err := cmd.StdinPipe()
				if err != nil {
					t.Fatal(err)
				}
				defer stdin.Close()
				stdout, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				var stderr bytes.Buffer
				cmd.Stderr = &stderr
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				defer time.AfterFunc(patience, func() { cmd.Process.Kill() }).Stop()
				if client.name != "curl" {
					if _, err := io.WriteString(stdin, lastRequest(uri)); err != nil {
						t.Fatal(err)
					}
				}
				resp, err := http.ReadResponse(bufio.NewReader(stdout), nil)
				if err != nil {
					t.Fatalf("%v: %s", err, stderr.String())
				}
				// The client waits for us, and the server soon for the client. To the
				// end of a page: what is left of it would become zeros, which may be
				// on their way.
				if err := os.Truncate(path, 300*kib); err != nil {
					t.Fatal(err)
				}
				checkPrefix(t, resp.Body, whole)
				if err := cmd.Wait(); err == nil {
					t.Error("the client ends as if all were well")
				}
				said := stderr.String()
				if client.name == "gnutls-cli" {
					log, err := os.ReadFile(notes)
					if err != nil {
						t.Fatal(err)
					}
					said += string(log)
				}
				if !slices.ContainsFunc(client.says, func(s string) bool { return strings.Contains(said, s) }) {
					t.Errorf("the client said: %s", said)
				}
				l := c.response(t, uri)
				if l.Size >= f.size || kernel.ulp && (l.KTLS == nil || l.KTLS.Path != "sendfile" || l.KTLS.Sent >= f.size) {
					t.Errorf("the access log: %s", l.raw)
				}
			})
		}
	}
}

// narrow passes connections on to addr through small buffers. What is on its way
// must be read byte by byte by some clients, and loopback's large segments would
// make that megabytes.
func narrow(t *testing.T, addr string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	pass := func(to, from *net.TCPConn) {
		io.Copy(struct{ io.Writer }{to}, struct{ io.Reader }{from}) // no splice, which has buffers of its own
		to.CloseWrite()
	}
	serve := func(client *net.TCPConn) {
		defer client.Close()
		client.SetWriteBuffer(32 * kib)
		d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
			rawErr := raw.Control(func(fd uintptr) {
				err = firstError(
					unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 32*kib),
					unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, 1400))
			})
			return firstError(rawErr, err)
		}}
		server, err := d.Dial("tcp", addr)
		if err != nil {
			t.Error(err)
			return
		}
		defer server.Close()
		wg.Go(func() { pass(server.(*net.TCPConn), client) })
		pass(client, server.(*net.TCPConn))
	}
	wg.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serve(client.(*net.TCPConn)) })
		}
	})
	return ln.Addr().String()
}
