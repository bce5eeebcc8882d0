package ktls

import (
	"bytes"
	"crypto/tls"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/crypto/cryptobyte"
)

// choices are a fuzzer's input, read as decisions; all are 0 at its end.
type choices []byte

func (c *choices) byte() int {
	if len(*c) == 0 {
		return 0
	}
	b := (*c)[0]
	*c = (*c)[1:]
	return int(b)
}

// n is a number below limit, 0 if there is none.
func (c *choices) n(limit int) int {
	n := c.byte()<<16 | c.byte()<<8 | c.byte()
	if limit <= 0 {
		return 0
	}
	return n % limit
}

// observed is what a tap sees of a connection, and is told.
type observed struct {
	suite
	name    string
	in, out []byte   // of the handshake, from the client and from the server
	rest    []byte   // what the server sent then
	lines   [][]byte // of the key log
	session []byte   // master secret of the session that was resumed
	after   []sentRecord
}

// sentRecord is a record of the client's, with the keys and the number of the one
// that follows.
type sentRecord struct {
	rec  []byte
	typ  byte
	len  int
	keys Keys
	next uint64
}

func (o *observed) clone() *observed {
	c := *o
	c.in, c.out, c.rest, c.session = bytes.Clone(o.in), bytes.Clone(o.out), bytes.Clone(o.rest), bytes.Clone(o.session)
	c.lines, c.after = slices.Clone(o.lines), slices.Clone(o.after)
	for i := range c.lines {
		c.lines[i] = bytes.Clone(c.lines[i])
	}
	for i := range c.after {
		c.after[i].rec = bytes.Clone(c.after[i].rec)
	}
	return &c
}

// observe runs handshakes of all kinds that the proof tells apart.
func observe(t testing.TB) []*observed {
	t.Helper()
	var all []*observed
	add := func(name string, s suite, l *link, log *lineLog) *observed {
		o := &observed{suite: s, name: name + " " + s.String(), in: l.record.read(), out: l.record.written(), session: bytes.Clone(l.tap.secrets.session)}
		if log != nil {
			o.lines = log.get()
		}
		all = append(all, o)
		return o
	}
	logged := func() (*tls.Config, *lineLog) {
		log, config := new(lineLog), testServerConfig(t)
		config.KeyLogWriter = log
		return config, log
	}
	for _, s := range upgradable {
		stream := recordStream(t, s)
		all = append(all, &observed{suite: s, name: "stream " + s.String(), out: stream.handshake, rest: stream.rest, lines: stream.keyLog})

		config, log := logged()
		l := setup{config: config, recorded: true}.connect(t)
		client := l.sending(s)
		o := add("client", s, l, log)
		client.sendSome(o)
	}
	for _, s := range upgradable[:3] {
		config, log := logged()
		config.SessionTicketsDisabled = true
		l := setup{config: config, recorded: true}.connect(t)
		l.with(s)
		add("no ticket", s, l, log)
	}
	l, _ := resumed(t, setup{recorded: true}, tls.VersionTLS12)
	add("resumed", suite{tls.VersionTLS12, l.ConnectionState().CipherSuite}, l, nil)
	return all
}

// sending is a client whose keys are known.
type sending struct {
	seal func(typ byte, data []byte) []byte
	keys func() *Keys
	seq  func() uint64 // number of the next record
	next func()        // changes the key; nil in TLS 1.2
}

// sending runs the handshake for s.
func (l *link) sending(s suite) *sending {
	l.t.Helper()
	if s.version == tls.VersionTLS13 {
		c := l.with13(s.id, clientOptions{})
		return &sending{
			seal: c.seal, seq: func() uint64 { return c.out.seq },
			keys: func() *Keys {
				k, err := TLS13Keys(s.id, c.out.secret)
				if err != nil {
					l.t.Fatal(err)
				}
				return k
			},
			next: func() {
				if err := c.out.next(); err != nil {
					l.t.Fatal(err)
				}
			},
		}
	}
	g := l.withGo(&tls.Config{MaxVersion: s.version, CipherSuites: []uint16{s.id}})
	keys, _ := g.keys12(l.t)
	opener, err := NewOpener(keys)
	if err != nil {
		l.t.Fatal(err)
	}
	seq := uint64(1) // after Finished
	return &sending{
		keys: func() *Keys { return keys }, seq: func() uint64 { return seq },
		seal: func(typ byte, data []byte) []byte {
			seq++
			return opener.Seal(nil, typ, data, seq-1)
		},
	}
}

