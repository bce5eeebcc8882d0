package ktls

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A schedule is what the ends of a connection do, and when. The same one is run
// with crypto/tls's server and with ours; nothing that a caller or the peer can
// see may differ. Time is synctest's, and the connection is in memory, so that
// only the order in the schedule counts.
//
// Five actors take part. Each acts at its own instants, which never coincide with
// another's, so that a run has one outcome.
type schedule struct {
	suite
	narrow     bool                // the server's writes must wait for the client's reads
	halfCloses bool                // CloseWrite is called
	acts       [actors][]scheduled // in order
}

const (
	writing   = iota // the server's writer
	reading          // the server's reader
	sendsMore        // the client's writer
	receiving        // the client's reader
	closing          // who closes the server's end
	actors
)

type scheduled struct {
	wait int // slots
	op   int
	n, m int
}

// slot is how far the instants of an actor are apart.
const slot = time.Millisecond

// writeSizes are of a Write or of what the client sends.
var writeSizes = []int{0, 1, 2, 5, 100, 1400, 5000, 16383, 16384, 16385, 40000}

func newSchedule(c choices) *schedule {
	s := &schedule{suite: upgradable[c.byte()%len(upgradable)]}
	s.narrow = c.byte()%2 == 1
	for range 40 {
		if len(c) == 0 {
			break
		}
		actor := c.byte()
		a := scheduled{wait: 1 + actor/8%8, op: c.byte(), n: c.byte(), m: c.byte()}
		if actor %= 8; actor >= actors {
			actor -= actors
		}
		if actor == closing && len(s.acts[closing]) == 1 {
			continue // once
		}
		s.acts[actor] = append(s.acts[actor], a)
		s.halfCloses = s.halfCloses || actor == writing && a.op%12 == 8
	}
	return s
}

// server is what a schedule asks of the server's end.
type server interface {
	net.Conn
	CloseWrite() error
	Handshake() error
	ConnectionState() tls.ConnectionState
}

// moment is what an actor got.
type moment struct {
	at   time.Duration
	call string
	n    int
	err  error
}

func (m moment) String() string { return fmt.Sprintf("%v %s: %d, %v", m.at, m.call, m.n, m.err) }

// outcome is all that can be seen of a run.
type outcome struct {
	acts   [actors][]moment
	data   []byte // read by the server
	stream []byte // received by the client
	peer   *peer
}

// peer is the client's end.
type peer struct {
	net.Conn
	version uint16
	seal    func(typ byte, data []byte) []byte
	padded  func(typ byte, data []byte, n int) []byte // nil in TLS 1.2
	next    func()                                    // the client's next key; nil in TLS 1.2
	open    func(rec []byte) (typ byte, data []byte, err error)
	early   []byte // received with the handshake
}

// dialPeer runs the client's handshake.
func dialPeer(t testing.TB, conn net.Conn, s suite) (*peer, error) {
	if s.version == tls.VersionTLS13 {
		c, err := dial13(conn, s.id, clientOptions{})
		if err != nil {
			return nil, err
		}
		early, _ := c.r.Peek(c.r.Buffered())
		p := &peer{Conn: conn, version: s.version, seal: c.seal, padded: c.sealPadded, early: bytes.Clone(early)}
		p.next = func() {
			if err := c.out.next(); err != nil {
				t.Error(err)
			}
		}
		p.open = func(rec []byte) (byte, []byte, error) {
			typ, data, err := c.in.opener.Open(nil, rec, c.in.seq)
			if err != nil {
				return 0, nil, err
			}
			if c.in.seq++; typ == RecordTypeHandshake && isKeyUpdate(data) {
				err = c.in.next()
			}
			return typ, data, err
		}
		return p, nil
	}
	g := &goClient{wire: &recorder{Conn: conn}, keys: &testKeyLog{t: t}}
	g.Conn = tls.Client(g.wire, &tls.Config{InsecureSkipVerify: true, MaxVersion: s.version, CipherSuites: []uint16{s.id}, KeyLogWriter: g.keys})
	if err := g.Handshake(); err != nil {
		return nil, err
	}
	mine, its := g.keys12(t)
	out, err := NewOpener(mine)
	if err != nil {
		return nil, err
	}
	in, err := NewOpener(its)
	if err != nil {
		return nil, err
	}
	sent, got := uint64(1), uint64(1) // after Finished
	return &peer{Conn: conn, version: s.version,
		seal: func(typ byte, data []byte) []byte {
			sent++
			return out.Seal(nil, typ, data, sent-1)
		},
		open: func(rec []byte) (byte, []byte, error) {
			got++
			return in.Open(nil, rec, got-1)
		},
	}, nil
}

