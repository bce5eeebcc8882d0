package ktls

import (
	"errors"
	"io"
	"net"
)

// WriteTo writes all that Read would return to w, until the end of the stream.
// Where the kernel decrypts and w is a *net.TCPConn, the bytes don't pass through
// user space (splice(2)), which saves a copy in memory, but no instructions: the
// kernel splices record by record. The deadlines of both connections hold.
//
// io.Copy finds this method on the Conn alone, not through a wrapper: net/http and
// Caddy hide it, so that what Caddy's reverse_proxy passes on is copied by Read.
func (c *Conn) WriteTo(w io.Writer) (n int64, err error) {
	tcp, ok := w.(*net.TCPConn)
	if !ok || !c.opts.RX {
		return io.Copy(w, onlyReader{c})
	}
	var buf []byte
	for {
		m, err := c.spliceTo(tcp)
		n += m
		if !errors.Is(err, errNoSplice) {
			if err == io.EOF {
				err = nil
			}
			return n, err
		}
		// crypto/tls still receives, or did until now.
		if buf == nil {
			buf = make([]byte, 2*MaxPlaintext)
		}
		k, rerr := c.Read(buf)
		if k > 0 {
			k, err := tcp.Write(buf[:k])
			n += int64(k)
			if err != nil {
				return n, err
			}
		}
		if rerr == io.EOF {
			return n, nil
		}
		if rerr != nil {
			return n, rerr
		}
	}
}

// errNoSplice means that Read comes first.
var errNoSplice = errors.New("ktls: nothing to splice")

// onlyReader hides WriteTo.
type onlyReader struct{ io.Reader }

var _ io.WriterTo = (*Conn)(nil)
