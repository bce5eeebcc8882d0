//go:build linux

package integration

import (
	"crypto/tls"
	"io"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestRewrittenMethod: net/http goes by the client's method, whatever handlers
// make of it, and eats the body of the answer to a HEAD.
func TestRewrittenMethod(t *testing.T) {
	body := plainFiles(www, "file_server", "method GET", "ktls {", "min_size 1", "}")
	c := start(t, listener{wrappers: "ktls", sites: []site{{body: body}}})
	client := c.goClient(t, 0, "h1")
	for n, method := range []string{"HEAD", "GET", "HEAD"} {
		a := client.request(t, method, c.url(0, "/"+medium.name))
		if a.status != 200 || a.header.Get("Content-Length") == "" || (n > 0 && !a.reused) {
			t.Errorf("%s: status %d, Content-Length %q, reused connection %t", method, a.status, a.header.Get("Content-Length"), a.reused)
		}
		if method == "GET" {
			a.isFile(t, medium)
			c.tookFile(t, "/"+medium.name, medium.size)
		} else {
			c.tookPlain(t, "/"+medium.name, "method")
		}
	}
}

// TestOffForAPart: where several ktls directives match, the most specific one
// decides, and the response counts once.
func TestOffForAPart(t *testing.T) {
	c := start(t, listener{wrappers: "ktls", sites: []site{{body: files("ktls /" + medium.name + " off")}}})
	client := c.goClient(t, 0, "h1")
	client.get(t, c.url(0, "/"+medium.name)).isFile(t, medium)
	c.tookPlain(t, "/"+medium.name, "disabled")
	client.get(t, c.url(0, "/"+large.name)).isFile(t, large)
	c.tookFile(t, "/"+large.name, large.size)
	responses := c.status(t).Responses
	if len(responses) != 2 || responses[0].Count != 1 || responses[1].Count != 1 {
		t.Errorf("responses: %+v", responses)
	}
}

// TestHTTP2ProhibitedCipher: the HTTP/2 server refuses TLS 1.2 without ephemeral
// keys or AEAD on a *tls.Conn only; behind the wrapper it is refused all the same.
func TestHTTP2ProhibitedCipher(t *testing.T) {
	const suite = tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA
	body := files("tls {", "protocols tls1.2 tls1.2", "ciphers "+tls.CipherSuiteName(suite), "}")
	c := start(t, listener{wrappers: "ktls", sites: []site{{body: body}}}, listener{sites: []site{{body: body}}})
	for i, name := range []string{"with ktls", "stock"} {
		conn := c.dialTLS(t, i, func(config *tls.Config) {
			config.NextProtos, config.MaxVersion, config.CipherSuites = []string{"h2"}, tls.VersionTLS12, []uint16{suite}
		})
		conn.SetDeadline(time.Now().Add(patience))
		io.WriteString(conn, http2.ClientPreface)
		framer := http2.NewFramer(conn, conn)
		framer.WriteSettings()
		f, err := framer.ReadFrame()
		if goAway, ok := f.(*http2.GoAwayFrame); !ok || goAway.ErrCode != http2.ErrCodeInadequateSecurity {
			t.Errorf("%s: %v, %v; want GOAWAY INADEQUATE_SECURITY", name, f, err)
		}
	}
}
