package framing

import (
	"bytes"
	"encoding/binary"
	"sync"
	"sync/atomic"

	"github.com/caddy-ktls/caddy-ktls/internal/lockorder"
)

// MaxStandIn is the most stand-in bytes that StandIn returns at once.
const MaxStandIn = 1 << 20

const (
	blockLen = 16

	// defaultStandIn is how large the buffer is made at first, in bytes.
	defaultStandIn = 144 << 10

	// verifyLen is how many bytes are compared at a time: few enough that those
	// of the buffer stay in the first-level cache.
	verifyLen = 4 << 10

	// minRecognized is the least number of bytes that are taken for stand-in
	// bytes by their look alone: other bytes look so once in 2^60 times.
	minRecognized = 8
)

// standIns holds the buffer in use. Buffers are never written to once they are
// in here.
var (
	standIns atomic.Pointer[[]byte]
	growing  lockorder.Mutex[lockorder.Leaf]
)

// StandIn returns n stand-in bytes for a body's bytes from position pos on,
// counted from the first announced; at most MaxStandIn. They must not be
// written to.
func StandIn(pos int64, n int) []byte {
	n = min(n, MaxStandIn)
	phase := int(pos % blockLen)
	buf := standIns.Load()
	if buf == nil || len(*buf) < phase+n {
		buf = growStandIns(n)
	}
	return (*buf)[phase : phase+n : phase+n]
}

func growStandIns(n int) *[]byte {
	growing.Lock()
	defer growing.Unlock()
	if buf := standIns.Load(); buf != nil && len(*buf) >= n+blockLen {
		return buf
	}
	b := block()
	buf := bytes.Repeat(b[:], (max(n, defaultStandIn)+blockLen-1)/blockLen+1)
	standIns.Store(&buf)
	return &buf
}

// isStandIn reports whether p are the stand-in bytes for position pos on.
func isStandIn(p []byte, pos int64) bool {
	for len(p) > 0 {
		n := min(len(p), verifyLen)
		if !bytes.Equal(p[:n], StandIn(pos, n)) {
			return false
		}
		p, pos = p[n:], pos+int64(n)
	}
	return true
}

// Looking at every stand-in byte costs a twentieth of all that is done for a
// file (0.25 of 4.9 10^9 instructions per GiB), and none of them is ever sent. So
// the first frame of a body and every verifyEach-th of a connection are verified
// in full, others by sampleLen bytes at either end and in each sampleStride.
// Bytes that were put in, left out or moved show in each sample that follows, if
// not in the count.
const (
	verifyEach   = 16
	sampleLen    = 64      // bytes
	sampleStride = 4 << 10 // bytes
)

// isStandInSampled is isStandIn for samples of p.
func isStandInSampled(p []byte, pos int64) bool {
	for at := 0; at < len(p); at += sampleStride {
		if !isStandIn(p[at:min(at+sampleLen, len(p))], pos+int64(at)) {
			return false
		}
	}
	end := max(0, len(p)-sampleLen)
	return isStandIn(p[end:], pos+int64(end))
}

// rotations are the first 8 stand-in bytes at each phase, and which first bytes
// these have.
var rotations = sync.OnceValue(func() *rotationTable {
	t := new(rotationTable)
	b := block()
	twice := append(b[:], b[:]...)
	for phase := range t.words {
		t.words[phase] = binary.LittleEndian.Uint64(twice[phase:])
		t.first[twice[phase]] = true
	}
	return t
})

type rotationTable struct {
	words [blockLen]uint64
	first [256]bool
}

// looksLikeStandIn reports whether p, the first bytes of something, are stand-in
// bytes of any position. It says no to fewer than minRecognized.
func looksLikeStandIn(p []byte) bool {
	if len(p) < minRecognized {
		return false
	}
	t := rotations()
	if !t.first[p[0]] {
		return false
	}
	word := binary.LittleEndian.Uint64(p)
	for phase, w := range t.words {
		if w == word && isStandIn(p, int64(phase)) {
			return true
		}
	}
	return false
}
