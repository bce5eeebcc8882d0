package framing

import (
	"crypto/rand"
	"encoding/binary"

	"golang.org/x/net/http2"
)

// settings is what the two sides believe of SETTINGS_MAX_FRAME_SIZE, and the
// frames that are put into what the server reads.
//
// The server's acknowledgement of an injected SETTINGS must not reach the client,
// and each of the client's own must. They all look alike, and the servers of Go
// acknowledge with one frame all SETTINGS that came while they could not write.
// So SETTINGS are injected only if none of the client's is unacknowledged: then
// the next acknowledgement is for the injected ones, and if meanwhile the client
// has sent some too, perhaps for those as well. Where counting can't tell, a PING
// is injected. The server answers it after what it has acknowledged by then.
type settings struct {
	want     uint32 // what the server shall believe; 0 before Enlarge
	believed uint32 // what it has been told last
	latest   uint32 // the client's last
	accepts  uint32 // what holds for frames to the client

	unacked  int  // SETTINGS of the client that may not be acknowledged yet
	injected bool // SETTINGS were injected and are not acknowledged
	owed     bool // the acknowledgement swallowed may have been for the client's too

	held chan struct{} // closed when the server may get the client's SETTINGS; nil: it may

	barrier bool // a PING was injected and is not answered
	since   int  // SETTINGS of the client since
	token   [pingLen]byte

	pending []byte // injected, but not yet read by the server
	buf     [headerLen + pingLen]byte
}

// servedFrame is the largest frame, in bytes of payload, that a server writes without
// Enlarge. Caddy writes files in pieces of so much, so that none was larger. The
// lower 16 bits must be 0.
const servedFrame = 64 << 10

// Limits of Enlarge.
const (
	MinFrameSize = minFrame
	MaxFrameSize = 1 << 20
)

// Enlarge lets the server write frames of up to size bytes of payload
// (MinFrameSize to MaxFrameSize) whatever the client accepts: it asks for a
// SETTINGS_MAX_FRAME_SIZE to be injected into what the server reads, unless it was
// told as much by the client. All frames are then cut to what the client
// accepts. The largest size asked for counts.
//
// Cut without a small rest are multiples of Record less 9 (16375 by default).
// A server may keep a buffer as large as its largest frame.
func (s *Session) Enlarge(size uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settings.want = max(s.settings.want, min(max(size, MinFrameSize), MaxFrameSize))
	s.updateWants()
}

// WantsInject reports whether Inject has something for the server. A reader
// calls Inject if so, before it reads from the client. It may become true by
// Enlarge, Rewrite and Received; after the first two, a reader that waits for
// the client has to be woken.
func (s *Session) WantsInject() bool { return s.wants.Load() }

// Inject fills p with what the server is to read next, if that isn't to come from
// the client, and returns how much it is.
func (s *Session) Inject(p []byte) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &s.settings
	if s.err == nil && len(t.pending) == 0 && s.in.boundary() {
		switch s.injection() {
		case http2.FrameSettings:
			t.pending = header{length: settingLen, typ: http2.FrameSettings}.append(t.buf[:0])
			t.pending = binary.BigEndian.AppendUint16(t.pending, uint16(http2.SettingMaxFrameSize))
			t.pending = binary.BigEndian.AppendUint32(t.pending, t.want)
			t.injected, t.believed = true, t.want
		case http2.FramePing:
			rand.Read(t.token[:])
			t.pending = header{length: pingLen, typ: http2.FramePing}.append(t.buf[:0])
			t.pending = append(t.pending, t.token[:]...)
			t.barrier, t.since = true, 0
		}
	}
	n := copy(p, t.pending)
	t.pending = t.pending[n:]
	s.updateWants()
	return n
}

// Held returns nil, or a channel that is closed when the server may get what
// Received was called with last: SETTINGS of the client, and those injected are
// not acknowledged. If it gets them at once, their acknowledgement may come to
// the client after DATA that they allow, and there are clients for which SETTINGS
// hold from the acknowledgement on.
func (s *Session) Held() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.settings.held
}

// hold is called when SETTINGS of the client begin.
func (t *settings) hold() {
	if t.injected && t.held == nil {
		t.held = make(chan struct{})
	}
}

// release is called when the server has acknowledged, or never will.
func (t *settings) release() {
	if t.held != nil {
		close(t.held)
		t.held = nil
	}
}

// noInjection is a type no frame of HTTP/2 has.
const noInjection http2.FrameType = 0xff

// injection returns the type of the frame to inject next.
func (s *Session) injection() http2.FrameType {
	t := &s.settings
	switch {
	case t.barrier || t.injected:
		return noInjection
	case t.owed:
		return http2.FramePing
	case t.want <= max(t.believed, minFrame):
		return noInjection
	case t.unacked > 0:
		return http2.FramePing
	}
	return http2.FrameSettings
}

func (s *Session) updateWants() {
	wants := s.err == nil && (len(s.settings.pending) > 0 || s.in.boundary() && s.injection() != noInjection)
	if s.wants.Load() != wants {
		s.wants.Store(wants)
	}
}

// received takes note of SETTINGS that the client has sent; size is its
// SETTINGS_MAX_FRAME_SIZE, or 0.
func (t *settings) received(size uint32) {
	t.unacked++
	t.since++
	if size > 0 {
		t.latest, t.believed = size, min(size, servedFrame)
		// More holds from the acknowledgement on. Less is always allowed.
		t.accepts = min(t.accepted(), size)
	}
}

// accepted returns the longest payload of a frame that may go to the client.
func (t *settings) accepted() uint32 { return max(t.accepts, minFrame) }

// settle is called when unacked has become less.
func (t *settings) settle() {
	if t.unacked == 0 {
		t.accepts = t.latest
	}
}

// acked takes note of an acknowledgement that the server writes, and reports
// whether it is to be swallowed.
func (s *Session) acked() (swallow bool) {
	t := &s.settings
	if t.injected {
		t.injected = false
		t.owed = t.unacked > 0
		t.release()
		s.updateWants()
		return true
	}
	t.owed = false
	t.unacked = max(t.unacked-1, 0)
	t.settle()
	s.updateWants()
	return false
}

// isBarrier reports whether a frame that the server writes may be the answer to
// an injected PING.
func (s *Session) isBarrier(h header) bool {
	return s.settings.barrier && h.flags.Has(http2.FlagPingAck) && h.length == pingLen
}

// passed takes note that the server has answered the injected PING: it has
// acknowledged all SETTINGS that it got before that. It reports whether the
// client is still to be told.
func (s *Session) passed() (tell bool) {
	t := &s.settings
	tell = t.owed
	t.owed, t.barrier = false, false
	t.unacked = min(t.unacked, t.since)
	t.settle()
	s.updateWants()
	return tell
}
