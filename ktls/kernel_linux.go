package ktls

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// kernelTX sends on a TCP socket whose records the kernel encrypts. All its
// methods are called with tap.wmu held, block under Go's poller and obey the
// write deadline.
type kernelTX struct {
	tcp *net.TCPConn
	raw syscall.RawConn

	// The send in progress. It is kept here because variables of its function
	// values' own would be allocated for each write.
	try     func(fd uintptr) bool // attempt
	plain   func(fd int) error    // writeRest
	flush   func(fd int) error    // settled
	do      func(fd int) error    // what attempt calls
	err     error                 // of do
	starved bool                  // do got EAGAIN although nothing is in flight, or errPause
	pause   time.Duration         // the last one because of that; 0 when something was sent since
	rest    []byte                // of writeRest
	more    bool                  // likewise
	full    bool                  // of settled: the socket took no more
	calm    int                   // likewise: pauses since in which nothing happened
	stalled func()                // likewise: to be called then
	poll    [1]unix.PollFd        // likewise
}

// newKernelTX lets the kernel encrypt what is sent on tcp from the record with
// number seq on. After an error the socket is as before: TCP_ULP without keys
// passes bytes on unchanged (net/tls/tls_main.c, TLS_BASE).
func newKernelTX(tcp *net.TCPConn, keys *Keys, seq uint64) (*kernelTX, error) {
	var info []byte
	err := step(stepOpen, func() (err error) {
		info, err = keys.CryptoInfo(seq)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer clear(info)
	var raw syscall.RawConn
	err = step(stepRawConn, func() (err error) {
		raw, err = tcp.SyscallConn()
		return err
	})
	if err != nil {
		return nil, err
	}
	k := newSender(tcp, raw)
	err = k.setup(stepLowat, raiseNotsentLowat)
	if err != nil {
		return nil, err
	}
	err = k.setup(stepULP, setULP)
	if err != nil {
		return nil, err
	}
	err = k.setup(stepTX, func(fd int) error { return setCryptoInfo(fd, tlsTX, info) })
	if err != nil {
		return nil, err
	}
	return k, nil
}

// newSender returns a kernelTX for a socket that has its key, or will.
func newSender(tcp *net.TCPConn, raw syscall.RawConn) *kernelTX {
	k := &kernelTX{tcp: tcp, raw: raw}
	k.try, k.plain, k.flush = k.attempt, k.writeRest, k.settled
	return k
}

// setKey changes the key, for the record with sequence number 0 on.
func (k *kernelTX) setKey(keys *Keys) error {
	return controlRaw(k.raw, func(fd int) error { return setKeysOf(fd, tlsTX, keys, 0) })
}

// setKeysOf hands keys to the kernel, for the record with number seq on.
func setKeysOf(fd, dir int, keys *Keys, seq uint64) error {
	info, err := keys.CryptoInfo(seq)
	if err != nil {
		return err
	}
	defer clear(info)
	return setCryptoInfo(fd, dir, info)
}

// tune sets what can only be set after TLS_TX, as far as the kernel has it, and
// reads back what holds.
func (k *kernelTX) tune(o *Options) (recordSize int, zerocopyRO bool) {
	recordSize = MaxPlaintext
	if o.RecordSize <= 0 && !o.ZerocopyRO {
		return recordSize, false
	}
	controlRaw(k.raw, func(fd int) error {
		want := min(o.RecordSize, MaxPlaintext)
		if want > 0 && setMaxPayloadLen(fd, uint16(want)) == nil {
			recordSize = want // if it can't be read: the key's use is counted by it
			if n, err := maxPayloadLen(fd); err == nil {
				recordSize = n
			}
		}
		zerocopyRO = o.ZerocopyRO && setZerocopyRO(fd, true) == nil && hasZerocopyRO(fd)
		return nil
	})
	return recordSize, zerocopyRO
}

// peerGone reports whether an upgrade failed because the connection is closed,
// or half-closed by the peer: TCP_ULP wants a socket in state ESTABLISHED.
func peerGone(err error) bool {
	return errors.Is(err, unix.ENOTCONN) || errors.Is(err, net.ErrClosed)
}

// setup takes one step that needs the descriptor.
func (k *kernelTX) setup(s upgradeStep, do func(fd int) error) error {
	return step(s, func() error { return controlRaw(k.raw, do) })
}

// write writes application data. With more set, a last record that isn't full
// stays open for what is sent next.
func (k *kernelTX) write(p []byte, more bool) (n int, err error) {
	k.rest, k.more = p, more
	err = k.loop("write", k.plain)
	n = len(p) - len(k.rest)
	k.rest = nil
	return n, err
}

func (k *kernelTX) writeRest(fd int) error {
	send := write
	if k.more {
		send = sendMore
	}
	for len(k.rest) > 0 {
		n, err := send(fd, k.rest)
		if err != nil {
			return err
		}
		if n == 0 { // as net.Conn has it
			return io.ErrUnexpectedEOF
		}
		k.rest = k.rest[n:]
		k.pause = 0
	}
	return nil
}

// control sends p as one record of type typ. An open data record ends first.
func (k *kernelTX) control(typ byte, p []byte) error {
	return k.loop("sendmsg", func(fd int) error {
		n, err := sendRecord(fd, typ, p, 0)
		if err == nil && n < len(p) {
			err = io.ErrShortWrite // the rest would be a record of its own
		}
		return err
	})
}

// maxSendfile bounds one system call, so that what ends it early is noticed at
// least that often however fast the peer reads.
const maxSendfile = 16 << 20

// sendFile is Conn.SendFile, after done bytes of it. It returns errYield before
// it is through if, after some bytes, early says so.
func (k *kernelTX) sendFile(f *os.File, off, n, done int64, stalled func(int64), early func() bool) (sent int64, err error) {
	if off < 0 || n < 0 {
		return 0, fmt.Errorf("ktls: %d bytes at offset %d of a file: %w", n, off, unix.EINVAL)
	}
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	// Asking for more than there is delays the last record on some kernels and
	// confuses NIC offload on others.
	if fi.Size()-off < n {
		return 0, io.ErrUnexpectedEOF
	}
	src, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := src.Control(func(in uintptr) {
		err = k.loop("sendfile", func(fd int) error {
			for sent < n {
				if sent > 0 && early() {
					return errYield
				}
				m, err := sendfile(fd, int(in), &off, int(min(n-sent, maxSendfile)))
				if m > 0 {
					sent += int64(m)
					k.pause = 0
				}
				if err == unix.EAGAIN && stalled != nil {
					stalled(done + sent)
				}
				if err != nil {
					return err
				}
				if m == 0 {
					return io.ErrUnexpectedEOF
				}
			}
			return nil
		})
	})
	if cerr != nil {
		return sent, cerr
	}
	return sent, err
}

// sendPieces sends n bytes of file, each piece behind its header, which opens the
// piece's record (MSG_MORE).
func (k *kernelTX) sendPieces(file int, off, n, done int64, framed Framed, stalled func(int64)) (sent int64, err error) {
	headers := framed.Headers
	left := 0 // of the header being sent
	piece := int64(0)
	err = k.loop("sendfile", func(fd int) error {
		for sent < n || piece > 0 {
			if piece == 0 {
				piece, left = min(n-sent, int64(framed.Size)), framed.Len
			}
			for left > 0 {
				m, err := sendMore(fd, headers[:left])
				if err == unix.EAGAIN && stalled != nil {
					stalled(done + sent)
				}
				if err != nil {
					return err
				}
				left -= m
				headers = headers[m:]
				k.pause = 0
			}
			m, err := sendfile(fd, file, &off, int(piece))
			if m > 0 {
				sent += int64(m)
				piece -= int64(m)
				k.pause = 0
			}
			if err == unix.EAGAIN && stalled != nil {
				stalled(done + sent)
			}
			if err != nil {
				return err
			}
			if m == 0 {
				return io.ErrUnexpectedEOF
			}
		}
		return nil
	})
	return sent, err
}

// Sizes of the send buffer, in bytes. A third of roomForRecords, with which a socket
// counts as writable, takes what kernel TLS may still have of a send: the rest of a
// record, and one more. Less than roomForRecord may not take a record at all.
const (
	roomForRecords = 96 << 10
	roomForRecord  = 32 << 10
)

// errPause is for loop: to be tried again after a pause.
var errPause = errors.New("ktls: pause")

// settle waits until TCP has taken all that was sent, as writes to TCP itself do.
// Kernel TLS takes a record whole if there is room for its first byte, and gives TCP
// the rest when there is room again; but if the socket is closed before that, the
// rest is lost (tls_push_sg and tls_sw_release_resources_tx in net/tls). stalled, if
// not nil, is called before waiting.
func (k *kernelTX) settle(stalled func()) error {
	k.full, k.calm, k.stalled = false, 0, stalled
	err := k.loop("poll", k.flush)
	k.stalled = nil
	return err
}

// settled reports, by EAGAIN or errPause, that TCP may not have all. The kernel
// doesn't tell; but there is a rest only where the buffer was full. Once there is
// room, a worker passes it on, or closing the socket does. Where it needs more room
// than that, the buffer is full again when the worker is through; and where a record
// needs the buffer several times over, all must have gone, for long enough for the
// worker to come. ECONNRESET: the connection ended before there was room.
func (k *kernelTX) settled(fd int) error {
	switch events, err := pollOut(fd, &k.poll); {
	case err != nil:
		return nil //nolint:nilerr // it can't be known
	case events == 0:
		k.full, k.calm = true, 0
		if k.stalled != nil {
			k.stalled()
		}
		return unix.EAGAIN
	case !k.full:
		return nil
	case events&(unix.POLLERR|unix.POLLHUP) != 0:
		return unix.ECONNRESET // or another; whoever reads is told
	}
	room, err := sendBuffer(fd)
	if err != nil || room >= roomForRecords {
		return nil //nolint:nilerr // likewise
	}
	if room >= roomForRecord {
		return k.after(1)
	}
	if n, err := unacknowledged(fd); err == nil && n > 0 {
		k.calm = 0
		return errPause // for longer and longer: it is the client that takes its time
	}
	return k.after(5)
}

// after is nil after so many short pauses, 15 ms for 5: a worker that found a send
// under way comes again after 10.
func (k *kernelTX) after(pauses int) error {
	if k.calm == pauses {
		return nil
	}
	k.calm++
	k.pause = min(k.pause, 2*minPause)
	return errPause
}

// cork keeps TCP from sending anything but full segments.
func (k *kernelTX) cork(on bool) error {
	return controlRaw(k.raw, func(fd int) error { return setCork(fd, on) })
}

// Pauses after which a send is tried again that found no memory for TCP.
const (
	minPause = time.Millisecond
	maxPause = 100 * time.Millisecond
)

// smallQueue is how many bytes in TCP's queue are so few that all of them may be
// held back, for more to fill the segment (MSG_MORE, which sendfile sets too, and
// TCP_CORK), although the socket takes no more: where its buffer is hardly larger
// than a record, by net.ipv4.tcp_wmem or because TCP is short of memory.
const smallQueue = 64 << 10

// loop calls do until it returns something else than EINTR or EAGAIN, which is to
// wait until the socket can be written to.
//
// With all sockets together over net.ipv4.tcp_mem's limit, kernel TLS has no memory
// for a record, nor does it make sure, as TCP itself does, that a socket that has
// nothing in flight gets some (tls_alloc_encrypted_msg in net/tls/tls_sw.c). Then
// no acknowledgement comes, without which nobody says that the socket can be
// written to: not even once there is memory again. Who sends without the poller is
// woken by a timer (vm_wait in net/core/stream.c), and so are we.
func (k *kernelTX) loop(call string, do func(fd int) error) error {
	k.do, k.pause = do, 0
	defer func() { k.do, k.err = nil, nil }()
	for {
		werr := k.raw.Write(k.try)
		if werr != nil {
			return asOp("write", werr)
		}
		if !k.starved {
			break
		}
		k.pause = min(max(2*k.pause, minPause), maxPause)
		time.Sleep(k.pause) // Close and deadlines can wait that long
	}
	err := k.err
	if errno, ok := err.(syscall.Errno); ok {
		err = os.NewSyscallError(call, errno)
	}
	if _, ok := err.(*os.SyscallError); ok {
		err = &net.OpError{Op: "write", Net: "tcp", Source: k.tcp.LocalAddr(), Addr: k.tcp.RemoteAddr(), Err: err}
	}
	return err
}

// attempt calls do, and reports whether the poller has nothing to wait for.
func (k *kernelTX) attempt(fd uintptr) bool {
	for {
		k.err = k.do(int(fd))
		k.starved = false
		switch {
		case errors.Is(k.err, unix.EINTR):
		case k.err == errPause:
			k.starved = true
			return true
		case errors.Is(k.err, unix.EAGAIN):
			n, err := unacknowledged(int(fd))
			k.starved = n == 0 || err != nil
			if !k.starved {
				k.pause = 0
			}
			if n > 0 && n < smallQueue {
				push(int(fd)) //nolint:errcheck // else it comes 200 ms later
			}
			return k.starved
		default:
			return true
		}
	}
}

// minNotsentLowat is the least TCP_NOTSENT_LOWAT, in bytes, under which sendfile
// on a kTLS socket doesn't stall.
const minNotsentLowat = 128 << 10

// notsentLowat is the system's default, in bytes; 0 if it can't be read.
var notsentLowat = sync.OnceValue(func() uint64 {
	b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_notsent_lowat")
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0
	}
	return n
})

// raiseNotsentLowat overrides a system default that is too low.
func raiseNotsentLowat(fd int) error {
	if notsentLowat() >= minNotsentLowat {
		return nil
	}
	return setNotsentLowat(fd, minNotsentLowat)
}
