package ktls

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/caddy-ktls/caddy-ktls/internal/lockorder"
)

// tap is the net.Conn under crypto/tls. It passes bytes on as they are, in
// order and at once, and follows the record headers in both directions without
// copying. What it keeps is what an upgrade must know: the last record of the
// handshake, the server's random, the secrets that crypto/tls logs, and how
// many records were written since.
//
// Lock order: gate, wmu, mu. wmu may be held over a blocking write, mu never is.
type tap struct {
	net.Conn

	// wmu serializes what goes to the socket: crypto/tls's writes, the
	// kernel's, and the switch from the one to the other. It guards the fields
	// down to mu.
	wmu     lockorder.Mutex[lockorder.Write]
	gate    lockorder.Mutex[lockorder.Gate] // in front of wmu: whoever waits there is next
	waiting atomic.Int32                    // writes of crypto/tls that wait for wmu
	out     scanner
	cur     []byte // the record that isn't complete yet, where its bytes will be needed
	last    []byte // last record of the handshake
	random  [32]byte
	written error // first error of a write: from then on the stream has a gap
	lost    error // why key and sequence number can't be known any more
	done    bool  // handshake is complete
	watch   bool  // crypto/tls may write what an upgrade must know of
	version uint16
	suite   uint16
	since   uint64 // records written since the handshake
	send    *sendState
	kernel  *kernelTX // not nil: the kernel encrypts
	key     txKey     // with kernel
	updates updateBudget
	conn    *Conn // whose tap this is; for its hooks

	mu      lockorder.Mutex[lockorder.State]
	secrets secrets

	// Used by the one reader, and after the handshake by others.
	rx      *receiver      // with Options.RX, else nil
	rxState atomic.Int32   // rxOff without Options.RX
	hello   [helloLen]byte // begin of what the client sent
	nin     int            // bytes of hello
	broken  atomic.Pointer[error]
	ending  atomic.Bool // Close was called: there will be no upgrade
	closed  atomic.Bool // for good: secrets are wiped by whoever has wmu
}

// sendState is what is proven of the sending direction of crypto/tls: its
// traffic keys, and the sequence number of the next record it will write.
type sendState struct {
	keys   *Keys
	opener *Opener // of keys; nil after an upgrade, when little is left to open
	secret []byte  // TLS 1.3: the traffic secret of this generation
	next   uint64
}

// open opens a record that crypto/tls has written after the upgrade.
func (s *sendState) open(rec []byte) (typ byte, data []byte, err error) {
	opener, err := NewOpener(s.keys)
	if err != nil {
		return 0, nil, err
	}
	return opener.Open(nil, rec, s.next)
}

func (s *sendState) wipe() {
	s.keys.Wipe()
	clear(s.secret)
}

// NetConn returns the connection below, for those who look at the Conn of a
// tls.ClientHelloInfo.
func (t *tap) NetConn() net.Conn { return t.Conn }

// Read passes through. It is the only reader of the connection below.
func (t *tap) Read(p []byte) (int, error) {
	if err := t.broken.Load(); err != nil {
		return 0, *err
	}
	rx := t.rxState.Load()
	switch rx {
	case rxSingle:
		p = t.rx.in.one(p)
	case rxKernel:
		return 0, errors.New("ktls: crypto/tls reads no more")
	}
	n, err := t.Conn.Read(p)
	if t.nin < len(t.hello) {
		t.nin += copy(t.hello[t.nin:], p[:n])
	}
	if rx != rxOff {
		t.received(p[:n], rx == rxSingle)
	}
	if err != nil && failed(err) {
		// A reset is told once. After that the kernel takes all that it is given
		// to encrypt, and drops it.
		t.abort(err)
	}
	if e := t.broken.Load(); e != nil {
		return 0, *e
	}
	return n, err
}

// failed reports whether err came from the socket. The error of a deadline, which
// net/http has with every request, is told apart at once.
func failed(err error) bool {
	if op, ok := err.(*net.OpError); ok && op.Err == os.ErrDeadlineExceeded {
		return false
	}
	var se *os.SyscallError
	return errors.As(err, &se)
}

