package ktls

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// session is a connection whose server sends content by every means, one part
// after the other, with a change of keys in between, while it reads what comes.
type session struct {
	*link
	s       suite
	client  net.Conn
	content []byte
	file    *os.File // pieces of content without the headers of batch's
	rekeys  bool

	mu   sync.Mutex // of what the client sends, and down to read
	more sync.Cond  // the server has read something
	id   string     // of the goroutine that reads
	sent int        // bytes that the client has sent
	in   int        // bytes that the server has read
	read error      // how reading ended

	got <-chan []byte
	end error // what the client saw as the end; after got
}

// Where the parts of a session's content begin.
const (
	framedSize, framedLen = 5000, 9
	atWrite               = 20_000          // before it crypto/tls writes
	atMore                = atWrite + 40000 // WriteMore
	atFile                = atMore + 3000   // SendFile
	atBatch               = atFile + 50000  // Batch: a header, pieces, a trailer
	atPieces              = atBatch + 100
	atTrailer             = atPieces + 3*(framedSize+framedLen)
	atRekey               = atTrailer + 500
	atLast                = atRekey + 30000 // SendFile, then Write
	atEnd                 = atLast + 10
)

var sessionContent = sync.OnceValue(func() []byte { return randomBytes(atEnd) })

// newSession runs the handshake and begins to read at both ends.
func newSession(t testing.TB, s suite, opts Options) *session {
	t.Helper()
	old := notsentLowat
	notsentLowat = func() uint64 { return 16 << 10 }
	t.Cleanup(func() { notsentLowat = old })

	x := &session{link: setup{opts: opts}.connect(t), s: s, content: sessionContent()}
	x.rekeys = s.version == tls.VersionTLS13 && Probe().Rekey.Support == Yes
	file := bytes.Clone(x.content[:atPieces])
	for at := atPieces; at < atTrailer; at += framedSize + framedLen {
		file = append(file, x.content[at+framedLen:][:framedSize]...)
	}
	x.file = testFile(t, append(file, x.content[atTrailer:]...))
	x.client = x.with(s)
	got := make(chan []byte, 1)
	go func() {
		b, err := io.ReadAll(x.client)
		x.end = err
		got <- b
	}()
	x.got = got
	x.more.L = &x.mu
	id := make(chan string, 1)
	go func() {
		id <- goroutine()
		buf := make([]byte, 4096)
		var err error
		for err == nil {
			var n int
			n, err = x.Read(buf)
			x.mu.Lock()
			x.in, x.read = x.in+n, err
			x.mu.Unlock()
			x.more.Broadcast()
		}
	}()
	x.id = <-id
	return x
}

// say has the client send one byte.
func (x *session) say() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.client.Write([]byte("x"))
	x.sent++
}

// askForKeys has the client ask for new keys.
func (x *session) askForKeys() {
	x.mu.Lock()
	x.client.(*client13).keyUpdate(true)
	x.mu.Unlock()
	x.say()
}

// drain waits until the server has read all that the client has sent, or reading
// has ended.
func (x *session) drain() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for x.in < x.sent && x.read == nil {
		x.more.Wait()
	}
}

// drained is drain without waiting.
func (x *session) drained() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.in >= x.sent || x.read != nil
}

// readEnd waits until reading has ended, and returns how.
func (x *session) readEnd() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	for x.read == nil {
		x.more.Wait()
	}
	return x.read
}

