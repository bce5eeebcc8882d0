//go:build linux

package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// A client is one connection to a server.
type client struct {
	wire *wire
	tls  *tls.Conn // nil: no TLS
	conn net.Conn  // the one of these that requests and responses go through
	in   *bufio.Reader
	h2   *http2State // nil: HTTP/1.1
}

type http2State struct {
	framer  *http2.Framer
	block   bytes.Buffer // of headers
	encoder *hpack.Encoder
	out     bytes.Buffer // frames to be written
	writer  *http2.Framer
	next    uint32 // stream
}

// alpn are the names that TLS has for the protocols.
var alpn = map[string]string{"h1": "http/1.1", "h2": "h2"}

// tlsVersions are the versions of TLS, as results name them.
var tlsVersions = map[string]uint16{"1.3": tls.VersionTLS13, "1.2": tls.VersionTLS12}

// aes128 are the cipher suites with AES-128-GCM.
var aes128 = map[string]uint16{
	"1.3": tls.TLS_AES_128_GCM_SHA256,
	"1.2": tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
}

// curves are those that are offered. With TLS 1.2 that of the certificate's key has to
// be one of them, as RFC 8422, section 5.1.1 demands.
var curves = map[string][]tls.CurveID{"1.3": {tls.X25519}, "1.2": {tls.X25519, tls.CurveP256}}

// dial opens a connection with a version of TLS (or none), X25519 and, as Go prefers
// it on a CPU with AES instructions, AES-128-GCM.
func dial(addr, protocol, version string) (*client, error) {
	return dialWith(new(net.Dialer), addr, protocol, version)
}

func dialWith(d *net.Dialer, addr, protocol, version string) (*client, error) {
	conn, err := d.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	c := &client{wire: &wire{Conn: conn}}
	c.wire.records = records{overhead: overheads[version], clear: version == "none"}
	c.conn = c.wire
	if version != "none" {
		c.tls = tls.Client(c.wire, &tls.Config{
			InsecureSkipVerify: true, // the server is ours, and bodies are compared
			ServerName:         "localhost",
			NextProtos:         []string{alpn[protocol]},
			MinVersion:         tlsVersions[version],
			MaxVersion:         tlsVersions[version],
			CipherSuites:       []uint16{aes128["1.2"]}, // of TLS 1.2 alone: Go has no choice of TLS 1.3's
			CurvePreferences:   curves[version],
		})
		c.conn = c.tls
	}
	c.in = bufio.NewReaderSize(c.conn, 64<<10)
	if err := c.begin(protocol, version); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

func (c *client) begin(protocol, version string) error {
	if c.tls == nil {
		return nil
	}
	if err := c.tls.Handshake(); err != nil {
		return err
	}
	state := c.tls.ConnectionState()
	if state.NegotiatedProtocol != alpn[protocol] {
		return fmt.Errorf("protocol is %q, want %q", state.NegotiatedProtocol, alpn[protocol])
	}
	if state.CipherSuite != aes128[version] {
		return fmt.Errorf("cipher is %s", tls.CipherSuiteName(state.CipherSuite))
	}
	if state.CurveID != tls.X25519 {
		return fmt.Errorf("key exchange by %v", state.CurveID)
	}
	if protocol != "h2" {
		return nil
	}
	s := &http2State{framer: http2.NewFramer(c.conn, c.in), next: 1}
	s.framer.SetReuseFrames()
	s.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	s.encoder = hpack.NewEncoder(&s.block)
	s.writer = http2.NewFramer(&s.out, nil)
	c.h2 = s
	// Windows that never close, so that nothing has to be sent meanwhile.
	const window = 1<<31 - 1
	s.out.WriteString(http2.ClientPreface)
	if err := s.writer.WriteSettings(
		http2.Setting{ID: http2.SettingEnablePush, Val: 0},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: window},
	); err != nil {
		return err
	}
	if err := s.writer.WriteWindowUpdate(0, window-65535); err != nil {
		return err
	}
	_, err := s.out.WriteTo(c.conn)
	return err
}

// close ends the connection as a browser does.
func (c *client) close() {
	c.wire.SetWriteDeadline(time.Now().Add(time.Second))
	if c.tls != nil {
		c.tls.CloseWrite()
	}
	c.wire.Close()
}