// Write is called by crypto/tls with whole records. They pass through until
// the kernel took over; then each is opened and sent on by its type.
func (t *tap) Write(p []byte) (int, error) {
	t.lockWrite()
	defer t.unlockWrite()
	switch {
	case t.written == errShutdown:
		// Nothing follows close_notify. To crypto/tls that is no error: else it
		// would not go on reading after a KeyUpdate that wants an answer.
		return len(p), nil
	case t.written != nil:
		return 0, t.written
	case t.kernel != nil:
		return t.intercept(p)
	}
	n, err := t.Conn.Write(p)
	t.wrote(p[:n])
	if err != nil {
		err = t.reason(err)
		t.written = err
	}
	return n, err
}

// lockWrite locks wmu for what the protocol has to say, which a file that is being
// sent lets go first.
func (t *tap) lockWrite() {
	if t.wmu.TryLock() {
		return
	}
	t.waiting.Add(1)
	t.gate.Lock()
	t.wmu.Lock()
	t.gate.Unlock()
	t.waiting.Add(-1)
}

// unlockWrite unlocks wmu. After Close and Abort, whoever has it then wipes.
func (t *tap) unlockWrite() {
	t.wmu.Unlock()
	if t.closed.Load() {
		t.wipe()
	}
}

// wipe wipes all secrets of a connection that is closed, now or, while somebody
// has wmu, when that is unlocked.
func (t *tap) wipe() {
	t.closed.Store(true)
	if t.wmu.TryLock() {
		t.forgetAll()
		t.wmu.Unlock()
	}
}

// yield lets what crypto/tls has to say go first: a file takes long to be sent to
// a slow peer. wmu is held, before and after.
func (t *tap) yield() error {
	t.wmu.Unlock()
	t.gate.Lock()
	t.wmu.Lock()
	t.gate.Unlock()
	return t.written
}

// wrote follows what crypto/tls has written. wmu is held.
func (t *tap) wrote(p []byte) {
	for len(p) > 0 {
		n, end := t.out.scan(p)
		part := p[:n]
		p = p[n:]
		if !end {
			if t.keep() {
				t.cur = append(t.cur, part...)
			}
			continue
		}
		if len(t.cur) > 0 {
			t.cur = append(t.cur, part...)
			part = t.cur
		}
		t.record(part, len(p) == 0)
		t.cur = t.cur[:0]
	}
}

// keep reports whether the bytes of the current, incomplete record are needed.
func (t *tap) keep() bool {
	return !t.done || t.out.have < RecordHeaderLen || t.watched()
}

// record handles one complete record that crypto/tls has written. rec is valid
// during the call only, and holds the whole record only where keep says so.
// final means that nothing follows it in the same write.
func (t *tap) record(rec []byte, final bool) {
	if !t.done {
		// ServerHello is the server's first record: a later one may go on in the
		// middle of a certificate and look like it. A TLS 1.3 HelloRetryRequest
		// looks like it too, but there the random isn't used.
		if random, ok := helloRandom(rec, msgServerHello); ok && t.out.records == 1 {
			t.random = random
		}
		if final {
			t.last = append(t.last[:0], rec...)
		}
		return
	}
	t.since++
	if t.watched() {
		t.follow(rec)
	}
}

// watched reports whether the record just scanned may be an alert or a
// KeyUpdate. TLS 1.3 hides the type, but crypto/tls gives them one length each:
// 2 bytes of alert (RFC 8446 section 6) or 5 of message (section 4.6.3), 1 of
// inner type, 16 of tag.
func (t *tap) watched() bool {
	if !t.watch || t.out.have < RecordHeaderLen || t.ending.Load() {
		return false
	}
	if t.version == tls.VersionTLS12 {
		return t.out.hdr[0] == RecordTypeAlert
	}
	n := t.out.length()
	return n == 2+1+tagLen || n == 5+1+tagLen
}

