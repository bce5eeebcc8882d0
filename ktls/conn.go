package ktls

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/caddy-ktls/caddy-ktls/internal/lockorder"
)

// Conn is the server side of a TLS connection: crypto/tls's until [Conn.Upgrade],
// with the kernel encrypting what is sent afterwards. It is safe for concurrent
// use as a tls.Conn is: one reader and any number of writers at a time.
//
// Lock order: hsMu, order or receiver.reading, then tap.gate, tap.wmu, tap.mu (see
// lockorder).
type Conn struct {
	tls  *tls.Conn
	tap  *tap
	opts *Options

	// active interlocks Close with the kernel's writes: bit 0 is set once Close
	// was called, the rest counts writes in flight, as tls.Conn's activeCall.
	active    atomic.Int32
	offloaded atomic.Bool // tap.kernel is set; never unset

	// order keeps each Write whole, also one that began before an upgrade and
	// ends after it. Close doesn't wait for it.
	order lockorder.Mutex[lockorder.Stream]

	hsMu    lockorder.Mutex[lockorder.Handshake] // one handshake at a time
	hsDone  atomic.Bool
	version uint16 // set before hsDone
	suite   uint16

	upgradeErr *UpgradeError // final refusal; guarded by tap.wmu
	sequence   uint64        // first sequence number of the kernel's; set before offloaded
	recordSize int           // of the kernel's records; likewise
	zerocopyRO bool          // TLS_TX_ZEROCOPY_RO is set; likewise
	sentFile   atomic.Int64  // bytes sent by SendFile
}

// Server returns a connection on conn whose handshake is run by crypto/tls with
// config, which must come from [ServerConfig] if it shall ever be upgraded. opts
// may be nil. conn must not be used by anyone else from then on.
func Server(conn net.Conn, config *tls.Config, opts *Options) *Conn {
	if opts == nil {
		opts = new(Options)
	}
	t := &tap{Conn: conn}
	if opts.RX {
		t.rx = new(receiver)
		t.rxState.Store(rxCount)
	}
	t.conn = &Conn{tls: tls.Server(t, config), tap: t, opts: opts}
	return t.conn
}

// Handshake is HandshakeContext without a context.
func (c *Conn) Handshake() error { return c.HandshakeContext(context.Background()) }

// HandshakeContext runs the handshake if it has not yet been run. Read, Write
// and Upgrade call it first. Errors are those of tls.Conn.HandshakeContext.
func (c *Conn) HandshakeContext(ctx context.Context) error {
	if c.hsDone.Load() {
		return nil
	}
	c.hsMu.Lock()
	defer c.hsMu.Unlock()
	if c.hsDone.Load() {
		return nil
	}
	if err := c.tls.HandshakeContext(ctx); err != nil {
		return err
	}
	c.handshaken()
	return nil
}

// handshaken follows the handshake. It is a function of its own so that its
// variables take no room on the stack while that runs.
func (c *Conn) handshaken() {
	state := c.tls.ConnectionState()
	c.version, c.suite = state.Version, state.CipherSuite
	c.tap.handshakeDone(c.version, c.suite)
	c.hsDone.Store(true)
	if c.opts.UpgradeAtHandshake && state.NegotiatedProtocol != acmeTLS {
		c.Upgrade() //nolint:errcheck // OnUpgrade and UpgradeErr tell
	}
}

// acmeTLS is the protocol of connections that validate a name for an ACME CA:
// they carry no data, and end with their handshake (RFC 8737, section 4).
const acmeTLS = "acme-tls/1"

// ConnectionState is that of the TLS connection.
func (c *Conn) ConnectionState() tls.ConnectionState { return c.tls.ConnectionState() }

// Offloaded reports whether the kernel encrypts what is sent.
func (c *Conn) Offloaded() bool { return c.offloaded.Load() }

