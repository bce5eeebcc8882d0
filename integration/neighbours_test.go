//go:build linux

package integration

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// proxyV2 is a header of the PROXY protocol, version 2: its command, what is
// after the addresses, and these, or none.
func proxyV2(command byte, tlv string, from, to string) string {
	b := []byte("\r\n\r\n\x00\r\nQUIT\n")
	var addresses []byte
	family := byte(0) // unspecified
	if from != "" {
		src, dst := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
		family = 0x11 // TCP over IPv4
		if src.Addr().Is6() {
			family = 0x21
		}
		addresses = append(src.Addr().AsSlice(), dst.Addr().AsSlice()...)
		addresses = binary.BigEndian.AppendUint16(addresses, src.Port())
		addresses = binary.BigEndian.AppendUint16(addresses, dst.Port())
	}
	b = append(b, 0x20|command, family)
	b = binary.BigEndian.AppendUint16(b, uint16(len(addresses)+len(tlv)))
	return string(b) + string(addresses) + tlv
}

// pieces is a connection whose first Write sends something before, in pieces of
// that size, or in one with what is written.
type pieces struct {
	net.Conn
	before string
	size   int
}

func (p *pieces) Write(b []byte) (int, error) {
	if p.before == "" {
		return p.Conn.Write(b)
	}
	all := append([]byte(p.before), b...)
	p.before = ""
	if p.size == 0 {
		p.size = len(all)
	}
	for part := range slices.Chunk(all, p.size) {
		if _, err := p.Conn.Write(part); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// after returns a dial function for connections that begin with something.
func (c *caddy) after(begin string, size int) func(i int) (net.Conn, error) {
	return func(i int) (net.Conn, error) {
		conn, err := net.Dial("tcp", c.addr(i))
		return &pieces{Conn: conn, before: begin, size: size}, err
	}
}

const (
	proxyV1 = "PROXY TCP4 192.0.2.1 192.0.2.2 4433 443\r\n"
	allow   = "proxy_protocol {\n\tallow 127.0.0.1/32\n}\n"
)

// TestProxyProtocolAsStock: both versions of the PROXY protocol in all shapes.
// The client's address is the proxy's word in placeholders and access log, and
// what lies below is found.
func TestProxyProtocolAsStock(t *testing.T) {
	c := start(t, threefold(allow+"tls\nWRAPPER", listener{sites: []site{{body: tellingTLS()}}})...)
	v4 := []string{`"remote_ip":"192.0.2.1"`, `"remote_port":"4433"`, `"client_ip":"192.0.2.1"`, "remote=192.0.2.1 client=192.0.2.1", " 200 "}
	v6 := []string{`"remote_ip":"2001:db8::1"`, `"remote_port":"4433"`, "remote=2001:db8::1 client=2001:db8::1", " 200 "}
	own := []string{`"remote_ip":"127.0.0.1"`, `"remote_port":"CLIENT"`, "remote=127.0.0.1 client=127.0.0.1", " 200 "}
	full := proxyV2(1, "", "192.0.2.1:4433", "192.0.2.2:443")
	tlv := proxyV2(1, "\x02\x00\x09localhost\x04\x00\x00", "192.0.2.1:4433", "192.0.2.2:443")
	for _, test := range []struct {
		name, header string
		size         int
		want         []string
	}{
		{"v1, IPv4", proxyV1, 0, v4},
		{"v1, IPv6", "PROXY TCP6 2001:db8::1 2001:db8::2 4433 443\r\n", 0, v6},
		{"v1, unknown", "PROXY UNKNOWN\r\n", 0, own},
		{"v1, bad address", "PROXY TCP4 nonsense 192.0.2.2 4433 443\r\n", 0, []string{"handshake: reset"}},
		{"v2, IPv4", full, 0, v4},
		{"v2, IPv6", proxyV2(1, "", "[2001:db8::1]:4433", "[2001:db8::2]:443"), 0, v6},
		{"v2, local", proxyV2(0, "", "", ""), 0, own},
		{"v2, with fields", tlv, 0, v4},
		{"v2, in pieces", tlv, 11, v4},
		{"v2, too short", full[:14] + "\x00\x05" + full[16:], 0, []string{"handshake: reset"}},
		{"none", "", 0, own},
	} {
		for _, alpn := range []string{"http/1.1", "h2"} {
			t.Run(test.name+"/"+alpn, func(t *testing.T) {
				c.compare(t, visit{alpn: alpn, dial: c.after(test.header, test.size), want: test.want})
			})
		}
	}
	t.Run("half a header", func(t *testing.T) { // holds up no one else
		for i := range 3 {
			io.WriteString(c.dial(t, i), proxyV1[:20])
		}
		c.compare(t, visit{alpn: "h2", dial: c.after(proxyV1, 0), want: v4})
	})
}

// TestProxyProtocolPolicies: whose word is taken, ignored or refused.
func TestProxyProtocolPolicies(t *testing.T) {
	notEmulated(t)
	theirs, own, refused := `"remote_ip":"192.0.2.1"`, `"remote_ip":"127.0.0.1"`, "handshake: "
	for _, test := range []struct{ options, with, without string }{
		{"deny 127.0.0.1/32", refused, own},
		{"fallback_policy ignore", own, own},
		{"fallback_policy use", theirs, own},
		{"fallback_policy reject", refused, own},
		{"fallback_policy require", theirs, refused},
		{"fallback_policy skip", refused, own},
	} {
		t.Run(test.options, func(t *testing.T) {
			wrappers := "proxy_protocol {\n\t" + test.options + "\n}\ntls\nWRAPPER"
			c := start(t, threefold(wrappers, listener{sites: []site{{body: tellingTLS()}}})...)
			c.compare(t, visit{name: "with", alpn: "http/1.1", dial: c.after(proxyV1, 0), want: []string{test.with}})
			c.compare(t, visit{name: "without", alpn: "http/1.1", want: []string{test.without}})
		})
	}
}

// TestProxyProtocolOnUnixSocket: whoever connects to the socket is believed. Files
// go Caddy's way.
func TestProxyProtocolOnUnixSocket(t *testing.T) {
	socket := func(i int) string { return filepath.Join(scratch, fmt.Sprintf("proxied%d.sock", i)) }
	c := setup{
		listeners: threefold("proxy_protocol\ntls\nWRAPPER", listener{sites: []site{{body: tellingTLS()}}}),
		patch: func(config map[string]any) {
			for _, server := range config["apps"].(map[string]any)["http"].(map[string]any)["servers"].(map[string]any) {
				server := server.(map[string]any)
				server["listen"] = []string{"unix/" + socket(role(server))}
			}
		},
	}.start(t)
	for _, alpn := range []string{"http/1.1", "h2"} {
		c.compare(t, visit{
			name: alpn, alpn: alpn, plain: "not_tcp", want: []string{`"remote_ip":"192.0.2.1","remote_port":"4433"`, " 200 "},
			dial: func(i int) (net.Conn, error) {
				conn, err := net.Dial("unix", socket(i))
				return &pieces{Conn: conn, before: proxyV1}, err
			},
		})
	}
}

// TestWrappersBefore: two of Caddy's wrappers before TLS, in either order. HTTP is
// redirected, or answered, as it is without ours.
func TestWrappersBefore(t *testing.T) {
	notEmulated(t)
	for _, test := range []struct{ name, wrappers, header string }{
		{"http_redirect", "http_redirect\n", ""},
		{"proxy_protocol, http_redirect", allow + "http_redirect\n", proxyV1},
		{"http_redirect, proxy_protocol", "http_redirect\n" + allow, proxyV1},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := start(t, threefold(test.wrappers+"tls\nWRAPPER", listener{sites: []site{{body: tellingTLS()}}})...)
			for _, alpn := range []string{"http/1.1", "h2"} {
				c.compare(t, visit{name: alpn, alpn: alpn, dial: c.after(test.header, 0), want: []string{" 200 "}})
			}
			for _, request := range []string{
				"GET /a?b=c HTTP/1.1\r\nHost: example.org\r\n\r\n", "HEAD / HTTP/1.0\r\nHost: example.org\r\n\r\n",
				"POST /a HTTP/1.1\r\nHost: example.org\r\nContent-Length: 5\r\n\r\nabcde",
				"DELETE / HTTP/1.1\r\nHost: example.org\r\n\r\n", "GET / nonsense\r\n\r\n",
			} {
				var got [3][]byte
				for i := range got {
					conn := c.dial(t, i)
					io.WriteString(conn, test.header+request)
					got[i] = readToEnd(t, conn)
				}
				for i := range 2 {
					if !bytes.Equal(got[i], got[2]) {
						t.Errorf("%.20q: %q, stock %q", request, got[i], got[2])
					}
				}
				if strings.HasPrefix(request, "GET /a") && !bytes.Contains(got[2], []byte("https://example.org/a?b=c")) &&
					!bytes.Contains(got[2], []byte("HTTP request to an HTTPS server")) {
					t.Errorf("stock Caddy says %q", got[2])
				}
			}
		})
	}
}