// request asks n times for a file; with HTTP/1.1, n is 1.
func (c *client) request(file string, n int) error {
	if c.h2 == nil {
		return c.requestHTTP1("GET", file)
	}
	s := c.h2
	for range n {
		s.block.Reset()
		for _, field := range []hpack.HeaderField{
			{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: "localhost"},
			{Name: ":path", Value: "/" + file}, {Name: "user-agent", Value: "bench"}, {Name: "accept", Value: "*/*"},
		} {
			if err := s.encoder.WriteField(field); err != nil {
				return err
			}
		}
		if err := s.writer.WriteHeaders(http2.HeadersFrameParam{
			StreamID: s.next, BlockFragment: s.block.Bytes(), EndStream: true, EndHeaders: true,
		}); err != nil {
			return err
		}
		s.next += 2
	}
	_, err := s.out.WriteTo(c.conn)
	return err
}

func (c *client) requestHTTP1(method, file string) error {
	_, err := io.WriteString(c.conn, method+" /"+file+" HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
	return err
}

// headerLength returns how long the header of an HTTP/1.1 response is, in bytes.
func (c *client) headerLength(file string) (int64, error) {
	begin := c.wire.records.plaintext
	if err := c.requestHTTP1("HEAD", file); err != nil {
		return 0, err
	}
	_, err := http.ReadResponse(c.in, &http.Request{Method: "HEAD"})
	return c.wire.records.plaintext - begin, err
}

// receive reads n responses and compares their bodies with what is wanted.
func (c *client) receive(want []byte, n int) error {
	if c.h2 != nil {
		return c.receiveHTTP2(want, n)
	}
	for range n {
		response, err := http.ReadResponse(c.in, nil)
		if err != nil {
			return err
		}
		body := &body{want: want}
		if response.StatusCode != http.StatusOK || response.ContentLength != int64(len(want)) {
			return fmt.Errorf("status %s, %d bytes", response.Status, response.ContentLength)
		}
		if _, err := io.Copy(body, response.Body); err != nil {
			return err
		}
		if err := body.whole(); err != nil {
			return err
		}
	}
	return nil
}

func (c *client) receiveHTTP2(want []byte, n int) error {
	bodies := make(map[uint32]*body)
	for ended := 0; ended < n; {
		frame, err := c.h2.framer.ReadFrame()
		if err != nil {
			return err
		}
		id := frame.Header().StreamID
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				err = c.h2.framer.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				err = c.h2.framer.WritePing(true, frame.Data)
			}
		case *http2.MetaHeadersFrame:
			var length string
			for _, field := range frame.RegularFields() {
				if field.Name == "content-length" {
					length = field.Value
				}
			}
			if frame.PseudoValue("status") != "200" || length != strconv.Itoa(len(want)) {
				return fmt.Errorf("stream %d: status %s, %s bytes", id, frame.PseudoValue("status"), length)
			}
			bodies[id] = &body{want: want}
		case *http2.DataFrame:
			b := bodies[id]
			if b == nil {
				return fmt.Errorf("stream %d: data without a header", id)
			}
			if _, err = b.Write(frame.Data()); err == nil && frame.StreamEnded() {
				ended++
				err = b.whole()
			}
		case *http2.RSTStreamFrame:
			return fmt.Errorf("stream %d: reset: %v", id, frame.ErrCode)
		case *http2.GoAwayFrame:
			return fmt.Errorf("the server goes away: %v", frame.ErrCode)
		}
		if err != nil {
			return fmt.Errorf("stream %d: %w", id, err)
		}
	}
	return nil
}

// A body is compared with a file as it arrives.
type body struct {
	want []byte
	have int
}

func (b *body) Write(p []byte) (int, error) {
	if len(p) > len(b.want)-b.have || !bytes.Equal(p, b.want[b.have:b.have+len(p)]) {
		return 0, fmt.Errorf("of the %d bytes from %d on, not all are the file's", len(p), b.have)
	}
	b.have += len(p)
	return len(p), nil
}

// whole says whether all of the file arrived.
func (b *body) whole() error {
	if b.have != len(b.want) {
		return fmt.Errorf("%d bytes of %d", b.have, len(b.want))
	}
	return nil
}