// sendSome makes up records that o's client sends after the handshake.
func (c *sending) sendSome(o *observed) {
	send := func(typ byte, data []byte) {
		rec := c.seal(typ, data)
		if typ == RecordTypeHandshake {
			c.next()
		}
		o.after = append(o.after, sentRecord{rec, typ, len(data), *c.keys(), c.seq()})
	}
	for i := range 3 {
		for _, n := range []int{1, 5, 300, 2, 16384} {
			send(RecordTypeApplicationData, randomBytes(n))
		}
		if c.next != nil && i < 2 {
			send(RecordTypeHandshake, []byte{msgKeyUpdate, 0, 0, 1, 0})
		}
	}
}

// show lets a new tap see it all, cut into pieces as rng has it.
func (o *observed) show(rx bool, rng *rand.Rand) *tap {
	tp := new(tap)
	tp.conn = &Conn{tap: tp, opts: &Options{RX: rx}, version: o.version, suite: o.id}
	if rx {
		tp.rx = new(receiver)
		tp.rxState.Store(rxCount)
	}
	for _, line := range o.lines {
		tp.logged(line)
	}
	if o.session != nil {
		tp.secrets.session = bytes.Clone(o.session)
	}
	tp.nin = copy(tp.hello[:], o.in)
	if rx {
		pieces(rng, o.in, func(p []byte) { tp.received(p, false) })
	}
	tp.wmu.Lock()
	pieces(rng, o.out, tp.wrote)
	tp.wmu.Unlock()
	tp.handshakeDone(o.version, o.id)
	tp.conn.hsDone.Store(true)
	tp.wmu.Lock()
	pieces(rng, o.rest, tp.wrote)
	tp.wmu.Unlock()
	return tp
}

func pieces(rng *rand.Rand, b []byte, show func([]byte)) {
	for len(b) > 0 {
		n := 1 + rng.IntN(min(len(b), 1<<(1+rng.IntN(15))))
		show(bytes.Clone(b[:n]))
		b = b[n:]
	}
}

// split cuts a stream into complete records and what is left of it.
func split(stream []byte) (records [][]byte, rest []byte) {
	for len(stream) >= RecordHeaderLen {
		n := RecordHeaderLen + int(stream[3])<<8 + int(stream[4])
		if len(stream) < n {
			break
		}
		records, stream = append(records, stream[:n:n]), stream[n:]
	}
	return records, stream
}

// told are the secrets in the key log lines.
type told struct {
	random    [32]byte
	secrets   map[string]string
	different bool // lines of more than one client random
}

func (o *observed) told() told {
	w := told{secrets: map[string]string{}}
	for _, line := range o.lines {
		l, err := ParseKeyLogLine(line)
		if err != nil || l.Label != LabelTLS12 && l.Label != LabelServerHandshake && l.Label != LabelServerTraffic {
			continue
		}
		if len(w.secrets) == 0 {
			w.random = l.ClientRandom
		}
		w.different = w.different || w.random != l.ClientRandom
		w.secrets[l.Label] = string(l.Secret)
	}
	return w
}

// randoms returns the random values of the hello messages that keys of TLS 1.2
// come from.
func (o *observed) randoms() (r [2][32]byte) {
	if len(o.in) >= helloLen && o.in[0] == RecordTypeHandshake && o.in[RecordHeaderLen] == msgClientHello {
		r[0] = [32]byte(o.in[helloLen-32:])
	}
	if w := o.told(); w.secrets[LabelTLS12] != "" {
		r[0] = w.random
	}
	if all, _ := split(o.out); len(all) > 0 && len(all[0]) >= helloLen && all[0][0] == RecordTypeHandshake && all[0][RecordHeaderLen] == msgServerHello {
		r[1] = [32]byte(all[0][helloLen-32:])
	}
	return r
}

