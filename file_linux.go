package caddyktls

import (
	"os"

	"golang.org/x/sys/unix"
)

// fileSystemOf returns the f_type of the file system that f is on.
func fileSystemOf(f *os.File) (uint32, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var st unix.Statfs_t
	if cerr := raw.Control(func(fd uintptr) { err = unix.Fstatfs(int(fd), &st) }); cerr != nil {
		return 0, cerr
	}
	return uint32(st.Type), os.NewSyscallError("fstatfs", err)
}

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