// Info describes a connection for logs.
type Info struct {
	Version   uint16 // as in crypto/tls; 0 before the handshake
	Cipher    Cipher // 0 if the kernel knows none for the cipher suite
	Offloaded bool
	Sequence  uint64 // number of the first record that the kernel encrypted
	Lazy      bool   // upgraded by a call of Upgrade, not with the handshake
	SentFile  int64  // bytes sent by SendFile

	// As read back from the kernel; 0 and false before the upgrade.
	RecordSize int  // most that a record carries, in bytes
	ZerocopyRO bool // the network card may send file pages without copying them

	Receiving bool // the kernel decrypts what is received
}

// Info describes the connection as it is now. It never waits.
func (c *Conn) Info() Info {
	i := Info{Offloaded: c.offloaded.Load(), SentFile: c.sentFile.Load(), Lazy: !c.opts.UpgradeAtHandshake}
	if c.hsDone.Load() {
		i.Version = c.version
		i.Cipher, _ = CipherOf(c.suite)
	}
	if i.Offloaded {
		i.Sequence, i.RecordSize, i.ZerocopyRO = c.sequence, c.recordSize, c.zerocopyRO
	}
	if c.tap.rxState.Load() == rxKernel {
		i.Receiving = true
	}
	return i
}

// Read reads application data, through crypto/tls or, with [Options.RX], from the
// socket where the kernel decrypts.
func (c *Conn) Read(p []byte) (int, error) {
	if err := c.Handshake(); err != nil {
		return 0, err
	}
	if c.opts.RX {
		return c.receive(p)
	}
	return c.readTLS(p)
}

func (c *Conn) readTLS(p []byte) (int, error) {
	n, err := c.tls.Read(p)
	if err != nil && err != io.EOF {
		err = c.tap.reason(err) // crypto/tls goes on with what it has
	}
	return n, err
}

// Write writes application data: through crypto/tls, or to the socket where the
// kernel encrypts. It returns when TCP has taken all, so that a Close that follows
// loses nothing. After an error nothing more can be written.
func (c *Conn) Write(p []byte) (int, error) {
	return c.write(p, true)
}

// WriteAhead is Write that returns when the kernel has all, of which TCP may not
// have taken the end yet. A Close that follows may lose that: call Settle before.
func (c *Conn) WriteAhead(p []byte) (int, error) {
	return c.write(p, false)
}

func (c *Conn) write(p []byte, settle bool) (int, error) {
	if c.offloaded.Load() {
		return c.writeKernel(p, false, settle)
	}
	if err := c.Handshake(); err != nil {
		return 0, err
	}
	c.order.Lock()
	if c.offloaded.Load() {
		c.order.Unlock()
		return c.writeKernel(p, false, settle)
	}
	defer c.order.Unlock()
	// If the upgrade comes from here on, what crypto/tls writes is intercepted:
	// right, only slower.
	return c.tls.Write(p)
}

// WriteMore is Write with the promise that more follows at once: where the
// kernel encrypts, a last record that isn't full is kept open (MSG_MORE) for
// what comes next, and it is WriteAhead. Otherwise it is Write.
func (c *Conn) WriteMore(p []byte) (int, error) {
	if c.offloaded.Load() {
		return c.writeKernel(p, true, false)
	}
	return c.Write(p)
}

func (c *Conn) writeKernel(p []byte, more, settle bool) (n int, err error) {
	err = c.send(func(t *tap) error {
		for n < len(p) {
			m, err := t.allot(int64(len(p) - n))
			if err != nil {
				return err
			}
			end := n + int(m)
			m2, err := t.kernel.write(p[n:end], more || end < len(p))
			n += m2
			if err != nil {
				return err
			}
		}
		if settle {
			return t.kernel.settle(nil)
		}
		return nil
	})
	return n, err
}

// Settle waits until TCP has taken all that was written. The write deadline holds
// for it.
func (c *Conn) Settle() error {
	if !c.offloaded.Load() {
		return nil
	}
	return c.send(func(t *tap) error { return t.kernel.settle(nil) })
}

// ErrNotOffloaded is returned by SendFile on a connection that wasn't upgraded.
var ErrNotOffloaded = errors.New("ktls: the kernel doesn't encrypt this connection")