// provable says whether what became of truth must be proven, by comparing with
// truth: no other record opens, and none opens under other keys. finished means
// that the last record is Finished of TLS 1.3, which is under the handshake key.
func (o *observed) provable(truth *observed) (ok, finished bool) {
	if o.version != truth.version || o.id != truth.id {
		return false, false
	}
	is, was := o.told(), truth.told()
	all, rest := split(o.out)
	right, _ := split(truth.out)
	if is.different || len(all) == 0 || len(rest) > 0 {
		return false, false
	}
	if watched, _ := split(truth.rest); len(watched) > 0 {
		changed, _ := split(o.rest)
		for i, r := range watched {
			if (len(r) == RecordHeaderLen+22 || len(r) == RecordHeaderLen+19) && o.version == tls.VersionTLS13 && !bytes.Equal(r, changed[i]) {
				return false, false
			}
		}
	}
	last := all[len(all)-1]
	at := slices.IndexFunc(right, func(r []byte) bool { return bytes.Equal(r, last) })
	if o.version == tls.VersionTLS12 {
		// As with crypto/tls, a full handshake's own secret counts before a session's.
		master, wasMaster := is.secrets[LabelTLS12], was.secrets[LabelTLS12]
		if master == "" {
			master = string(o.session)
		}
		if wasMaster == "" {
			wasMaster = string(truth.session)
		}
		return at == len(right)-1 && master == wasMaster && o.randoms() == truth.randoms(), false
	}
	if is.secrets[LabelServerHandshake] == "" || len(is.secrets[LabelServerTraffic]) != len(was.secrets[LabelServerTraffic]) {
		return false, false
	}
	ticket := last[0] == RecordTypeApplicationData && at >= 0 && truth.sealedBy(LabelServerTraffic, last, msgNewSessionTicket)
	if ticket {
		return is.secrets[LabelServerTraffic] == was.secrets[LabelServerTraffic], false
	}
	// After Finished nothing but KeyUpdates is told of the key.
	ok = at >= 0 && is.secrets[LabelServerHandshake] == was.secrets[LabelServerHandshake] && truth.sealedBy(LabelServerHandshake, last, msgFinished)
	if len(o.rest) > 0 && ok {
		// What follows opens under the right key, if at its right number.
		return false, true
	}
	return ok, true
}

// sealedBy reports whether a record is a message of the server's under this
// secret.
func (o *observed) sealedBy(label string, rec []byte, msg byte) bool {
	h, err := newHalf13(o.id, []byte(o.told().secrets[label]))
	if err != nil {
		return false
	}
	for seq := range uint64(maxHandshakeRecords) {
		if typ, data, err := h.opener.Open(nil, rec, seq); err == nil {
			return typ == RecordTypeHandshake && data[0] == msg
		}
	}
	return false
}

// change makes changes to what was observed, some of them with parts of others.
func (o *observed) change(all []*observed, c *choices) {
	flip := func(b []byte) {
		if len(b) > 0 {
			b[c.n(len(b))] ^= 1 << (c.byte() % 8)
		}
	}
	for range 8 {
		if len(*c) == 0 {
			return
		}
		op := c.byte()
		other := all[c.n(len(all))]
		records, end := split(o.out)
		switch op % 16 {
		case 0:
			flip(o.out)
		case 1:
			if len(o.lines) > 0 {
				flip(o.lines[c.n(len(o.lines))])
			}
		case 2:
			if n := c.n(len(o.lines)); len(o.lines) > 0 {
				o.lines = slices.Delete(o.lines, n, n+1)
			}
		case 3:
			if len(other.lines) > 0 {
				o.lines = slices.Insert(o.lines, c.n(len(o.lines)+1), bytes.Clone(other.lines[c.n(len(other.lines))]))
			}
		case 4:
			o.id = upgradable[c.n(len(upgradable))].id
		case 5:
			o.version = tls.VersionTLS10 + uint16(c.n(5))
		case 6:
			o.out = o.out[:c.n(len(o.out)+1)]
		case 7:
			o.out = append(o.out, byte(c.byte()))
		case 8, 9:
			if n := c.n(len(records)); len(records) > 0 {
				if op%16 == 8 {
					records = slices.Delete(records, n, n+1)
				} else {
					records = slices.Insert(records, c.n(len(records)), records[n])
				}
				o.out = append(bytes.Join(records, nil), end...)
			}
		case 10:
			flip(o.session)
		case 11:
			o.session = bytes.Clone(other.session)
		case 12:
			flip(o.in)
		case 13:
			if theirs, _ := split(other.out); len(theirs) > 0 {
				o.out = append(o.out, theirs[c.n(len(theirs))]...)
			}
		case 14:
			if len(records) > 0 {
				flip(records[len(records)-1]) // the one that counts
			}
		case 15:
			// A record that the tap opens because of its length. Others aren't
			// looked at: they are what crypto/tls wrote.
			records, _ := split(o.rest)
			records = slices.DeleteFunc(records, func(r []byte) bool { return len(r) != RecordHeaderLen+22 && len(r) != RecordHeaderLen+19 })
			if len(records) > 0 {
				flip(records[c.n(len(records))][RecordHeaderLen:])
			}
		}
	}
}