// run runs the schedule with the server that start makes.
func (s *schedule) run(t *testing.T, start func(net.Conn, *tls.Config) server, config *tls.Config) *outcome {
	room := 1 << 30
	if s.narrow {
		room = 20000
	}
	below, far := memoryPipe(room, 1<<30)
	conn := start(below, config)
	shaken := make(chan error, 1)
	go func() { shaken <- conn.Handshake() }()
	client, err := dialPeer(t, far, s.suite)
	if herr := <-shaken; err != nil || herr != nil {
		t.Fatalf("handshake: %v, %v", err, herr)
	}
	o := &outcome{peer: client, stream: bytes.Clone(client.early)}
	begin := time.Now()
	last := 0
	for _, acts := range s.acts {
		n := 0
		for _, a := range acts {
			n += a.wait + 10 // no deadline is longer
		}
		last = max(last, n)
	}
	end := time.Duration(last+10) * slot
	var wg sync.WaitGroup
	for actor, acts := range s.acts {
		wg.Go(func() {
			a := &acting{s: s, o: o, t: t, actor: actor, conn: conn, below: below, client: client, begin: begin}
			for _, act := range acts {
				a.sleep(act.wait)
				a.act(act)
			}
			// Now all comes to its end: the client sends no more, and reads what there is.
			switch actor {
			case sendsMore:
				time.Sleep(time.Until(begin.Add(end + a.instant())))
				far.CloseWrite()
			case receiving:
				for !a.receive(1 << 30) {
					a.sleep(1)
				}
			case reading:
				for range 3 {
					a.sleep(1)
					a.note("last Read", func() (int, error) { return a.read(1 << 15) })
				}
			case closing:
				time.Sleep(time.Until(begin.Add(2*end + 10*time.Second + a.instant())))
				a.note("last Close", func() (int, error) { return 0, conn.Close() })
			}
		})
	}
	wg.Wait()
	below.Close()
	return o
}

type acting struct {
	s      *schedule
	o      *outcome
	t      *testing.T
	actor  int
	conn   server
	below  *pipeEnd
	client *peer
	begin  time.Time
	sent   int
	half   []byte // of a record, still to be sent
	ended  bool   // reading has ended with an error
}

// instant is where in a slot the actor acts.
func (a *acting) instant() time.Duration { return time.Duration(a.actor+1) * slot / 20 }

// sleep waits for the actor's next instant but n-1.
func (a *acting) sleep(n int) {
	now := time.Since(a.begin)
	next := now.Truncate(slot) + a.instant()
	if next <= now {
		next += slot
	}
	time.Sleep(next + time.Duration(n-1)*slot - now)
}

// deadline is n slots from now, at an instant of no actor.
func (a *acting) deadline(n int) time.Time {
	now := time.Since(a.begin)
	return a.begin.Add(now.Truncate(slot) + time.Duration(n%8)*slot + slot/2 + a.instant()/2)
}

func (a *acting) note(call string, do func() (int, error)) error {
	n, err := do()
	a.o.acts[a.actor] = append(a.o.acts[a.actor], moment{time.Since(a.begin), call, n, err})
	return err
}

func (a *acting) read(size int) (int, error) {
	p := make([]byte, size)
	n, err := a.conn.Read(p)
	if !a.ended { // nobody reads on
		a.o.data = append(a.o.data, p[:n]...)
	}
	a.ended = a.ended || err != nil && !strings.HasPrefix(describe(err), "timeout")
	return n, err
}

