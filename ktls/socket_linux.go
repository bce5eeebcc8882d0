package ktls

import (
	"encoding/binary"
	"os"

	"golang.org/x/sys/unix"
)

// Kernel TLS's socket options and control messages (include/linux/socket.h,
// include/uapi/linux/tls.h).
const (
	solTLS = 282

	tlsTX              = 1 // struct tls12_crypto_info_*
	tlsRX              = 2 // struct tls12_crypto_info_*
	tlsTXZerocopyRO    = 3 // int, since 5.19
	tlsTXMaxPayloadLen = 5 // u16, since 7.2; after TLS_TX

	tlsSetRecordType = 1 // one byte
	tlsGetRecordType = 2 // one byte
)

// sockopt makes a system call about a socket.
func sockopt(name string, do func() error) error {
	_, err := call(name, 0)
	if err == nil {
		err = do()
	}
	return os.NewSyscallError(name, err)
}

// setULP attaches kernel TLS to a connected TCP socket. This alone changes
// nothing on the wire, and can't be undone. Errors: ENOENT: no tls module;
// EEXIST: attached already; ENOTCONN: not (or no longer) connected;
// ENOPROTOOPT or EOPNOTSUPP: no TCP socket.
func setULP(fd int) error {
	return sockopt("setsockopt TCP_ULP", func() error {
		return unix.SetsockoptString(fd, unix.SOL_TCP, unix.TCP_ULP, "tls")
	})
}

// setCryptoInfo hands the keys in info, from Keys.CryptoInfo, to the kernel,
// for direction dir (tlsTX or tlsRX). Errors: EINVAL or EOPNOTSUPP: version or
// cipher not known; ENOENT: its crypto module isn't there; EBUSY: dir has keys
// and this kernel can't change them; ENOPROTOOPT: no setULP before.
//
// unix.SetsockoptString would leave the key in a string, which nobody can
// clear. SetsockoptCanRawFilter does setsockopt at any level with a slice of
// the caller's, of elements of 8 bytes, and every crypto_info is a multiple of
// 8 bytes long.
func setCryptoInfo(fd, dir int, info []byte) error {
	if len(info) == 0 || len(info)%unix.SizeofCanFilter != 0 {
		return os.NewSyscallError("setsockopt TLS_TX/TLS_RX", unix.EINVAL)
	}
	buf := make([]unix.CanFilter, len(info)/unix.SizeofCanFilter)
	defer clear(buf)
	for i := range buf {
		b := info[i*unix.SizeofCanFilter:]
		buf[i] = unix.CanFilter{Id: binary.NativeEndian.Uint32(b), Mask: binary.NativeEndian.Uint32(b[4:])}
	}
	name := "setsockopt TLS_TX"
	if dir == tlsRX {
		name = "setsockopt TLS_RX"
	}
	return sockopt(name, func() error { return unix.SetsockoptCanRawFilter(fd, solTLS, dir, buf) })
}

// setZerocopyRO lets a network card that does the encryption send file pages
// without copying them first. The files must not change while they are sent.
func setZerocopyRO(fd int, on bool) error {
	return sockopt("setsockopt TLS_TX_ZEROCOPY_RO", func() error {
		return unix.SetsockoptInt(fd, solTLS, tlsTXZerocopyRO, boolInt(on))
	})
}

// hasZerocopyRO reports whether setZerocopyRO holds.
func hasZerocopyRO(fd int) (on bool) {
	err := sockopt("getsockopt TLS_TX_ZEROCOPY_RO", func() error {
		n, err := unix.GetsockoptInt(fd, solTLS, tlsTXZerocopyRO)
		on = n == 1
		return err
	})
	return on && err == nil
}

// setMaxPayloadLen limits the content of the records to n bytes. ENOPROTOOPT
// where the kernel has no such option. The kernel insists on two bytes, which
// unix.SetsockoptString passes on as they are.
func setMaxPayloadLen(fd int, n uint16) error {
	b := binary.NativeEndian.AppendUint16(nil, n)
	return sockopt("setsockopt TLS_TX_MAX_PAYLOAD_LEN", func() error {
		return unix.SetsockoptString(fd, solTLS, tlsTXMaxPayloadLen, string(b))
	})
}

