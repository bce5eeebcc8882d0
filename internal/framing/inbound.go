package framing

import (
	"encoding/binary"

	"golang.org/x/net/http2"
)

// inbound is where in what the client has sent a session is.
type inbound struct {
	preface int // bytes of the client preface seen
	head    [headerLen]byte
	have    int // bytes of head

	frame   header // whose payload comes
	left    int    // bytes of it that are still to come
	setting [settingLen]byte
	size    uint32 // SETTINGS_MAX_FRAME_SIZE in these SETTINGS, or 0

	settled bool // the first SETTINGS came
	block   bool // within a field block: nothing may come between
	lost    bool // not HTTP/2, or an error the server ends the connection for
}

// boundary reports whether a frame may be put in here.
func (in *inbound) boundary() bool {
	return in.settled && in.have == 0 && in.left == 0 && !in.block && !in.lost
}

// Received follows what was read from the client, before the server gets it, and
// lowers in it a SETTINGS_MAX_FRAME_SIZE of more than servedFrame to that: a server
// keeps a buffer as large as its largest frame, and it isn't the client who decides
// on that. Frames to the client may still be as large as it said.
func (s *Session) Received(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := &s.in
	for len(p) > 0 && !in.lost {
		var n int
		switch {
		case in.preface < len(http2.ClientPreface):
			n = min(len(p), len(http2.ClientPreface)-in.preface)
			in.lost = string(p[:n]) != http2.ClientPreface[in.preface:in.preface+n]
			in.preface += n
		case in.left > 0:
			n = min(len(p), in.left)
			if in.frame.typ == http2.FrameSettings {
				in.readSettings(p[:n])
			}
			in.left -= n
			if in.left == 0 {
				s.received()
			}
		default:
			n = copy(in.head[in.have:], p)
			in.have += n
			if in.have == headerLen {
				in.begin()
				if in.frame.typ == http2.FrameSettings && !in.frame.flags.Has(http2.FlagSettingsAck) && s.err == nil {
					s.settings.hold()
				}
				if in.left == 0 && !in.lost {
					s.received()
				}
			}
		}
		p = p[n:]
	}
	s.updateWants()
}

// begin begins a frame. Only what is wrong about SETTINGS matters here: all else
// the server finds without having been given anything it should not have.
func (in *inbound) begin() {
	h := parseHeader(in.head[:])
	in.frame, in.left, in.have, in.size = h, h.length, 0, 0
	switch {
	case h.typ == http2.FrameSettings && h.flags.Has(http2.FlagSettingsAck):
		in.lost = h.length > 0 || h.stream != 0
	case h.typ == http2.FrameSettings:
		in.lost = h.length%settingLen != 0 || h.stream != 0
	}
	in.lost = in.lost || !in.settled && h.typ != http2.FrameSettings ||
		in.block && h.typ != http2.FrameContinuation
}

// readSettings reads some of the payload of SETTINGS, and lowers frame sizes in it.
func (in *inbound) readSettings(p []byte) {
	for at := in.frame.length - in.left; len(p) > 0; {
		begin := at % settingLen
		n := copy(in.setting[begin:], p)
		if http2.SettingID(binary.BigEndian.Uint16(in.setting[:])) == http2.SettingMaxFrameSize {
			in.lower(p[:n], begin)
			if begin+n == settingLen {
				in.size = binary.BigEndian.Uint32(in.setting[2:])
				in.lost = in.lost || in.size < minFrame || in.size > maxFrame
			}
		}
		at, p = at+n, p[n:]
	}
}

// lower makes the bytes of a SETTINGS_MAX_FRAME_SIZE, p, from byte begin of the
// setting on, those of servedFrame if it is larger. They may come one by one: that
// of the 65,536s tells, and those behind it are 0 in servedFrame. What is no legal
// size stays, for the server to see.
func (in *inbound) lower(p []byte, begin int) {
	const tells = 3 // 2 bytes of ID, 4 of the value
	for i := range p {
		if at := begin + i; at >= tells && in.setting[2] == 0 && in.setting[tells] >= servedFrame>>16 {
			p[i] = byte(uint32(servedFrame) >> (8 * (settingLen - 1 - at)))
		}
	}
}

// received is called when a frame is complete.
func (s *Session) received() {
	in := &s.in
	switch in.frame.typ {
	case http2.FrameSettings:
		if !in.lost && !in.frame.flags.Has(http2.FlagSettingsAck) {
			in.settled = true
			s.settings.received(in.size)
		}
	case http2.FrameHeaders, http2.FrameContinuation:
		in.block = !in.frame.flags.Has(http2.FlagHeadersEndHeaders)
	case http2.FrameRSTStream:
		s.refuse(in.frame.stream)
	}
}
