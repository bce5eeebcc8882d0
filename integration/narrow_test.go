//go:build linux

package integration

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"
)

// sysctl sets one of the kernel's parameters until the test ends.
func sysctl(t *testing.T, name, value string) {
	t.Helper()
	path := "/proc/sys/" + name
	old, err := os.ReadFile(path)
	if err != nil {
		t.Skip(err)
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(path, old, 0); err != nil {
			t.Error(err)
		}
	})
}

// odd is a client with socket options that make TCP work badly.
type odd struct {
	name    string
	before  func(fd int) error    // before it connects
	reading func(fd, n int) error // before the nth read
	first   int64                 // bytes to read one by one
	by      int                   // how many at once after that; 32 KiB if 0
	file    file
}

// oddConn does what an odd client does to its socket.
type oddConn struct {
	*net.TCPConn
	odd
	raw   syscall.RawConn
	reads int
	got   int64
}

func (o odd) dial(addr string) (net.Conn, error) {
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if o.before != nil {
			rawErr := raw.Control(func(fd uintptr) { err = o.before(int(fd)) })
			err = firstError(rawErr, err)
		}
		return err
	}}
	conn, err := d.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	raw, err := conn.(*net.TCPConn).SyscallConn()
	return &oddConn{TCPConn: conn.(*net.TCPConn), odd: o, raw: raw}, err
}

func (c *oddConn) Read(p []byte) (n int, err error) {
	if c.reading != nil {
		rawErr := c.raw.Control(func(fd uintptr) { err = c.reading(int(fd), c.reads) })
		if err := firstError(rawErr, err); err != nil {
			return 0, err
		}
	}
	c.reads++
	if c.got < c.first {
		p = p[:1]
	} else if c.by > 0 {
		p = p[:min(len(p), c.by)]
	}
	n, err = c.TCPConn.Read(p)
	c.got += int64(n)
	return n, err
}

func oddClients() []odd {
	set := func(fd, level, option, value int) error {
		return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, level, option, value))
	}
	return []odd{
		{name: "ordinary", file: large},
		{name: "smallest receive buffer", file: ofSize(16385), first: 3000,
			before: func(fd int) error { return set(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1) }},
		{name: "smallest window", file: ofSize(65537), first: 3000, by: 100,
			before: func(fd int) error { return set(fd, unix.SOL_TCP, unix.TCP_WINDOW_CLAMP, 1) }},
		{name: "smallest segments", file: medium, first: 1000,
			before: func(fd int) error { return set(fd, unix.SOL_TCP, unix.TCP_MAXSEG, 88) }},
		{name: "smallest segments and buffer", file: ofSize(65537), by: 77,
			before: func(fd int) error {
				return firstError(set(fd, unix.SOL_TCP, unix.TCP_MAXSEG, 88), set(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1))
			}},
		{name: "acknowledgements by turns", file: medium, by: 5000,
			reading: func(fd, n int) error { return set(fd, unix.SOL_TCP, unix.TCP_QUICKACK, n%2) }},
		{name: "corked", file: medium,
			reading: func(fd, n int) error {
				return firstError(set(fd, unix.SOL_TCP, unix.TCP_CORK, 1), set(fd, unix.SOL_TCP, unix.TCP_CORK, 0))
			}},
	}
}

// TestNarrowTCP: with the smallest buffers, windows and segments that TCP allows,
// at the server by the system's parameters and at the client by socket options,
// a file comes whole, by sendfile.
func TestNarrowTCP(t *testing.T) {
	notEmulated(t)
	all := oddClients()
	for _, system := range []struct {
		name, parameter, value string
		clients                []odd
	}{
		{"as it is", "", "", all},
		{"tcp_notsent_lowat", "net/ipv4/tcp_notsent_lowat", "1", all},
		// Less than a record: each waits until the client has acknowledged the last.
		{"tcp_wmem", "net/ipv4/tcp_wmem", "4096 4096 4096", []odd{
			{name: "ordinary", file: ofSize(65537)},
			{name: "smallest segments", file: ofSize(65537), before: all[3].before},
		}},
	} {
		t.Run(system.name, func(t *testing.T) {
			if system.parameter != "" {
				sysctl(t, system.parameter, system.value)
			}
			c := start(t, listener{wrappers: "ktls"})
			for _, o := range system.clients {
				for _, proto := range []string{"h1", "h2"} {
					t.Run(o.name+"/"+proto, func(t *testing.T) {
						client := c.goClient(t, 0, proto, func(tr *http.Transport) {
							tr.DialContext = func(context.Context, string, string) (net.Conn, error) { return o.dial(c.addr(0)) }
						})
						uri := fmt.Sprintf("/%s?%s-%s", o.file.name, proto, url.QueryEscape(o.name))
						client.get(t, c.url(0, uri)).isFile(t, o.file)
						c.tookFile(t, uri, o.file.size)
					})
				}
			}
		})
	}
}

