//go:build ktls_standin

package caddyktls

import "github.com/caddy-ktls/caddy-ktls/internal/framing"

// In a build for tests the stand-in bytes of HTTP/1.1 are those of HTTP/2, which
// clients look for. Otherwise they are zeros, and take no memory.
func init() {
	for i := range standIn {
		standIn[i] = framing.KnownBlock[i%len(framing.KnownBlock)]
	}
}