// receive takes at most so many bytes off the client's end, once whoever has
// something to send has sent it, and reports whether there will be no more. To
// wait for bytes instead would be to race with a server that writes many records.
func (a *acting) receive(size int) (end bool) {
	synctest.Wait()
	b, end := a.client.Conn.(*pipeEnd).take(size)
	a.o.stream = append(a.o.stream, b...)
	return end
}

// content is what a Write of n bytes has, which tells where it belongs.
func (a *acting) content(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte((a.sent + i) * 7 % 251)
	}
	a.sent += n
	return b
}

func (a *acting) act(s scheduled) {
	switch a.actor {
	case writing:
		a.write(s)
	case reading:
		a.reads(s)
	case sendsMore:
		a.send(s)
	case receiving:
		if s.op%16 == 15 {
			a.client.Conn.Close()
			return
		}
		a.receive(1 + s.n*s.m%20000)
	case closing:
		if s.op%2 == 0 {
			a.note("Close", func() (int, error) { return 0, a.conn.Close() })
		}
	}
}

// write is one of what a caller can do to the sending side. With a narrow
// connection nobody may have to wait for a lock, for which synctest's time stands
// still: then nothing is closed half.
func (a *acting) write(s scheduled) {
	size := writeSizes[s.n%len(writeSizes)]
	write := func() (int, error) { return a.conn.Write(a.content(size)) }
	switch s.op % 12 {
	default:
		a.note("Write", write)
	case 5, 6:
		a.conn.SetWriteDeadline(a.deadline(s.m))
		a.note("Write with deadline", write)
	case 7:
		a.note("SetWriteDeadline", func() (int, error) { return 0, a.conn.SetWriteDeadline(time.Time{}) })
	case 8:
		if !a.s.narrow {
			a.note("CloseWrite", func() (int, error) { return 0, a.conn.CloseWrite() })
		}
	case 9:
		if c, ok := a.conn.(*Conn); ok && (!a.s.narrow || len(a.s.acts[closing]) == 0) {
			if err := c.Upgrade(); err == nil {
				a.t.Error("upgraded in memory")
			}
		}
	case 10:
		a.note("WriteMore", func() (int, error) {
			if c, ok := a.conn.(*Conn); ok {
				return c.WriteMore(a.content(size))
			}
			return write()
		})
	case 11:
		if s.m%4 == 0 {
			a.note("Close", func() (int, error) { return 0, a.conn.Close() })
		} else {
			a.note("Handshake", func() (int, error) { return 0, a.conn.Handshake() })
		}
	}
}

func (a *acting) reads(s scheduled) {
	size := 1 + s.n*s.n
	switch s.op % 8 {
	default:
		a.note("Read", func() (int, error) { return a.read(size) })
	case 4, 5:
		a.conn.SetReadDeadline(a.deadline(s.m))
		a.note("Read with deadline", func() (int, error) { return a.read(size) })
	case 6:
		a.note("SetReadDeadline", func() (int, error) { return 0, a.conn.SetReadDeadline(time.Time{}) })
	case 7:
		a.note("Read", func() (int, error) { return a.read(0) })
	}
}