// TestWrappersAfterTLS: another wrapper above TLS, below ours or above it. What
// passes through it isn't known, so that files go Caddy's way.
func TestWrappersAfterTLS(t *testing.T) {
	notEmulated(t)
	for _, test := range []struct {
		name, wrappers string
		handed         int // connections that the kernel gets
	}{
		{"http_redirect between", "http_redirect\nWRAPPER", 0},
		{"http_redirect after", "WRAPPER\nhttp_redirect", 1},
		{"proxy_protocol between", allow + "WRAPPER", 0},
		{"proxy_protocol after", "WRAPPER\n" + allow, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := start(t, threefold(test.wrappers, listener{sites: []site{{body: tellingTLS()}}})...)
			for _, alpn := range []string{"http/1.1", "h2"} {
				c.compare(t, visit{name: alpn, alpn: alpn, plain: "not_wrapped", handed: test.handed})
			}
		})
	}
}

// freePorts are n ports in a row.
func freePorts(t *testing.T, n int) int {
	t.Helper()
	for range 100 {
		first, free := freePort(t), 0
		for ; free < n && first+free < 65536; free++ {
			ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", first+free))
			if err != nil {
				break
			}
			ln.Close()
		}
		if free == n {
			return first
		}
	}
	t.Fatalf("no %d free ports in a row", n)
	return 0
}

