package ktls

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/caddy-ktls/caddy-ktls/internal/lockorder"
)

// Values of tap.rxState: where a connection stands on the way to a kernel that
// decrypts ([Options.RX]).
const (
	rxOff    = iota // crypto/tls receives, for good
	rxCount         // crypto/tls receives; the tap counts records
	rxSingle        // the kernel encrypts; crypto/tls gets one record at a time
	rxKernel        // the kernel decrypts
)

// receiver is what a tap knows of the receiving direction, until the kernel
// takes it over and from then on. The switch comes between two records: when
// crypto/tls has consumed the last one that the tap has read, and it was
// application data. Then neither has anything left that the kernel would miss.
type receiver struct {
	reading lockorder.Mutex[lockorder.Stream] // held by Conn.Read; before tap.gate

	// For whoever reads: the handshake, then Conn.Read with reading held.
	in        scanner
	protected uint64   // records with the outer type of application data
	sealed    uint64   // records since ChangeCipherSpec
	changed   bool     // there was a ChangeCipherSpec
	rec       []byte   // the current or last record, where it may be needed
	alone     bool     // rec is all that crypto/tls got since it had consumed everything
	delivered int      // bytes that crypto/tls has returned of rec
	drained   bool     // it has no more of them
	early     []update // of the time before the handshake was complete
	missed    bool     // there was no room for one more
	kernel    *kernelRX
	rest      []byte // application data that came where a control record was expected
	useless   int    // records without application data, in a row
	updates   updateBudget
	err       error // final error of Read

	// Guarded by tap.mu.
	keys   *Keys // of the client, in TLS 1.2
	secret []byte
	opener *Opener // of secret's generation in TLS 1.3
	base   uint64  // number of the first record of that generation
	known  bool    // base is
}

// update is a record that may be a KeyUpdate, and its number.
type update struct {
	rec   []byte
	index uint64
}

// maxEarly bounds the records that are kept until the handshake is complete.
const maxEarly = 4

// wipe wipes what is secret, if there is a receiver. tap.mu is held.
func (r *receiver) wipe() {
	if r == nil {
		return
	}
	if r.keys != nil {
		r.keys.Wipe()
	}
	clear(r.secret)
	r.keys, r.secret, r.opener = nil, nil, nil
}

// offReceiving leaves receiving to crypto/tls, for good.
func (t *tap) offReceiving() {
	t.rxState.Store(rxOff)
	t.mu.Lock()
	t.rx.wipe()
	t.mu.Unlock()
}

// one limits p to the current record, and to its header as long as that isn't
// known: crypto/tls asks for more than it needs.
func (s *scanner) one(p []byte) []byte {
	n := s.left
	switch {
	case s.ended:
		n = RecordHeaderLen
	case s.have < RecordHeaderLen:
		n = RecordHeaderLen - s.have
	}
	return p[:min(n, len(p))]
}

// received follows what was read for crypto/tls. alone says that crypto/tls gets
// one record at a time.
func (t *tap) received(p []byte, alone bool) {
	r := t.rx
	for len(p) > 0 {
		if !r.in.partial() {
			r.rec, r.alone, r.delivered, r.drained = r.rec[:0], alone, 0, false
		}
		n, end := r.in.scan(p)
		if r.alone || r.in.have < RecordHeaderLen || t.maybeKeyUpdate() {
			r.rec = append(r.rec, p[:n]...)
		}
		p = p[n:]
		if end {
			t.receivedRecord()
		}
	}
}

// maybeKeyUpdate reports whether the record being read has a KeyUpdate's length
// without padding: see tap.watched. One with padding goes unnoticed, and the
// proof will fail.
func (t *tap) maybeKeyUpdate() bool {
	return t.rx.in.hdr[0] == RecordTypeApplicationData && t.rx.in.length() == 5+1+tagLen
}