// send is one of what a client can send. With a narrow connection it is nothing
// that makes the server's reader write.
func (a *acting) send(s scheduled) {
	c := a.client
	out := a.half
	a.half = nil
	size := min(writeSizes[s.n%len(writeSizes)], MaxPlaintext)
	op := s.op % 16
	if a.s.narrow && op > 4 {
		op = 0
	}
	data := func(n int) []byte { return a.content(n) }
	switch op {
	default:
		out = append(out, c.seal(RecordTypeApplicationData, data(max(size, 1)))...)
	case 1:
		for range 1 + s.m%4 {
			out = append(out, c.seal(RecordTypeApplicationData, data(max(size, 1)))...)
		}
	case 2:
		rec := c.seal(RecordTypeApplicationData, data(max(size, 1)))
		n := s.m * len(rec) / 256
		out, a.half = append(out, rec[:n]...), rec[n:]
	case 3:
		if c.padded != nil {
			out = append(out, c.padded(RecordTypeApplicationData, data(min(size+1, 16000)), s.m)...)
		}
	case 4:
		out = append(out, c.seal(RecordTypeAlert, []byte{alertLevelWarning, alertCloseNotify})...)
	case 5, 6, 7:
		if c.next != nil {
			request := byte(s.m % 2)
			if a.s.halfCloses {
				request = 0 // crypto/tls couldn't read on; ours can: TestNothingFollowsCloseNotify
			}
			out = append(out, c.seal(RecordTypeHandshake, []byte{msgKeyUpdate, 0, 0, 1, request})...)
			c.next()
		}
	case 8:
		out = append(out, c.seal(RecordTypeAlert, []byte{byte(s.n), byte(s.m)})...)
	case 9:
		for range s.m % 20 {
			out = append(out, c.seal(RecordTypeApplicationData, nil)...)
		}
	case 10:
		rec := c.seal(RecordTypeApplicationData, data(max(size, 1)))
		rec[s.m*len(rec)/256] ^= 1 << (s.n % 8)
		out = append(out, rec...)
	case 11: // a message of any kind, perhaps only a part of it
		msg := []byte{byte(s.m), 0, 0, byte(s.n % 8), 1, 0, 0, 0}
		out = append(out, c.seal(RecordTypeHandshake, msg[:1+s.n%8])...)
	case 12:
		out = append(out, c.seal(byte(s.m), data(s.n%8))...)
	case 13:
		out = append(out, byte(s.n), 3, byte(s.m%5), byte(s.m), byte(s.n))
	case 14:
		if c.next != nil && !a.s.halfCloses { // several messages in a record
			out = append(out, c.seal(RecordTypeHandshake, bytes.Repeat([]byte{msgKeyUpdate, 0, 0, 1, byte(s.m % 3)}, 1+s.n%3))...)
		}
	case 15:
		c.Conn.Write(out)
		c.Conn.(*pipeEnd).CloseWrite()
		return
	}
	c.Conn.Write(out)
}

// records opens what the client received. Whole are those that open; the rest is
// what a write that failed has left.
func (o *outcome) records() (all []string, whole bool) {
	records, rest := split(o.stream)
	for _, r := range records {
		typ, data, err := o.peer.open(r)
		if err != nil {
			return all, false
		}
		if typ == RecordTypeHandshake && data[0] == msgNewSessionTicket {
			data = nil // is another one each time
		}
		all = append(all, string(rune(typ))+string(data))
	}
	return all, len(rest) == 0
}

// describe is an error as a caller can tell it from others.
func describe(err error) string {
	var ne net.Error
	switch {
	case err == nil || err == io.EOF || err == io.ErrUnexpectedEOF:
		return fmt.Sprint(err)
	case errors.As(err, &ne) && ne.Timeout():
		return "timeout, " + fmt.Sprint(errors.Is(err, os.ErrDeadlineExceeded))
	case errors.Is(err, net.ErrClosed):
		return "closed"
	}
	return err.Error()
}

