//go:build !ktls_standin

package framing

import (
	"bytes"
	"crypto/rand"
	"sync"
)

// block repeated is what stand-in bytes are: random, so that no content looks
// like it, and another in each process, so that nobody can make such content.
var block = sync.OnceValue(func() (b [blockLen]byte) {
	for bytes.Equal(b[:blockLen/2], b[blockLen/2:]) { // no shorter period
		rand.Read(b[:])
	}
	return b
})
