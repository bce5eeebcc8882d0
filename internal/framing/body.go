package framing

import (
	"errors"
	"os"
	"slices"
)

// Body is what is sent on one stream.
type Body struct {
	session *Session
	done    chan struct{}

	// Guarded by the session's mu.
	progress
	file    *os.File
	off     int64
	emitted int64 // bytes of the file in Parts so far
	sent    int64
	ended   bool // the server has ended the stream: nothing more is emitted
	closed  bool // done is
}

// progress is how far the DATA of a stream has got.
type progress struct {
	stream    uint32
	announced bool
	void      bool  // the body was given up
	refused   bool  // the client has reset the stream
	whole     bool  // all announced bytes were sent before the body was given up
	seen      int64 // bytes of data that the server has written, padding apart
	skip, n   int64 // as announced
}

// split says how many of the next n bytes of data are as they are, and how many
// are stand-in bytes, which follow.
func (p *progress) split(n int) (plain, standIn int) {
	if p == nil || !p.announced || p.seen+int64(n) <= p.skip {
		return n, 0
	}
	plain = int(max(p.skip-p.seen, 0))
	return plain, n - plain
}

// position is where in the announced bytes the next stand-in byte is.
func (p *progress) position() int64 { return max(p.seen-p.skip, 0) }

// missing reports whether the server has still to write some that is announced.
func (p *progress) missing() bool { return p.announced && p.seen < p.skip+p.n }

// errLate is returned if a stream can't take a file any more.
var errLate = errors.New("framing: stream has ended, or is past the place announced")

// Announce says that after skip bytes of data, counted from Watch, the server
// is going to write n stand-in bytes for those of file from off on. What comes
// before them goes out as it is; no data may come after them.
//
// The stream must take all n bytes, the file must stay open until Done, and the
// handler must not return before. If Announce returns an error, nothing was
// announced: no stand-in byte may be written.
func (b *Body) Announce(file *os.File, skip, off, n int64) error {
	s := b.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.announced || b.closed || b.ended || s.bodies[b.stream] != b || b.seen > skip || n < 0 {
		return errLate
	}
	b.announced, b.file, b.skip, b.off, b.n = true, file, skip, off, n
	b.settle()
	return nil
}

// Void says that the handler gives up (stream reset by the client, time-out) and
// the file will be closed. It may be called at any time and more than once; a
// handler does so before it returns, whatever happened.
//
// Stand-in bytes that the server had already committed to still come, and are
// sent as padding. They count in the connection's flow-control window, so they
// can't be dropped. If the server ends the stream as if nothing was missing, it
// is reset in place of that.
func (b *Body) Void() {
	s := b.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.void {
		return
	}
	b.whole = b.announced && !b.missing() && b.sent >= b.n
	b.void = true
	if s.bodies[b.stream] == b {
		s.giveUp(b)
	}
	b.finish()
}

// Voided reports whether Void was called. Whoever sends a Part asks before each
// of its frames: the file may be closed, so the rest is to be sent as padding
// (see Part.AppendPadding).
func (b *Body) Voided() bool {
	b.session.mu.Lock()
	defer b.session.mu.Unlock()
	return b.void
}

// Sent says that another n bytes of the body have been sent.
func (b *Body) Sent(n int64) {
	b.session.mu.Lock()
	defer b.session.mu.Unlock()
	b.sent += n
	b.settle()
}

// Done is closed when all announced bytes are sent, or when there is nothing to
// wait for any more: after Void, after the session has failed or was closed,
// when the server has reset the stream. Left says which.
func (b *Body) Done() <-chan struct{} { return b.done }

// Left returns how many announced bytes have not been sent.
func (b *Body) Left() int64 {
	b.session.mu.Lock()
	defer b.session.mu.Unlock()
	return b.n - b.sent
}

// File returns the file announced.
func (b *Body) File() *os.File {
	b.session.mu.Lock()
	defer b.session.mu.Unlock()
	return b.file
}

// Stream returns the stream's number.
func (b *Body) Stream() uint32 { return b.stream }

// settle ends the body if nothing more will be sent. When the server has ended
// the stream, that is what was in Parts by then.
func (b *Body) settle() {
	if b.announced && b.sent >= b.n || b.ended && b.sent >= b.emitted {
		b.finish()
	}
}

func (b *Body) finish() {
	if b.closed {
		return
	}
	b.closed = true
	close(b.done)
	if b.ended {
		s := b.session
		s.ended = slices.DeleteFunc(s.ended, func(other *Body) bool { return other == b })
	}
}
