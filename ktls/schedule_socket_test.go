package ktls

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// A script is a schedule for a TCP connection, where the kernel encrypts and
// perhaps decrypts. Real sockets have no time of their own: the acts come one after
// the other, and nobody waits for what isn't there.
type script struct {
	suite
	rx   bool
	acts []scheduled
}

func newScript(c choices) *script {
	s := &script{suite: upgradable[c.byte()%len(upgradable)], rx: c.byte()%2 == 1}
	for range 30 {
		if len(c) == 0 {
			break
		}
		s.acts = append(s.acts, scheduled{op: c.byte(), n: c.byte(), m: c.byte()})
	}
	return s
}

// seen is what a caller and the client see of a script.
type seen struct {
	acts    []string
	data    []byte
	records []string
	end     error // of what the client received
	held    bool  // WriteMore was the last that was written: what it holds back is lost if nothing follows
	left    bool  // the kernel may still hold what can't be read: then closing resets
}

// performer runs one script.
type performer struct {
	t       *testing.T
	conn    server
	rx      bool
	file    *os.File
	client  *peer
	far     *net.TCPConn
	o       *seen
	sent    int
	pending int  // bytes of application data that the server hasn't read
	ended   bool // the client sends no more
	mute    bool // a write failed
	deaf    bool // the server's reader got an error
	updates bool // the server can be asked for new keys
}

// testContent is what is in the file, and in what is written in its place.
var testContent = pattern(100_000)

func (s *script) run(t *testing.T, file *os.File, config *tls.Config, start func(net.Conn) server) *seen {
	tcp, far := tcpPair(t)
	defer tcp.Close()
	defer far.Close()
	conn := start(tcp)
	shaken := make(chan error, 1)
	go func() { shaken <- conn.Handshake() }()
	client, err := dialPeer(t, far, s.suite)
	if herr := <-shaken; err != nil || herr != nil {
		t.Fatalf("handshake: %v, %v", err, herr)
	}
	p := &performer{t: t, conn: conn, rx: s.rx, file: file, client: client, far: far, o: new(seen)}
	// Without it the connection ends, as TestKeyUpdateIsRefusedWhereTheKernelCantRekey has it.
	p.updates = s.version == tls.VersionTLS13 && (!Probe().CanTX(s.version, s.cipher()) || Probe().Rekey.Support == Yes && (!s.rx || Probe().RekeyRX.Support == Yes))
	stream := make(chan []byte, 1)
	go func() {
		var b []byte
		b, p.o.end = io.ReadAll(far)
		stream <- b
	}()
	for _, a := range s.acts {
		p.act(a)
	}
	// A reset would take away what the client hasn't received yet.
	if !p.ended {
		p.ended = true
		far.CloseWrite()
	}
	p.readAll()
	p.note("last Close", 0, conn.Close())
	run := outcome{stream: append(client.early, <-stream...), peer: client}
	records, whole := run.records()
	for _, r := range records {
		if n := len(p.o.records); n > 0 && r[0] == RecordTypeApplicationData && p.o.records[n-1][0] == r[0] {
			p.o.records[n-1] += r[1:] // the kernel's records are others
		} else if len(r) > 1 || r[0] != RecordTypeApplicationData {
			p.o.records = append(p.o.records, r)
		}
	}
	if !whole {
		p.o.records = append(p.o.records, "\x00cut")
	}
	return p.o
}

func (p *performer) note(call string, n int, err error) {
	p.o.acts = append(p.o.acts, fmt.Sprintf("%s: %d, %s", call, n, describe(err)))
}

// wrote notes a write: what it failed with is crypto/tls's own matter, or ours.
func (p *performer) wrote(n int, err error) {
	what := "error"
	if d := describe(err); err == nil || !p.mute && strings.HasPrefix(d, "timeout") {
		what = d
	}
	p.mute = p.mute || err != nil // later ones fail for whichever reason
	p.o.acts = append(p.o.acts, fmt.Sprintf("write: %d, %s", n, what))
	p.o.held = p.o.held && n == 0
}

// readAll reads all that the client has sent, and the end of it if it has come.
func (p *performer) readAll() {
	for !p.deaf && (p.pending > 0 || p.ended) {
		b := make([]byte, max(p.pending, 1))
		n, err := p.conn.Read(b)
		p.o.data = append(p.o.data, b[:n]...)
		p.pending -= n
		if err != nil {
			p.deaf, p.o.left = true, p.rx && err != io.EOF
			p.note("read", len(p.o.data), err)
		}
	}
}

