//go:build !linux

package caddyktls

import "net"

// clientGone can't tell.
func clientGone(net.Conn) bool { return false }
