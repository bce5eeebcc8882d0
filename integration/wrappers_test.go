//go:build linux

package integration

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// TestProxyProtocol: the TCP socket is found below the wrapper before TLS, and
// the client's address is the one the proxy gave.
func TestProxyProtocol(t *testing.T) {
	c := start(t, listener{wrappers: "proxy_protocol {\n\tallow 127.0.0.1/32\n}\ntls\nktls"})
	dial := func(header string) func(*http.Transport) {
		return func(tr *http.Transport) {
			tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
				conn, err := new(net.Dialer).DialContext(ctx, "tcp", c.addr(0))
				if err == nil {
					_, err = conn.Write([]byte(header))
				}
				return conn, err
			}
		}
	}
	// version 2, PROXY, TCP over IPv4, 12 bytes of addresses
	v2 := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + "\xc0\x00\x02\x01\x7f\x00\x00\x01\x11\x51\x01\xbb"
	for name, header := range map[string]string{"v1": "PROXY TCP4 192.0.2.1 127.0.0.1 4433 443\r\n", "v2": v2} {
		t.Run(name, func(t *testing.T) {
			check := countUpgrades(t)
			client := c.goClient(t, 0, "h1", dial(header))
			for _, f := range []file{tiny, medium} {
				uri := "/" + f.name + "?" + name
				client.get(t, c.url(0, uri)).isFile(t, f)
				if l := c.tookFile(t, uri, f.size); l.Request.RemoteIP != "192.0.2.1" || l.Request.RemotePort != "4433" {
					t.Errorf("the client is %s:%s", l.Request.RemoteIP, l.Request.RemotePort)
				}
			}
			check(t, 1)
		})
	}
	t.Run("curl", func(t *testing.T) {
		check := countUpgrades(t)
		c.curl(t, 0, []string{c.url(0, "/"+medium.name+"?curl")}, "--http1.1", "--haproxy-protocol")[0].isFile(t, medium)
		c.tookFile(t, "/"+medium.name+"?curl", medium.size)
		check(t, 1)
	})
	t.Run("no header", func(t *testing.T) {
		c.goClient(t, 0, "h1").get(t, c.url(0, "/"+medium.name)).isFile(t, medium)
		c.tookFile(t, "/"+medium.name, medium.size)
	})
}

// TestHTTPRedirect: that wrapper has read the beginning of the connection.
func TestHTTPRedirect(t *testing.T) {
	c := start(t, listener{wrappers: "http_redirect\ntls\nktls"})
	for _, proto := range []string{"h1", "h2"} {
		check := countUpgrades(t)
		uri := "/" + medium.name + "?" + proto
		c.goClient(t, 0, proto).get(t, c.url(0, uri)).isFile(t, medium)
		c.tookFile(t, uri, medium.size)
		if proto == "h1" {
			check(t, 1)
		}
	}
	client := c.goClient(t, 0, "h1")
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	a := client.get(t, "http://"+c.addr(0)+"/somewhere")
	if want := "https://" + c.addr(0) + "/somewhere"; a.status != http.StatusPermanentRedirect || a.header.Get("Location") != want {
		t.Errorf("status %d, Location %q", a.status, a.header.Get("Location"))
	}
}

// TestUnixSocket: there is no TCP to give to the kernel.
func TestUnixSocket(t *testing.T) {
	for _, upgrade := range []string{"lazy", "handshake"} {
		t.Run(upgrade, func(t *testing.T) {
			socket := "unix/" + filepath.Join(scratch, "ktls-"+upgrade+".sock")
			c := start(t, listener{wrappers: "ktls {\n\tupgrade " + upgrade + "\n}", bind: socket})
			check := countUpgrades(t)
			for _, proto := range []string{"h1", "h2"} {
				client := c.goClient(t, 0, proto, func(tr *http.Transport) { tr.DialContext = dialUnix(socket) })
				uri := "/" + medium.name + "?" + proto
				client.get(t, c.url(0, uri)).isFile(t, medium)
				reason := "not_tcp"
				if proto == "h2" {
					reason = "" // which of two is told first is not ours to say
				}
				c.tookPlain(t, uri, reason)
			}
			check(t, 0)
		})
	}
}

// dialUnix dials the Unix socket with this Caddy address.
func dialUnix(address string) func(ctx context.Context, _, _ string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(address, "unix/"))
	}
}

