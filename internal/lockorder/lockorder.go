// Package lockorder says in which order this module's locks are taken. With the
// build tag ktlsdebug a goroutine that takes two of them the other way round
// panics, whether or not that leads to a deadlock; without it a Mutex is a
// sync.Mutex.
//
//	go test -tags ktlsdebug ./...
package lockorder

// Rank is the place of a lock: who holds one takes only such of a higher rank.
// Two of the same rank are never held at once.
type Rank interface{ rank() int }

// The ranks, in their order. Those of ktls.Conn are taken before all others: its
// hooks are called with them held.
type (
	Handshake struct{} // ktls: Conn.hsMu
	Stream    struct{} // ktls: Conn.order of writers, receiver.reading of the reader
	Gate      struct{} // ktls: tap.gate
	Write     struct{} // ktls: tap.wmu
	State     struct{} // ktls: tap.mu
	Deadline  struct{} // who moves deadlines: handshake, http2Conn, idleTimer
	Leaf      struct{} // all others: nothing is locked, and nobody waited for, with one held
)

func (Handshake) rank() int { return 1 }
func (Stream) rank() int    { return 2 }
func (Gate) rank() int      { return 3 }
func (Write) rank() int     { return 4 }
func (State) rank() int     { return 5 }
func (Deadline) rank() int  { return 6 }
func (Leaf) rank() int      { return 7 }