// compare compares a run of our server with one of crypto/tls's. They differ in
// one thing: crypto/tls still sends close_notify after a fatal alert or a write that
// failed, which must not be (RFC 8446, section 6.2), or would hide the gap; and
// alerts after close_notify. Ours doesn't, and says so when it is closed.
func (o *outcome) compare(t *testing.T, want *outcome) {
	t.Helper()
	ours, whole := o.records()
	theirs, theirsWhole := want.records()
	fatal := len(ours) > 0 && isFatal(ours[len(ours)-1])
	// The write may have been an answer of the reader's. Then it is Close that tells.
	failed := !fatal && !whole
	for _, acts := range o.acts {
		failed = failed || slices.ContainsFunc(acts, func(m moment) bool {
			return strings.HasPrefix(m.call, "Write") && strings.HasPrefix(describe(m.err), "timeout") ||
				strings.HasSuffix(m.call, "Close") && m.err != nil && describe(m.err) != "closed"
		})
	}
	for actor := range o.acts {
		a, b := o.acts[actor], want.acts[actor]
		if actor == reading { // nobody reads on
			a, b = untilError(a), untilError(b)
		}
		for i := range max(len(a), len(b)) {
			if i < len(a) && i < len(b) && (fatal || failed) && strings.Contains(a[i].call, "Close") {
				a[i].err, b[i].err = nil, nil
			}
			if i < len(a) && i < len(b) && i > 0 && (fatal || failed) && actor == writing && a[i].err != nil && b[i].err != nil {
				a[i].err, b[i].err = io.ErrClosedPipe, io.ErrClosedPipe // for whichever reason
			}
			// crypto/tls's Close may have to wait for the peer to take its close_notify.
			anytime := i < len(a) && (fatal || failed) && (a[i].err != nil || strings.Contains(a[i].call, "Close"))
			if i >= len(a) || i >= len(b) || a[i].at != b[i].at && !anytime || a[i].n != b[i].n || describe(a[i].err) != describe(b[i].err) {
				t.Errorf("actor %d, act %d:\n%s\nwith crypto/tls:\n%s", actor, i, lines(a), lines(b))
				break
			}
		}
	}
	if !bytes.Equal(o.data, want.data) {
		t.Errorf("the server read %d bytes, with crypto/tls %d", len(o.data), len(want.data))
	}
	n := len(ours)
	closed := n > 0 && ours[n-1] == closeNotify
	if len(theirs) > n && (fatal || closed || failed && theirs[n] == closeNotify) {
		theirs = theirs[:n]
	}
	if failed && slices.Contains(ours, closeNotify) {
		t.Error("close_notify after a write that failed")
	}
	if !failed && !fatal && !closed && whole != theirsWhole || !slices.Equal(ours, theirs) {
		t.Errorf("the client got %d records, whole %t; with crypto/tls %d, %t", len(ours), whole, len(theirs), theirsWhole)
		for i := range max(len(ours), len(theirs)) {
			show := func(r []string) string {
				if i >= len(r) {
					return "nothing"
				}
				return fmt.Sprintf("type %d, %d bytes %.20x", r[i][0], len(r[i])-1, r[i][1:])
			}
			t.Logf("%s; with crypto/tls %s", show(ours), show(theirs))
		}
		for actor := range o.acts {
			t.Logf("actor %d:\n%s\nwith crypto/tls:\n%s", actor, lines(o.acts[actor]), lines(want.acts[actor]))
		}
	}
}

// closeNotify is that alert as records has it.
const closeNotify = string(rune(RecordTypeAlert)) + "\x01\x00"

// isFatal reports whether a record is an alert that ends the connection.
func isFatal(rec string) bool {
	return len(rec) == 3 && rec[0] == RecordTypeAlert && rec != closeNotify
}

// untilError are the calls up to one that says that reading has ended.
func untilError(all []moment) []moment {
	for i, m := range all {
		if d := describe(m.err); m.err != nil && !strings.HasPrefix(d, "timeout") {
			return all[:i+1]
		}
	}
	return all
}

func lines(all []moment) string {
	var b strings.Builder
	for _, m := range all {
		fmt.Fprintf(&b, "\t%v\n", m)
	}
	return b.String()
}

func ourServer(c net.Conn, config *tls.Config) server {
	return Server(c, ServerConfig(config), &Options{Features: canEverything()})
}

func stockServer(c net.Conn, config *tls.Config) server { return tls.Server(c, config) }

// check runs the schedule with both servers.
func (s *schedule) check(t *testing.T, config *tls.Config) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s.run(t, ourServer, config).compare(t, s.run(t, stockServer, config))
	})
}

// FuzzSchedule: our server without an upgrade is crypto/tls's, to its caller and to
// the client, whatever they do in whichever order.
func FuzzSchedule(f *testing.F) {
	config := testServerConfig(f)
	seeds := uint64(20)
	if slow {
		seeds = 4 // they don't depend on the kernel
	}
	for seed := range seeds {
		b := make([]byte, 2+4*(2*seed))
		rand.NewChaCha8([32]byte{byte(seed), 5}).Read(b)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		newSchedule(b).check(t, config)
	})
}