// SendFile sends n bytes of f, a regular file, from offset off on, by
// sendfile(2): the kernel encrypts them straight out of the page cache. The
// file's own offset is neither used nor changed. It returns how many bytes were
// sent, and an error whenever that isn't n; io.ErrUnexpectedEOF if the file is
// (or becomes) shorter than off+n. Like Write it returns when TCP has taken all, and
// after any error nothing more can be written.
//
// stalled, if not nil, is called whenever the socket takes no more for now, with
// the number of bytes sent so far, before waiting: the place to move the write
// deadline of a client that is slow but not idle. It must not write or close.
func (c *Conn) SendFile(f *os.File, off, n int64, stalled func(sent int64)) (sent int64, err error) {
	if !c.offloaded.Load() {
		return 0, ErrNotOffloaded
	}
	early := func() bool {
		return c.tap.waiting.Load() > 0 || c.tap.broken.Load() != nil || c.active.Load()&1 != 0
	}
	err = c.send(func(t *tap) error {
		for {
			m, err := t.allot(n - sent)
			if err != nil {
				return err
			}
			m, err = t.kernel.sendFile(f, off+sent, m, sent, stalled, early)
			sent += m
			if err == errYield {
				err = t.yield()
			}
			if err != nil {
				return err
			}
			if sent >= n {
				break
			}
		}
		if stalled == nil {
			return t.kernel.settle(nil)
		}
		return t.kernel.settle(func() { stalled(sent) })
	})
	c.sentFile.Add(sent)
	return sent, err
}

// errYield ends the sending of a file early: crypto/tls has something to send, or
// the connection was closed.
var errYield = errors.New("ktls: yield")

// send runs write with the write lock held, unless the connection was closed or
// a write failed before. The first error is kept.
func (c *Conn) send(write func(*tap) error) error {
	for { // interlock with Close
		x := c.active.Load()
		if x&1 != 0 {
			return c.tap.reason(net.ErrClosed)
		}
		if c.active.CompareAndSwap(x, x+2) {
			break
		}
	}
	defer c.active.Add(-2)
	c.order.Lock()
	defer c.order.Unlock()
	t := c.tap
	t.wmu.Lock()
	defer t.unlockWrite()
	if t.written != nil {
		return t.written
	}
	err := write(t)
	if err != nil {
		err = t.reason(err)
		t.written = err
		t.writeFailed(err)
	}
	return err
}

// Upgrade moves the sending side into the kernel. It returns nil if the kernel
// encrypts, now or since before; otherwise an *[UpgradeError], and the
// connection goes on with crypto/tls. A refusal is final: it is not tried again.
func (c *Conn) Upgrade() error {
	if c.offloaded.Load() {
		return nil
	}
	if !c.hsDone.Load() {
		return refuse(ReasonHandshake, "the handshake isn't complete")
	}
	t := c.tap
	t.wmu.Lock()
	defer t.unlockWrite()
	if t.kernel != nil {
		return nil
	}
	if c.upgradeErr != nil {
		return c.upgradeErr
	}
	err := c.upgrade()
	t.forget()
	if err != nil {
		c.upgradeErr = err
		t.offReceiving()
		if c.opts.OnUpgrade != nil {
			c.opts.OnUpgrade(c, c.Info(), err)
		}
		return err
	}
	c.offloaded.Store(true)
	if c.opts.OnUpgrade != nil {
		c.opts.OnUpgrade(c, c.Info(), nil)
	}
	c.prepareReceiving()
	return nil
}

