package framing

import (
	"bytes"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/net/http2"
)

// rewriteModel makes a server's frames from a fuzzer's choices, and knows what
// has to come out.
type rewriteModel struct {
	t       *testing.T
	src     *source
	session Session
	file    *os.File
	content []byte
	noise   *rand.ChaCha8

	client   *client
	server   server
	enlarged int // what the server believes, once it was told
	changed  bool

	pending []byte // frames that Rewrite hasn't got yet
	given   int    // bytes it has got
	in, out []byte
	frames  []modelFrame
	streams []*modelStream
	failing bool // an error must come
}

type modelStream struct {
	id        uint32
	body      *Body
	announced bool
	skip, off int
	n         int
	data      int  // bytes written
	ended     bool // in what was written
	trailers  bool // by these: then giving up is an error

	voidAt int // bytes given to Rewrite then; -1 if it isn't void
	whole  bool
}

type modelFrame struct {
	events     events // but for stand-in bytes
	stream     *modelStream
	begin, end int // place in the server's bytes
	known      int // from where on it is known what it is
	data       int
	off        int // of the file
	standIn    int
	ends       bool
}

const fuzzFile = 300 << 10

func (m *rewriteModel) noiseBytes(n int) []byte {
	b := make([]byte, n)
	if !m.src.chance(4) { // else zeros
		m.noise.Read(b)
	}
	return b
}

// push adds a frame to what the server writes.
func (m *rewriteModel) push(f modelFrame, h header, payload []byte) {
	h.length = len(payload)
	f.begin = m.given + len(m.pending)
	m.pending = append(h.append(m.pending), payload...)
	f.end = m.given + len(m.pending)
	if f.known == 0 {
		f.known = headerLen
	}
	m.frames = append(m.frames, f)
}

// write gives n bytes to Rewrite, and sends what comes.
func (m *rewriteModel) write(n int) {
	n = min(n, len(m.pending))
	p := bytes.Clone(m.pending[:n])
	m.pending = m.pending[n:]
	m.given += n
	m.in = append(m.in, p...)
	list, err := m.session.Rewrite(p)
	if err != nil {
		if !m.failing {
			m.t.Fatal(err)
		}
		m.noStandIn()
		m.t.SkipNow()
	}
	var out bytes.Buffer
	if err := send(&out, list); err != nil {
		m.t.Fatal(err)
	}
	for i := range p {
		p[i] = 0xee // nothing may look at it again
	}
	m.out = append(m.out, out.Bytes()...)
	if err := m.client.see(m.out); err != nil {
		m.t.Fatal(err)
	}
}

func (m *rewriteModel) noStandIn() {
	b := block()
	if bytes.Contains(m.out, b[:]) {
		m.t.Fatal("stand-in bytes went out")
	}
}

// receive hands bytes of the client to the server.
func (m *rewriteModel) receive(p []byte) {
	for len(p) > 0 {
		n := 1 + m.src.intn(len(p))
		m.session.Received(p[:n])
		m.server.read(p[:n], false)
		p = p[n:]
	}
}

// inject does what a reader does before it reads, and lets the server answer.
func (m *rewriteModel) inject() {
	for m.session.WantsInject() {
		p := make([]byte, 1+m.src.intn(headerLen+pingLen))
		n := m.session.Inject(p)
		if n == 0 {
			m.t.Fatal("wants to inject, but doesn't")
		}
		m.server.read(p[:n], true)
		if m.server.injected > 0 {
			m.enlarged = max(m.server.frameSize, minFrame)
		}
	}
}

func (m *rewriteModel) answer() {
	if b := m.server.write(); len(b) > 0 {
		f := modelFrame{begin: m.given + len(m.pending)}
		m.pending = append(m.pending, b...)
		f.end = m.given + len(m.pending)
		m.frames = append(m.frames, f)
	}
}

// largest is the longest frame that the server writes.
func (m *rewriteModel) largest() int {
	if m.enlarged > 0 {
		return m.enlarged
	}
	return minFrame
}