// serve sends everything, unless a part fails. whole says that the last part, or
// the one that failed, left nothing half sent.
func (x *session) serve() (sent int, whole bool, err error) {
	write := func(write func([]byte) (int, error), from, to int) func() (int, error) {
		return func() (int, error) { return write(x.content[from:to]) }
	}
	sendFile := func(from, to, skipped int) func() (int, error) {
		return func() (int, error) {
			if !x.Offloaded() {
				return x.Write(x.content[from:to])
			}
			n, err := x.SendFile(x.file, int64(from-skipped), int64(to-from), nil)
			return int(n), err
		}
	}
	parts := []struct {
		to int
		do func() (int, error)
	}{
		{atWrite, write(x.Write, 0, atWrite)},
		{atWrite, func() (int, error) { x.Upgrade(); return 0, nil }},
		{atWrite, func() (int, error) { // the kernel receives, if it shall
			for range 3 {
				x.say()
				x.drain()
			}
			return 0, nil
		}},
		{atMore, write(x.Write, atWrite, atMore)},
		{atFile, write(x.WriteMore, atMore, atFile)},
		{atBatch, sendFile(atFile, atBatch, 0)},
		{atRekey, x.batch},
		{atRekey, func() (int, error) {
			if x.rekeys {
				x.askForKeys()
				x.drain()
			}
			return 0, nil
		}},
		{atLast, sendFile(atRekey, atLast, 3*framedLen)},
		{atEnd, write(x.Write, atLast, atEnd)},
	}
	for _, p := range parts {
		n, err := p.do()
		begin := sent
		sent += n
		if err != nil {
			return sent, sent == begin, err
		}
		if sent != p.to {
			x.t.Errorf("%d bytes were sent and no error told, not %d", sent, p.to)
		}
	}
	return sent, true, nil
}

func (x *session) batch() (sent int, err error) {
	if !x.Offloaded() {
		return x.Write(x.content[atBatch:atRekey])
	}
	var headers []byte
	for at := atPieces; at < atTrailer; at += framedSize + framedLen {
		headers = append(headers, x.content[at:][:framedLen]...)
	}
	err = x.Batch(func(b *Batch) error {
		n, err := b.Write(x.content[atBatch:atPieces], true)
		sent += n
		if err != nil {
			return err
		}
		m, err := b.SendFramed(x.file, atPieces, 3*framedSize, Framed{Size: framedSize, Headers: headers, Len: framedLen}, nil)
		sent += int(m)
		if err != nil {
			return err
		}
		sent += len(headers)
		n, err = b.Write(x.content[atTrailer:atRekey], false)
		sent += n
		return err
	})
	return sent, err
}

// clean reports whether the client got close_notify.
func (x *session) clean() bool {
	if g, ok := x.client.(*goClient); ok { // it takes the end of TCP for one
		for _, a := range alerts(g.records(x.t)) {
			if len(a) == 2 && a[1] == alertCloseNotify {
				return true
			}
		}
		return false
	}
	return x.end == io.EOF || x.end == nil // as io.ReadAll has it
}

// finish waits until the client has got all, and checks what must hold however
// the connection ended. The server has closed it.
func (x *session) finish() (got []byte) {
	x.t.Helper()
	got = <-x.got
	if !bytes.HasPrefix(x.content, got) {
		x.t.Errorf("the client got %d bytes that aren't a beginning of what was sent", len(got))
	}
	x.readEnd()
	if err := control(x.sock, func(int) error { return nil }); !errors.Is(err, net.ErrClosed) {
		x.t.Errorf("the descriptor after Close: %v", err)
	}
	x.checkWiped()
	return got
}

// checkWiped checks that no secret is left, as soon as nobody is on its way out.
func (x *session) checkWiped() {
	x.t.Helper()
	tp := x.tap
	tp.wmu.Lock()
	defer tp.wmu.Unlock()
	tp.mu.Lock()
	defer tp.mu.Unlock()
	zero := func(what string, b []byte) {
		if len(bytes.Trim(b, "\x00")) != 0 {
			x.t.Errorf("%s wasn't wiped", what)
		}
	}
	zero("the traffic secret of the key", tp.key.secret)
	zero("the handshake's secret", tp.secrets.handshake)
	zero("the traffic secret", tp.secrets.traffic)
	zero("the master secret", tp.secrets.master)
	if tp.send != nil {
		zero("crypto/tls's traffic secret", tp.send.secret)
		if *tp.send.keys != (Keys{}) {
			x.t.Error("crypto/tls's keys weren't wiped")
		}
	}
	if tp.rx == nil {
		return
	}
	zero("the client's traffic secret", tp.rx.secret)
	if tp.rx.keys != nil {
		x.t.Error("the client's keys weren't wiped")
	}
}

