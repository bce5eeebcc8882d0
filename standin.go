package caddyktls

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// minChunk and maxChunk bound how much of a file is sent with one write, in
// bytes: large, because each costs a walk through the chain of writers; not
// larger, because the stand-in counts as used memory with Go's collector, and at
// 2 MiB that walk is less than a thousandth of the write.
const (
	minChunk = 64 << 10
	maxChunk = 2 << 20
)

// minStandIn is the least number of stand-in bytes in one write, in bytes.
// net/http copies what fits its buffers (4 KiB), and a copy isn't recognized.
const minStandIn = 8 << 10

// standIn is what is written through the chain of writers in the place of a
// file's bytes. It is never read from or written to, so it takes no memory.
var standIn = make([]byte, maxChunk+minStandIn)

// isStandIn reports whether p is a part of standIn itself, not a copy.
func isStandIn(p []byte) bool {
	return len(p) > 0 && cap(p) <= len(standIn) && &p[0] == &standIn[len(standIn)-cap(p)]
}

// nextStandIn returns how many stand-in bytes to write next of left, at most
// about limit; never so many that a remainder under minStandIn is left over.
func nextStandIn(left, limit int64) int64 {
	if left < limit+minStandIn {
		return left
	}
	return limit
}

// standInWorks reports whether net/http hands stand-in bytes on to the
// connection uncopied, as this module needs it to on HTTP/1.1: the header in
// writes of its own, then the very slices. It asks the net/http that is built
// in, once.
var standInWorks = sync.OnceValue(func() error {
	client, server := net.Pipe()
	defer client.Close()
	rec := &standInRecorder{Conn: server}
	ln := &oneListener{conn: rec, done: make(chan struct{})}
	sizes := []int64{maxChunk, minStandIn}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.FormatInt(sizes[0]+sizes[1], 10))
		w.WriteHeader(http.StatusOK)
		if http.NewResponseController(w).Flush() != nil {
			return
		}
		rec.body = true
		for _, n := range sizes {
			w.Write(standIn[:n])
		}
	})}
	go srv.Serve(ln)
	defer srv.Close()
	client.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(client, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(client), nil)
	if err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil {
		return err
	}
	switch {
	case rec.other > 0:
		return errors.New("net/http copies large writes")
	case rec.own != sizes[0]+sizes[1] || n != rec.own:
		return errors.New("net/http loses track of large writes")
	}
	return nil
})

// standInRecorder counts what is written after the header.
type standInRecorder struct {
	net.Conn
	body       bool // the header was flushed
	own, other int64
}

func (r *standInRecorder) Write(p []byte) (int, error) {
	if r.body {
		if isStandIn(p) {
			r.own += int64(len(p))
		} else {
			r.other += int64(len(p))
		}
	}
	return r.Conn.Write(p)
}

// oneListener accepts one connection.
type oneListener struct {
	conn net.Conn
	done chan struct{}
	once sync.Once
}

func (l *oneListener) Accept() (net.Conn, error) {
	if c := l.conn; c != nil {
		l.conn = nil
		return c, nil
	}
	<-l.done
	return nil, net.ErrClosed
}

func (l *oneListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *oneListener) Addr() net.Addr { return &net.UnixAddr{Name: "stand-in", Net: "pipe"} }
