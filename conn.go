package caddyktls

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/net/http2"

	"github.com/caddy-ktls/caddy-ktls/internal/lockorder"
	"github.com/caddy-ktls/caddy-ktls/ktls"
)

// conn is a connection as net/http gets it. It adds to the ktls.Conn what
// net/http does for a *tls.Conn only (handshake in the connection's own
// goroutine, with a time-out; the answer to plain HTTP; ALPN), and sends files
// in the place of stand-in bytes.
type conn struct {
	*ktls.Conn
	listener *listener
	pending  atomic.Pointer[handshake] // nil once it is done: connections idle for long
	gauge    atomic.Int32

	h2      bool       // negotiated protocol; set before pending is nil
	preface int8       // bytes of the HTTP/2 client preface seen; -1 when it is settled
	http2   *http2Conn // with h2

	// The response under way. Used by the goroutine that writes it, and only on
	// HTTP/1.1.
	head bool  // the header is being written; more follows at once
	body *body // announced
}

// handshake is what a connection has until its handshake is done.
type handshake struct {
	ctx  context.Context // of the connection; set before it is served
	gate *gate           // nil: handshakes have no bound

	once sync.Once
	err  error

	// A read deadline set before the end of the handshake counts from there.
	mu       lockorder.Mutex[lockorder.Deadline]
	deadline time.Time
	setAt    time.Time
}

// Read runs the handshake first. A connection that net/http would not have
// served at all (handshake failed, protocol not ours) is at its end.
func (c *conn) Read(p []byte) (int, error) {
	reserve[forRecords](0)
	if err := c.handshake(); err != nil {
		return 0, io.EOF
	}
	var n int
	var err error
	if c.http2 != nil {
		n, err = c.readHTTP2(p)
	} else {
		n, err = c.Conn.Read(p)
	}
	if c.preface >= 0 && (n > 0 && !c.checkPreface(p[:n]) || c.h2 && errors.Is(err, os.ErrDeadlineExceeded)) {
		c.Close()
		return 0, io.EOF
	}
	return n, err
}

// prefaceTimeout is how long after its handshake a client may take to begin to
// speak HTTP/2, as golang.org/x/net's server has it for a *tls.Conn.
const prefaceTimeout = 10 * time.Second

// checkPreface makes sure that HTTP/2 is spoken where it was negotiated, and
// nowhere else: behind a connection that isn't a *tls.Conn, net/http goes by the
// client's preface alone.
func (c *conn) checkPreface(p []byte) bool {
	for _, b := range p {
		if b != http2.ClientPreface[c.preface] {
			c.preface = -1
			return !c.h2
		}
		c.preface++
		if int(c.preface) == len(http2.ClientPreface) {
			c.preface = -1
			return c.h2
		}
	}
	return true
}

func (c *conn) handshake() error {
	h := c.pending.Load()
	if h == nil {
		return nil
	}
	reserve[forHandshake](0)
	h.once.Do(func() {
		metrics.inFlight.Inc()
		defer metrics.inFlight.Dec()
		h.err = io.ErrUnexpectedEOF // unless it returns: a callback may panic
		h.err = c.runHandshake(h)
		if h.err == nil {
			c.pending.Store(nil)
		}
	})
	return h.err
}

// runHandshake has no large variables, and calls no function that is inlined and
// has some: crypto/tls and Caddy need nearly 16 KiB of stack for a handshake, and
// with a few hundred bytes more the stack would be doubled, and copied.
func (c *conn) runHandshake(h *handshake) error {
	l := c.listener
	begin := time.Now()
	if l.timeout > 0 {
		c.Conn.SetDeadline(begin.Add(l.timeout))
	}
	if h.gate != nil {
		h.gate.begin(l.timeout)
		defer h.gate.leave()
	}
	err := c.HandshakeContext(h.context(c.LocalAddr()))
	countHandshake(begin, err)
	if err != nil {
		c.handshakeFailed(err)
		return err
	}
	return c.handshaken(h)
}