func (t *tap) receivedRecord() {
	r := t.rx
	if r.in.hdr[0] == RecordTypeChangeCipherSpec {
		r.changed = true
		return
	}
	if r.changed {
		r.sealed++
	}
	if r.in.hdr[0] != RecordTypeApplicationData {
		return
	}
	r.protected++
	if !t.maybeKeyUpdate() {
		return
	}
	u := update{r.rec, r.protected - 1}
	switch {
	case t.conn.hsDone.Load():
		t.followUpdates(u)
	case len(r.early) < maxEarly:
		u.rec = append([]byte(nil), u.rec...)
		r.early = append(r.early, u)
	default:
		r.missed = true // no client sends that
	}
}

// followUpdates moves to the client's next key with each KeyUpdate among
// records.
func (t *tap) followUpdates(records ...update) {
	if t.conn.version != tls.VersionTLS13 {
		return
	}
	r := t.rx
	early := r.early
	r.early = nil
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, u := range append(early, records...) {
		typ, msg, err := t.openReceived13(u.rec, u.index)
		if err != nil || typ != RecordTypeHandshake || !isKeyUpdate(msg) {
			continue
		}
		secret, err := NextSecret(t.conn.suite, r.secret)
		clear(r.secret)
		r.secret, r.opener, r.base = secret, nil, u.index+1
		if err != nil {
			return // nothing will be proven
		}
	}
}

// openReceived13 opens the client's record number index, from 0 on, of those
// that have the outer type of application data. The first of them are of the
// handshake: Finished, and before it what client certificates need. How many
// shows in which sequence number opens the record. tap.mu is held.
func (t *tap) openReceived13(rec []byte, index uint64) (typ byte, data []byte, err error) {
	r := t.rx
	if r.opener == nil {
		if r.secret == nil {
			return 0, nil, errors.New("crypto/tls logged no traffic secret of the client")
		}
		keys, err := TLS13Keys(t.conn.suite, r.secret)
		if err != nil {
			return 0, nil, err
		}
		defer keys.Wipe()
		if r.opener, err = NewOpener(keys); err != nil {
			return 0, nil, err
		}
	}
	if r.known {
		return r.opener.Open(nil, rec, index-r.base)
	}
	err = errRecordOpen
	for base := uint64(1); base <= min(index, maxHandshakeRecords); base++ {
		if typ, data, err = r.opener.Open(nil, rec, index-base); err == nil {
			r.base, r.known = base, true
			break
		}
	}
	return typ, data, err
}

// proveReceived returns the keys that the client sends with and the sequence
// number of its next record, if they open the last record read as what crypto/tls
// made of it.
func (t *tap) proveReceived() (keys *Keys, next uint64, err error) {
	r := t.rx
	if r.missed {
		return nil, 0, errors.New("too many records came with the handshake")
	}
	t.followUpdates()
	t.mu.Lock()
	defer t.mu.Unlock()
	var typ byte
	var data []byte
	if t.conn.version == tls.VersionTLS13 {
		index := r.protected - 1
		if typ, data, err = t.openReceived13(r.rec, index); err != nil {
			return nil, 0, err
		}
		if keys, err = TLS13Keys(t.conn.suite, r.secret); err != nil {
			return nil, 0, err
		}
		next = index - r.base + 1
	} else {
		if r.keys == nil || r.sealed == 0 {
			return nil, 0, errors.New("the client's keys aren't known")
		}
		opener, err := NewOpener(r.keys)
		if err != nil {
			return nil, 0, err
		}
		if typ, data, err = opener.Open(nil, r.rec, r.sealed-1); err != nil {
			return nil, 0, err
		}
		k := *r.keys
		keys, next = &k, r.sealed
	}
	defer clear(data)
	if typ != RecordTypeApplicationData || len(data) != r.delivered {
		keys.Wipe()
		return nil, 0, fmt.Errorf("%d bytes were read of a record of type %d with %d", r.delivered, typ, len(data))
	}
	return keys, next, nil
}

// prepareReceiving follows the upgrade of the sending side: it makes crypto/tls
// read record by record, so that the kernel can take over. tap.wmu is held.
func (c *Conn) prepareReceiving() {
	t := c.tap
	if t.rxState.Load() != rxCount {
		return
	}
	if err := c.canReceive(); err != nil {
		c.receiving(err)
		return
	}
	t.rxState.CompareAndSwap(rxCount, rxSingle)
}

