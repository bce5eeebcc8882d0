package caddyktls

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// sending is one body on its way.
type sending struct {
	w      *responseWriter
	file   *os.File
	off, n int64
	from   io.Reader // the file, within its limits
	idle   []idleWriter
	ctx    context.Context // of the request
}

// advance does to what the file was read from as if done bytes had been read.
func (s *sending) advance(done int64) {
	for l, ok := s.from.(*io.LimitedReader); ok; l, ok = l.R.(*io.LimitedReader) {
		l.N -= done
	}
	s.file.Seek(s.off+done, io.SeekStart)
}

// run is for HTTP/1.1: it writes the header, then stand-in bytes that the connection replaces. Any
// error ends the connection: there is no way back once the header is out.
func (s *sending) run() (done int64, err error) {
	c := s.w.conn
	below := s.w.ResponseWriter
	limit, restore := s.raiseChunk()
	defer func() {
		restore()
		c.head, c.body = false, nil
		if done != s.n || err != nil { // the kernel's TLS may have all, but not TCP
			s.w.cut = true
			c.Abort(errBodyCut)
		}
		s.advance(done)
	}()

	c.head = true
	if err := http.NewResponseController(below).Flush(); err != nil {
		return 0, err
	}
	c.head = false
	b := &body{file: s.file, off: s.off, left: s.n, stalled: s.keepAlive()}
	c.body = b
	for done < s.n {
		step := nextStandIn(s.n-done, limit)
		_, err := below.Write(standIn[:step])
		gone := s.n - b.left - done
		done += gone
		s.w.sent = done
		if err == nil && gone != step { // kept back by a writer on the way
			err = c.failStandIn()
		}
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// errBodyCut ends a connection within an announced body.
var errBodyCut = errors.New("the file could not be sent to its end")

// idleWriter is a writer that keeps Caddy's idle time-out, and its own chunk.
type idleWriter struct {
	*caddyhttp.IdleTimeoutWriter
	chunk int64
}

// raiseChunk lets the idle time-out writers pass on as much as we write at once.
// Where a minimum rate is set their own chunks stay: it counts by them. It
// returns how much to write at once, and what undoes it.
func (s *sending) raiseChunk() (limit int64, restore func()) {
	limit = s.w.handler.Chunk
	for _, w := range s.idle {
		if w.Deadline.MinRate > 0 {
			limit = max(min(limit, w.chunk), minStandIn)
		}
	}
	old := make([]int, len(s.idle))
	for i, w := range s.idle {
		old[i] = w.MaxChunk
		w.MaxChunk = int(limit + minStandIn)
	}
	return limit, func() {
		for i, w := range s.idle {
			w.MaxChunk = old[i]
		}
	}
}

// keepAlive returns what to do when the client takes no more for now, or nil.
// The idle time-out gives a client its time for each of Caddy's chunks. Ours are
// larger, so the deadline moves whenever as much has gone as Caddy would have
// written at once.
func (s *sending) keepAlive() func(sent int64) {
	var idle []idleWriter
	for _, w := range s.idle {
		if w.Deadline.MinRate <= 0 {
			idle = append(idle, w)
		}
	}
	if len(idle) == 0 {
		return nil
	}
	marks := make([]int64, len(idle))
	return func(sent int64) { // sent counts from the begin of each write
		for i, w := range idle {
			if sent < marks[i] {
				marks[i] = 0
			}
			if sent-marks[i] >= w.chunk {
				marks[i] = sent
				w.Override(w.Deadline.Timeout, 0, 0)() // arms the deadline anew
			}
		}
	}
}
