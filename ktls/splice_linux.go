package ktls

import (
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// pipeSize is what a pipe shall hold, in bytes. Where the system allows less
// (pipe(7), fs.pipe-user-pages-soft), more system calls do the same.
const pipeSize = 256 << 10

// enough is how many bytes a pipe shall hold before they are written on: a splice
// adds at most one record.
const enough = pipeSize - MaxPlaintext

// spliceTo moves application data from the socket to dst through a pipe, until
// something else than that comes. errNoSplice: the kernel doesn't decrypt yet.
func (c *Conn) spliceTo(dst *net.TCPConn) (total int64, err error) {
	if c.tap.rxState.Load() != rxKernel {
		return 0, errNoSplice
	}
	to, err := dst.SyscallConn()
	if err != nil {
		return 0, err
	}
	var pipe [2]int
	err = sockopt("pipe2", func() error { return unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK) })
	if err != nil {
		return 0, errNoSplice // no descriptors left: copy
	}
	unix.FcntlInt(uintptr(pipe[1]), unix.F_SETPIPE_SZ, pipeSize)
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	for {
		n, err := c.drainTo(pipe[1])
		if n > 0 {
			m, werr := pump(pipe[0], to, n)
			total += m
			if werr != nil {
				return total, &net.OpError{Op: "splice", Net: "tcp", Source: dst.LocalAddr(), Addr: dst.RemoteAddr(), Err: werr}
			}
		}
		if err != nil {
			return total, err
		}
	}
}

// drainTo moves what has come to pipe, at least a byte if there is no error.
// Records of other types are dealt with. The error is final, but for that of a
// deadline.
func (c *Conn) drainTo(pipe int) (n int64, err error) {
	r := c.tap.rx
	r.reading.Lock()
	defer r.reading.Unlock()
	for n == 0 && err == nil {
		if len(r.rest) > 0 {
			m, err := writePipe(pipe, r.rest)
			r.rest = r.rest[m:]
			return int64(m), err
		}
		if err := c.tap.broken.Load(); err != nil {
			return 0, *err
		}
		if r.err != nil {
			return 0, r.err
		}
		m := 0
		rerr := r.kernel.raw.Read(func(fd uintptr) bool {
			for n < enough {
				m, err = splice("splice in", int(fd), pipe, MaxPlaintext)
				switch {
				case err == unix.EINTR:
				case err == unix.EAGAIN && n == 0:
					return false
				case m <= 0:
					return true
				default:
					n += int64(m)
				}
			}
			return true
		})
		if n > 0 {
			r.useless = 0
		}
		switch {
		case rerr != nil:
			err = asOp("read", rerr)
		case err == unix.EAGAIN:
			err = nil
		case m == 0 && err == nil, err == unix.EINVAL:
			// An empty record or the end of the stream; a record of another type, or
			// what has no header of a record. Of the latter, there is nothing to read.
			nothing := c.uselessRecord
			if err != nil {
				nothing = func() error { return os.NewSyscallError("splice", unix.EINVAL) }
			}
			err = c.readControl(nothing)
		default:
			err = os.NewSyscallError("splice", err)
		}
		if err != nil {
			err = c.readFailed(err)
		}
	}
	return n, err
}

// writePipe writes what fits the pipe.
func writePipe(pipe int, p []byte) (int, error) {
	for {
		n, err := call("write to pipe", len(p))
		if err == nil {
			n, err = unix.Write(pipe, p[:n])
		}
		if err != unix.EINTR {
			return max(n, 0), os.NewSyscallError("write", err)
		}
	}
}

// asOp makes an error of syscall.RawConn one of net.Conn's Read or Write.
func asOp(name string, err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		op.Op = name
	}
	return err
}

// pump moves n bytes from pipe to a socket.
func pump(pipe int, to interface {
	Write(func(uintptr) bool) error
}, n int64) (done int64, err error) {
	werr := to.Write(func(fd uintptr) bool {
		for done < n {
			var m int
			m, err = splice("splice out", pipe, int(fd), int(n-done))
			switch {
			case err == unix.EINTR:
			case err == unix.EAGAIN:
				return false
			case err != nil:
				return true
			default:
				done += int64(m)
			}
		}
		return true
	})
	if werr != nil {
		return done, werr
	}
	return done, os.NewSyscallError("splice", err)
}
