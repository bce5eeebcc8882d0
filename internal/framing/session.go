// Package framing sends files as the payload of HTTP/2 DATA frames (RFC 9113).
//
// An HTTP/2 server writes to a connection. A handler writes stand-in bytes (see
// StandIn) of a file's length through it, so that flow control, scheduling and
// all bookkeeping stay with the server; a Session follows the frames that the
// server writes and says what to send in their place: DATA frames whose payload
// is read from the file.
//
// Most of what HTTP/2 costs is per frame. So a Session can also make the server
// believe that the client accepts large frames (Enlarge); what the server then
// writes is cut into frames that the client really accepts.
//
// The package is pure logic: it neither reads nor writes connections or files.
// It is written for the HTTP/2 servers of golang.org/x/net/http2 and net/http.
package framing

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/caddy-ktls/caddy-ktls/internal/lockorder"
)

// Session follows one HTTP/2 connection, on the server's side and from its
// first byte on, in both directions. Its zero value is ready to use.
//
// Rewrite is called by one goroutine at a time, in the order of what is to be
// sent; Inject and Received by one goroutine at a time, in the order in which
// the server reads; everything else by anybody.
type Session struct {
	// Record is the most payload that one TLS record of the connection takes,
	// in bytes: frames are cut so that one with its header fills a record. 0 is
	// 16384, which is also the most (RFC 8446, section 5.1). Set before first use.
	Record int

	// wants is what WantsInject says. It is written with mu held.
	wants atomic.Bool

	// mu guards everything below, and the Bodies. It is never held while
	// blocking or while another lock is taken.
	mu       lockorder.Mutex[lockorder.Leaf]
	err      error // set once: the connection failed or is closed
	out      outbound
	in       inbound
	settings settings
	bodies   map[uint32]*Body // by stream, until the server has ended it
	ended    []*Body          // of streams that it has ended, until all is sent
	void     []progress       // bodies given up; the oldest first
}

// maxVoid is how many bodies given up are remembered of streams that the client
// has reset: those the server never says have ended. What it had already
// committed to comes within the next few frames; if it comes much later, it is
// an error.
const maxVoid = 256

// errClosed is what Rewrite returns after Close(nil).
var errClosed = errors.New("framing: session is closed")

// Watch begins to follow the DATA of a stream. It must be called before the
// server can write any. A second Watch replaces the first, unless something is
// announced: then nothing can be announced on the new one.
func (s *Session) Watch(stream uint32) *Body {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := &Body{session: s, progress: progress{stream: stream}, done: make(chan struct{})}
	old := s.bodies[stream]
	if s.err != nil || old != nil && old.announced {
		b.finish()
		return b
	}
	if old != nil {
		old.finish()
	}
	if s.bodies == nil {
		s.bodies = make(map[uint32]*Body)
	}
	s.bodies[stream] = b
	return b
}

// Close says that the connection has ended: all bodies are done, nothing is
// injected any more, and Rewrite returns err.
func (s *Session) Close(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		err = errClosed
	}
	s.fail(err)
}

func (s *Session) fail(err error) {
	if s.err == nil {
		s.err = err
	}
	for _, b := range s.bodies {
		b.finish()
	}
	for _, b := range slices.Clone(s.ended) {
		b.finish()
	}
	s.bodies, s.void = nil, nil
	s.settings.release()
	s.updateWants()
}

// lookup returns how far a stream's DATA has got, and its body; both are nil if
// it isn't followed, and the body is if it was given up. The pointer is valid
// while mu is held.
func (s *Session) lookup(stream uint32) (*progress, *Body) {
	if b := s.bodies[stream]; b != nil {
		return &b.progress, b
	}
	for i := range s.void {
		if s.void[i].stream == stream {
			return &s.void[i], nil
		}
	}
	return nil, nil
}

// forget is called when the server has ended a stream.
func (s *Session) forget(stream uint32) {
	if b := s.bodies[stream]; b != nil {
		delete(s.bodies, stream)
		if b.ended = true; !b.closed {
			s.ended = append(s.ended, b)
			b.settle()
		}
		return
	}
	for i := range s.void {
		if s.void[i].stream == stream {
			s.void = slices.Delete(s.void, i, i+1)
			return
		}
	}
}

// giveUp makes of a body in use a mere entry in void.
func (s *Session) giveUp(b *Body) {
	delete(s.bodies, b.stream)
	if !b.announced {
		return
	}
	s.void = append(s.void, b.progress)
	for len(s.void) > maxVoid {
		// The others will be ended by the server, and must be known until then.
		i := slices.IndexFunc(s.void, func(p progress) bool { return p.refused })
		if i < 0 {
			break
		}
		s.void = slices.Delete(s.void, i, i+1)
	}
}

// refuse is called when the client has reset a stream.
func (s *Session) refuse(stream uint32) {
	if p, _ := s.lookup(stream); p != nil {
		p.refused = true
	}
}

func streamError(stream uint32, text string) error {
	return fmt.Errorf("framing: stream %d: %s", stream, text)
}