// maxPayloadLen returns what setMaxPayloadLen has set. The kernel writes two bytes.
func maxPayloadLen(fd int) (n int, err error) {
	err = sockopt("getsockopt TLS_TX_MAX_PAYLOAD_LEN", func() error {
		b, err := unix.GetsockoptInet4Addr(fd, solTLS, tlsTXMaxPayloadLen)
		n = int(binary.NativeEndian.Uint16(b[:]))
		return err
	})
	return n, err
}

// setNotsentLowat sets how many bytes not yet sent (TCP_NOTSENT_LOWAT) make
// the socket count as not writable.
func setNotsentLowat(fd, n int) error {
	return sockopt("setsockopt TCP_NOTSENT_LOWAT", func() error {
		return unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_NOTSENT_LOWAT, n)
	})
}

// setCork keeps TCP from sending anything but full segments (TCP_CORK).
func setCork(fd int, on bool) error {
	return sockopt("setsockopt TCP_CORK", func() error {
		return unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_CORK, boolInt(on))
	})
}

// push has TCP send what it holds back, also under TCP_CORK (TCP_NODELAY, which Go
// has set before).
func push(fd int) error {
	return sockopt("setsockopt TCP_NODELAY", func() error {
		return unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_NODELAY, 1)
	})
}

// clearSocketError takes the socket's pending error away.
func clearSocketError(fd int) error {
	return sockopt("getsockopt SO_ERROR", func() error {
		_, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		return err
	})
}

// unread is how many bytes were received that no read has returned.
func unread(fd int) (n int, err error) {
	err = sockopt("ioctl SIOCINQ", func() error {
		n, err = unix.IoctlGetInt(fd, unix.SIOCINQ)
		return err
	})
	return n, err
}

// unacknowledged is how many bytes TCP has that the peer hasn't acknowledged.
func unacknowledged(fd int) (n int, err error) {
	err = sockopt("ioctl SIOCOUTQ", func() error {
		n, err = unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		return err
	})
	return n, err
}

// pollOut returns what of POLLOUT, POLLERR and POLLHUP holds for the socket, without
// waiting. fds is scratch.
func pollOut(fd int, fds *[1]unix.PollFd) (events int16, err error) {
	for {
		fds[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT}
		if _, err = call("poll", 0); err == nil {
			_, err = unix.Poll(fds[:], 0)
		}
		if err != unix.EINTR { // as comes where nothing holds and a signal is due
			return fds[0].Revents, os.NewSyscallError("poll", err)
		}
	}
}

