package caddyktls

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"testing"

	"go.uber.org/zap"

	"github.com/caddy-ktls/caddy-ktls/ktls"
)

// silentConn is a connection on which nothing must be sent.
type silentConn struct {
	net.Conn
	t      *testing.T
	closed bool
}

func (c *silentConn) Write(p []byte) (int, error) {
	c.t.Errorf("%d bytes have left", len(p))
	return len(p), nil
}

func (c *silentConn) RemoteAddr() net.Addr { return new(net.TCPAddr) }

func (c *silentConn) Close() error {
	c.closed = true
	return nil
}

// With HTTP/1.1, stand-in bytes that weren't announced, and anything else in the
// place of those that were, end the connection before a byte of them is sent.
func TestStandInMismatchEndsTheConnection(t *testing.T) {
	announced := func() *body { return &body{file: os.Stdin, left: 3 * minStandIn} }
	for name, test := range map[string]struct {
		body *body
		p    []byte
	}{
		"not announced":           {nil, standIn[:minStandIn]},
		"not announced, a part":   {nil, standIn[5 : 5+minStandIn]},
		"other bytes":             {announced(), []byte("other")},
		"a copy":                  {announced(), make([]byte, minStandIn)},
		"more than was announced": {announced(), standIn[:3*minStandIn+1]},
		"after the last":          {&body{file: os.Stdin}, standIn[:1]},
		"others after the last":   {&body{file: os.Stdin}, []byte("other")},
	} {
		t.Run(name, func(t *testing.T) {
			below := &silentConn{t: t}
			c := &conn{
				Conn:     ktls.Server(below, new(tls.Config), nil),
				listener: &listener{logger: zap.NewNop()},
				preface:  -1,
				body:     test.body,
			}
			if n, err := c.Write(test.p); n != 0 || !errors.Is(err, errStandIn) {
				t.Errorf("%d bytes, %v", n, err)
			}
			if !below.closed {
				t.Error("the connection isn't closed")
			}
		})
	}
}
