package ktls

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// kernelRX receives on a TCP socket whose records the kernel decrypts.
type kernelRX struct {
	tcp *net.TCPConn
	raw syscall.RawConn
}

// newKernelRX lets the kernel decrypt what is received on k's socket, from the
// record with number seq on. After an error the socket is as before.
func newKernelRX(k *kernelTX, keys *Keys, seq uint64) (*kernelRX, error) {
	var info []byte
	err := step(stepInfoRX, func() (err error) {
		info, err = keys.CryptoInfo(seq)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer clear(info)
	err = k.setup(stepRX, func(fd int) error { return setCryptoInfo(fd, tlsRX, info) })
	if err != nil {
		return nil, err
	}
	return &kernelRX{k.tcp, k.raw}, nil
}

// setKey changes the key, for the record with sequence number 0 on.
func (k *kernelRX) setKey(keys *Keys) error {
	return controlRaw(k.raw, func(fd int) error { return setKeysOf(fd, tlsRX, keys, 0) })
}

// recv is recvRecord, without waiting and whatever the deadline: a record once
// begun is read to its end.
func (k *kernelRX) recv(p []byte) (n, typ int, ended bool, err error) {
	err = controlRaw(k.raw, func(fd int) (err error) {
		n, typ, ended, err = recvRecord(fd, p, 0)
		return err
	})
	return n, typ, ended, err
}

// partial reports whether bytes were received that no read has returned: at the
// end of the stream, a record that was cut. So it is taken for if the socket can't
// be asked. The kernel may have taken them off the socket's queue where memory is
// short; then it can't be told.
func (k *kernelRX) partial() bool {
	n := 0
	err := controlRaw(k.raw, func(fd int) (err error) {
		n, err = unread(fd)
		return err
	})
	return n > 0 || err != nil
}

// clearError takes the socket's pending error away, which would keep an alert
// from being sent.
func (k *kernelRX) clearError() {
	controlRaw(k.raw, clearSocketError)
}

// readKernel reads application data that the kernel has decrypted. reading is
// held.
func (c *Conn) readKernel(p []byte) (int, error) {
	r := c.tap.rx
	for {
		if len(r.rest) > 0 {
			n := copy(p, r.rest)
			r.rest = r.rest[n:]
			return n, nil
		}
		if err := c.tap.broken.Load(); err != nil {
			return 0, *err
		}
		if r.err != nil {
			return 0, r.err
		}
		n, err := moved("read", p, r.kernel.tcp.Read)
		switch {
		case n > 0:
			r.useless = 0
			return n, nil
		case err == io.EOF || errors.Is(err, unix.EIO):
			// A record of another type is next, or there is none.
			err = c.readControl(c.uselessRecord) // nothing is there: it was empty
		}
		if err != nil {
			return 0, c.readFailed(err)
		}
	}
}

// readControl reads one record that isn't application data, and does what it
// demands. It returns nil if reading can go on, and what nothing says if there is
// no record.
func (c *Conn) readControl(nothing func() error) error {
	r := c.tap.rx
	// Two bytes are a whole alert. With room for more, some kernels would add the
	// next one to it.
	var buf [5]byte
	n, typ, ended, err := r.kernel.recv(buf[:2])
	switch {
	case errors.Is(err, unix.EAGAIN):
		return nothing()
	case err != nil:
		return err
	case typ < 0 && n == 0 && r.kernel.partial():
		return io.ErrUnexpectedEOF
	case typ < 0 && n == 0:
		return io.EOF
	}
	if byte(typ) == RecordTypeHandshake && n == 2 && !ended {
		var m int
		if m, _, ended, err = r.kernel.recv(buf[2:]); err != nil {
			return err
		}
		n += m
	}
	msg := buf[:n]
	switch byte(typ) {
	case RecordTypeApplicationData:
		if n == 0 {
			return c.uselessRecord()
		}
		r.useless = 0
		r.rest = append(r.rest[:0], msg...)
		return nil
	case RecordTypeAlert:
		if n == 2 && ended {
			return c.alertReceived(msg[0], msg[1])
		}
	case RecordTypeHandshake:
		return c.handshakeReceived(msg, ended)
	}
	return c.localError(alertUnexpectedMessage)
}

// maxUseless is how many records without application data in a row crypto/tls
// accepts. Empty ones are counted as far as the kernel shows them.
const maxUseless = 16

var errUseless = errors.New("ktls: too many ignored records")

func (c *Conn) uselessRecord() error {
	r := c.tap.rx
	r.useless++
	if r.useless > maxUseless {
		return c.endRead(alertUnexpectedMessage, errUseless)
	}
	return nil
}

// alertReceived is as crypto/tls has it: RFC 8446, section 6, and RFC 5246,
// section 7.2.
func (c *Conn) alertReceived(level, desc byte) error {
	remote := &net.OpError{Op: "remote error", Err: tls.AlertError(desc)}
	switch {
	case desc == alertCloseNotify:
		return io.EOF
	case c.version == tls.VersionTLS13 && desc == alertUserCanceled:
		return c.uselessRecord()
	case c.version == tls.VersionTLS13:
		return remote
	case level == alertLevelWarning:
		return c.uselessRecord()
	case level == alertLevelFatal:
		return remote
	}
	return c.localError(alertUnexpectedMessage)
}

// handshakeReceived gets the begin of a handshake record, or all of it (ended). In
// TLS 1.3 that must be one KeyUpdate; one that is split over records, which
// crypto/tls accepts, isn't: the kernel asks for the new key after its first
// byte. In TLS 1.2 it is a wish to renegotiate.
func (c *Conn) handshakeReceived(msg []byte, ended bool) error {
	if c.version != tls.VersionTLS13 {
		if ended && string(msg) == "\x00\x00\x00\x00" { // HelloRequest
			return c.endRead(alertNoRenegotiation, &net.OpError{Op: "local error", Err: tls.AlertError(alertNoRenegotiation)})
		}
		return c.localError(alertUnexpectedMessage)
	}
	switch {
	case !ended || len(msg) < 5 || msg[0] != msgKeyUpdate:
		return c.localError(alertUnexpectedMessage)
	case !isKeyUpdate(msg):
		return c.localError(alertDecodeError)
	}
	if err := c.uselessRecord(); err != nil {
		return err
	}
	t, r := c.tap, c.tap.rx
	refuse := func(alert byte, err error) error {
		t.lockWrite()
		defer t.unlockWrite()
		err = t.end(alert, err)
		t.rekeyed(true, err)
		return err
	}
	if !c.changesReceiveKeys() {
		return refuse(alertInternalError, ErrKeyUpdate)
	}
	if !r.updates.take(time.Now()) {
		return refuse(alertUnexpectedMessage, ErrKeyUpdateFlood)
	}
	if msg[4] == 1 {
		t.answerOwnKeyUpdate() // an error is the next writer's, as with crypto/tls
	}
	if err := c.nextReceiveKey(); err != nil {
		return refuse(alertInternalError, err)
	}
	return nil
}

// nextReceiveKey gives the kernel the client's next key.
func (c *Conn) nextReceiveKey() error {
	t, r := c.tap, c.tap.rx
	t.mu.Lock()
	defer t.mu.Unlock()
	if r.secret == nil {
		return net.ErrClosed // wiped
	}
	secret, err := NextSecret(c.suite, r.secret)
	if err != nil {
		return err
	}
	clear(r.secret)
	r.secret = secret
	keys, err := TLS13Keys(c.suite, secret)
	if err != nil {
		return err
	}
	defer keys.Wipe()
	return step(stepRekeyRX, func() error { return r.kernel.setKey(keys) })
}

// localError sends a fatal alert and ends the connection.
func (c *Conn) localError(alert byte) error {
	return c.endRead(alert, &net.OpError{Op: "local error", Err: tls.AlertError(alert)})
}

// endRead is localError with another error.
func (c *Conn) endRead(alert byte, err error) error {
	t := c.tap
	t.lockWrite()
	defer t.unlockWrite()
	t.endReceiving(alert, err)
	return err
}

// endReceiving sends an alert and ends the connection in both directions. A write
// that failed for the same reason doesn't keep it from doing so. wmu is held.
func (t *tap) endReceiving(alert byte, err error) {
	t.rx.kernel.clearError()
	level := byte(alertLevelFatal)
	if alert == alertNoRenegotiation {
		level = alertLevelWarning
	}
	if _, same := alertFor(t.written); same || t.written == nil {
		t.control(RecordTypeAlert, []byte{level, alert})
	}
	t.stop(err)
}

// writeFailed looks after a reader that waits in vain because what the kernel had
// to say of a received record was told to a writer: a socket has one pending
// error. wmu is held.
func (t *tap) writeFailed(err error) {
	alert, ok := alertFor(err)
	if ok && t.rxState.Load() == rxKernel && !errors.Is(err, unix.EINVAL) { // that may be the file's
		t.endReceiving(alert, &net.OpError{Op: "local error", Err: tls.AlertError(alert)})
	}
}

// alertFor returns the alert for an error of the kernel's about a record
// (net/tls/tls_sw.c): it doesn't open, or is too short; it is too long; its
// header isn't that of a TLS record.
func alertFor(err error) (alert byte, ok bool) {
	switch {
	case errors.Is(err, unix.EBADMSG):
		return alertBadRecordMAC, true
	case errors.Is(err, unix.EMSGSIZE):
		return alertRecordOverflow, true
	case errors.Is(err, unix.EINVAL):
		return alertProtocolVersion, true
	}
	return 0, false
}

// readFailed returns what Read shall return for err, now and from now on.
func (c *Conn) readFailed(err error) error {
	err = c.tap.reason(err)
	if isTimeout(err) {
		return err
	}
	if alert, ok := alertFor(err); ok {
		err = c.localError(alert)
	} else if se := (*os.SyscallError)(nil); errors.As(err, &se) {
		c.tap.abort(err) // a reset is told once: see tap.Read
	}
	c.tap.rx.err = err
	return err
}
