package doctor

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// ethtool asks for the features of network interfaces over generic netlink
// (Documentation/networking/ethtool-netlink.rst), which Linux has since 5.6.
// The older ioctl SIOCETHTOOL tells the same, but takes a pointer to a pointer,
// which Go can't make without package unsafe.
type ethtool struct {
	fd     int
	family uint16
	seq    uint32
	buf    []byte
}

// ethtoolSeconds bounds the wait for an answer; the kernel gives it at once.
const ethtoolSeconds = 2

func openFeatures() (featureAsker, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		return nil, os.NewSyscallError("socket AF_NETLINK", err)
	}
	e := &ethtool{fd: fd, buf: make([]byte, 64<<10)}
	if err := e.start(); err != nil {
		e.Close()
		return nil, err
	}
	return e, nil
}

func (e *ethtool) start() error {
	if err := unix.Bind(e.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("bind AF_NETLINK", err)
	}
	timeout := unix.Timeval{Sec: ethtoolSeconds}
	if err := unix.SetsockoptTimeval(e.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return os.NewSyscallError("setsockopt SO_RCVTIMEO", err)
	}
	reply, err := e.ask(unix.GENL_ID_CTRL, unix.CTRL_CMD_GETFAMILY, familyRequest(unix.ETHTOOL_GENL_NAME))
	if errors.Is(err, unix.ENOENT) {
		return errors.New("the kernel's ethtool doesn't speak netlink, as before Linux 5.6 or without CONFIG_ETHTOOL_NETLINK")
	}
	if err != nil {
		return fmt.Errorf("looking for ethtool over netlink: %w", err)
	}
	e.family, err = decodeFamily(reply)
	return err
}

// Close closes the socket.
func (e *ethtool) Close() error { return unix.Close(e.fd) }

// Features returns the features that an interface has, and whether they are on.
func (e *ethtool) Features(index int) (map[string]bool, error) {
	reply, err := e.ask(e.family, unix.ETHTOOL_MSG_FEATURES_GET, featuresRequest(index))
	if errors.Is(err, unix.ENODEV) {
		return nil, errGone
	}
	if err != nil {
		return nil, fmt.Errorf("asking for its features: %w", err)
	}
	return decodeFeatures(reply)
}

// ask sends a request and returns the attributes of its answer, which are valid
// until the next one.
func (e *ethtool) ask(family uint16, cmd uint8, attrs []byte) ([]byte, error) {
	e.seq++
	msg := encodeMessage(family, e.seq, cmd, attrs)
	if err := unix.Sendto(e.fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("sendto", err)
	}
	for {
		n, from, err := unix.Recvfrom(e.fd, e.buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("recvfrom", err)
		}
		if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != 0 {
			continue // not from the kernel
		}
		reply, ok, err := findReply(e.buf[:n], family, e.seq)
		if err != nil || ok {
			return reply, err
		}
	}
}

// findReply looks in a datagram for the answer to a request, and returns its
// attributes. Not ok is a datagram without it.
func findReply(b []byte, family uint16, seq uint32) (attrs []byte, ok bool, err error) {
	for len(b) > 0 {
		typ, s, body, rest, err := decodeMessage(b)
		if err != nil {
			return nil, false, err
		}
		b = rest
		if s != seq {
			continue
		}
		switch {
		case typ == unix.NLMSG_ERROR:
			if len(body) < 4 {
				return nil, false, errTruncated
			}
			if errno := -int32(native.Uint32(body)); errno != 0 {
				return nil, false, syscall.Errno(errno)
			}
		case typ == family:
			if len(body) < genlHeaderLen {
				return nil, false, errTruncated
			}
			return body[genlHeaderLen:], true, nil
		}
	}
	return nil, false, nil
}
