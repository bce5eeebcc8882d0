package caddyktls

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// clientGone reports whether the client has closed or reset its connection,
// with all that it sent before read. If in doubt it hasn't.
func clientGone(c net.Conn) bool {
	for {
		below := belowConn(c)
		if below == nil {
			break
		}
		c = below
	}
	tcp, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return false
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		gone = err == nil && n == 0 || err == unix.ECONNRESET
	})
	return err == nil && gone
}
