package ktls

import (
	"net"
)

// Options are the settings of a [Conn] beyond its tls.Config. The zero value
// is ready to use. Options may be shared by many connections and must not be
// changed once in use.
type Options struct {
	// Features is what the kernel can do. Default: [Probe].
	Features *Features

	// UpgradeAtHandshake moves a connection into the kernel as soon as its
	// handshake is complete. Default: false, the caller decides with
	// [Conn.Upgrade]. A refusal isn't an error of the handshake: the
	// connection stays with crypto/tls.
	UpgradeAtHandshake bool

	// Below returns the connection under a wrapper that passes every byte on
	// unchanged, or nil if it doesn't know the wrapper. It is how a TCP socket
	// is found under, say, a PROXY protocol connection. A wrapper that changes
	// what is written through it must not be looked through: the kernel's
	// records would bypass it. Default: nil, only a *net.TCPConn itself will do.
	Below func(net.Conn) net.Conn

	// OnUpgrade, if not nil, is told once per connection how its upgrade went.
	// err is nil or an *[UpgradeError]. It is called with the connection's
	// write lock held and must neither write to the connection nor close it.
	OnUpgrade func(c *Conn, info Info, err error)
}

func (o *Options) features() *Features {
	if o.Features != nil {
		return o.Features
	}
	return Probe()
}

// tcpConn returns the TCP socket that conn is or is known to stand on.
func (o *Options) tcpConn(conn net.Conn) *net.TCPConn {
	for conn != nil {
		if tcp, ok := conn.(*net.TCPConn); ok {
			return tcp
		}
		if o.Below == nil {
			return nil
		}
		conn = o.Below(conn)
	}
	return nil
}
