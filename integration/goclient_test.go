//go:build linux

package integration

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tlsConfig is that of a client that trusts Caddy's internal CA and nothing
// else, changed by what a test needs.
func tlsConfig(t testing.TB, change ...func(*tls.Config)) *tls.Config {
	t.Helper()
	pem, err := os.ReadFile(rootFile())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatalf("no certificate in %s", rootFile())
	}
	config := &tls.Config{RootCAs: roots, ServerName: "localhost"}
	for _, f := range change {
		f(config)
	}
	return config
}

// goClient is Go's HTTP client on one listener of a Caddy.
type goClient struct {
	http.Client
	conns atomic.Int32 // connections made
}

// goClient returns a client that speaks proto ("h1" or "h2") and nothing else.
func (c *caddy) goClient(t *testing.T, i int, proto string, change ...func(*http.Transport)) *goClient {
	t.Helper()
	client := new(goClient)
	client.Timeout = patience
	protocols := new(http.Protocols)
	protocols.SetHTTP1(proto == "h1")
	protocols.SetHTTP2(proto == "h2")
	tr := &http.Transport{
		Protocols:          protocols,
		DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			client.conns.Add(1)
			return new(net.Dialer).DialContext(ctx, "tcp", c.addr(i))
		},
	}
	if !c.setup.listeners[i].clear {
		tr.TLSClientConfig = tlsConfig(t, func(config *tls.Config) { config.ServerName = "" })
	}
	for _, f := range change {
		f(tr)
	}
	dial := tr.DialContext
	tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &writesFirst{Conn: conn}, nil
	}
	client.Transport = tr
	t.Cleanup(tr.CloseIdleConnections)
	return client
}

// writesFirst is a connection on which an answer isn't seen before the request's
// Write has returned. Go's client gives a connection up if that takes 50 ms more,
// as it may where one processor is shared with the server.
type writesFirst struct {
	net.Conn
	writing sync.Mutex
}

func (c *writesFirst) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	return c.Conn.Write(p)
}

func (c *writesFirst) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	for until := time.Now().Add(time.Second); !c.writing.TryLock(); { // not for ever: the server may not read on
		if time.Now().After(until) {
			return n, err
		}
		time.Sleep(time.Millisecond)
	}
	c.writing.Unlock()
	return n, err
}

// answer is a response, read to its end.
type answer struct {
	status int
	proto  string
	header http.Header
	size   int64
	sum    string
	body   []byte // of short ones only
	reused bool
	closes bool // the connection ends with it
	tls    *tls.ConnectionState
}

// do sends a request and reads the response; err is what ended its body.
func (client *goClient) do(req *http.Request) (a answer, err error) {
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { a.reused = info.Reused }}
	resp, err := client.Do(req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	a.status, a.proto, a.header, a.tls, a.closes = resp.StatusCode, resp.Proto, resp.Header, resp.TLS, resp.Close
	begin, err := io.ReadAll(io.LimitReader(resp.Body, 64*kib+1))
	if err != nil || len(begin) <= 64*kib {
		a.body, a.size, a.sum = begin, int64(len(begin)), sum(begin)
		return a, err
	}
	a.size, a.sum, err = sumReader(io.MultiReader(bytes.NewReader(begin), resp.Body))
	return a, err
}

// get fetches what must come whole. The headers are pairs of name and value.
func (client *goClient) get(t *testing.T, url string, headers ...string) answer {
	t.Helper()
	return client.request(t, "GET", url, headers...)
}

func (client *goClient) request(t *testing.T, method, url string, headers ...string) answer {
	t.Helper()
	req := newRequest(t, method, url, headers...)
	a, err := client.do(req)
	if err != nil {
		t.Fatalf("%s %s: %v after %d bytes", method, url, err, a.size)
	}
	return a
}

func newRequest(t testing.TB, method, url string, headers ...string) *http.Request {
	t.Helper()
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return req
}

// isFile checks that an answer is the whole of a file.
func (a answer) isFile(t *testing.T, f file) {
	t.Helper()
	if a.status != http.StatusOK {
		t.Errorf("%s: status %d", f.name, a.status)
	}
	checkBody(t, f.name, a.size, a.sum, f.size, f.sum)
}

// isBytes checks an answer's body.
func (a answer) isBytes(t *testing.T, what string, want []byte) {
	t.Helper()
	checkBody(t, what, a.size, a.sum, int64(len(want)), sum(want))
}

func checkBody(t *testing.T, what string, size int64, sum string, wantSize int64, wantSum string) {
	t.Helper()
	if size != wantSize || sum != wantSum {
		t.Errorf("%s: %d bytes with SHA-256 %s, want %d with %s", what, size, sum, wantSize, wantSum)
	}
}

// dialTLS makes a TLS connection and nothing more.
func (c *caddy) dialTLS(t *testing.T, i int, change ...func(*tls.Config)) *tls.Conn {
	t.Helper()
	tcp, err := net.Dial("tcp", c.addr(i))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tcp.Close() })
	return handshake(t, tcp, tlsConfig(t, change...))
}

func handshake(t testing.TB, tcp net.Conn, config *tls.Config) *tls.Conn {
	t.Helper()
	conn := tls.Client(tcp, config)
	conn.SetDeadline(time.Now().Add(patience))
	if err := conn.Handshake(); err != nil {
		t.Fatalf("handshake: %v", err)
	}
	return conn
}

// dialSmall connects with so small a receive buffer that the server soon has
// to wait for the client, and with segments of so many bytes (0: any).
func dialSmall(t *testing.T, addr string, segment int) *net.TCPConn {
	t.Helper()
	conn, err := connectSmall(addr, segment)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

// connectSmall is dialSmall for who closes the connection.
func connectSmall(addr string, segment int) (net.Conn, error) {
	d := net.Dialer{Control: receiveBuffer(64*kib, segment)}
	return d.Dial("tcp", addr)
}

// receiveBuffer is the Control of a net.Dialer for a receive buffer of n bytes, and
// segments of so many (0: any).
func receiveBuffer(n, segment int) func(string, string, syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) (err error) {
		rawErr := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, n)
			if segment > 0 {
				err = firstError(err, unix.SetsockoptInt(int(fd), unix.SOL_TCP, unix.TCP_MAXSEG, segment))
			}
		})
		return firstError(rawErr, err)
	}
}