// TestIPv6: a TCP socket of the other family.
func TestIPv6(t *testing.T) {
	probe, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 here")
	}
	probe.Close()
	c := start(t, listener{wrappers: "ktls", bind: "[::1]"})
	check := countUpgrades(t)
	c.goClient(t, 0, "h1").get(t, c.url(0, "/"+medium.name)).isFile(t, medium)
	c.tookFile(t, "/"+medium.name, medium.size)
	check(t, 1)
}

// TestMultipathTCP: Go's listeners accept it where the kernel does, and it may
// have no kernel TLS. The bytes are what counts.
func TestMultipathTCP(t *testing.T) {
	c := start(t, listener{wrappers: "ktls"}, listener{wrappers: "ktls {\n\tupgrade handshake\n}"})
	for i := range 2 {
		multipath := false
		client := c.goClient(t, i, "h1", func(tr *http.Transport) {
			tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				d.SetMultipathTCP(true)
				conn, err := d.DialContext(ctx, "tcp", c.addr(i))
				if err == nil {
					multipath, err = conn.(*net.TCPConn).MultipathTCP()
				}
				return conn, err
			}
		})
		for _, f := range []file{tiny, medium, large} {
			uri := fmt.Sprintf("/%s?%d", f.name, i)
			client.get(t, c.url(i, uri)).isFile(t, f)
			l := c.response(t, uri)
			if l.KTLS == nil || (l.KTLS.Path == "plain") == (l.KTLS.Reason == "") {
				t.Errorf("the path isn't explained: %s", l.raw)
			} else {
				t.Logf("multipath %v: %+v", multipath, *l.KTLS)
			}
		}
	}
}

// TestHandlerWithoutWrapper and the other way round: each alone does nothing,
// visibly.
func TestHandlerWithoutWrapper(t *testing.T) {
	c := start(t, listener{}, listener{clear: true})
	c.goClient(t, 0, "h1").get(t, c.url(0, "/"+tiny.name)) // the handler asks now what the kernel can do
	check := countUpgrades(t)
	for i, name := range []string{"https", "http"} {
		t.Run(name, func(t *testing.T) {
			uri := "/" + medium.name + "?" + name
			c.goClient(t, i, "h1").get(t, c.url(i, uri)).isFile(t, medium)
			if l := c.tookPlain(t, uri, ""); l.KTLS == nil || l.KTLS.Reason == "" {
				t.Errorf("the access log doesn't say why: %s", l.raw)
			}
		})
	}
	check(t, 0)
}

func TestWrapperWithoutHandler(t *testing.T) {
	site := []site{{body: plainFiles(www)}}
	c := start(t, listener{wrappers: "ktls", sites: site}, listener{wrappers: "ktls {\n\tupgrade handshake\n}", sites: site})
	for i, upgraded := range []int{0, 1} {
		for _, proto := range []string{"h1", "h2"} {
			check := countUpgrades(t)
			client := c.goClient(t, i, proto)
			for _, f := range []file{empty, tiny, small, medium, large} {
				client.get(t, c.url(i, "/"+f.name)).isFile(t, f)
			}
			check(t, upgraded)
		}
	}
}

// TestWrapperOnClearText: a server without TLS may have the wrapper too.
func TestWrapperOnClearText(t *testing.T) {
	c := start(t, listener{clear: true, wrappers: "ktls"})
	check := countUpgrades(t)
	c.goClient(t, 0, "h1").get(t, c.url(0, "/"+medium.name)).isFile(t, medium)
	c.tookPlain(t, "/"+medium.name, "")
	check(t, 0)
}

// TestSecretsLog: a key log that the user asked for still gets every secret.
func TestSecretsLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secrets")
	c := start(t, listener{wrappers: "ktls", sites: []site{{body: files("tls {", "insecure_secrets_log "+path, "}")}}})
	var want []string
	for _, version := range versions {
		client := c.goClient(t, 0, "h1", fresh(func(config *tls.Config) {
			config.MaxVersion = version.number
			config.KeyLogWriter = lineWriter(func(line string) { want = append(want, line) })
		}))
		uri := "/" + medium.name + "?" + version.name[4:]
		client.get(t, c.url(0, uri)).isFile(t, medium)
		c.tookFile(t, uri, medium.size)
	}
	got := readLines(t, path)
	for _, line := range want {
		if !got[line] {
			t.Errorf("the log has no %.40s...", line)
		}
	}
	if len(want) == 0 {
		t.Error("the client logged no secrets")
	}
}