// callFault is what happens to one system call.
type callFault struct {
	errno unix.Errno // 0: it moves fewer bytes
	most  int        // how many; -1: all but one
}

func (f callFault) String() string {
	if f.errno != 0 && f.most != 0 {
		return unix.ErrnoName(f.errno) + " after half"
	}
	if f.errno != 0 {
		return unix.ErrnoName(f.errno)
	}
	return fmt.Sprintf("short %d", f.most)
}

var callErrnos = []unix.Errno{unix.ENOMEM, unix.ENOBUFS, unix.EPERM, unix.EINTR, unix.EAGAIN, unix.EPIPE, unix.ECONNRESET, unix.ETIMEDOUT}

// again reports whether a call is repeated after the fault.
func (f callFault) again() bool {
	return f.errno == unix.EINTR || f.errno == unix.EAGAIN || f.errno == 0 && f.most != 0
}

// alike reports whether the fault does as ENOMEM does.
func (f callFault) alike() bool {
	return f.errno == unix.ENOBUFS || f.errno == unix.EPERM || f.errno == unix.EPIPE || f.errno == unix.ETIMEDOUT
}

// faultsOf are the faults that call name can have.
func faultsOf(name string) (all []callFault) {
	inGo := name == "read" // which deals with EINTR and EAGAIN
	for _, errno := range callErrnos {
		switch {
		case inGo && (errno == unix.EINTR || errno == unix.EAGAIN):
		case name == "splice in" && errno == unix.EAGAIN:
			// Where a record is ready, the kernel doesn't say so again.
		default:
			all = append(all, callFault{errno: errno})
		}
	}
	switch name {
	case "sendmsg", "recvmsg", "read":
		all = append(all, callFault{most: 1})
	case "sendfile":
		all = append(all, callFault{most: 1}, callFault{most: -1}, callFault{most: 0})
	case "write", "sendto", "splice in", "splice out":
		all = append(all, callFault{most: 1}, callFault{most: -1})
	}
	return all
}

// callHook makes one system call fail, and counts them all.
type callHook struct {
	name  string
	which int // 1 is the first
	fault callFault
	again func() // wakes whoever waits because of EAGAIN
	pause func() // is called in the place of a fault
	most  int    // of a file with one call; 0: no bound

	mu    sync.Mutex
	seen  map[string]int
	fired bool
}

func (h *callHook) call(name string, n int) (int, error) {
	h.mu.Lock()
	h.seen[name]++
	hit := name == h.name && h.seen[name] == h.which
	h.fired = h.fired || hit
	h.mu.Unlock()
	if name == "sendfile" && h.most > 0 {
		n = min(n, h.most)
	}
	switch {
	case !hit:
		return n, nil
	case h.pause != nil:
		h.pause()
		return n, nil
	case h.fault.errno == 0 && h.fault.most < 0:
		return max(n-1, 1), nil
	case h.fault.errno == 0:
		return min(n, h.fault.most), nil
	case h.fault.most != 0:
		return n / 2, h.fault.errno
	}
	if h.fault.errno == unix.EAGAIN && h.again != nil {
		h.again()
	}
	return 0, h.fault.errno
}

// hit reports whether the call was made.
func (h *callHook) hit() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.fired
}

// hooked has h asked from now on until the test ends.
func (h *callHook) hooked(t testing.TB) *callHook {
	h.seen = map[string]int{}
	testHookCall = h.call
	t.Cleanup(func() { testHookCall = nil })
	return h
}