// follow opens a record that may be an alert or crypto/tls's answer to a
// KeyUpdate. It must know: after the one nothing may be written any more, after
// the other another key and sequence number count. If anything is in doubt the
// connection is never upgraded.
func (t *tap) follow(rec []byte) {
	if t.written != nil || t.lost != nil {
		return
	}
	if t.lost = t.prove(); t.lost != nil {
		return
	}
	s := t.send
	typ, msg, err := s.opener.Open(nil, rec, s.next+t.since-1)
	switch {
	case err != nil:
		t.lost = err
		return
	case typ == RecordTypeApplicationData:
		return
	case typ == RecordTypeAlert && len(msg) == 2:
		t.alertSent(msg[1])
		return
	case typ != RecordTypeHandshake || !isKeyUpdate(msg):
		t.lost = fmt.Errorf("ktls: crypto/tls wrote an unexpected message in a record of type %d", typ)
		return
	}
	next, err := nextSendState(t.suite, s)
	if err != nil {
		t.lost = err
		return
	}
	s.wipe()
	t.send, t.since = next, 0
}

// handshakeDone tells the tap that the records that follow are application
// data, alerts and post-handshake messages.
func (t *tap) handshakeDone(version, suite uint16) {
	t.wmu.Lock()
	defer t.unlockWrite()
	t.version, t.suite, t.done = version, suite, true
	t.watch = version == tls.VersionTLS13 || version == tls.VersionTLS12
	t.cur = nil
	if t.out.partial() {
		t.lost = errors.New("ktls: handshake ended within a record")
	}
}

// intercept sends what crypto/tls writes after the upgrade on through the
// kernel. wmu is held.
func (t *tap) intercept(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		n, end := t.out.scan(p)
		rec := p[:n]
		if !end || len(t.cur) > 0 {
			t.cur = append(t.cur, rec...)
			rec = t.cur
		}
		p = p[n:]
		if !end {
			continue
		}
		err := t.forward(rec)
		t.cur = t.cur[:0]
		if err != nil {
			if t.written == nil {
				t.written = err
			}
			return total - len(p) - n, err
		}
	}
	return total, nil
}

// forward opens one record under crypto/tls's key and sends its content as a
// record of the kernel's.
func (t *tap) forward(rec []byte) error {
	typ, data, err := t.send.open(rec)
	if err != nil {
		t.abort(err)
		return err
	}
	t.send.next++
	switch typ {
	case RecordTypeApplicationData:
		// A Write that began before the upgrade and had more than one record.
		if _, err := t.allot(int64(len(data))); err != nil {
			return err
		}
		_, err := t.kernel.write(data, false)
		if err == nil {
			err = t.kernel.settle(nil)
		}
		return err
	case RecordTypeAlert:
		err := t.control(typ, data)
		if len(data) == 2 && err == nil {
			t.alertSent(data[1])
			if data[1] == alertCloseNotify { // the socket is closed next
				err = t.kernel.settle(nil)
			}
		}
		return err
	case RecordTypeHandshake:
		if t.version == tls.VersionTLS13 && isKeyUpdate(data) {
			return t.answerKeyUpdate(data)
		}
	}
	// Nothing that crypto/tls is known to write: the peer must not miss it
	// unawares.
	err = t.control(RecordTypeAlert, []byte{alertLevelFatal, alertInternalError})
	if err == nil {
		err = fmt.Errorf("ktls: crypto/tls wrote an unexpected message in a record of type %d", typ)
	}
	t.stop(err)
	return err
}

const (
	alertLevelFatal        = 2
	alertLevelWarning      = 1
	alertCloseNotify       = 0
	alertUnexpectedMessage = 10
	alertBadRecordMAC      = 20
	alertRecordOverflow    = 22
	alertDecodeError       = 50
	alertProtocolVersion   = 70
	alertInternalError     = 80
	alertUserCanceled      = 90
	alertNoRenegotiation   = 100
)

var errShutdown = errors.New("ktls: protocol is shutdown")

// alertSent notes that after this alert nothing may be written any more: all
// but close_notify are fatal, or final to crypto/tls (no_renegotiation).
func (t *tap) alertSent(desc byte) {
	if desc == alertCloseNotify {
		t.written = errShutdown
	} else {
		t.written = fmt.Errorf("ktls: connection ended by alert %d", desc)
	}
}

// end sends a fatal alert, if that still can be, and ends the connection in both
// directions. wmu is held.
func (t *tap) end(alert byte, err error) error {
	if t.written == nil {
		if cerr := t.control(RecordTypeAlert, []byte{alertLevelFatal, alert}); cerr != nil {
			err = cerr
		}
	}
	t.stop(err)
	return err
}