// What the tap loses track of after a proof, it doesn't find again.
func TestNoUpgradeAfterAnUnknownRecord(t *testing.T) {
	l := setup{opts: Options{Features: canEverything()}}.connect(t)
	l.with(upgradable[0])
	if _, err := l.proven(); err != nil {
		t.Fatal(err)
	}
	l.tap.wmu.Lock()
	// Of a KeyUpdate's length, and under another key.
	l.tap.wrote(append([]byte{RecordTypeApplicationData, 3, 3, 0, 5 + 1 + tagLen}, make([]byte, 5+1+tagLen)...))
	l.tap.wmu.Unlock()
	checkRefused(t, l.Upgrade(), ReasonUnproven)
}

// FuzzProve: the proof accepts what was observed if, and only if, the last record
// of the handshake is one that the server sent under the keys that were told, and
// then with these keys and the right number. Whatever else was changed, dropped,
// doubled or came from elsewhere is refused.
func FuzzProve(f *testing.F) {
	all := observe(f)
	truth := make([]tapState, len(all))
	for i, o := range all {
		tp := o.show(false, rand.New(rand.NewPCG(1, 1)))
		if err := tp.prove(); err != nil {
			f.Fatalf("%s: %v", o.name, err)
		}
		truth[i] = tapState{next: tp.send.next + tp.since, iv: tp.send.keys.IV}
		f.Add(uint8(i), uint64(i), []byte{})
		for op := range byte(16) {
			f.Add(uint8(i), uint64(i), []byte{op, 0, 0, byte(i) + 1, 0, 0, 3, 2, op, 0, 0, 2, 0, 0, 50, 7})
			f.Add(uint8(i), uint64(i), []byte{op, 0, 0, op, 0, 0, 200, 6})
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, seed uint64, changes []byte) {
		n := int(which) % len(all)
		o := all[n].clone()
		c := choices(changes)
		o.change(all, &c)
		tp := o.show(false, rand.New(rand.NewPCG(seed, 9)))
		err := tp.prove()
		want, finished := o.provable(all[n])
		if (err == nil) != want {
			t.Fatalf("%s: proven: %v, want %t", o.name, err, want)
		}
		if err != nil {
			if tp.send != nil && tp.lost == nil {
				t.Error("an unproven state was kept")
			}
			tp.wmu.Lock()
			defer tp.wmu.Unlock()
			if tp.prove() == nil {
				t.Error("proven at the second attempt")
			}
			return
		}
		got := tapState{next: tp.send.next + tp.since, iv: tp.send.keys.IV}
		switch {
		case finished:
			keys, err := TLS13Keys(o.id, []byte(o.told().secrets[LabelServerTraffic]))
			if err != nil || got != (tapState{iv: keys.IV}) || *keys != *tp.send.keys {
				t.Errorf("%s: %+v, %v", o.name, got, err)
			}
		case got != truth[n]:
			t.Errorf("%s: %+v, want %+v", o.name, got, truth[n])
		}
	})
}