// role says which of threefold's listeners a server of the JSON config is.
func role(server map[string]any) int {
	switch wrappers := fmt.Sprint(server["listener_wrappers"]); {
	case strings.Contains(wrappers, "upgrade:handshake"):
		return 1
	case strings.Contains(wrappers, "wrapper:ktls"):
		return 0
	}
	return 2
}

// TestListenAddresses: one server on several addresses, of both families, on a
// range of ports and on a Unix socket.
func TestListenAddresses(t *testing.T) {
	const inRange = 3
	ports := freePorts(t, 3*inRange)
	socket := func(i int) string { return filepath.Join(scratch, fmt.Sprintf("several%d.sock", i)) }
	addresses := map[string]func(c *caddy, i int) string{ // for net.Dial
		"127.0.0.1": func(c *caddy, i int) string { return c.addr(i) },
		"127.0.0.2": func(c *caddy, i int) string { return fmt.Sprintf("127.0.0.2:%d", c.ports[i]) },
		"unix":      func(c *caddy, i int) string { return socket(i) },
	}
	for n := range inRange {
		addresses[fmt.Sprint("port ", n)] = func(c *caddy, i int) string { return fmt.Sprintf("127.0.0.1:%d", ports+i*inRange+n) }
	}
	if probe, err := net.Listen("tcp", "[::1]:0"); err == nil {
		probe.Close()
		addresses["[::1]"] = func(c *caddy, i int) string { return fmt.Sprintf("[::1]:%d", c.ports[i]) }
	}
	c := setup{
		listeners: threefold("WRAPPER", listener{sites: []site{{body: tellingTLS()}}}),
		patch: func(config map[string]any) {
			servers := config["apps"].(map[string]any)["http"].(map[string]any)["servers"].(map[string]any)
			for _, server := range servers {
				server := server.(map[string]any)
				i := role(server)
				_, port, err := net.SplitHostPort(server["listen"].([]any)[0].(string))
				if err != nil {
					t.Fatal(err)
				}
				listen := []string{"127.0.0.1:" + port, "127.0.0.2:" + port, "unix/" + socket(i) + "|0222",
					fmt.Sprintf("127.0.0.1:%d-%d", ports+i*inRange, ports+(i+1)*inRange-1)}
				if addresses["[::1]"] != nil {
					listen = append(listen, "[::1]:"+port)
				}
				server["listen"] = listen
			}
		},
	}.start(t)
	for name, address := range addresses {
		for _, alpn := range []string{"http/1.1", "h2"} {
			t.Run(name+"/"+alpn, func(t *testing.T) {
				v := visit{alpn: alpn, want: []string{" 200 "}}
				network := "tcp"
				if name == "unix" {
					network, v.plain = "unix", "not_tcp"
				}
				v.dial = func(i int) (net.Conn, error) { return net.Dial(network, address(c, i)) }
				seen := c.compare(t, v)
				if name == "[::1]" && !strings.Contains(seen, `"remote_ip":"::1"`) {
					t.Errorf("the client is another: %s", seen)
				}
			})
		}
	}
}