// stop ends the connection in both directions after an alert: nothing more is
// written, the peer gets the alert and then the end, and a blocked reader wakes.
// wmu is held.
func (t *tap) stop(err error) {
	t.written = err
	t.broken.CompareAndSwap(nil, &err)
	t.kernel.tcp.CloseWrite()
	t.SetReadDeadline(time.Unix(1, 0))
}

// forget wipes what only an upgrade needs, once it has been tried or can't come
// any more. After an upgrade crypto/tls's keys stay, since what it writes must be
// opened, and so do the traffic secrets of both where keys can be changed. wmu is
// held.
func (t *tap) forget() {
	t.mu.Lock()
	t.secrets.wipe()
	t.mu.Unlock()
	clear(t.last)
	t.last = nil
	t.watch = false
	switch {
	case t.send == nil:
	case t.kernel == nil:
		t.send.wipe()
		t.send = nil
	default:
		t.send.opener = nil // most of its size
		if !t.key.change {
			clear(t.send.secret)
		}
	}
}

// forgetAll wipes all that is secret, once the connection is closed. wmu is held.
func (t *tap) forgetAll() {
	if t.written == nil {
		t.written = t.reason(net.ErrClosed) // there are no keys to write or upgrade with
	}
	t.forget()
	t.mu.Lock()
	t.rx.wipe()
	t.mu.Unlock()
	clear(t.key.secret)
	if t.send != nil {
		t.send.wipe()
	}
}

// abort ends the connection at once: no close_notify, so that the peer sees the
// truncation. It takes no lock and may be called while a write is blocked.
func (t *tap) abort(err error) {
	if err == nil {
		err = net.ErrClosed
	}
	t.broken.CompareAndSwap(nil, &err)
	t.Conn.Close()
}

// reason returns why the connection was ended, if it was, or else err.
func (t *tap) reason(err error) error {
	if e := t.broken.Load(); e != nil {
		return *e
	}
	return err
}

// helloLen is how much of a record that begins with a hello message must be
// there to have its random: header, msg_type, uint24 length, version, random
// (RFC 5246 sections 7.4.1.2 and 7.4.1.3).
const helloLen = RecordHeaderLen + 1 + 3 + 2 + 32

// helloRandom returns the random of the ClientHello or ServerHello (msg) that
// rec begins with.
func helloRandom(rec []byte, msg byte) (random [32]byte, ok bool) {
	if len(rec) < helloLen || rec[0] != RecordTypeHandshake || rec[RecordHeaderLen] != msg {
		return random, false
	}
	return [32]byte(rec[helloLen-32 : helloLen]), true
}

// scanner follows the record headers of one direction (RFC 8446 section 5.1).
type scanner struct {
	hdr     [RecordHeaderLen]byte
	have    int    // bytes of hdr that are known
	left    int    // bytes of the current record's payload that are still to come
	ended   bool   // the record of hdr is complete
	records uint64 // complete records
}

// length is the payload length that the current header gives.
func (s *scanner) length() int { return int(binary.BigEndian.Uint16(s.hdr[3:])) }

// partial reports whether the stream stands within a record.
func (s *scanner) partial() bool { return s.have > 0 && !s.ended }

// scan takes bytes of p up to the end of the current record. It reports how
// many, and whether they end the record. p must not be empty.
func (s *scanner) scan(p []byte) (n int, end bool) {
	if s.ended {
		s.have, s.ended = 0, false
	}
	if s.have < RecordHeaderLen {
		n = copy(s.hdr[s.have:], p)
		s.have += n
		if s.have < RecordHeaderLen {
			return n, false
		}
		s.left = s.length()
	}
	m := min(s.left, len(p)-n)
	s.left -= m
	n += m
	if s.left > 0 {
		return n, false
	}
	s.ended = true
	s.records++
	return n, true
}

// isKeyUpdate reports whether msg is one KeyUpdate message.
func isKeyUpdate(msg []byte) bool {
	return len(msg) == 5 && msg[0] == msgKeyUpdate && msg[1] == 0 && msg[2] == 0 && msg[3] == 1 && msg[4] <= 1
}
