package caddyktls

import (
	"errors"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/caddy-ktls/caddy-ktls/internal/framing"
	"github.com/caddy-ktls/caddy-ktls/internal/lockorder"
	"github.com/caddy-ktls/caddy-ktls/ktls"
)

// http2Conn is what a connection needs to send files over HTTP/2: its frames are
// followed from the first byte on, in both directions.
//
// Large frames. Most of what HTTP/2 costs is per frame, so the server is told
// that the client accepts large ones, once the kernel encrypts, and they are cut
// into the client's own size on the way out.
type http2Conn struct {
	frames framing.Session
	kicked atomic.Bool // the reader is to look for what is to be injected

	mu       lockorder.Mutex[lockorder.Deadline]
	deadline time.Time // of Read, while kicked isn't
	buffer   int64     // reserved for the server's large frames, in bytes
	released bool
}

// readHTTP2 is Read where frames are followed.
func (c *conn) readHTTP2(p []byte) (int, error) {
	frames := &c.http2.frames
	for {
		if frames.WantsInject() {
			if n := frames.Inject(p); n > 0 {
				return n, nil
			}
		}
		n, err := c.Conn.Read(p)
		frames.Received(p[:n])
		if held := frames.Held(); held != nil {
			<-held
		}
		if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) && c.unkick() {
			continue
		}
		return n, err
	}
}

// reserve counts a buffer of size bytes, unless there is one as large already.
// It reports whether the server may have it.
func (h *http2Conn) reserve(size int64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	more := size - h.buffer
	if more <= 0 {
		return true
	}
	if h.released || !reserveFrameBuffer(more) {
		return false
	}
	h.buffer = size
	return true
}

// release gives back what was reserved; there is nothing to be had any more.
func (h *http2Conn) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	frameBuffers.Add(-h.buffer)
	h.buffer, h.released = 0, true
}

// enlarge lets the server write frames of size bytes, from now on, if there is
// memory for them.
func (c *conn) enlarge(size int64) {
	if !c.http2.reserve(size) {
		return
	}
	c.http2.frames.Enlarge(uint32(size))
	if c.http2.frames.WantsInject() {
		c.kick()
	}
}

// kick wakes a reader that waits for the client: by its deadline, which is put
// back as soon as it is awake.
func (c *conn) kick() {
	if c.http2.kicked.Load() {
		return
	}
	c.http2.mu.Lock()
	defer c.http2.mu.Unlock()
	c.http2.kicked.Store(true)
	c.Conn.SetReadDeadline(time.Unix(1, 0))
}

// unkick reports whether it was a kick that woke the reader.
func (c *conn) unkick() bool {
	if !c.http2.kicked.Load() {
		return false
	}
	c.http2.mu.Lock()
	defer c.http2.mu.Unlock()
	c.http2.kicked.Store(false)
	c.Conn.SetReadDeadline(c.http2.deadline)
	return true
}

func (c *conn) setReadDeadlineHTTP2(t time.Time) error {
	c.http2.mu.Lock()
	defer c.http2.mu.Unlock()
	c.http2.deadline = t
	if c.http2.kicked.Load() {
		return nil // the reader will set it
	}
	return c.Conn.SetReadDeadline(t)
}

// writeHTTP2 is Write where frames are followed. The payload of frames that
// stand for a file's is replaced by the file's.
func (c *conn) writeHTTP2(p []byte) (int, error) {
	parts, err := c.http2.frames.Rewrite(p)
	if err != nil {
		if !errors.Is(err, net.ErrClosed) {
			c.failed(err)
		}
		return 0, err
	}
	defer clear(parts) // else an idle connection pins the server's pooled buffer
	if c.http2.frames.WantsInject() {
		c.kick()
	}
	switch {
	case len(parts) == 0: // held back, or an answer to what the client never asked
		return len(p), nil
	case len(parts) == 1 && parts[0].Body == nil:
		_, err = c.Conn.WriteAhead(parts[0].Bytes)
	case c.Offloaded():
		err = c.Batch(func(b *ktls.Batch) error { return sendParts(b, parts) })
	default:
		for i := 0; i < len(parts) && err == nil; i++ {
			_, err = c.Conn.Write(parts[i].Bytes) // nothing else is announced before the upgrade
		}
	}
	// TCP is waited for where a stream ends only: each time costs a system call, and
	// often a wait for the client.
	if err == nil && c.http2.frames.Ended() {
		err = c.Settle()
	}
	if err != nil {
		// What the server still writes fails as on any connection that is closed: a
		// client that leaves is nothing to log.
		c.http2.frames.Close(net.ErrClosed)
		return 0, err
	}
	return len(p), nil
}

// sendParts sends what the server has written, and files in its place.
func sendParts(b *ktls.Batch, parts []framing.Part) error {
	for i := range parts {
		part, more := &parts[i], i < len(parts)-1
		if part.Body == nil {
			if _, err := b.Write(part.Bytes, more); err != nil {
				return err
			}
			continue
		}
		if err := sendBody(b, part, more); err != nil {
			return err
		}
	}
	return nil
}

// sendBody sends a part of a file. If its handler gave it up, or the file has
// become too short, padding goes in its place: the stream ends, the connection
// doesn't.
func sendBody(b *ktls.Batch, part *framing.Part, more bool) error {
	body := part.Body
	if !body.Voided() {
		var told int64
		n, err := b.SendFramed(body.File(), part.Off, part.N, ktls.Framed{Size: part.Size, Headers: part.Headers, Len: frameHeaderLen},
			func(sent int64) {
				body.Sent(sent - told)
				told = sent
			})
		body.Sent(n - told)
		if err == nil || !errors.Is(err, os.ErrClosed) && !errors.Is(err, ktls.ErrShortFile) {
			return err
		}
		body.Void()
	}
	_, err := b.Write(part.AppendPadding(nil, 0), more)
	return err
}

// frameHeaderLen is the length of an HTTP/2 frame's header in bytes (RFC 9113,
// section 4.1).
const frameHeaderLen = 9
