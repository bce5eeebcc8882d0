package ktls

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// probeTimeout bounds each wait of the probe, for a loopback connection and for
// the self-test. Either takes about a millisecond; an emulated machine may be
// 100 times slower.
const probeTimeout = 5 * time.Second

// probe asks the kernel. Each question gets a connection of its own, so that no
// answer depends on another.
func probe() *Features {
	f := &Features{
		TX: map[Combination]Answer{},
		RX: map[Combination]Answer{},
	}
	var release string
	f.Kernel, release = kernelName()
	f.ULP = ask(func(p *probePair) error { return control(p.a, setULP) })
	if f.ULP.Support != Yes {
		// Then nothing else can be asked, for the same reason.
		for _, c := range Combinations() {
			f.TX[c], f.RX[c] = f.ULP, f.ULP
		}
		f.Rekey, f.RekeyRX, f.MaxPayloadLen, f.ZerocopyRO, f.SelfTest = f.ULP, f.ULP, f.ULP, f.ULP, f.ULP
		f.module = tlsModule(release)
		return f
	}
	for _, c := range Combinations() {
		f.TX[c] = ask(func(p *probePair) error { return probeKeys(p.a, tlsTX, c) })
		f.RX[c] = ask(func(p *probePair) error { return probeKeys(p.a, tlsRX, c) })
	}
	f.MaxPayloadLen = f.askSender(
		func(Combination) bool { return true },
		func(p *probePair, _ Combination) error {
			return control(p.a, func(fd int) error { return setMaxPayloadLen(fd, 8192) })
		})
	f.ZerocopyRO = f.askSender(
		func(Combination) bool { return true },
		func(p *probePair, _ Combination) error {
			return control(p.a, func(fd int) error { return setZerocopyRO(fd, true) })
		})
	f.Rekey = f.askSender(
		func(c Combination) bool { return c.Version == tls.VersionTLS13 },
		func(p *probePair, c Combination) error { return probeRekey(p.a, tlsTX, c) })
	f.RekeyRX = f.askReceiver()
	f.SelfTest = ask(func(p *probePair) error {
		c, ok := f.firstTX(func(c Combination) bool { return c.Cipher != AES128CCM })
		if !ok {
			return errNoSender
		}
		return selfTest(p, c)
	})
	return f
}

// unsupported is an error that means No whatever its errno.
type unsupported struct{ error }

func (u unsupported) Unwrap() error { return u.error }

// errNoSender is the answer to what can be asked of a sender alone.
var errNoSender = unsupported{errors.New("the kernel takes no keys for sending")}

// ask puts a question to the kernel on a new connection.
func ask(question func(*probePair) error) Answer {
	p, err := newProbePair()
	if err != nil {
		a := answerOf(err)
		a.Support = Unknown // whatever the errno: the kernel wasn't even asked
		return a
	}
	defer p.close()
	return answerOf(question(p))
}

// askSender puts a question to a socket that sends with the first combination
// that the kernel takes and eligible allows.
func (f *Features) askSender(eligible func(Combination) bool, question func(*probePair, Combination) error) Answer {
	c, ok := f.firstTX(eligible)
	if !ok {
		return answerOf(errNoSender)
	}
	return ask(func(p *probePair) error {
		if err := probeKeys(p.a, tlsTX, c); err != nil {
			return err
		}
		return question(p, c)
	})
}

// askReceiver asks whether a socket that receives can change its key. The kernel
// takes a new one at any time, not only after a KeyUpdate.
func (f *Features) askReceiver() Answer {
	for _, c := range Combinations() {
		if c.Version == tls.VersionTLS13 && f.RX[c].Support == Yes {
			return ask(func(p *probePair) error {
				if err := probeKeys(p.a, tlsRX, c); err != nil {
					return err
				}
				return probeRekey(p.a, tlsRX, c)
			})
		}
	}
	return answerOf(unsupported{errors.New("the kernel takes no keys for receiving")})
}

// probeRekey changes the key of a socket that has one.
func probeRekey(conn *net.TCPConn, dir int, c Combination) error {
	err := control(conn, func(fd int) error { return setKeys(fd, dir, randomKeys(c), 0) })
	if errors.Is(err, unix.EBUSY) {
		return unsupported{err} // the answer of kernels before 6.14
	}
	return err
}

func (f *Features) firstTX(eligible func(Combination) bool) (Combination, bool) {
	for _, c := range Combinations() {
		if f.TX[c].Support == Yes && eligible(c) {
			return c, true
		}
	}
	return Combination{}, false
}