// handshakeFailed says so, also to a client that doesn't speak TLS.
func (c *conn) handshakeFailed(err error) {
	if e := c.listener.logger.Check(zapcore.DebugLevel, "TLS handshake error"); e != nil {
		e.Write(zap.Stringer("remote", c.RemoteAddr()), zap.Error(err))
	}
	var re tls.RecordHeaderError
	if errors.As(err, &re) && re.Conn != nil && looksLikeHTTP(re.RecordHeader) {
		io.WriteString(re.Conn, "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
	}
	c.Close()
}

// handshaken prepares for the protocol that was negotiated.
func (c *conn) handshaken(h *handshake) error {
	deadline := h.restoreDeadline(c.Conn)
	c.countCurrent()

	state := c.ConnectionState()
	switch proto := state.NegotiatedProtocol; proto {
	case "h2":
		if prohibitedByHTTP2(&state) {
			http2.NewFramer(c.Conn, nil).WriteGoAway(0, http2.ErrCodeInadequateSecurity,
				fmt.Appendf(nil, "Prohibited TLS 1.2 Cipher Suite: %x", state.CipherSuite))
			c.Close()
			return errors.New("HTTP/2 prohibits " + tls.CipherSuiteName(state.CipherSuite))
		}
		if latest := time.Now().Add(prefaceTimeout); deadline.IsZero() || deadline.After(latest) {
			deadline = latest
			c.Conn.SetReadDeadline(deadline)
		}
		c.h2, c.http2 = true, &http2Conn{deadline: deadline}
		if size := c.listener.opts.RecordSize; size > 0 {
			c.http2.frames.Record = size - 1 // in TLS 1.3 the type counts
		}
	case "", "http/1.1", "http/1.0":
	default: // acme-tls/1 ends here: the handshake was all it wanted
		c.Close()
		return errors.New("no handler for protocol " + proto)
	}
	return nil
}

// prohibitedByHTTP2 reports whether HTTP/2 must not be spoken (RFC 9113, section
// 9.2.2 and appendix A): in TLS 1.2 with other than ephemeral keys and an AEAD.
// The HTTP/2 server asks that of a *tls.Conn only.
func prohibitedByHTTP2(state *tls.ConnectionState) bool {
	if state.Version != tls.VersionTLS12 {
		return state.Version < tls.VersionTLS12
	}
	switch state.CipherSuite {
	case tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_256_GCM_SHA384:
		return true
	}
	_, aead := ktls.CipherOf(state.CipherSuite)
	return !aead
}

// Close closes the connection as ktls.Conn does.
func (c *conn) Close() error {
	err := c.Conn.Close()
	if c.pending.Load() == nil && c.http2 != nil {
		c.http2.frames.Close(net.ErrClosed)
		c.http2.release()
	}
	if c.gauge.Swap(gaugeClosed) == gaugeCounted {
		metrics.current.Dec()
	}
	return err
}

// Values of conn.gauge. A connection may be closed while it is being upgraded.
const (
	gaugeNone = iota
	gaugeCounted
	gaugeClosed
)

// countCurrent counts the connection among those the kernel encrypts, if it is
// one, until it is closed.
func (c *conn) countCurrent() {
	if c.Offloaded() && c.gauge.CompareAndSwap(gaugeNone, gaugeCounted) {
		metrics.current.Inc()
	}
}

// upgrade moves the connection into the kernel, once.
func (c *conn) upgrade() error {
	err := c.Upgrade()
	c.countCurrent()
	return err
}

// looksLikeHTTP reports whether a TLS record header is the begin of a request.
func looksLikeHTTP(hdr [5]byte) bool {
	switch string(hdr[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO":
		return true
	}
	return false
}

// SetReadDeadline sets the deadline of Read. Before the end of the handshake,
// which has a time-out of its own, it is kept for afterwards too.
func (c *conn) SetReadDeadline(t time.Time) error {
	if h := c.pending.Load(); h != nil {
		h.mu.Lock()
		h.deadline, h.setAt = t, time.Now()
		h.mu.Unlock()
	} else if c.http2 != nil {
		return c.setReadDeadlineHTTP2(t)
	}
	return c.Conn.SetReadDeadline(t)
}

// context is the context that net/http would run a handshake with.
func (h *handshake) context(local net.Addr) context.Context {
	ctx := h.ctx
	if ctx == nil {
		ctx = context.Background()
	}
	return context.WithValue(ctx, http.LocalAddrContextKey, local)
}

// restoreDeadline replaces the deadline of the handshake by the one that was
// set before it, with the time that was left then, and returns it.
func (h *handshake) restoreDeadline(c *ktls.Conn) (deadline time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c.SetWriteDeadline(time.Time{})
	if h.deadline.IsZero() {
		c.SetReadDeadline(time.Time{})
		return time.Time{}
	}
	deadline = time.Now().Add(h.deadline.Sub(h.setAt))
	c.SetReadDeadline(deadline)
	return deadline
}

// body is a part of a file that is sent in the place of stand-in bytes.
type body struct {
	file    *os.File
	off     int64
	left    int64
	stalled func(sent int64)
}

// errStandIn ends a connection on which stand-in bytes and the announced body
// don't match. Nothing of them has left.
var errStandIn = errors.New("stand-in bytes don't match the announced body")

// Write writes to the client. Stand-in bytes never leave: they are replaced by
// the announced body, or the connection ends.
func (c *conn) Write(p []byte) (int, error) {
	if err := c.handshake(); err != nil {
		return 0, err
	}
	if c.http2 != nil {
		if c.Offloaded() {
			reserve[forFrames](0)
		} else {
			reserve[forRecords](0)
		}
		return c.writeHTTP2(p)
	}
	if c.body != nil || isStandIn(p) {
		return c.writeBody(p)
	}
	if c.head {
		return c.WriteMore(p)
	}
	return c.Conn.Write(p)
}

func (c *conn) writeBody(p []byte) (int, error) {
	b := c.body
	if b == nil || !isStandIn(p) || int64(len(p)) > b.left {
		return 0, c.failStandIn()
	}
	n, err := c.SendFile(b.file, b.off, int64(len(p)), b.stalled)
	b.off += n
	b.left -= n
	return int(n), err
}

// failStandIn ends the connection and says so, with errStandIn.
func (c *conn) failStandIn() error {
	c.failed(errStandIn)
	return errStandIn
}

// failed ends the connection at once, because what was to be sent isn't what was
// announced, and says so.
func (c *conn) failed(err error) {
	c.listener.logger.Error("response failed", zap.Stringer("remote", c.RemoteAddr()), zap.Error(err))
	c.Abort(err)
}

var _ net.Conn = (*conn)(nil)
