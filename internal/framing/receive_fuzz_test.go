package framing

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"golang.org/x/net/http2"
)

// receiveModel is a client and a server with a session between them. What the
// client sends and when either side gets on is a fuzzer's choice.
type receiveModel struct {
	t       *testing.T
	src     *source
	session Session
	client  *client
	server  server
	block   bool // the client has not ended a field block

	sent     []byte // by the client
	got      int    // how much of it the server has read
	read     []byte // by the server, and
	injected []byte // how much of that was injected
	written  []byte // by the server, not yet given to Rewrite
	out      []byte
	pongs    int // sent by the client as PING
	acked    int // acknowledgements the client had seen when the server read its last SETTINGS
	want     int
	invalid  bool
}

// send makes the client send a frame.
func (m *receiveModel) send(h header, payload []byte) {
	h.length = len(payload)
	m.sent = append(h.append(m.sent), payload...)
}

func (m *receiveModel) clientFrame() {
	if m.block {
		m.block = m.src.chance(2)
		h := header{typ: http2.FrameContinuation, stream: 1}
		if !m.block {
			h.flags = http2.FlagContinuationEndHeaders
		}
		m.send(h, make([]byte, m.src.intn(100)))
		return
	}
	switch m.src.byte() % 8 {
	case 0, 1:
		size := m.client.settings[len(m.client.settings)-1]
		if m.src.chance(2) {
			size = minFrame + m.src.intn(1<<18)
			m.sent = append(m.sent, settingsFrame(size)...)
		} else {
			m.sent = append(m.sent, settingsFrame(0)...)
		}
		m.client.settings = append(m.client.settings, size)
	case 2:
		m.send(header{typ: http2.FrameSettings, flags: http2.FlagSettingsAck}, nil)
	case 3:
		m.block = m.src.chance(2)
		h := header{typ: http2.FrameHeaders, stream: 1}
		if !m.block {
			h.flags = http2.FlagHeadersEndHeaders
		}
		m.send(h, make([]byte, m.src.intn(100)))
	case 4:
		m.send(header{typ: http2.FramePing}, []byte("12345678"))
		m.pongs++
	case 5:
		m.send(header{typ: http2.FrameData, stream: 1}, make([]byte, m.src.length(20000)))
	case 6:
		m.send(header{typ: http2.FrameRSTStream, stream: 1}, make([]byte, 4))
	case 7:
		if !m.src.chance(16) {
			return
		}
		m.invalid = true
		switch m.src.byte() % 4 {
		case 0:
			m.send(header{typ: http2.FrameSettings}, make([]byte, 7))
		case 1:
			m.send(header{typ: http2.FrameSettings, stream: 3}, nil)
		case 2:
			m.send(header{typ: http2.FrameSettings}, []byte{0, byte(http2.SettingMaxFrameSize), 0, 0, 1, 0})
		case 3:
			m.send(header{typ: http2.FrameSettings, flags: http2.FlagSettingsAck}, make([]byte, 6))
		}
	}
}

// serverRead is one read of the server.
func (m *receiveModel) serverRead() {
	p := make([]byte, 1+m.src.length(5000))
	if m.src.chance(2) {
		p = p[:min(len(p), headerLen)]
	}
	if m.session.WantsInject() {
		n := m.session.Inject(p)
		if n == 0 {
			m.t.Fatal("wants to inject, but doesn't")
		}
		m.read = append(m.read, p[:n]...)
		m.injected = append(m.injected, p[:n]...)
		m.server.read(p[:n], true)
		return
	}
	n := copy(p, m.sent[m.got:])
	m.got += n
	if n > 0 {
		m.session.Received(p[:n])
		m.read = append(m.read, p[:n]...)
		before := m.server.settings
		m.server.read(p[:n], false)
		if m.server.settings > before {
			m.acked = m.client.acks
		}
	}
}

// serverWrite gives Rewrite some of what the server has to say.
func (m *receiveModel) serverWrite(n int) {
	n = min(n, len(m.written))
	list, err := m.session.Rewrite(m.written[:n])
	if err != nil {
		m.t.Fatal(err)
	}
	for _, p := range list {
		m.out = append(m.out, p.Bytes...)
	}
	m.written = m.written[n:]
	if err := m.client.see(m.out); err != nil {
		m.t.Fatal(err)
	}
	if m.client.acks > m.server.settings {
		m.t.Fatalf("%d acknowledgements, the server has got %d SETTINGS", m.client.acks, m.server.settings)
	}
	if got, legal := int(m.session.settings.accepted()), m.client.accepts(); got > legal {
		m.t.Fatalf("frames of %d bytes, the client accepts %d", got, legal)
	}
}

