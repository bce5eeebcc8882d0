//go:build linux

package integration

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"testing"
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
