package caddyktls

import (
	"io"
	"net"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddy-ktls/caddy-ktls/ktls"
)

// receiving counts and logs whether the kernel decrypts what a client sends.
func (l *listener) receiving(c *ktls.Conn, err error) {
	countReceiving(err)
	if err != nil {
		if e := l.logger.Check(zapcore.DebugLevel, "receiving stays in user space"); e != nil {
			u := upgradeError(err)
			e.Write(zap.Stringer("remote", c.RemoteAddr()), zap.String("reason", u.Reason), zap.Error(u.Err))
		}
		return
	}
	if e := l.logger.Check(zapcore.DebugLevel, "kernel TLS receives"); e != nil {
		e.Write(zap.Stringer("remote", c.RemoteAddr()))
	}
}

// unbuffered knows the wrappers among those of belowConn that never read ahead:
// our own. Those of Caddy do, to see what is spoken.
func unbuffered(c net.Conn) bool {
	_, ok := c.(*gate)
	return ok
}

// WriteTo copies what Read returns. That of the ktls.Conn would go past the
// handshake, and the frames of HTTP/2.
func (c *conn) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{c})
}