// eachFault runs a test for all faults of all calls that run makes: the first
// of each name, and the last.
func eachFault(t *testing.T, count func(*testing.T, *callHook), test func(t *testing.T, h *callHook)) {
	all := &callHook{}
	t.Run("none", func(t *testing.T) { count(t, all) })
	if len(all.seen) == 0 {
		t.Fatal("no calls were counted")
	}
	for name, times := range all.seen {
		for which := 1; which <= times; which++ {
			if which > 1 && which < times {
				continue
			}
			for _, f := range faultsOf(name) {
				if slow && f.alike() {
					continue
				}
				if which > 1 && f.alike() && !strings.Contains(name, "sockopt") && name != "sendmsg" {
					continue
				}
				t.Run(fmt.Sprintf("%s %d %v", name, which, f), func(t *testing.T) {
					test(t, &callHook{name: name, which: which, fault: f})
				})
			}
		}
	}
}

// bothVersions are a suite of each version, or TLS 1.3's alone where it takes long.
func bothVersions() []suite {
	if slow {
		return upgradable[:1]
	}
	return []suite{upgradable[0], upgradable[3]}
}

// TestFaultsOfSendingCalls: whichever system call fails in whatever way, the
// client gets all bytes, or sees that it didn't.
func TestFaultsOfSendingCalls(t *testing.T) {
	opts := Options{RecordSize: 8000, ZerocopyRO: true}
	for _, s := range bothVersions() {
		t.Run(s.String(), func(t *testing.T) {
			needSuite(t, s)
			checkLeaks(t)
			run := func(t *testing.T, h *callHook) (x *session, err error) {
				h.hooked(t)
				x = newSession(t, s, opts)
				h.again = x.say
				_, _, err = x.serve()
				x.drain() // closing with something unread is a reset
				h.again = func() { x.say(); x.drain() }
				return x, errors.Join(err, x.Close())
			}
			count := func(t *testing.T, h *callHook) {
				x, err := run(t, h)
				if got := x.finish(); err != nil || len(got) != atEnd || !x.clean() {
					t.Errorf("without a fault: %d bytes, %v, %v", len(got), err, x.end)
				}
			}
			eachFault(t, count, func(t *testing.T, h *callHook) {
				x, err := run(t, h)
				got := x.finish()
				if !h.hit() {
					switch h.name {
					case "poll", "ioctl SIOCOUTQ", "getsockopt SO_SNDBUF", "setsockopt TCP_NODELAY": // as often as the socket is full
					default:
						t.Fatal("the call wasn't made")
					}
				}
				want, offloaded := "served", true
				switch h.name {
				case "setsockopt TCP_NOTSENT_LOWAT", "setsockopt TCP_ULP":
					offloaded = false
				case "setsockopt TLS_TX":
					if offloaded = h.which > 1; offloaded { // a change of keys
						want = "cut"
					}
				case "setsockopt TCP_CORK":
					if h.which > 1 { // what was corked would stay so
						want = "cut"
					}
				case "write", "sendto", "sendfile":
					if !h.fault.again() {
						want = "cut"
					}
				case "sendmsg":
					if !h.fault.again() || h.fault.errno == 0 {
						want = "cut"
					}
				}
				i := x.Info()
				if i.Offloaded != offloaded {
					t.Errorf("offloaded %t", i.Offloaded)
				}
				size := opts.RecordSize // by which the use of the key is counted
				if h.name == "setsockopt TLS_TX_MAX_PAYLOAD_LEN" || Probe().MaxPayloadLen.Support != Yes {
					size = MaxPlaintext
				}
				if offloaded && i.RecordSize != size {
					t.Errorf("records of %d bytes, not %d", i.RecordSize, size)
				}
				switch {
				case want == "served" && (err != nil || len(got) != atEnd || !x.clean()):
					t.Errorf("%d bytes of %d, %v; the client sees %v", len(got), atEnd, err, x.end)
				case want == "cut" && x.clean():
					t.Errorf("the client got %d bytes of %d and close_notify", len(got), atEnd)
				case want == "cut" && err == nil:
					t.Error("the server wasn't told")
				case want == "cut" && h.fault.errno != 0 && !errors.Is(err, h.fault.errno):
					t.Errorf("the server was told %v", err)
				}
			})
		})
	}
}