// TestCloseBehindSlowClient: a client that takes nothing for longer than Close waits
// for it gets all of a response that the server closes the connection behind:
// because the client said so, or because its configuration is gone.
func TestCloseBehindSlowClient(t *testing.T) {
	notEmulated(t)
	sysctl(t, "net/ipv4/tcp_wmem", "4096 4096 4096")
	c := setup{global: "grace_period 1m", listeners: []listener{{wrappers: "ktls"}, {}}}.start(t)
	f := small // a record that TCP has no room for
	read := map[string]func() (answer, error){}
	for i, what := range []string{"ktls", "stock"} {
		for proto, ask := range map[string]func(net.Conn, string) func() (answer, error){"http/1.1": lastHTTP1, "h2": firstHTTP2} {
			conn := handshake(t, dialSmallest(t, c.addr(i)), tlsConfig(t, func(config *tls.Config) { config.NextProtos = []string{proto} }))
			uri := "/" + f.name + "?" + what + "-" + proto
			read[uri] = ask(conn, uri)
		}
	}
	time.Sleep(time.Second) // until all four are being answered
	c.admin(t, "POST", "/load", "text/caddyfile", strings.Replace(c.caddyfile(), "grace_period 1m", "grace_period 61s", 1))
	time.Sleep(9 * time.Second) // HTTP/2's GOAWAY is a second before Close, which waits for 5

	for uri, read := range read {
		a, err := read()
		if err != nil {
			t.Errorf("%s: %v", uri, err)
		}
		checkBody(t, uri, a.size, a.sum, f.size, f.sum)
		if strings.Contains(uri, "ktls") {
			c.tookFile(t, uri, f.size)
		}
	}
}

// TestTimeoutOfLastRecord: kernel TLS took all of a response, TCP didn't, and the
// client reads nothing. When write_idle is over the response is cut, and says so.
func TestTimeoutOfLastRecord(t *testing.T) {
	needKTLS(t)
	sysctl(t, "net/ipv4/tcp_wmem", "4096 4096 4096")
	c := start(t, listener{wrappers: "ktls", options: "timeouts {\n\twrite_idle 2s\n}"})
	uri := "/" + small.name + "?late"
	read := lastHTTP1(handshake(t, dialSmallest(t, c.addr(0)), tlsConfig(t)), uri)
	if l := c.response(t, uri); l.KTLS == nil || l.KTLS.Path != "sendfile" || l.KTLS.Reason != "cut" {
		t.Errorf("the access log has %+v", l.KTLS)
	}
	if a, err := read(); err == nil {
		t.Errorf("the client got %d bytes, and no error", a.size)
	}
}

// dialSmallest connects with the smallest receive buffer there is.
func dialSmallest(t *testing.T, addr string) net.Conn {
	t.Helper()
	d := net.Dialer{Control: receiveBuffer(1, 0)}
	conn, err := d.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// lastHTTP1 sends the last request of a connection. What it returns reads the answer.
func lastHTTP1(conn net.Conn, uri string) (read func() (answer, error)) {
	io.WriteString(conn, lastRequest(uri))
	return func() (answer, error) { return readAnswer(bufio.NewReader(conn)) }
}

// firstHTTP2 is the same for the first request, and an answer's body. Before, not
// even SETTINGS are read.
func firstHTTP2(conn net.Conn, uri string) (read func() (answer, error)) {
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "localhost"}, {":path", uri}} {
		enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	framer := http2.NewFramer(conn, conn)
	io.WriteString(conn, http2.ClientPreface)
	framer.WriteSettings()
	framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true})
	return func() (answer, error) {
		var body []byte
		for {
			f, err := framer.ReadFrame()
			if err != nil {
				return answer{size: int64(len(body))}, err
			}
			if data, ok := f.(*http2.DataFrame); ok {
				body = append(body, data.Data()...)
				if data.StreamEnded() {
					return answer{size: int64(len(body)), sum: sum(body)}, nil
				}
			}
		}
	}
}