// TestServerProtocols: servers that speak HTTP/1.1 or HTTP/2 alone, or HTTP/2
// without TLS too, and what they say to clients that want another.
func TestServerProtocols(t *testing.T) {
	notEmulated(t)
	for _, test := range []struct {
		protocols string
		want      map[string]string // by the client's ALPN
	}{
		{"h1", map[string]string{"http/1.1": "HTTP/1.1 200 ", "h2 http/1.1": "HTTP/1.1 200 ", "h2": "tls: no application protocol", "": "HTTP/1.1 200 "}},
		{"h2", map[string]string{"http/1.1": "localhost: unexpected EOF", "h2 http/1.1": "HTTP/2.0 200 ", "h2": "HTTP/2.0 200 "}},
		{"h1 h2c", map[string]string{"http/1.1": "HTTP/1.1 200 ", "h2 http/1.1": "HTTP/1.1 200 ", "h2": "tls: no application protocol"}},
		{"h1 h2 h2c", map[string]string{"http/1.1": "HTTP/1.1 200 ", "h2": "HTTP/2.0 200 "}},
	} {
		t.Run(test.protocols, func(t *testing.T) {
			c := start(t, threefold("WRAPPER", listener{protos: test.protocols, sites: []site{{body: tellingTLS()}}})...)
			for alpn, want := range test.want {
				t.Run(alpn, func(t *testing.T) {
					v := visit{alpn: alpn, want: []string{want}}
					if want == "localhost: unexpected EOF" { // the handshake was complete
						v.handed = 1
					}
					c.compare(t, v)
				})
			}
		})
	}
}

