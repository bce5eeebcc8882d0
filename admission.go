package caddyktls

import (
	"container/list"
	"crypto/tls"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"github.com/caddy-ktls/caddy-ktls/internal/lockorder"
)

// admission bounds how many handshakes compute at once.
//
// A handshake has two stages that cost: from the ClientHello to the choice of
// a certificate it agrees on a key (TLS 1.3), from there to the server's flight
// it signs. With an RSA certificate the second takes nearly all of the time,
// with an ECDSA one in TLS 1.3 the first takes three quarters. It holds a place
// in either, and none while it waits: for the client, whose silence must cost
// others nothing, or for a certificate, which may have to be obtained first.
// Who comes for the second stage goes before those who have not begun.
//
// Not bounded are what comes after the server's flight (in TLS 1.2 the client's
// key share, and the client's certificate if it has one), the key agreement
// after a HelloRetryRequest, and the opening of an Encrypted Client Hello.
type admission struct {
	mu     lockorder.Mutex[lockorder.Leaf]
	free   int       // places; if there are any, nobody waits
	begun  list.List // of *gate: waiting for their second stage
	others list.List // of *gate: waiting for their first
}

// newAdmission returns nil, no bound, for n = 0.
func newAdmission(n int) *admission {
	if n == 0 {
		return nil
	}
	return &admission{free: n}
}

// queueTimeout bounds the wait of handshakes that have no time-out.
const queueTimeout = 10 * time.Second

var (
	errNotAdmitted = errors.New("no place among max_handshakes came free in time")
	errLeftQueue   = errors.New("client left the queue of max_handshakes")
)

// gate is the connection below a TLS connection whose handshake needs
// admission. What crypto/tls writes ends a stage.
type gate struct {
	net.Conn
	to    *admission
	until time.Time   // end of waiting
	held  atomic.Bool // has a place; set with to.mu locked

	// Guarded by to.mu.
	closed bool
	turn   chan bool // while waiting: true with a place, false when closed
	queue  *list.List
	place  *list.Element
}

// begin starts the clock of a handshake that may take timeout, or 0 for ever.
func (g *gate) begin(timeout time.Duration) {
	if timeout == 0 {
		timeout = queueTimeout
	}
	g.until = time.Now().Add(timeout)
}

// enter takes a place, waiting for one if need be. again means that the
// handshake had one before.
func (g *gate) enter(again bool) error {
	a := g.to
	a.mu.Lock()
	if g.closed {
		a.mu.Unlock()
		return net.ErrClosed
	}
	if a.free > 0 {
		a.free--
		g.held.Store(true)
		a.mu.Unlock()
		return nil
	}
	g.queue = &a.others
	if again {
		g.queue = &a.begun
	}
	g.turn = make(chan bool, 1)
	g.place = g.queue.PushBack(g)
	a.mu.Unlock()

	metrics.waiting.Inc()
	defer metrics.waiting.Dec()
	timer := time.NewTimer(time.Until(g.until))
	defer timer.Stop()
	admitted := true
	select {
	case admitted = <-g.turn:
	case <-timer.C:
		if g.quit(false) {
			return errNotAdmitted
		}
		admitted = <-g.turn // just now
	}
	switch {
	case !admitted:
		return net.ErrClosed
	case clientGone(g.Conn):
		// Whoever waits long in a queue may have left it. Without this look, a
		// server that can't keep up would work for them alone.
		g.leave()
		return errLeftQueue
	}
	return nil
}

// quit takes g out of the queue, if it is still there, and reports that.
func (g *gate) quit(closed bool) bool {
	a := g.to
	a.mu.Lock()
	defer a.mu.Unlock()
	g.closed = g.closed || closed
	if g.place == nil {
		return false
	}
	g.queue.Remove(g.place)
	g.place = nil
	g.turn <- false
	return true
}

// leave gives the place back, if g has one, to who is next.
func (g *gate) leave() {
	if !g.held.CompareAndSwap(true, false) {
		return
	}
	a := g.to
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, queue := range []*list.List{&a.begun, &a.others} {
		if first := queue.Front(); first != nil {
			next := queue.Remove(first).(*gate)
			next.place = nil
			next.held.Store(true)
			next.turn <- true
			return
		}
	}
	a.free++
}

// Write sends what was computed, which may have to wait for the client. In a
// handshake it comes before each Read, so that no place is held there either.
func (g *gate) Write(p []byte) (int, error) {
	g.leave()
	return g.Conn.Write(p)
}

// Close ends the waiting too.
func (g *gate) Close() error {
	g.quit(true)
	return g.Conn.Close()
}

// admitted makes handshakes with config, which comes from ktls.ServerConfig,
// ask for admission.
func admitted(config *tls.Config) {
	choose := config.GetConfigForClient
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		chosen, err := choose(hello) // made for this connection alone
		if err != nil {
			return nil, err
		}
		g := gateOf(hello.Conn)
		if find := chosen.GetCertificate; find != nil {
			chosen.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
				g.leave()
				certificate, err := find(hello)
				if err != nil {
					return nil, err
				}
				return certificate, g.enter(true)
			}
		}
		return chosen, g.enter(false)
	}
}

// gateOf returns the gate below the connection of a ClientHelloInfo.
func gateOf(c net.Conn) *gate {
	return c.(interface{ NetConn() net.Conn }).NetConn().(*gate)
}