// errnoENOTSUPP is the kernel's internal ENOTSUPP (include/linux/errno.h),
// which kernel TLS let slip to user space before Linux 5.5.
const errnoENOTSUPP = syscall.Errno(524)

// answerOf sorts the outcome of a question. These errnos mean that the kernel
// can't; any other (EPERM of a security module, ENOMEM, EMFILE, a time-out)
// says nothing about what it can.
func answerOf(err error) Answer {
	if err == nil {
		return Answer{Support: Yes}
	}
	a := Answer{Detail: err.Error()}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		switch errno {
		case unix.ENOENT, unix.ENOPROTOOPT, unix.EINVAL, unix.EOPNOTSUPP, errnoENOTSUPP:
			a.Support = No
		}
		a.Errno = errnoName(errno)
	}
	var u unsupported
	if errors.As(err, &u) {
		a.Support = No
	}
	return a
}

func errnoName(errno syscall.Errno) string {
	if errno == errnoENOTSUPP {
		return "ENOTSUPP"
	}
	if name := unix.ErrnoName(errno); name != "" {
		return name
	}
	return fmt.Sprintf("errno %d", int(errno))
}

// probeKeys makes conn one that sends (tlsTX) or receives (tlsRX) with random
// keys.
func probeKeys(conn *net.TCPConn, dir int, c Combination) error {
	return control(conn, func(fd int) error {
		if err := setULP(fd); err != nil {
			return err
		}
		return setKeys(fd, dir, randomKeys(c), 0)
	})
}

// setKeys hands k to the kernel and wipes it.
func setKeys(fd, dir int, k *Keys, seq uint64) error {
	defer k.Wipe()
	return setKeysOf(fd, dir, k, seq)
}

func randomKeys(c Combination) *Keys {
	k := &Keys{Version: c.Version, Cipher: c.Cipher}
	rand.Read(k.Key[:c.Cipher.KeyLen()])
	iv := k.IV[:]
	if k.explicitNonce() {
		iv = iv[:4]
	}
	rand.Read(iv)
	return k
}

// control calls f with conn's descriptor.
func control(conn *net.TCPConn, f func(fd int) error) error {
	rc, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	return controlRaw(rc, f)
}

// controlRaw calls f with rc's descriptor.
func controlRaw(rc syscall.RawConn, f func(fd int) error) error {
	var err error
	if cerr := rc.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// probePair is a TCP connection of this process with itself.
type probePair struct{ a, b *net.TCPConn }

// newProbePair connects over the loopback interface, by IPv4 or else by IPv6,
// with a deadline for whatever is done with the connection.
func newProbePair() (*probePair, error) {
	p, err := dialProbePair("127.0.0.1:0")
	if err != nil {
		var err6 error
		if p, err6 = dialProbePair("[::1]:0"); err6 != nil {
			return nil, err
		}
	}
	deadline := time.Now().Add(probeTimeout)
	for _, c := range []*net.TCPConn{p.a, p.b} {
		c.SetDeadline(deadline)
		c.SetLinger(0) // leave nothing in TIME_WAIT
	}
	return p, nil
}

func dialProbePair(address string) (*probePair, error) {
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	// The sockets that Go listens on are MPTCP ones where the system has it,
	// and MPTCP has no TCP_ULP.
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	if deadline, ok := ctx.Deadline(); ok {
		l.(*net.TCPListener).SetDeadline(deadline)
	}
	var d net.Dialer
	d.SetMultipathTCP(false)
	a, err := d.DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		return nil, err
	}
	for {
		b, err := l.Accept()
		if err != nil {
			a.Close()
			return nil, err
		}
		if b.RemoteAddr().String() == a.LocalAddr().String() {
			return &probePair{a.(*net.TCPConn), b.(*net.TCPConn)}, nil
		}
		b.Close() // some other process on this machine was curious
	}
}

func (p *probePair) close() {
	p.a.Close()
	p.b.Close()
}

// Sizes of the self-test, in bytes and in records sent before: two full records
// and a bit, and a first sequence number as it is after a session ticket.
const (
	selfTestLen = 2*MaxPlaintext + 7777
	selfTestSeq = 1
)

// selfTest has the kernel send a file and an alert, opens the records with the
// keys, and compares what was in them.
func selfTest(p *probePair, c Combination) error {
	content := make([]byte, selfTestLen)
	rand.Read(content)
	file, err := selfTestFile(content)
	if err != nil {
		return err
	}
	defer file.Close()
	keys := randomKeys(c)
	opener, err := NewOpener(keys)
	if err != nil {
		return err
	}
	err = control(p.a, func(fd int) error {
		if err := setULP(fd); err != nil {
			return err
		}
		return setKeys(fd, tlsTX, keys, selfTestSeq)
	})
	if err != nil {
		return err
	}
	return selfTestTransfer(p, opener, file, content)
}

