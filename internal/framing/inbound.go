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

// Received follows what was read from the client, before the server gets it.
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

// readSettings reads some of the payload of SETTINGS.
func (in *inbound) readSettings(p []byte) {
	for at := in.frame.length - in.left; len(p) > 0; {
		n := copy(in.setting[at%settingLen:], p)
		at, p = at+n, p[n:]
		if at%settingLen == 0 && http2.SettingID(binary.BigEndian.Uint16(in.setting[:])) == http2.SettingMaxFrameSize {
			in.size = binary.BigEndian.Uint32(in.setting[2:])
			in.lost = in.lost || in.size < minFrame || in.size > maxFrame
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