func (m *rewriteModel) stream() *modelStream { return m.streams[m.src.intn(len(m.streams))] }

// dataFrame writes DATA of a stream: what is due next of it.
func (m *rewriteModel) dataFrame(st *modelStream) {
	if st.ended {
		return
	}
	n := m.src.length(m.largest())
	plain := n
	if st.announced {
		n = min(n, st.skip+st.n-st.data)
		plain = max(min(n, st.skip-st.data), 0)
	}
	pos := max(st.data-st.skip, 0)
	h := header{typ: http2.FrameData, stream: st.id}
	f := modelFrame{stream: st, data: n, standIn: n - plain, off: st.off + pos}
	data := m.noiseBytes(plain)
	payload := append(bytes.Clone(data), StandIn(int64(pos), n-plain)...)
	octets := plain
	fixed := 0
	if n == plain && m.src.chance(3) {
		pad := min(m.src.intn(256), m.largest()-1)
		if 1+pad+n <= m.largest() {
			h.flags |= http2.FlagDataPadded
			payload = append(append([]byte{byte(pad)}, payload...), make([]byte, pad)...)
			octets += 1 + pad
			fixed = 1
		}
	}
	f.known = headerLen + fixed + min(plain, blockLen)
	complete := !st.announced || st.data+n == st.skip+st.n
	if m.src.chance(4) && (complete || st.voidAt >= 0) {
		h.flags |= http2.FlagDataEndStream
		f.ends = true
		st.ended = true
	}
	st.data += n
	f.events.add(event{typ: http2.FrameData, stream: st.id, data: data, octets: octets})
	m.push(f, h, payload)
}

// blockFrames writes a field block.
func (m *rewriteModel) blockFrames(st *modelStream) {
	h := header{typ: http2.FrameHeaders, stream: st.id}
	fragment := m.noiseBytes(m.src.length(m.largest() - 300))
	var fixed, payload []byte
	e := event{stream: st.id}
	switch m.src.byte() % 3 {
	case 0:
		h.typ = http2.FramePushPromise
		fixed = []byte{0, 0, 0, 2}
		e.fixed = "2"
	case 1:
		h.flags |= http2.FlagHeadersPriority
		fixed = []byte{0, 0, 0, 7, 9}
		e.fixed = "{7 false 9 0 0}"
	}
	if h.typ == http2.FrameHeaders && m.src.chance(4) && !st.ended && st.voidAt < 0 &&
		(!st.announced || st.data == st.skip+st.n) {
		h.flags |= http2.FlagHeadersEndStream
		st.ended, st.trailers = true, true
	}
	if m.src.chance(3) {
		e.pad = m.src.intn(256)
		h.flags |= http2.FlagHeadersPadded
		payload = append(payload, byte(e.pad))
	}
	payload = append(append(payload, fixed...), fragment...)
	payload = append(payload, make([]byte, e.pad)...)
	parts := m.src.intn(3)
	if parts == 0 {
		h.flags |= http2.FlagHeadersEndHeaders
	}
	e.typ, e.flags, e.data = h.typ, h.flags|http2.FlagHeadersEndHeaders, bytes.Clone(fragment)
	var more [][]byte
	for range parts {
		fragment := m.noiseBytes(m.src.length(m.largest()))
		e.data = append(e.data, fragment...)
		more = append(more, fragment)
	}
	var l events
	l.add(e)
	m.push(modelFrame{events: l, stream: st}, h, payload)
	for i, fragment := range more {
		h := header{typ: http2.FrameContinuation, stream: st.id}
		if i == len(more)-1 {
			h.flags |= http2.FlagContinuationEndHeaders
		}
		m.push(modelFrame{}, h, fragment)
	}
}