func (p *performer) send(b []byte) {
	if _, err := p.far.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

func (p *performer) act(s scheduled) {
	c := p.client
	ours, _ := p.conn.(*Conn)
	size := writeSizes[s.n%len(writeSizes)]
	content := testContent[s.m:][:size]
	switch op := s.op % 20; op {
	default:
		p.wrote(p.conn.Write(content))
	case 3, 4:
		if ours != nil {
			n, err := ours.WriteMore(content)
			p.wrote(n, err)
			p.o.held = ours.Offloaded() && (n > 0 || p.o.held)
		} else {
			p.wrote(p.conn.Write(content))
		}
	case 5, 6:
		if ours != nil && ours.Offloaded() {
			n, err := ours.SendFile(p.file, int64(s.m), int64(size), nil)
			p.wrote(int(n), err)
		} else {
			p.wrote(p.conn.Write(content))
		}
	case 7, 8:
		if ours != nil {
			err := ours.Upgrade()
			if can := Probe().CanTX(p.client.version, ours.Info().Cipher); len(p.o.acts) == 0 && !p.deaf && (err == nil) != can {
				p.t.Errorf("upgrade: %v, and the kernel can: %t", err, can)
			}
		}
	case 9:
		if s.m%4 == 0 {
			p.note("CloseWrite", 0, p.conn.CloseWrite())
			p.updates = false // TestNothingFollowsCloseNotify
		}
	case 10:
		if s.m%8 == 0 {
			p.conn.SetWriteDeadline(time.Unix(1, 0))
			p.wrote(p.conn.Write(content))
			p.conn.SetWriteDeadline(time.Now().Add(testTimeout))
			if size > 0 {
				p.updates = false
			}
		}
	case 11:
		if !p.deaf && p.pending == 0 && !p.ended {
			p.conn.SetReadDeadline(time.Unix(1, 0))
			n, err := p.conn.Read(make([]byte, 100))
			p.note("read with deadline", n, err)
			p.conn.SetReadDeadline(time.Now().Add(testTimeout))
		}
	case 12:
		p.readAll()
	case 13, 14, 15, 16, 17:
		if p.ended {
			return
		}
		n := min(max(size, 1), MaxPlaintext)
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(p.sent + i)
		}
		p.sent += n
		var rec []byte
		if op == 13 && c.padded != nil {
			rec = c.padded(RecordTypeApplicationData, b[:min(n, 16000)], s.m)
			p.pending += min(n, 16000)
		} else {
			rec = c.seal(RecordTypeApplicationData, b)
			p.pending += n
		}
		at := s.m * len(rec) / 256
		p.send(rec[:at])
		p.send(rec[at:])
		if op == 17 {
			p.readAll()
		}
	case 18:
		if !p.ended && p.updates {
			p.send(c.seal(RecordTypeHandshake, []byte{msgKeyUpdate, 0, 0, 1, byte(s.m % 2)}))
			c.next()
			// When it is read shows in when it is answered.
			p.send(c.seal(RecordTypeApplicationData, []byte{1}))
			p.pending++
			p.readAll()
		}
	case 19:
		if p.ended || s.m%4 != 0 {
			return
		}
		p.readAll()
		switch s.n % 5 {
		case 0:
			p.send(c.seal(RecordTypeAlert, []byte{alertLevelWarning, alertCloseNotify}))
		case 1:
			p.send(c.seal(RecordTypeAlert, []byte{alertLevelFatal, byte(1 + s.m/4)}))
		case 2:
			rec := c.seal(RecordTypeApplicationData, content[:size%1000])
			rec[RecordHeaderLen+s.m*(len(rec)-RecordHeaderLen)/256] ^= 1
			p.send(rec)
		case 3:
			rec := c.seal(RecordTypeApplicationData, testContent[:500])
			p.send(rec[:1+s.m]) // and no more
		case 4: // TCP's end alone
		}
		p.ended = true
		p.far.CloseWrite()
		p.readAll()
	}
}

