package ktls

import (
	"bytes"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// stream is one direction of a connection in memory.
type stream struct {
	mu    sync.Mutex
	buf   []byte
	limit int  // bytes that it holds
	ended bool // nothing more is written
	gone  bool // nobody reads it
	wake  chan struct{}
}

// changed wakes all who wait. mu is held.
func (s *stream) changed() {
	close(s.wake)
	s.wake = make(chan struct{})
}

// alarm is a deadline.
type alarm struct {
	mu    sync.Mutex
	timer *time.Timer
	rings chan struct{} // closed when it has passed
}

func (a *alarm) set(at time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.timer != nil && !a.timer.Stop() {
		<-a.rings // it is about to be closed
	}
	a.timer = nil
	select {
	case <-a.rings:
		a.rings = make(chan struct{})
	default:
	}
	if at.IsZero() {
		return
	}
	rings := a.rings
	if d := time.Until(at); d > 0 {
		a.timer = time.AfterFunc(d, func() { close(rings) })
	} else {
		close(rings)
	}
}

func (a *alarm) passed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.rings
}

// pipeEnd is one end of a connection in memory. Other than one of net.Pipe, it has
// buffers and can be closed for writing alone.
type pipeEnd struct {
	in, out       *stream
	read, write   alarm
	close         sync.Once
	closed        chan struct{}
	local, remote net.Addr
}

// memoryPipe returns the ends of a connection that holds so many bytes on the way
// to b, and to a.
func memoryPipe(toB, toA int) (a, b *pipeEnd) {
	x := &stream{limit: toB, wake: make(chan struct{})}
	y := &stream{limit: toA, wake: make(chan struct{})}
	addr := &net.UnixAddr{Name: "memory", Net: "unix"}
	end := func(in, out *stream) *pipeEnd {
		e := &pipeEnd{in: in, out: out, closed: make(chan struct{}), local: addr, remote: addr}
		e.read.rings, e.write.rings = make(chan struct{}), make(chan struct{})
		return e
	}
	return end(y, x), end(x, y)
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (e *pipeEnd) Read(p []byte) (int, error) {
	s := e.in
	for {
		late := e.read.passed()
		switch {
		case isClosed(e.closed):
			return 0, net.ErrClosed
		case isClosed(late):
			return 0, os.ErrDeadlineExceeded
		}
		s.mu.Lock()
		n, ended, wake := copy(p, s.buf), s.ended, s.wake
		if n > 0 {
			s.buf = s.buf[n:]
			s.changed()
		}
		s.mu.Unlock()
		switch {
		case n > 0 || len(p) == 0:
			return n, nil
		case ended:
			return 0, io.EOF
		}
		select {
		case <-wake:
		case <-late:
		case <-e.closed:
		}
	}
}

// take is Read of at most n bytes that are there, without waiting. It reports
// whether nothing follows.
func (e *pipeEnd) take(n int) (b []byte, end bool) {
	s := e.in
	s.mu.Lock()
	defer s.mu.Unlock()
	n = min(n, len(s.buf))
	b, s.buf = bytes.Clone(s.buf[:n]), s.buf[n:]
	s.changed()
	return b, isClosed(e.closed) || s.ended && len(s.buf) == 0
}

func (e *pipeEnd) Write(p []byte) (n int, err error) {
	s := e.out
	for {
		late := e.write.passed()
		switch {
		case isClosed(e.closed):
			return n, net.ErrClosed
		case isClosed(late):
			return n, os.ErrDeadlineExceeded
		}
		s.mu.Lock()
		if s.gone || s.ended {
			s.mu.Unlock()
			return n, io.ErrClosedPipe
		}
		if m := min(len(p)-n, s.limit-len(s.buf)); m > 0 {
			s.buf = append(s.buf, p[n:n+m]...)
			n += m
			s.changed()
		}
		wake := s.wake
		s.mu.Unlock()
		if n == len(p) {
			return n, nil
		}
		select {
		case <-wake:
		case <-late:
		case <-e.closed:
		}
	}
}

// CloseWrite ends what the other end reads.
func (e *pipeEnd) CloseWrite() error {
	e.out.mu.Lock()
	defer e.out.mu.Unlock()
	e.out.ended = true
	e.out.changed()
	return nil
}

func (e *pipeEnd) Close() error {
	err := net.ErrClosed
	e.close.Do(func() {
		err = nil
		close(e.closed)
		e.CloseWrite()
		e.in.mu.Lock()
		defer e.in.mu.Unlock()
		e.in.gone = true
		e.in.changed()
	})
	return err
}

func (e *pipeEnd) LocalAddr() net.Addr  { return e.local }
func (e *pipeEnd) RemoteAddr() net.Addr { return e.remote }

func (e *pipeEnd) SetDeadline(t time.Time) error {
	e.read.set(t)
	e.write.set(t)
	return nil
}

func (e *pipeEnd) SetReadDeadline(t time.Time) error {
	e.read.set(t)
	return nil
}

func (e *pipeEnd) SetWriteDeadline(t time.Time) error {
	e.write.set(t)
	return nil
}
