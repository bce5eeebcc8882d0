package ktls

import (
	"errors"
	"fmt"
	"os"
)

// Batch is a number of writes that belong together: nobody else's data comes in
// between, and TCP sends them in full segments (TCP_CORK). See [Conn.Batch].
type Batch struct {
	c   *Conn
	tap *tap
}

// Batch calls f with a batch to write to. Like Write, it keeps the first error,
// after which nothing more can be written, and like WriteAhead it doesn't wait for
// TCP. Only an upgraded connection can do it: else [ErrNotOffloaded] is returned,
// and f isn't called.
func (c *Conn) Batch(f func(*Batch) error) error {
	if !c.offloaded.Load() {
		return ErrNotOffloaded
	}
	return c.send(func(t *tap) error {
		corked := t.kernel.cork(true) == nil // it only saves: a sandbox that denies it costs segments
		b := Batch{c: c, tap: t}
		err := f(&b)
		if corked {
			if cerr := t.kernel.cork(false); err == nil {
				err = cerr
			}
		}
		return err
	})
}

// Write writes application data. With more set, a last record that isn't full
// is kept open for what follows in this batch; something must.
func (b *Batch) Write(p []byte, more bool) (n int, err error) {
	for n < len(p) {
		m, err := b.tap.allot(int64(len(p) - n))
		if err != nil {
			return n, err
		}
		end := n + int(m)
		w, err := b.tap.kernel.write(p[n:end], more || end < len(p))
		n += w
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// Framed describes what SendFramed puts into a file.
type Framed struct {
	Size    int    // bytes of the file in a piece; the last one may be shorter
	Headers []byte // of all pieces, one after the other
	Len     int    // bytes of one header
}

// ErrShortFile is returned by SendFramed if the file ends too soon.
var ErrShortFile = errors.New("ktls: the file is shorter than what is to be sent")

// SendFramed sends n bytes of f from offset off on, in pieces, each behind its
// header, by sendfile(2). If f is closed already or too short, nothing is sent,
// the error is [os.ErrClosed] or [ErrShortFile], and the batch may go on; f can't
// be closed in between. stalled is as in [Conn.SendFile].
func (b *Batch) SendFramed(f *os.File, off, n int64, framed Framed, stalled func(sent int64)) (sent int64, err error) {
	if framed.Size <= 0 || framed.Len <= 0 || int64(len(framed.Headers)) < (n+int64(framed.Size)-1)/int64(framed.Size)*int64(framed.Len) {
		return 0, fmt.Errorf("ktls: %d bytes in pieces of %d with %d bytes of headers", n, framed.Size, len(framed.Headers))
	}
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if off < 0 || n < 0 || fi.Size()-off < n {
		return 0, ErrShortFile
	}
	src, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := src.Control(func(fd uintptr) {
		for sent < n && err == nil {
			var m int64
			m, err = b.pieces(int(fd), off+sent, n-sent, sent, framed, stalled)
			sent += m
			framed.Headers = framed.Headers[m/int64(framed.Size)*int64(framed.Len):]
		}
	})
	b.c.sentFile.Add(sent)
	if cerr != nil { // not os.ErrClosed where that is what it means
		return sent, fmt.Errorf("%w: %w", os.ErrClosed, cerr)
	}
	return sent, err
}

// pieces sends as many whole pieces as the key allows.
func (b *Batch) pieces(file int, off, n, done int64, framed Framed, stalled func(int64)) (int64, error) {
	t := b.tap
	size := int64(framed.Size)
	// Sendfile ends a piece's last record: what it could have held is used up too.
	worth := (size + int64(framed.Len) + t.key.size - 1) / t.key.size * t.key.size
	count := (n + size - 1) / size
	if !t.key.fits(count * worth) {
		if t.key.room() < worth {
			if err := t.renewKey(); err != nil {
				return 0, err
			}
		}
		count = min(count, t.key.room()/worth)
		if count == 0 {
			return 0, fmt.Errorf("pieces of %d bytes: %w", size, ErrKeyLimit)
		}
	}
	t.key.take(count * worth)
	return t.kernel.sendPieces(file, off, min(n, count*size), done, framed, stalled)
}