// sendBuffer is how large the socket's send buffer is, in bytes of the kernel's
// memory.
func sendBuffer(fd int) (n int, err error) {
	err = sockopt("getsockopt SO_SNDBUF", func() error {
		n, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
		return err
	})
	return n, err
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// sendRecord sends p on a socket with TLS_TX as the content of one record of
// type typ, other than application data, of at most MaxPlaintext bytes. The
// kernel sends an open (MSG_MORE) data record first. MSG_MORE itself is EINVAL
// in flags, and so is an empty p: x/sys would send a byte in its place. After
// shutdown(SHUT_WR) the kernel drops the record and reports success.
func sendRecord(fd int, typ byte, p []byte, flags int) (int, error) {
	if len(p) == 0 {
		return 0, os.NewSyscallError("sendmsg", unix.EINVAL)
	}
	var buf [maxCmsgSpace]byte
	oob := buf[:unix.CmsgSpace(1)]
	putCmsghdr(oob, unix.CmsgLen(1), solTLS, tlsSetRecordType)
	oob[unix.CmsgLen(0)] = typ
	for {
		n, err := call("sendmsg", len(p))
		if err == nil {
			n, err = unix.SendmsgN(fd, p[:n], oob, nil, flags|unix.MSG_NOSIGNAL)
		}
		if err != unix.EINTR {
			return n, os.NewSyscallError("sendmsg", err)
		}
	}
}

// write sends application data. Like the next three it returns the bare errno, and
// does nothing about EINTR.
func write(fd int, p []byte) (int, error) {
	n, err := call("write", len(p))
	if err != nil {
		return 0, err
	}
	return unix.Write(fd, p[:n])
}

// sendMore sends application data whose last record, if it isn't full, stays open
// for what is sent next (MSG_MORE).
func sendMore(fd int, p []byte) (int, error) {
	n, err := call("sendto", len(p))
	if err != nil {
		return 0, err
	}
	return unix.SendmsgN(fd, p[:n], nil, nil, unix.MSG_MORE|unix.MSG_NOSIGNAL)
}

// sendfile sends at most n bytes of file from *off on, which moves.
func sendfile(fd, file int, off *int64, n int) (int, error) {
	n, err := call("sendfile", n)
	if err != nil {
		return 0, err
	}
	return unix.Sendfile(fd, file, off, n)
}

// splice moves at most n bytes, without waiting. One of the ends is a pipe; name
// is for the test's hook.
func splice(name string, from, to, n int) (int, error) {
	n, err := call(name, n)
	if err != nil {
		return 0, err
	}
	m, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
	return int(m), err // its type isn't the same everywhere
}

// recvRecord reads content of one type from a socket with TLS_RX into p, which
// must not be empty. It returns the type, or -1 if the kernel told none (no
// TLS_RX). At the end of the stream n is 0. Application data of several records
// may come in one call, a record of another type alone; what doesn't fit p
// comes with the next call, and ended is false as long as there is more of the
// record. Errors: EBADMSG: a record doesn't open; EKEYEXPIRED: the peer sent a
// KeyUpdate, and TLS_RX must be set anew.
func recvRecord(fd int, p []byte, flags int) (n int, typ int, ended bool, err error) {
	if len(p) == 0 {
		return 0, -1, false, os.NewSyscallError("recvmsg", unix.EINVAL)
	}
	var buf [maxCmsgSpace]byte
	var oobn, got int
	for {
		if n, err = call("recvmsg", len(p)); err == nil {
			n, oobn, got, _, err = unix.Recvmsg(fd, p[:n], buf[:unix.CmsgSpace(1)], flags)
		}
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return 0, -1, false, os.NewSyscallError("recvmsg", err)
	}
	typ = -1
	if oobn >= unix.CmsgLen(1) {
		if level, ctype := cmsgLevelType(buf[:]); level == solTLS && ctype == tlsGetRecordType {
			typ = int(buf[unix.CmsgLen(0)])
		}
	}
	return n, typ, got&unix.MSG_EOR != 0, nil
}

// maxCmsgSpace is unix.CmsgSpace(1) or more on every architecture.
const maxCmsgSpace = 32

// putCmsghdr writes a struct cmsghdr (include/linux/socket.h) to the start of
// b: a size_t, which is as large as the machine's words, and two ints.
func putCmsghdr(b []byte, length, level, typ int) {
	if unix.SizeofCmsghdr == 16 {
		binary.NativeEndian.PutUint64(b, uint64(length))
	} else {
		binary.NativeEndian.PutUint32(b, uint32(length))
	}
	binary.NativeEndian.PutUint32(b[unix.SizeofCmsghdr-8:], uint32(level))
	binary.NativeEndian.PutUint32(b[unix.SizeofCmsghdr-4:], uint32(typ))
}

// cmsgLevelType reads two fields of the struct cmsghdr at the start of b.
func cmsgLevelType(b []byte) (level, typ int) {
	return int(int32(binary.NativeEndian.Uint32(b[unix.SizeofCmsghdr-8:]))),
		int(int32(binary.NativeEndian.Uint32(b[unix.SizeofCmsghdr-4:])))
}