// otherFrame writes a frame that only passes.
func (m *rewriteModel) otherFrame() {
	h := header{flags: http2.Flags(m.src.byte()) &^ http2.FlagSettingsAck}
	n := 0
	switch m.src.byte() % 5 {
	case 0:
		h.typ, n = http2.FrameSettings, settingLen*m.src.intn(4)
	case 1:
		h.typ, n = http2.FramePing, pingLen
		h.flags = http2.Flags(m.src.byte() % 2) // answers to the client's own too
	case 2:
		h.typ, n = http2.FrameGoAway, 8+m.src.intn(100)
	case 3:
		h.typ, n = http2.FrameWindowUpdate, 4
		h.stream = m.stream().id
	case 4:
		h.typ, n = 0x77, m.src.length(3000)
		h.stream = m.stream().id
	}
	payload := bytes.Repeat([]byte{1}, n)
	var l events
	l.add(event{typ: h.typ, stream: h.stream, flags: h.flags, data: payload})
	m.push(modelFrame{events: l}, h, payload)
}

func (m *rewriteModel) resetFrame(st *modelStream) {
	var l events
	l.add(event{typ: http2.FrameRSTStream, stream: st.id, data: []byte{0, 0, 0, 8}})
	m.push(modelFrame{events: l, stream: st}, header{typ: http2.FrameRSTStream, stream: st.id}, []byte{0, 0, 0, 8})
	st.ended = true
}

// voidBody gives a body up.
func (m *rewriteModel) voidBody(st *modelStream) {
	if !st.announced || st.voidAt >= 0 || st.trailers {
		return
	}
	st.voidAt = m.given
	data, sent := 0, 0
	for _, f := range m.frames {
		if f.stream == st && f.begin+f.known <= m.given {
			data += f.data
		}
		if f.stream == st && f.end <= m.given {
			sent += f.standIn
		}
	}
	st.whole = data == st.skip+st.n && sent == st.n
	st.body.Void()
}

// rogue writes stand-in bytes that must not go out.
func (m *rewriteModel) rogue(st *modelStream) {
	n := 32 + m.src.length(m.largest()-32)
	pos := m.src.intn(100)
	h := header{typ: http2.FrameData, stream: st.id}
	payload := bytes.Clone(StandIn(int64(pos), n))
	if st.announced && st.data >= st.skip {
		if left := st.skip + st.n - st.data; n <= left {
			if !st.ended { // the right bytes, but for one that is looked at in any case
				at := m.src.intn(min(n, sampleLen))
				copy(payload, StandIn(int64(st.data-st.skip), n))
				payload[at]++
			}
		}
	} else if st.announced {
		return
	}
	m.failing = true
	m.push(modelFrame{}, h, payload)
}

func (m *rewriteModel) step() {
	st := m.stream()
	switch op := m.src.byte() % 32; {
	case op < 10:
		m.dataFrame(st)
	case op < 16:
		m.write(m.src.length(1 << 18))
	case op < 18:
		m.blockFrames(st)
	case op < 20:
		m.otherFrame()
	case op < 24:
		if st.body == nil && st.data == 0 && !st.ended {
			st.body = m.session.Watch(st.id)
			m.changed = true
		}
		if st.body != nil && !st.announced && !st.ended {
			st.skip = st.data + m.src.length(100)
			st.off = m.src.intn(1000)
			st.n = m.src.length(fuzzFile - 1000)
			if err := st.body.Announce(m.file, int64(st.skip), int64(st.off), int64(st.n)); err != nil {
				m.t.Fatal(err)
			}
			st.announced = true
		}
	case op < 25:
		m.voidBody(st)
	case op < 26:
		if m.src.chance(2) {
			m.receive(header{length: 4, typ: http2.FrameRSTStream, stream: st.id}.append(nil))
			m.receive([]byte{0, 0, 0, 8})
		} else {
			m.resetFrame(st)
		}
	case op < 27:
		m.session.Enlarge(uint32(m.src.intn(1 << 18)))
		m.changed = true
		m.client.limited = true
	case op < 29:
		m.inject()
	case op < 30:
		m.answer()
	case op < 31:
		size := 0
		if m.src.chance(2) {
			size = minFrame + m.src.intn(1<<17)
			m.client.settings = append(m.client.settings, size)
		} else {
			m.client.settings = append(m.client.settings, m.client.settings[len(m.client.settings)-1])
		}
		m.receive(settingsFrame(size))
		if m.enlarged > 0 && size > 0 {
			m.enlarged = size
		}
	default:
		if m.src.chance(8) {
			m.rogue(st)
		}
	}
}