// compare is outcome.compare for a script.
func (o *seen) compare(t *testing.T, want *seen) {
	t.Helper()
	ours, theirs := o.records, want.records
	n := len(ours)
	fatal := n > 0 && isFatal(ours[n-1])
	failed := slices.ContainsFunc(o.acts, func(a string) bool { return strings.HasPrefix(a, "write: ") && strings.Contains(a, "timeout") }) ||
		slices.ContainsFunc(o.acts, func(a string) bool { return strings.Contains(a, "Close: 0, tls: failed") })
	if fatal && len(theirs) > n || failed && len(theirs) == n+1 && (theirs[n] == closeNotify || theirs[n] == "\x00cut") {
		theirs = theirs[:n]
	}
	if n > 0 && ours[n-1] == closeNotify && len(theirs) > n {
		theirs = theirs[:n] // TestNothingFollowsCloseNotify
	}
	reset := o.left && o.end != nil
	if reset && n > 0 && ours[n-1] == "\x00cut" {
		n--
		ours = ours[:n]
	}
	if failed && o.held || reset {
		theirs = slices.Clone(theirs[:min(n, len(theirs))])
		if last := len(theirs) - 1; last >= 0 && strings.HasPrefix(theirs[last], ours[last]) {
			theirs[last] = ours[last]
		}
	}
	if !slices.Equal(ours, theirs) {
		show := func(list []string) (text string) {
			for _, r := range list {
				text += fmt.Sprintf("\ttype %d, %d bytes %.20x\n", r[0], len(r)-1, r[1:])
			}
			return text
		}
		t.Errorf("the client got\n%swith crypto/tls\n%s", show(ours), show(theirs))
	}
	if failed && slices.Contains(ours, closeNotify) {
		t.Error("close_notify after a write that failed")
	}
	if !bytes.Equal(o.data, want.data) {
		at := 0
		for at < min(len(o.data), len(want.data)) && o.data[at] == want.data[at] {
			at++
		}
		t.Errorf("the server read %d bytes, with crypto/tls %d; they differ from byte %d on", len(o.data), len(want.data), at)
	}
	calls := func(all []string) []string {
		if !fatal && !failed {
			return all
		}
		return slices.DeleteFunc(slices.Clone(all), func(a string) bool { return strings.Contains(a, "Close") })
	}
	if a, b := calls(o.acts), calls(want.acts); !slices.Equal(a, b) {
		t.Errorf("calls\n\t%s\nwith crypto/tls\n\t%s", strings.Join(a, "\n\t"), strings.Join(b, "\n\t"))
	}
	if o.end != want.end && !o.left {
		t.Errorf("TCP ended with %v, with crypto/tls %v", o.end, want.end)
	}
}

// FuzzScript: our server on a TCP connection, with the kernel where it can, is
// crypto/tls's, to its caller and to the client.
func FuzzScript(f *testing.F) {
	file := testFile(f, testContent)
	config := testServerConfig(f)
	for seed := range uint64(48) {
		b := make([]byte, 2+3*(seed%30))
		rand.NewChaCha8([32]byte{byte(seed), 6}).Read(b)
		b[0], b[1] = byte(seed), byte(seed/6)
		if len(b) >= 5 && seed%4 > 0 {
			b[2] = 7 // upgraded from the start
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := newScript(b)
		ours := func(c net.Conn) server { return Server(c, ServerConfig(config), &Options{RX: s.rx}) }
		stock := func(c net.Conn) server { return tls.Server(c, config) }
		s.run(t, file, config, ours).compare(t, s.run(t, file, config, stock))
	})
}

// TestScripts runs scripts at random, where FuzzScript can't look for new ones: in
// a guest. KTLS_SCRIPTS says how many, from which seed on ("20000" or "20000,7");
// default: 60.
func TestScripts(t *testing.T) {
	n, first := uint64(60), uint64(0)
	if v := os.Getenv("KTLS_SCRIPTS"); v != "" {
		if _, err := fmt.Sscanf(v, "%d,%d", &n, &first); err != nil && n == 0 {
			t.Fatalf("KTLS_SCRIPTS=%s: %v", v, err)
		}
	}
	file := testFile(t, testContent)
	config := testServerConfig(t)
	upgraded := 0
	for seed := first; seed < first+n && !t.Failed(); seed++ {
		rng := rand.New(rand.NewPCG(seed, 8))
		b := make([]byte, 2+3*(2+rng.IntN(28)))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		b[2+3*rng.IntN(2)] = 7 // upgrade
		s := newScript(b)
		ours := s.run(t, file, config, func(c net.Conn) server {
			return Server(c, ServerConfig(config), &Options{RX: s.rx, OnUpgrade: func(_ *Conn, _ Info, err error) {
				if err == nil {
					upgraded++
				}
			}})
		})
		ours.compare(t, s.run(t, file, config, func(c net.Conn) server { return tls.Server(c, config) }))
		if t.Failed() {
			t.Logf("KTLS_SCRIPTS=1,%d: %v, receiving %t, %+v, %q", seed, s, s.rx, s.acts, ours.acts)
		}
	}
	if Probe().ULP.Support == Yes && upgraded < int(n)/2 && !t.Failed() {
		t.Errorf("only %d of %d connections were upgraded", upgraded, n)
	}
	t.Logf("%d scripts from seed %d on, %d connections upgraded", n, first, upgraded)
}