func (c *Conn) canReceive() error {
	cipher, _ := CipherOf(c.suite)
	if !c.opts.features().CanRX(c.version, cipher) {
		return refuse(ReasonKernel, "this kernel can't decrypt %s %s", tls.VersionName(c.version), cipher)
	}
	// A wrapper may have read ahead, and the kernel would never see that.
	for conn := c.tap.Conn; conn != net.Conn(c.tap.kernel.tcp); conn = c.opts.Below(conn) {
		if c.opts.Unbuffered == nil || !c.opts.Unbuffered(conn) {
			return refuse(ReasonNotTCP, "%T may read ahead", conn)
		}
	}
	return nil
}

// receiving tells how the switch went. With an error crypto/tls goes on
// receiving.
func (c *Conn) receiving(err error) {
	if err != nil {
		c.tap.offReceiving()
	}
	if c.opts.OnReceive != nil {
		c.opts.OnReceive(c, err)
	}
}

// receive is Read where the kernel shall decrypt.
func (c *Conn) receive(p []byte) (int, error) {
	r := c.tap.rx
	r.reading.Lock()
	defer r.reading.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	if r.drained && c.tap.rxState.Load() == rxSingle {
		c.takeOver()
	}
	if c.tap.rxState.Load() == rxKernel {
		return c.readKernel(p)
	}
	n, err := c.readTLS(p)
	c.consumed(n, len(p), err)
	if err != nil && !isTimeout(err) {
		c.tap.offReceiving() // crypto/tls knows the error to go on with
	}
	return n, err
}

// consumed notes that crypto/tls returned n bytes where size were asked for. It
// has no more of the record if it didn't fill the buffer, or if there is no room
// for more in the record.
func (c *Conn) consumed(n, size int, err error) {
	r := c.tap.rx
	if n == 0 || !r.alone {
		return
	}
	r.delivered += n
	r.drained = err == nil && (n < size || r.delivered == r.in.length()-c.overhead())
}

// overhead is how many bytes longer than its content a record's payload is,
// without padding.
func (c *Conn) overhead() int {
	cipher, _ := CipherOf(c.suite)
	switch {
	case c.version == tls.VersionTLS13:
		return 1 + tagLen
	case cipher == CHACHA20POLY1305:
		return tagLen
	}
	return explicitNonceLen + tagLen
}

// takeOver lets the kernel decrypt from the next record on. Whatever fails
// leaves reading with crypto/tls.
func (c *Conn) takeOver() {
	t, r := c.tap, c.tap.rx
	if r.in.partial() {
		return
	}
	var keys *Keys
	var next uint64
	err := step(stepProveRX, func() (err error) {
		keys, next, err = t.proveReceived()
		return err
	})
	r.rec = nil
	if err != nil {
		c.receiving(&UpgradeError{Reason: ReasonUnproven, Err: err})
		return
	}
	defer keys.Wipe()
	kernel, err := newKernelRX(t.kernel, keys, next)
	if err != nil {
		reason := ReasonKernel
		if peerGone(err) {
			reason = ReasonClosed
		}
		c.receiving(&UpgradeError{Reason: reason, Err: err})
		return
	}
	r.kernel = kernel
	// Not TLS_RX_EXPECT_NO_PAD, which would save a copy: with it 6.1 and 6.12 lose
	// content where a padded record is received together with others.
	t.mu.Lock()
	r.opener = nil
	if !c.changesReceiveKeys() {
		r.wipe()
	}
	t.mu.Unlock()
	t.rxState.Store(rxKernel)
	c.receiving(nil)
}

// changesReceiveKeys reports whether the kernel can follow a KeyUpdate of the
// client.
func (c *Conn) changesReceiveKeys() bool {
	return c.version == tls.VersionTLS13 && c.opts.features().RekeyRX.Support == Yes
}

// isTimeout reports whether a deadline has passed. ETIMEDOUT, a peer that has
// vanished, is none: the socket tells that once.
func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
