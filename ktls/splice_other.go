//go:build !linux

package ktls

import "net"

func (c *Conn) spliceTo(*net.TCPConn) (int64, error) { return 0, errNoSplice }