// selfTestTransfer sends file on one end and compares what arrives at the other
// with content. Where one side fails, the other doesn't wait for the deadline.
func selfTestTransfer(p *probePair, opener *Opener, file *os.File, content []byte) error {
	sent := make(chan error, 1)
	past := time.Unix(1, 0)
	go func() {
		err := selfTestSend(p.a, file)
		if err != nil {
			p.b.SetReadDeadline(past) // there is nothing to wait for
		}
		sent <- err
	}()
	err := selfTestReceive(p.b, opener, content)
	if err != nil {
		p.a.SetWriteDeadline(past)
	}
	if serr := <-sent; serr != nil && !(err != nil && errors.Is(serr, os.ErrDeadlineExceeded)) {
		return serr
	}
	return err
}

// selfTestFile returns an unnamed file with content, on no disk if possible.
func selfTestFile(content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("ktls-self-test", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL { // before Linux 6.3; later ones may insist on NOEXEC_SEAL
		fd, err = unix.MemfdCreate("ktls-self-test", unix.MFD_CLOEXEC)
	}
	var file *os.File
	if err == nil {
		file = os.NewFile(uintptr(fd), "ktls-self-test")
	} else {
		if file, err = os.CreateTemp("", "ktls-self-test"); err != nil {
			return nil, err
		}
		os.Remove(file.Name())
	}
	if _, err := file.Write(content); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// selfTestSend sends the way a Conn does. The alert comes behind a record that is
// still open: kernels without "tls: always set record_type in tls_process_cmsg" (of
// 2025) send it as data, if their cipher works asynchronously.
func selfTestSend(conn *net.TCPConn, file *os.File) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	k := newSender(conn, raw)
	rest := make([]byte, 100)
	begin := selfTestLen - int64(len(rest))
	_, err = k.sendFile(file, 0, begin, 0, nil, func() bool { return false })
	if err == io.ErrUnexpectedEOF {
		return unsupported{errors.New("sendfile: the file ended early")}
	}
	if err != nil {
		return err
	}
	if _, err := file.ReadAt(rest, begin); err != nil {
		return err
	}
	if _, err := k.write(rest, true); err != nil {
		return err
	}
	return k.control(RecordTypeAlert, selfTestAlert)
}

// selfTestAlert is a close_notify (RFC 8446, section 6.1).
var selfTestAlert = []byte{1, 0}

func selfTestReceive(conn *net.TCPConn, opener *Opener, content []byte) error {
	r := bufio.NewReaderSize(conn, RecordHeaderLen+MaxCiphertext12)
	record := make([]byte, RecordHeaderLen+MaxCiphertext12)
	var got []byte
	for seq := uint64(selfTestSeq); ; seq++ {
		if _, err := io.ReadFull(r, record[:RecordHeaderLen]); err != nil {
			return fmt.Errorf("reading record %d: %w", seq, err)
		}
		end := RecordHeaderLen + int(binary.BigEndian.Uint16(record[3:]))
		if end > len(record) {
			return unsupported{fmt.Errorf("record %d is too long", seq)}
		}
		if _, err := io.ReadFull(r, record[RecordHeaderLen:end]); err != nil {
			return fmt.Errorf("reading record %d: %w", seq, err)
		}
		typ, p, err := opener.Open(nil, record[:end], seq)
		switch {
		case err != nil:
			return unsupported{fmt.Errorf("record %d: %w", seq, err)}
		case typ == RecordTypeApplicationData && len(got)+len(p) <= len(content):
			got = append(got, p...)
		case typ == RecordTypeAlert && bytes.Equal(p, selfTestAlert) && bytes.Equal(got, content):
			return nil
		default:
			return unsupported{fmt.Errorf("record %d has other content than was sent", seq)}
		}
	}
}

// kernelName returns the running kernel for people, and its release, which
// names the folder of its modules.
func kernelName() (name, release string) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "Linux", ""
	}
	release = unix.ByteSliceToString(u.Release[:])
	return fmt.Sprintf("%s %s %s", unix.ByteSliceToString(u.Sysname[:]), release, unix.ByteSliceToString(u.Machine[:])), release
}

// tlsModule looks for the tls module among those of the kernel release.
func tlsModule(release string) moduleState {
	list, err := os.ReadFile("/lib/modules/" + release + "/modules.dep")
	if err != nil || release == "" {
		return moduleUnknown
	}
	if strings.Contains("/"+string(list), "/net/tls/tls.ko") {
		return moduleInstalled
	}
	return moduleMissing
}
