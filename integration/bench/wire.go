//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"time"
)

// records counts TLS records in a stream of bytes, without decrypting them.
type records struct {
	overhead int64 // bytes of a record that aren't plaintext, beyond its header
	clear    bool  // there are none: all is plaintext

	plaintext int64 // bytes in the complete data records so far
	count     int64 // of these records

	header [5]byte
	have   int // bytes of the header
	left   int // bytes of the record still to come
}

const applicationData = 23 // RFC 8446, section 5.1

// overheads are what a record with AES-GCM has beyond header and plaintext, in bytes.
var overheads = map[string]int64{
	"1.3": 1 + 16, // content type and tag: RFC 8446, section 5.2
	"1.2": 8 + 16, // explicit nonce and tag: RFC 5288, section 3
}

// follow takes the next bytes.
func (r *records) follow(p []byte) {
	if r.clear {
		r.plaintext += int64(len(p))
		return
	}
	for len(p) > 0 {
		if r.have < len(r.header) {
			n := copy(r.header[r.have:], p)
			r.have += n
			p = p[n:]
			r.left = int(binary.BigEndian.Uint16(r.header[3:]))
			continue
		}
		n := min(r.left, len(p))
		r.left -= n
		p = p[n:]
		if r.left > 0 {
			return
		}
		r.have = 0
		if r.header[0] == applicationData {
			r.count++
			r.plaintext += int64(binary.BigEndian.Uint16(r.header[3:])) - r.overhead
		}
	}
}

// A wire is a client's end of a TCP connection, below TLS. It can store what
// arrives and let TLS read it later.
type wire struct {
	net.Conn
	records records
	last    time.Time // when something came
	stored  []byte    // not all of which TLS has read
	pos     int
}

func (w *wire) Read(p []byte) (int, error) {
	if w.pos < len(w.stored) {
		n := copy(p, w.stored[w.pos:])
		w.pos += n
		return n, nil
	}
	n, err := w.Conn.Read(p)
	w.came(p[:n])
	return n, err
}

// came takes note of bytes that have come.
func (w *wire) came(p []byte) {
	if len(p) > 0 {
		w.last = time.Now()
		w.records.follow(p)
	}
}

// forget makes room: all that was stored has been read.
func (w *wire) forget() {
	w.stored, w.pos = w.stored[:0], 0
}

const (
	readSize = 1 << 20              // bytes: no more is read at once
	silence  = 2 * time.Millisecond // of the guest's time: nothing more comes
	patience = 10 * time.Minute     // as if idle times were waited for, which they aren't
)

// store reads until at least upto bytes of plaintext have come since the
// connection began and, if so told, until nothing follows.
func (w *wire) store(upto int64, quiet bool) error {
	defer w.SetReadDeadline(time.Time{})
	for w.records.plaintext < upto || quiet {
		wait := patience
		if w.records.plaintext >= upto {
			wait = silence
		}
		w.SetReadDeadline(time.Now().Add(wait))
		if cap(w.stored)-len(w.stored) < readSize {
			w.stored = slices.Grow(w.stored, readSize)
		}
		n, err := w.Conn.Read(w.stored[len(w.stored) : len(w.stored)+readSize])
		w.came(w.stored[len(w.stored) : len(w.stored)+n])
		w.stored = w.stored[:len(w.stored)+n]
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded) && wait == silence:
			return nil
		default:
			return fmt.Errorf("with %d bytes of plaintext to come: %w", upto-w.records.plaintext, err)
		}
	}
	return nil
}
