package ktls

import (
	"crypto/tls"
	"errors"
	"sync/atomic"
	"time"
)

// txKey is the key that the kernel encrypts with, and how much of it is used up.
// Guarded by tap.wmu where nothing else is said.
type txKey struct {
	secret []byte        // TLS 1.3 traffic secret of its generation, where it can be changed
	change bool          // the key can be changed; set before Conn.offloaded
	limit  uint64        // records that may be encrypted under one key; likewise
	size   int64         // bytes of application data in a full record; likewise
	used   atomic.Uint64 // records encrypted, never fewer than there were; read by anyone
}

// keyLimits are how many records may be encrypted under one key. AES-GCM: 2^24.5
// (RFC 8446 and RFC 9846, section 5.5), whatever the version: the bound is the
// cipher's. CCM: 2^23 (RFC 9147, section 4.5.3). With ChaCha20-Poly1305 sequence
// numbers end sooner than safety; 2^48 stands for that.
var keyLimits = map[Cipher]uint64{
	AES128GCM:        23726566,
	AES256GCM:        23726566,
	AES128CCM:        1 << 23,
	CHACHA20POLY1305: 1 << 48,
}

const (
	// minKeyLimit is the least Options.KeyLimit: one write must fit.
	minKeyLimit = 16
	// keyReserve are records kept back for KeyUpdate and alerts.
	keyReserve = 4
)

// keyLimit is the number of records for one key.
func (o *Options) keyLimit(c Cipher) uint64 {
	limit := keyLimits[c]
	if o.KeyLimit > 0 {
		limit = min(limit, max(o.KeyLimit, minKeyLimit))
	}
	return limit
}

// records is the most records that n bytes of application data can make: full
// ones, and a part in the one that is open before and in the last.
func (k *txKey) records(n int64) uint64 { return uint64(n/k.size) + 2 }

// fits reports whether n bytes more can be encrypted under this key.
func (k *txKey) fits(n int64) bool {
	return k.used.Load()+k.records(n)+keyReserve <= k.limit
}

// room is how many bytes can be encrypted under this key.
func (k *txKey) room() int64 {
	used := k.used.Load() + keyReserve + 2
	if used >= k.limit {
		return 0
	}
	return int64(min(k.limit-used, 1<<40)) * k.size
}

// take counts n bytes before they are sent.
func (k *txKey) take(n int64) { k.used.Add(k.records(n)) }

// allot returns how many of n bytes may be sent now, at least one of n > 0, and
// counts them. It changes the key if it is used up. wmu is held.
func (t *tap) allot(n int64) (int64, error) {
	k := &t.key
	if !k.fits(n) {
		if k.room() == 0 {
			if err := t.renewKey(); err != nil {
				return 0, err
			}
		}
		n = min(n, k.room())
	}
	k.take(n)
	return n, nil
}

// ErrKeyLimit ends a connection whose key is used up where it can't be changed:
// in TLS 1.2, and where the kernel can't rekey.
var ErrKeyLimit = errors.New("ktls: the key's usage limit is reached")

// renewKey sends a KeyUpdate of our own and changes the key, which is used up.
// crypto/tls's keys stay: what it writes is opened with them as before.
func (t *tap) renewKey() error {
	if !t.key.change {
		t.control(RecordTypeAlert, []byte{alertLevelFatal, alertInternalError})
		t.stop(ErrKeyLimit)
		return ErrKeyLimit
	}
	err := t.nextKey([]byte{msgKeyUpdate, 0, 0, 1, 0})
	t.rekeyed(false, err)
	return err
}

// Bounds of the KeyUpdates that a peer may ask of us: so many at once, and then
// so many per second. crypto/tls has bounds of its own: no more than 16 in a row
// without data (CVE-2026-56862), one per record (CVE-2026-32283). A peer that
// puts a byte of data in between is cut off by these.
const (
	maxKeyUpdates       = 1024
	keyUpdatesPerSecond = 16
)

// updateBudget is what is left of these bounds.
type updateBudget struct {
	used  int
	since time.Time
}

// take reports whether one more may be answered now.
func (b *updateBudget) take(now time.Time) bool {
	if back := int(now.Sub(b.since) / (time.Second / keyUpdatesPerSecond)); back > 0 {
		b.used = max(0, b.used-back)
		b.since = now
	}
	if b.used >= maxKeyUpdates {
		return false
	}
	b.used++
	return true
}

