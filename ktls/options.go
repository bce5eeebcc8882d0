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
	// handshake is complete, unless that was all of it, for an ACME challenge
	// (RFC 8737). Default: false, the caller decides with [Conn.Upgrade]. A
	// refusal isn't an error of the handshake: the connection stays with
	// crypto/tls.
	UpgradeAtHandshake bool

	// KeyLimit is how many records may be encrypted under one key after an
	// upgrade. Then a KeyUpdate changes the key, or, where that can't be (TLS 1.2,
	// kernels before 6.14), the connection ends: see [Conn.Expiring]. Default, and
	// at most: 23726566 for AES-GCM (RFC 8446, section 5.5), which is at least 388
	// GB, and 2^48 for ChaCha20-Poly1305. At least 16.
	KeyLimit uint64

	// Below returns the connection under a wrapper that passes every byte on
	// unchanged, or nil if it doesn't know the wrapper. It is how a TCP socket
	// is found under, say, a PROXY protocol connection. A wrapper that changes
	// what is written through it must not be looked through: the kernel's
	// records would bypass it. Default: nil, only a *net.TCPConn itself will do.
	Below func(net.Conn) net.Conn

	// ZerocopyRO lets a network card that encrypts read file pages where they
	// lie (TLS_TX_ZEROCOPY_RO, Linux 5.19): saves a copy in sendfile. Files must
	// then not change in place while they are sent, or a retransmission doesn't
	// verify. Without such a card it has no effect. Default: false.
	ZerocopyRO bool

	// RecordSize is the most content, in bytes, that a record of the kernel's
	// has (TLS_TX_MAX_PAYLOAD_LEN, Linux 7.2; Documentation/networking/tls.rst).
	// From 64 to 16384, and only where Features.MaxPayloadLen says yes. Default:
	// 0, the protocol's limit of 16384.
	RecordSize int

	// RX moves the receiving side into the kernel too (TLS_RX, Linux 6.0 or
	// newer), where it takes the keys for that: after the upgrade, between two
	// records, in Read. A refusal leaves receiving with crypto/tls and is no error;
	// see OnReceive. Default: false.
	RX bool

	// Unbuffered reports whether a wrapper that Below looks through doesn't read
	// ahead and passes on unchanged what it reads. With RX the kernel takes over
	// only then: bytes in a wrapper's buffer would be lost. Default: nil, only a
	// *net.TCPConn itself will do.
	Unbuffered func(net.Conn) bool

	// OnUpgrade, if not nil, is told once per connection how its upgrade went.
	// err is nil or an *[UpgradeError]. It is called with the connection's
	// write lock held and must neither write to the connection nor close it.
	OnUpgrade func(c *Conn, info Info, err error)

	// OnReceive, if not nil, is told once per upgraded connection with RX whether
	// the kernel decrypts: err is nil, or an *[UpgradeError] that says why
	// crypto/tls goes on receiving. It isn't called for a connection that ends
	// before. It must neither read, write nor close.
	OnReceive func(c *Conn, err error)

	// OnRekey, if not nil, is told of each change of the sending key after the
	// upgrade, which the peer asked for or which the key's usage limit demanded,
	// and of each that was refused: err is [ErrKeyUpdate], [ErrKeyUpdateFlood] or
	// what went wrong, and the connection ends. With RX it is told of those
	// changes of the receiving key alone that were refused. It is called as
	// OnUpgrade is.
	OnRekey func(c *Conn, byPeer bool, err error)
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