// want is what has to come out.
func (m *rewriteModel) want() (want events) {
	for _, f := range m.frames {
		for _, e := range f.events {
			want.add(e)
		}
		st := f.stream
		if f.standIn == 0 && !f.ends {
			continue
		}
		late := st.voidAt >= 0 && f.end > st.voidAt
		reset := false
		if f.standIn > 0 {
			e := event{typ: http2.FrameData, stream: st.id, octets: f.standIn}
			if !late {
				e.data = m.content[f.off : f.off+f.standIn : f.off+f.standIn]
			}
			reset = late
			want.add(e)
		} else {
			reset = st.voidAt >= 0 && f.begin+f.known > st.voidAt && !st.whole
		}
		if f.ends && !reset {
			want.add(event{typ: http2.FrameData, stream: st.id, flags: http2.FlagDataEndStream})
		} else if f.ends {
			want.add(event{typ: http2.FrameRSTStream, stream: st.id, data: []byte{0, 0, 0, 2}})
		}
	}
	return want
}

// run lets the choices be made and compares.
func (m *rewriteModel) run() {
	m.client = newClient()
	for i := range 5 {
		m.streams = append(m.streams, &modelStream{id: uint32(2*i + 1), voidAt: -1})
	}
	if m.src.chance(4) {
		m.session.Record = headerLen + 1 + m.src.intn(20000)
	}
	m.client.settings = append(m.client.settings, minFrame)
	m.receive([]byte(http2.ClientPreface))
	m.receive(settingsFrame(0))
	for range 300 {
		if len(m.src.b) == 0 {
			break
		}
		m.step()
	}
	for len(m.pending) > 0 {
		m.write(1 + m.src.length(1<<18))
	}
	if m.failing {
		m.t.Fatal("stand-in bytes were not noticed")
	}
	m.noStandIn()
	if !m.changed && !bytes.Equal(m.in, m.out) {
		m.t.Fatal("other bytes, though nothing was asked for")
	}
	got, err := decode(m.out)
	if err != nil {
		m.t.Fatal(err)
	}
	got = got.without(http2.FrameSettings, http2.FlagSettingsAck)
	got.equal(m.t, m.want())
	for _, st := range m.streams {
		if st.body == nil || !st.announced {
			continue
		}
		done := isDone(st.body)
		if whole := st.body.Left() == 0; whole && !done || done && !whole && !st.ended && st.voidAt < 0 {
			m.t.Fatalf("stream %d: done is %v with %d bytes left", st.id, done, st.body.Left())
		}
		if st.ended && !done {
			m.t.Fatalf("stream %d: ended, but not done", st.id)
		}
	}
	if len(m.session.ended) > 0 {
		m.t.Fatal("bodies that are done are still known")
	}
	m.session.Close(nil)
	for _, st := range m.streams {
		if st.body != nil && !isDone(st.body) {
			m.t.Fatalf("stream %d: session is closed, but it is not done", st.id)
		}
	}
}

// without returns the events but those of a type and flags.
func (l events) without(typ http2.FrameType, flags http2.Flags) (rest events) {
	for _, e := range l {
		if e.typ != typ || e.flags != flags {
			rest.add(e)
		}
	}
	return rest
}

func FuzzRewrite(f *testing.F) {
	file, content := testFile(f, fuzzFile)
	for seed := range uint64(40) {
		b := make([]byte, 100+seed*20)
		rand.NewChaCha8([32]byte{byte(seed)}).Read(b)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &rewriteModel{t: t, src: &source{b}, file: file, content: content, noise: rand.NewChaCha8([32]byte{})}
		m.run()
	})
}
