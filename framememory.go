package caddyktls

import (
	"runtime/debug"
	"sync/atomic"
)

// frameBuffers is what the HTTP/2 servers' buffers for large frames take, of all
// connections together, in bytes. Each is kept for as long as its connection
// lives, idle or not, so there is a bound: beyond it connections have the frames
// that their clients ask for, which cost time and not memory.
var frameBuffers atomic.Int64

// frameBufferShare: of Go's memory limit such a part may be these buffers. Caddy
// sets that limit to nine tenths of what its cgroup or the machine has.
const frameBufferShare = 16

// reserveFrameBuffer counts size bytes more, and reports whether there was room.
func reserveFrameBuffer(size int64) bool {
	if frameBuffers.Add(size) <= debug.SetMemoryLimit(-1)/frameBufferShare {
		return true
	}
	frameBuffers.Add(-size)
	return false
}