var (
	// ErrKeyUpdate ends a connection whose peer asked for new keys (RFC 8446,
	// section 4.6.3) after the upgrade, on a kernel that can't change them.
	ErrKeyUpdate = errors.New("ktls: peer requested a KeyUpdate, which this kernel can't do")

	// ErrKeyUpdateFlood ends a connection whose peer asked for new keys over and
	// over.
	ErrKeyUpdateFlood = errors.New("ktls: too many KeyUpdates requested")
)

// answerKeyUpdate sends crypto/tls's answer to a peer's KeyUpdate, msg, and lets
// the kernel follow to the next key. wmu is held.
func (t *tap) answerKeyUpdate(msg []byte) error {
	refuse := func(alert byte, err error) error {
		err = t.end(alert, err)
		t.rekeyed(true, err)
		return err
	}
	if !t.key.change {
		return refuse(alertInternalError, ErrKeyUpdate)
	}
	if !t.updates.take(time.Now()) {
		return refuse(alertUnexpectedMessage, ErrKeyUpdateFlood)
	}
	next, err := nextSendState(t.suite, t.send)
	if err != nil {
		return refuse(alertInternalError, err)
	}
	next.opener = nil
	t.send.wipe()
	t.send = next
	err = t.nextKey(msg)
	t.rekeyed(true, err)
	return err
}

// answerOwnKeyUpdate answers a peer's KeyUpdate that crypto/tls hasn't seen. Its
// own keys stay.
func (t *tap) answerOwnKeyUpdate() {
	t.lockWrite()
	defer t.unlockWrite()
	if t.written != nil {
		return
	}
	if !t.key.change {
		t.rekeyed(true, t.end(alertInternalError, ErrKeyUpdate))
		return
	}
	err := t.nextKey([]byte{msgKeyUpdate, 0, 0, 1, 0})
	t.rekeyed(true, err)
	if t.written == nil {
		t.written = err
	}
}

// nextKey sends msg, a KeyUpdate, as the last record under the present key, and
// gives the kernel the next one. A data record that is still open (MSG_MORE)
// goes out before msg, under the old key as it must. If the kernel doesn't take
// the key although the peer awaits it, the connection ends at once.
func (t *tap) nextKey(msg []byte) error {
	secret, err := NextSecret(t.suite, t.key.secret)
	if err != nil {
		return err
	}
	keys, err := TLS13Keys(t.suite, secret)
	if err == nil {
		defer keys.Wipe()
		err = t.control(RecordTypeHandshake, msg)
	}
	if err != nil {
		clear(secret)
		return err
	}
	if err := step(stepRekey, func() error { return t.kernel.setKey(keys) }); err != nil {
		clear(secret)
		t.abort(err)
		return err
	}
	clear(t.key.secret)
	t.key.secret = secret
	t.key.used.Store(0)
	return nil
}

// control sends one record of the kernel's that isn't application data.
func (t *tap) control(typ byte, p []byte) error {
	t.key.used.Add(1)
	return t.kernel.control(typ, p)
}

func (t *tap) rekeyed(byPeer bool, err error) {
	if c := t.conn; c != nil && c.opts.OnRekey != nil {
		c.opts.OnRekey(c, byPeer, err)
	}
}

// changesKeys reports whether the sending key can be changed after an upgrade.
func (c *Conn) changesKeys() bool {
	return c.version == tls.VersionTLS13 && c.opts.features().Rekey.Support == Yes
}

// Room reports whether n bytes more can be sent within the usage limit of the
// sending key (see [Options.KeyLimit]), after an upgrade if there was none yet.
// Where the kernel can change keys it is always true. It never waits.
func (c *Conn) Room(n int64) bool {
	switch k := &c.tap.key; {
	case c.offloaded.Load():
		return k.change || k.fits(n)
	case !c.hsDone.Load() || c.changesKeys():
		return true
	default:
		cipher, ok := CipherOf(c.suite)
		size := int64(MaxPlaintext)
		if r := c.opts.RecordSize; r > 0 && r < MaxPlaintext {
			size = int64(r) - 1 // as upgrade has it
		}
		// An upgrade leaves half of the limit at least.
		return !ok || uint64(n/size)+keyReserve+2 < c.opts.keyLimit(cipher)/2
	}
}

// Expiring reports whether the connection should be told to end, because half of
// what its key may encrypt is used up and it can't be changed. So late that it costs
// nothing, and so early that there is room for the longest files.
func (c *Conn) Expiring() bool {
	k := &c.tap.key
	return c.offloaded.Load() && !k.change && k.used.Load() > k.limit/2
}