// FuzzProveReceived: the same for what is received. The keys and the number for
// the client's next record are those that the client will use for it, or there
// are none.
func FuzzProveReceived(f *testing.F) {
	all := slices.DeleteFunc(observe(f), func(o *observed) bool { return o.after == nil })
	for i, o := range all {
		for last := range o.after {
			f.Add(uint8(i), uint8(last), uint64(last), []byte{})
		}
		for op := range byte(8) {
			for _, last := range []uint8{4, 6, 10, 14} {
				f.Add(uint8(i), last, uint64(op), []byte{op, 0, 0, last, 0, 0, 200, 3})
			}
		}
	}
	f.Fuzz(func(t *testing.T, which, last uint8, seed uint64, changes []byte) {
		o := all[int(which)%len(all)].clone()
		end := int(last) % len(o.after)
		records := slices.Clone(o.after[:end+1])
		rng := rand.New(rand.NewPCG(seed, 11))
		changed, delivered := false, -1
		c := choices(changes)
		for range 8 {
			if len(c) == 0 {
				break
			}
			flip := func(b []byte) {
				if len(b) > 0 {
					b[c.n(len(b))] ^= 1 << (c.byte() % 8)
				}
			}
			changed = true
			switch c.byte() % 8 {
			case 0:
				flip(records[len(records)-1].rec)
			case 1:
				flip(records[c.n(len(records))].rec)
			case 2:
				if n := c.n(len(records) - 1); len(records) > 1 {
					records = slices.Delete(records, n, n+1)
				}
			case 3:
				records = slices.Insert(records, c.n(len(records)), o.after[c.n(len(o.after))])
			case 4:
				delivered = c.n(MaxPlaintext + 1)
			case 5:
				flip(o.lines[c.n(len(o.lines))])
			case 6:
				flip(o.in)
			case 7:
				n, m := c.n(len(records)), c.n(len(records))
				records[n], records[m] = records[m], records[n]
			}
		}
		tp := o.show(true, rng)
		if err := tp.prove(); err != nil && !changed {
			t.Fatalf("%s: %v", o.name, err)
		}
		for i, r := range records {
			pieces(rng, r.rec, func(p []byte) { tp.received(p, i == len(records)-1) })
		}
		sent := records[len(records)-1]
		r := tp.rx
		r.delivered = sent.len
		if delivered >= 0 {
			r.delivered = delivered
		}
		keys, next, err := tp.proveReceived()
		if err != nil {
			if !changed && sent.typ == RecordTypeApplicationData {
				t.Fatalf("%s: %v", o.name, err)
			}
			return
		}
		truth := slices.IndexFunc(o.after, func(s sentRecord) bool { return bytes.Equal(s.rec, sent.rec) })
		if truth < 0 || sent.typ != RecordTypeApplicationData || r.delivered != sent.len {
			t.Fatalf("%s: proven by what the client didn't send, or by %d bytes of %d", o.name, r.delivered, sent.len)
		}
		if next != sent.next || *keys != sent.keys {
			t.Errorf("%s: number %d, want %d; keys right: %t", o.name, next, sent.next, *keys == sent.keys)
		}
	})
}

// FuzzSession: of a session that a client offers, the tap takes the master secret
// of TLS 1.2, or nothing.
func FuzzSession(f *testing.F) {
	state := func(version uint16, secret []byte) []byte {
		var b cryptobyte.Builder
		b.AddUint16(version)
		b.AddUint8(1)
		b.AddUint16(tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256)
		b.AddUint64(1)
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(secret) })
		b.AddUint24(0) // Extra
		b.AddUint8(1)  // extended master secret
		b.AddUint8(0)
		b.AddUint24(0) // certificates, chains
		b.AddUint24(0)
		return b.BytesOrPanic()
	}
	f.Add(state(tls.VersionTLS12, pattern(48)))
	f.Add(state(tls.VersionTLS12, pattern(32)))
	f.Add(state(tls.VersionTLS12, pattern(49)))
	f.Add(state(tls.VersionTLS13, pattern(48)))
	f.Add(state(tls.VersionTLS11, pattern(48)))
	config, seen := testServerConfig(f), new(tap)
	config.MaxVersion = tls.VersionTLS12
	config.WrapSession = func(cs tls.ConnectionState, s *tls.SessionState) ([]byte, error) {
		if b, err := s.Bytes(); err == nil {
			f.Add(b)
			seen.offered(s)
		}
		return config.EncryptTicket(cs, s)
	}
	l := setup{config: config}.connect(f)
	checkServes(f, l, l.withGo(nil))
	if len(seen.secrets.session) != masterSecretLen {
		f.Fatal("nothing is taken of crypto/tls's own session")
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := tls.ParseSessionState(b)
		if err != nil {
			return
		}
		tp := new(tap)
		tp.offered(s)
		again, err := s.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		in := cryptobyte.String(again)
		var version uint16
		var secret cryptobyte.String
		ok := in.ReadUint16(&version) && in.Skip(1+2+8) && in.ReadUint8LengthPrefixed(&secret)
		want := []byte(secret)
		if !ok || version != tls.VersionTLS12 || len(secret) != masterSecretLen {
			want = nil
		}
		if !bytes.Equal(tp.secrets.session, want) {
			t.Errorf("took %x, want %x", tp.secrets.session, want)
		}
	})
}