// upgrade takes the steps in order. All that can fail comes before TLS_TX is
// set, which is the last of them. tap.wmu is held.
func (c *Conn) upgrade() *UpgradeError {
	t := c.tap
	if c.version != tls.VersionTLS12 && c.version != tls.VersionTLS13 {
		return refuse(ReasonVersion, "%s has no kernel TLS", tls.VersionName(c.version))
	}
	cipher, ok := CipherOf(c.suite)
	if !ok {
		return refuse(ReasonCipher, "%s has no kernel TLS", tls.CipherSuiteName(c.suite))
	}
	if f := c.opts.features(); !f.CanTX(c.version, cipher) {
		return refuse(ReasonKernel, "this kernel can't encrypt %s %s", tls.VersionName(c.version), cipher)
	}
	tcp := c.opts.tcpConn(t.Conn)
	if tcp == nil {
		return refuse(ReasonNotTCP, "%T isn't known to be a TCP connection", t.Conn)
	}
	if t.written != nil || c.active.Load()&1 != 0 {
		return &UpgradeError{Reason: ReasonClosed, Err: fmt.Errorf("writing has ended: %w", errors.Join(t.written, net.ErrClosed))}
	}
	if err := step(stepProve, t.prove); err != nil {
		return &UpgradeError{Reason: ReasonUnproven, Err: err}
	}
	if t.out.partial() {
		return refuse(ReasonUnproven, "a record was written in part")
	}
	next := t.send.next + t.since
	limit, change := c.opts.keyLimit(cipher), c.changesKeys()
	if !change && next > limit/2 {
		return refuse(ReasonKeyLimit, "%d records were sent under a key for %d", next, limit)
	}
	kernel, err := newKernelTX(tcp, t.send.keys, next)
	if err != nil && peerGone(err) {
		return &UpgradeError{Reason: ReasonClosed, Err: err}
	}
	if err != nil {
		return &UpgradeError{Reason: ReasonKernel, Err: err}
	}
	t.send.next = next
	t.since = 0
	t.kernel = kernel
	c.recordSize, c.zerocopyRO = kernel.tune(c.opts)
	t.key.limit, t.key.change, t.key.size = limit, change, int64(c.recordSize)
	if c.recordSize < MaxPlaintext {
		t.key.size-- // the byte with the type counts
	}
	t.key.used.Store(next)
	if change {
		t.key.secret = append([]byte(nil), t.send.secret...)
	}
	c.sequence = next
	return nil
}

const closeNotifyTimeout = 5 * time.Second

// Close sends close_notify, waiting at most 5 s for it to be taken, and closes
// the connection. With a write of the kernel's in flight, or after one that
// failed, it just closes, so that the peer sees the truncation.
func (c *Conn) Close() error {
	var x int32
	for {
		x = c.active.Load()
		if x&1 != 0 {
			c.tap.wipe()
			return net.ErrClosed
		}
		if c.active.CompareAndSwap(x, x|1) {
			break
		}
	}
	if x != 0 {
		err := c.tap.Conn.Close()
		c.tap.wipe()
		return err
	}
	c.tap.ending.Store(true)
	// crypto/tls sets the same deadline, but not before it has its own lock: an
	// alert that the peer doesn't take may hold that.
	c.tap.SetWriteDeadline(time.Now().Add(closeNotifyTimeout))
	err := c.tls.Close()
	c.tap.wipe()
	return err
}

// CloseWrite sends close_notify, after what is being written. What is written
// afterwards fails.
func (c *Conn) CloseWrite() error {
	c.order.Lock() // crypto/tls's deadline is for close_notify alone
	defer c.order.Unlock()
	return c.tls.CloseWrite()
}

// Abort closes the connection at once and without close_notify: the peer sees
// that what it got is cut short. err is what blocked and later calls return.
func (c *Conn) Abort(err error) {
	c.active.Or(1)
	c.tap.abort(err)
	c.tap.wipe()
}

// LocalAddr returns the local address of the connection below.
func (c *Conn) LocalAddr() net.Addr { return c.tap.LocalAddr() }

// RemoteAddr returns the remote address of the connection below.
func (c *Conn) RemoteAddr() net.Addr { return c.tap.RemoteAddr() }

// SetDeadline sets the read and the write deadline.
func (c *Conn) SetDeadline(t time.Time) error { return c.tap.SetDeadline(t) }

// SetReadDeadline sets the deadline of Read.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.tap.SetReadDeadline(t) }

// SetWriteDeadline sets the deadline of Write, WriteMore and SendFile, also of
// one that is waiting. After a write has timed out the connection can't be
// written to any more, as with a tls.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.tap.SetWriteDeadline(t) }

var _ net.Conn = (*Conn)(nil)
