//go:build linux

package integration

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// withAndWithout is a Caddy whose second listener is stock Caddy's.
func withAndWithout(t *testing.T, wrapper string) *caddy {
	return start(t, listener{wrappers: wrapper}, listener{sites: []site{{body: plainFiles(www)}}})
}

// stillServes checks that the server goes on after what a client did to it.
func (c *caddy) stillServes(t *testing.T) {
	t.Helper()
	uri := "/" + medium.name + "?still"
	c.goClient(t, 0, "h1").get(t, c.url(0, uri)).isFile(t, medium)
	c.tookFile(t, uri, medium.size)
}

// dial connects without TLS.
func (c *caddy) dial(t *testing.T, i int) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", c.addr(i))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn
}

// readToEnd reads until the server ends the connection, in whatever way.
func readToEnd(t *testing.T, conn net.Conn) []byte {
	t.Helper()
	b, err := io.ReadAll(conn)
	if isTimeout(err) {
		t.Errorf("after %d bytes the connection is still open", len(b))
	}
	return b
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// TestHTTPOnHTTPSPort: a browser sent to the wrong scheme is told so.
func TestHTTPOnHTTPSPort(t *testing.T) {
	c := withAndWithout(t, "ktls")
	for _, request := range []string{"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "HEAD / HTTP/1.0\r\n\r\n", "OPTIONS * HTTP/1.1\r\n\r\n"} {
		var got [2][]byte
		for i := range got {
			conn := c.dial(t, i)
			io.WriteString(conn, request)
			got[i] = readToEnd(t, conn)
		}
		if !bytes.Equal(got[0], got[1]) || !bytes.Contains(got[0], []byte("Client sent an HTTP request to an HTTPS server.")) {
			t.Errorf("%q: the answer is %q, of stock Caddy %q", request, got[0], got[1])
		}
	}
	c.stillServes(t)
}

// TestGarbageHandshake: what isn't TLS at all ends as it does with stock Caddy.
func TestGarbageHandshake(t *testing.T) {
	c := withAndWithout(t, "ktls")
	for _, garbage := range []string{"\x00\x00\x00\x00\x00\x00\x00", "SSH-2.0-OpenSSH_9.2\r\n", "\x16\x03\x01\xff\xff" + strings.Repeat("x", 70000), "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"} {
		var got [2][]byte
		for i := range got {
			conn := c.dial(t, i)
			io.WriteString(conn, garbage)
			got[i] = readToEnd(t, conn)
		}
		if !bytes.Equal(got[0], got[1]) {
			t.Errorf("%.20q: the answer is %q, of stock Caddy %q", garbage, got[0], got[1])
		}
	}
	c.stillServes(t)
}

// TestACMEChallengeProtocol: there is no challenge under way; the connection
// must end as stock Caddy ends it.
func TestACMEChallengeProtocol(t *testing.T) {
	c := withAndWithout(t, "ktls")
	var errs [2]string
	for i := range errs {
		conn := tls.Client(c.dial(t, i), tlsConfig(t, func(config *tls.Config) { config.NextProtos = []string{"acme-tls/1"} }))
		err := conn.Handshake()
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
		if err == nil || isTimeout(err) {
			t.Fatalf("listener %d: %v", i, err)
		}
		errs[i] = err.Error()
	}
	if errs[0] != errs[1] {
		t.Errorf("%q, with stock Caddy %q", errs[0], errs[1])
	}
	t.Log(errs[1])
	c.stillServes(t)
}

// halfOpen connects in ways that begin a handshake, at best.
func (c *caddy) halfOpen(t *testing.T) map[string]net.Conn {
	t.Helper()
	clientEnd, serverEnd := net.Pipe()
	defer clientEnd.Close()
	go tls.Client(clientEnd, tlsConfig(t)).Handshake()
	hello := make([]byte, 100) // the first bytes of a real ClientHello
	if _, err := io.ReadFull(serverEnd, hello); err != nil {
		t.Fatal(err)
	}
	conns := map[string]net.Conn{}
	for name, sent := range map[string][]byte{"silent": nil, "one byte": hello[:1], "half a header": hello[:3], "half a ClientHello": hello} {
		conns[name] = c.dial(t, 0)
		conns[name].Write(sent)
	}
	return conns
}

// TestHandshakesDontWait: a client that doesn't get on with its handshake holds
// up no one else.
func TestHandshakesDontWait(t *testing.T) {
	c := start(t, listener{wrappers: "ktls {\n\thandshake_timeout 1h\n}"})
	conns := c.halfOpen(t)
	c.stillServes(t)
	for _, conn := range conns {
		conn.Close()
	}
}

// shortTimeout is long enough for a handshake with Caddy that has just begun.
func shortTimeout() string {
	if slow || raceDetector {
		return "10s"
	}
	return "1s"
}

// TestHandshakeTimeout: clients that don't get on with the handshake are sent
// away after the wrapper's time-out.
func TestHandshakeTimeout(t *testing.T) {
	notEmulated(t)
	needKTLS(t) // without it, the wrapper isn't in the way, nor is its time-out
	c := start(t, listener{wrappers: "ktls {\n\thandshake_timeout " + shortTimeout() + "\n}"})
	idle := c.dialTLS(t, 0)
	c.handshakesTimeOut(t)

	// It is over with the handshake: from there on there is time.
	if _, err := io.WriteString(idle, lastRequest("/"+tiny.name+"?idle")); err != nil {
		t.Fatal(err)
	}
	a, err := readAnswer(bufio.NewReader(idle))
	if err != nil {
		t.Fatal(err)
	}
	a.isFile(t, tiny)
}

// TestDefaultHandshakeTimeout: the server's time-outs hold as in stock Caddy.
func TestDefaultHandshakeTimeout(t *testing.T) {
	notEmulated(t)
	start(t, listener{wrappers: "ktls", options: "timeouts {\n\tread_header " + shortTimeout() + "\n}"}).handshakesTimeOut(t)
}

func (c *caddy) handshakesTimeOut(t *testing.T) {
	t.Helper()
	patient := map[string]*goClient{"h1": c.goClient(t, 0, "h1"), "h2": c.goClient(t, 0, "h2")}
	for _, client := range patient {
		client.get(t, c.url(0, "/"+tiny.name)).isFile(t, tiny)
	}
	before := c.settled(t)

	for name, conn := range c.halfOpen(t) {
		t.Run(name, func(t *testing.T) {
			if b := readToEnd(t, conn); len(b) > 0 && b[0] != 21 { // an alert, if anything
				t.Errorf("the server said %x", b)
			}
			conn.Close()
		})
	}
	c.awaitFootprint(t, before)

	// Connections that were there before have outlived it.
	for proto, client := range patient {
		client.get(t, c.url(0, "/"+large.name+"?"+proto)).isFile(t, large)
		c.tookFile(t, "/"+large.name+"?"+proto, large.size)
		if n := client.conns.Load(); n != 1 {
			t.Errorf("%s: %d connections", proto, n)
		}
	}
}

// TestWrongProtocolSpoken: clients that don't speak what they negotiated may
// be served or sent away, but neither hang nor do harm.
func TestWrongProtocolSpoken(t *testing.T) {
	c := withAndWithout(t, "ktls")
	const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	const settings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	const goAway = "\x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	for _, test := range []struct{ name, negotiated, spoken string }{
		{"h2 negotiated, HTTP/1.1 spoken", "h2", lastRequest("/" + tiny.name)},
		{"http/1.1 negotiated, HTTP/2 spoken", "http/1.1", preface + settings + goAway},
		{"nothing negotiated, HTTP/2 spoken", "", preface + settings + goAway},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got [2][]byte
			for i := range got {
				conn := c.dialTLS(t, i, func(config *tls.Config) {
					if test.negotiated != "" {
						config.NextProtos = []string{test.negotiated}
					}
				})
				if p := conn.ConnectionState().NegotiatedProtocol; p != test.negotiated {
					t.Fatalf("negotiated %q", p)
				}
				if _, err := io.WriteString(conn, test.spoken); err != nil {
					t.Fatal(err)
				}
				got[i] = readToEnd(t, conn)
			}
			t.Logf("with ktls: %.200q, stock: %.200q", got[0], got[1])
			c.stillServes(t)
		})
	}
}