func (m *receiveModel) run() {
	m.client = newClient()
	m.server.frameSize = minFrame
	m.sent = append([]byte(http2.ClientPreface), settingsFrame(0)...)
	m.client.settings = append(m.client.settings, minFrame)
	for range 400 {
		if len(m.src.b) == 0 || m.invalid {
			break
		}
		switch m.src.byte() % 8 {
		case 0, 1:
			m.clientFrame()
		case 2, 3, 4:
			m.serverRead()
		case 5:
			m.written = append(m.written, m.server.write()...)
		case 6:
			m.serverWrite(m.src.intn(40))
		case 7:
			if m.src.chance(3) {
				m.want = max(m.want, minFrame+m.src.intn(1<<17))
				m.session.Enlarge(uint32(m.want))
			}
		}
	}
	if m.block && !m.invalid {
		m.send(header{typ: http2.FrameContinuation, flags: http2.FlagContinuationEndHeaders, stream: 1}, nil)
	}
	// Until nothing happens any more.
	for idle := 0; idle < 2; idle++ {
		for m.got < len(m.sent) || m.session.WantsInject() {
			m.serverRead()
			idle = 0
		}
		m.written = append(m.written, m.server.write()...)
		m.serverWrite(len(m.written))
	}
	m.check()
}

// lowered returns whole frames of a client with no SETTINGS_MAX_FRAME_SIZE over
// servedFrame.
func lowered(sent []byte) []byte {
	sent = bytes.Clone(sent)
	for rest := sent[len(http2.ClientPreface):]; len(rest) > 0; {
		h := parseHeader(rest)
		payload := rest[headerLen : headerLen+h.length]
		for ; h.typ == http2.FrameSettings && len(payload) >= settingLen; payload = payload[settingLen:] {
			value := payload[2:settingLen]
			if http2.SettingID(payload[1]) == http2.SettingMaxFrameSize && binary.BigEndian.Uint32(value) > servedFrame {
				binary.BigEndian.PutUint32(value, servedFrame)
			}
		}
		rest = rest[headerLen+h.length:]
	}
	return sent
}

func (m *receiveModel) check() {
	// Nothing but whole frames between those of the client.
	rest, injected, sent := m.read, m.injected, lowered(m.sent)
	n := len(http2.ClientPreface)
	rest, sent = rest[n:], sent[n:]
	for len(rest) > 0 {
		h := parseHeader(rest)
		n := min(headerLen+h.length, len(rest))
		switch {
		case len(injected) >= n && bytes.Equal(rest[:n], injected[:n]):
			injected = injected[n:]
		case len(sent) >= n && bytes.Equal(rest[:n], sent[:n]):
			sent = sent[n:]
		default:
			m.t.Fatal("the server read something that is neither the client's nor injected")
		}
		rest = rest[n:]
	}
	if len(injected) > 0 || len(sent) > 0 {
		m.t.Fatalf("the server has not read %d injected bytes and %d of the client's", len(injected), len(sent))
	}
	if m.invalid {
		return
	}
	if _, err := decode(m.read[len(http2.ClientPreface):]); err != nil {
		m.t.Fatal(err)
	}
	out, err := decode(m.out)
	if err != nil {
		m.t.Fatal(err)
	}
	pongs := 0
	for _, e := range out {
		if e.typ == http2.FramePing {
			pongs++
			if string(e.data) != "12345678" {
				m.t.Fatal("the client got the answer to another PING")
			}
		}
	}
	if pongs != m.pongs {
		m.t.Fatalf("%d answers to %d PING", pongs, m.pongs)
	}
	if m.client.acks == m.acked {
		m.t.Fatal("the client's last SETTINGS were not acknowledged")
	}
	if m.want > 0 && m.server.frameSize < m.want {
		m.t.Fatalf("the server writes frames of %d bytes, asked for %d", m.server.frameSize, m.want)
	}
	if m.server.frameSize > max(m.want, servedFrame) {
		m.t.Fatalf("the server writes frames of %d bytes, asked for no more than %d", m.server.frameSize, m.want)
	}
}

func FuzzReceive(f *testing.F) {
	for seed := range uint64(40) {
		b := make([]byte, 50+seed*20)
		rand.NewChaCha8([32]byte{1, byte(seed)}).Read(b)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		(&receiveModel{t: t, src: &source{b}}).run()
		// And whatever comes.
		var s Session
		s.Enlarge(1 << 17)
		for src := (&source{b}); len(src.b) > 0; {
			s.Received(src.b[:min(1+src.intn(50), len(src.b))])
			if len(src.b) > 30 {
				src.b = src.b[20:]
			}
			if s.WantsInject() {
				t.Fatal("injects into what isn't HTTP/2")
			}
		}
	})
}
