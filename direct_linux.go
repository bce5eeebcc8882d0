package caddyktls

import (
	"os"

	"golang.org/x/sys/unix"
)

// isDirect reports whether f is open for direct I/O, past the page cache, or
// can't tell.
func isDirect(f *os.File) bool {
	raw, err := f.SyscallConn()
	if err != nil {
		return true
	}
	var flags int
	cerr := raw.Control(func(fd uintptr) { flags, err = unix.FcntlInt(fd, unix.F_GETFL, 0) })
	return cerr != nil || err != nil || flags&unix.O_DIRECT != 0
}