// TestServersDiffer: what one server is told is none of the others' business.
func TestServersDiffer(t *testing.T) {
	notEmulated(t)
	sites := []site{{body: strings.ReplaceAll(tellingTLS(), "KTLS", "ktls {\nmin_size 1\n}")}}
	c := start(t,
		listener{wrappers: "ktls", protos: "h1", sites: sites},
		listener{wrappers: "ktls {\n\tupgrade handshake\n}", protos: "h2", options: "timeouts {\n\tidle 5m\n}", sites: sites},
		listener{protos: "h1 h2", sites: sites},
		listener{wrappers: "http_redirect\ntls\nktls {\n\tmax_handshakes 3\n\trecord_size 4096\n}", sites: sites},
		listener{clear: true, protos: "h1 h2c", sites: sites},
	)
	f := visited()
	for round := range 2 {
		for i, test := range []struct{ proto, reason string }{{"h1", ""}, {"h2", ""}, {"h2", "not_wrapped"}, {"h2", ""}, {"h1", "not_wrapped"}} {
			check := countUpgrades(t)
			uri := fmt.Sprintf("/%s?%d-%d", f.name, round, i)
			client := c.goClient(t, i, test.proto)
			client.get(t, c.url(i, uri)).isFile(t, f)
			if test.reason == "" {
				c.tookFile(t, uri, f.size)
				check(t, 1)
			} else {
				c.tookPlain(t, uri, test.reason)
				check(t, 0)
			}
			client.CloseIdleConnections()
		}
	}
}

// TestHTTP3: QUIC is none of ours. Its answers are stock Caddy's, say why no file
// went by sendfile, and its secrets are in the user's log alone; the server's TCP
// connections are offloaded as ever.
func TestHTTP3(t *testing.T) {
	notEmulated(t)
	dir := t.TempDir()
	body := tellingTLS("tls {", "insecure_secrets_log "+dir+"/LISTENER", "}")
	c := start(t, threefold("WRAPPER", listener{protos: "h1 h2 h3", sites: []site{{body: body}}})...)
	before := c.scrape(t)
	check := countUpgrades(t)
	f := visited()
	var seen [3]string
	for i := range seen {
		var known []string
		config := tlsConfig(t)
		config.KeyLogWriter = lineWriter(func(line string) { known = append(known, line) })
		tr := &http3.Transport{
			TLSClientConfig: config, DisableCompression: true,
			Dial: func(ctx context.Context, _ string, tlsConfig *tls.Config, config *quic.Config) (*quic.Conn, error) {
				return quic.DialAddr(ctx, c.addr(i), tlsConfig, config)
			},
		}
		client := &goClient{Client: http.Client{Transport: tr, Timeout: patience}}
		for n, uri := range []string{"/" + f.name, "/" + f.name, "/nothing-here"} {
			id := fmt.Sprint("h3 ", i, n)
			a := client.get(t, "https://localhost"+uri, "X-Id", id)
			l := c.responseTo(t, "X-Id", id)
			if i < 2 && n < 2 {
				l.isPlain(t, "http3")
			}
			client := ""
			if l.Request.RemoteIP == "127.0.0.1" { // the port is QUIC's own
				client = l.Request.RemotePort
			}
			says := describe(a, nil) + "\n" + essence(t, l, id, &net.UDPAddr{}) + "\n"
			seen[i] += strings.ReplaceAll(strings.ReplaceAll(says, client, "CLIENT"), fmt.Sprint(c.ports[i]), "PORT")
			if n < 2 {
				a.isFile(t, f)
			}
		}
		tr.Close()
		b, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
		slices.Sort(lines)
		slices.Sort(known)
		if len(known) == 0 || !slices.Equal(lines, known) {
			t.Errorf("listener %d: the log of secrets has %d lines, the client's %d", i, len(lines), len(known))
		}
	}
	for i := range 2 {
		if seen[i] != seen[2] {
			t.Errorf("listener %d:\n%s\nstock:\n%s", i, seen[i], seen[2])
		}
	}
	if !strings.Contains(seen[2], "HTTP/3.0 200 ") || !strings.Contains(seen[2], "proto=h3 ") {
		t.Errorf("that isn't HTTP/3: %s", seen[2])
	}
	check(t, 0)
	for name, value := range c.scrape(t) {
		if !strings.HasPrefix(name, "caddy_ktls_response") && value != before[name] {
			t.Errorf("%s went from %v to %v", name, before[name], value)
		}
	}
	for _, alpn := range []string{"http/1.1", "h2"} {
		c.compare(t, visit{name: alpn, alpn: alpn, want: []string{" 200 ", "Alt-Svc:[h3="}})
	}
}
