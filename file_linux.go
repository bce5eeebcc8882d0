package caddyktls

import (
	"os"

	"golang.org/x/sys/unix"
)

// fileSystemOf returns the f_type of the file system that f is on.
func fileSystemOf(f *os.File) (uint32, error) {
	var st unix.Statfs_t
	err := withDescriptor(f, func(fd int) error { return unix.Fstatfs(fd, &st) })
	return uint32(st.Type), os.NewSyscallError("fstatfs", err)
}

// isDirect reports whether f is open for direct I/O, past the page cache, or
// can't tell.
func isDirect(f *os.File) bool {
	var flags int
	err := withDescriptor(f, func(fd int) (err error) {
		flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		return err
	})
	return err != nil || flags&unix.O_DIRECT != 0
}

// withDescriptor calls do with f's descriptor, which stays open meanwhile.
func withDescriptor(f *os.File, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) { err = do(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}
