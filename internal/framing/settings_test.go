package framing

import (
	"bytes"
	"testing"

	"golang.org/x/net/http2"
)

var ack = header{typ: http2.FrameSettings, flags: http2.FlagSettingsAck}.append(nil)

// injected returns what is injected now.
func injected(t *testing.T, s *Session) []byte {
	t.Helper()
	p := make([]byte, 100)
	wants := s.WantsInject()
	p = p[:s.Inject(p)]
	if wants != (len(p) > 0) {
		t.Errorf("wants to inject: %v, injects %d bytes", wants, len(p))
	}
	return p
}

// opened returns a session after the client's first SETTINGS, acknowledged.
func opened(t *testing.T, size int) *Session {
	s := new(Session)
	s.Received(append([]byte(http2.ClientPreface), settingsFrame(size)...))
	if got := rewritten(t, s, ack); !bytes.Equal(got, ack) {
		t.Fatalf("%q", got)
	}
	return s
}

func maxFrameSize(size uint32) []byte {
	return append(header{length: settingLen, typ: http2.FrameSettings}.append(nil), 0, 5, byte(size>>24), byte(size>>16), byte(size>>8), byte(size))
}

func pong(ping []byte) []byte {
	pong := bytes.Clone(ping)
	pong[4] = byte(http2.FlagPingAck)
	return pong
}

func TestInject(t *testing.T) {
	s := opened(t, 0)
	if got := injected(t, s); len(got) > 0 {
		t.Errorf("%q without having been asked", got)
	}
	s.Enlarge(100_000)
	// As the server reads: the header, then the payload.
	p := make([]byte, headerLen)
	n := s.Inject(p)
	if !s.WantsInject() {
		t.Error("doesn't want to inject the rest")
	}
	if got := append(p[:n], injected(t, s)...); !bytes.Equal(got, maxFrameSize(100_000)) {
		t.Errorf("%q", got)
	}
	if got := injected(t, s); len(got) > 0 {
		t.Errorf("%q is injected too", got)
	}
	if got := rewritten(t, s, append(frames(t, data(1, false, []byte("x"))), ack...)); !bytes.Equal(got, frames(t, data(1, false, []byte("x")))) {
		t.Errorf("%q", got)
	}
	if got := rewritten(t, s, ack); !bytes.Equal(got, ack) {
		t.Error("another acknowledgement was swallowed")
	}
	s.Enlarge(100_000)
	s.Enlarge(20_000)
	if got := injected(t, s); len(got) > 0 {
		t.Errorf("%q for what the server believes", got)
	}
	s.Enlarge(1 << 30)
	if got := injected(t, s); !bytes.Equal(got, maxFrameSize(MaxFrameSize)) {
		t.Errorf("%q", got)
	}
}

// Frames are injected between the client's, and not within a field block.
func TestInjectAtFrameBoundary(t *testing.T) {
	s := new(Session)
	s.Enlarge(100_000)
	in := append([]byte(http2.ClientPreface), settingsFrame(0)...)
	first := len(in)
	in = append(in, frames(t,
		data(1, false, []byte("abc")),
		headers(http2.HeadersFrameParam{StreamID: 3, BlockFragment: []byte("def")}),
		continuation(3, false, []byte("ghi")),
		continuation(3, true, nil))...)
	boundaries := map[int]bool{first: true, first + headerLen + 3: true, len(in): true}
	for i := range in {
		s.Received(in[i : i+1])
		if s.WantsInject() != boundaries[i+1] {
			t.Errorf("after %d bytes: %v", i+1, s.WantsInject())
		}
		if !s.WantsInject() && s.Inject(make([]byte, 100)) > 0 {
			t.Errorf("injects after %d bytes", i+1)
		}
	}
}

// Nothing is injected into what isn't HTTP/2 or what the server refuses.
func TestInjectNotAfterErrors(t *testing.T) {
	for name, frames := range map[string][]byte{
		"no SETTINGS first":      frames(t, data(1, false, nil)),
		"odd SETTINGS":           header{length: 7, typ: http2.FrameSettings}.append(nil),
		"SETTINGS of a stream":   header{typ: http2.FrameSettings, stream: 1}.append(nil),
		"long acknowledgement":   header{length: 6, typ: http2.FrameSettings, flags: http2.FlagSettingsAck}.append(nil),
		"frame size too small":   maxFrameSize(minFrame - 1),
		"frame size too large":   maxFrameSize(maxFrame + 1),
		"a frame within a block": append(settingsFrame(0), frames(t, headers(http2.HeadersFrameParam{StreamID: 1}), data(1, false, nil), continuation(1, true, nil))...),
		"a bad preface":          nil,
	} {
		t.Run(name, func(t *testing.T) {
			var s Session
			preface := []byte(http2.ClientPreface)
			if frames == nil {
				preface[20]++
			}
			s.Enlarge(100_000)
			s.Received(preface)
			s.Received(frames)
			s.Received(make([]byte, 11*headerLen))
			s.Received(settingsFrame(0))
			if got := injected(t, &s); len(got) > 0 {
				t.Errorf("%q", got)
			}
		})
	}
}

// A client that accepts as much needs no injection.
func TestInjectNotForAClientThatAcceptsAsMuch(t *testing.T) {
	s := opened(t, 60_000)
	s.Enlarge(60_000)
	if got := injected(t, s); len(got) > 0 {
		t.Errorf("%q", got)
	}
}

// However large a client's frames may be, and however its SETTINGS come, the server
// is told of no more than servedFrame, and the client gets what it said.
func TestLargeFramesOfClientAreNotForTheServer(t *testing.T) {
	for size, told := range map[uint32]uint32{
		minFrame: minFrame, 1<<16 - 1: 1<<16 - 1, 1 << 16: 1 << 16, 1<<16 + 1: 1 << 16, 1 << 17: 1 << 16, 0x01ff_ff: 1 << 16, 0xff_00_01: 1 << 16, maxFrame: 1 << 16,
		minFrame - 1: minFrame - 1, maxFrame + 1: maxFrame + 1, 1<<32 - 1: 1<<32 - 1, // for the server to refuse
	} {
		sent := append(append([]byte(http2.ClientPreface), settingsFrame(int(size))...), maxFrameSize(size)...)
		want := append(append([]byte(http2.ClientPreface), settingsFrame(int(told))...), maxFrameSize(told)...)
		if size < minFrame || size > maxFrame {
			sent, want = sent[:len(http2.ClientPreface)+headerLen+2*settingLen], want[:len(http2.ClientPreface)+headerLen+2*settingLen]
		}
		for _, n := range []int{1, 2, 3, 5, 7, 11, len(sent)} {
			s, read := new(Session), bytes.Clone(sent)
			for p := read; len(p) > 0; p = p[min(n, len(p)):] {
				s.Received(p[:min(n, len(p))])
			}
			if !bytes.Equal(read, want) {
				t.Errorf("%d, %d bytes at once: the server reads %q", size, n, read)
			}
			rewritten(t, s, append(bytes.Clone(ack), ack...))
			if got := s.settings.accepted(); told >= minFrame && told <= maxFrame && got != size {
				t.Errorf("%d, %d bytes at once: frames for the client of %d", size, n, got)
			}
		}
		if size <= servedFrame || size > maxFrame {
			continue
		}
		s := opened(t, int(size))
		s.Enlarge(100_000)
		if got := injected(t, s); !bytes.Equal(got, maxFrameSize(100_000)) {
			t.Errorf("%d: the server isn't told of frames of 100,000 bytes: %q", size, got)
		}
	}
}

// The client's later SETTINGS make the server believe them: it is told again.
func TestInjectAgain(t *testing.T) {
	s := opened(t, 0)
	s.Enlarge(100_000)
	injected(t, s)
	rewritten(t, s, ack)
	s.Received(settingsFrame(0))
	rewritten(t, s, ack)
	if got := injected(t, s); len(got) > 0 {
		t.Errorf("%q after SETTINGS about other things", got)
	}
	s.Received(settingsFrame(20_000))
	rewritten(t, s, ack)
	if got := injected(t, s); !bytes.Equal(got, maxFrameSize(100_000)) {
		t.Errorf("%q", got)
	}
	if got := rewritten(t, s, ack); len(got) > 0 {
		t.Errorf("%q", got)
	}
}

// SETTINGS of the client that the server may acknowledge together with those
// injected.
func TestAcknowledgementsTogether(t *testing.T) {
	for name, server := range map[string]struct {
		before, after []byte // what it writes before a PING is injected, and before it answers
	}{
		"one for both":           {before: ack},
		"the second comes later": {before: ack, after: ack},
	} {
		t.Run(name, func(t *testing.T) {
			s := opened(t, 0)
			s.Enlarge(100_000)
			if got := injected(t, s); !bytes.Equal(got, maxFrameSize(100_000)) {
				t.Fatalf("%q", got)
			}
			s.Received(settingsFrame(30_000))
			if s.WantsInject() {
				t.Error("wants to inject before an acknowledgement")
			}
			got := rewritten(t, s, server.before)
			ping := injected(t, s)
			if h := parseHeader(ping); h.typ != http2.FramePing || h.length != pingLen {
				t.Fatalf("%q instead of PING", ping)
			}
			other := frames(t, func(f *http2.Framer) error { return f.WritePing(true, [8]byte{}) })
			got = append(got, rewritten(t, s, append(append(server.after, other...), pong(ping)...))...)
			without := bytes.Replace(got, other, nil, 1)
			if len(got)-len(without) != len(other) {
				t.Error("the answer to another PING is missing")
			}
			if !bytes.Equal(without, ack) {
				t.Errorf("%q", without)
			}
			if got := s.settings.accepted(); got != 30_000 {
				t.Errorf("frames of %d bytes", got)
			}
			if got := injected(t, s); !bytes.Equal(got, maxFrameSize(100_000)) {
				t.Errorf("then %q", got)
			}
		})
	}
}

// Nothing has to be found out if there were as many acknowledgements.
func TestAcknowledgementsEach(t *testing.T) {
	s := opened(t, 0)
	s.Enlarge(100_000)
	injected(t, s)
	s.Received(settingsFrame(30_000))
	if got := rewritten(t, s, append(ack[:headerLen:headerLen], ack...)); !bytes.Equal(got, ack) {
		t.Errorf("%q", got)
	}
	if got := injected(t, s); !bytes.Equal(got, maxFrameSize(100_000)) {
		t.Errorf("%q", got)
	}
}

// Where the server has acknowledged several SETTINGS with one frame, counting
// doesn't tell whether it still owes one.
func TestInjectAfterAcknowledgementsTogether(t *testing.T) {
	s := new(Session)
	s.Received(append(append([]byte(http2.ClientPreface), settingsFrame(0)...), settingsFrame(20_000)...))
	rewritten(t, s, ack)
	s.Enlarge(100_000)
	ping := injected(t, s)
	s.Received(settingsFrame(0)) // after the PING: this one may not be acknowledged
	if got := rewritten(t, s, pong(ping)); len(got) > 0 {
		t.Errorf("%q", got)
	}
	if got := s.settings.accepted(); got != minFrame {
		t.Errorf("frames of %d bytes", got)
	}
	ping = injected(t, s)
	if parseHeader(ping).typ != http2.FramePing {
		t.Fatalf("%q instead of PING", ping)
	}
	if got := rewritten(t, s, pong(ping)); len(got) > 0 {
		t.Errorf("%q", got)
	}
	if got := s.settings.accepted(); got != 20_000 {
		t.Errorf("frames of %d bytes", got)
	}
	if got := injected(t, s); !bytes.Equal(got, maxFrameSize(100_000)) {
		t.Errorf("%q", got)
	}
}

// What the client accepts holds from the acknowledgement on; less, at once.
func TestClientsFrameSize(t *testing.T) {
	s := opened(t, 30_000)
	if got := s.settings.accepted(); got != 30_000 {
		t.Fatal(got)
	}
	s.Received(settingsFrame(20_000))
	if got := s.settings.accepted(); got != 20_000 {
		t.Fatal(got)
	}
	s.Received(settingsFrame(40_000))
	if got := s.settings.accepted(); got != 20_000 {
		t.Fatal(got)
	}
	rewritten(t, s, ack)
	if got := s.settings.accepted(); got != 20_000 {
		t.Fatal(got)
	}
	rewritten(t, s, ack)
	if got := s.settings.accepted(); got != 40_000 {
		t.Fatal(got)
	}
}

// TestHeld: SETTINGS that come while those injected aren't acknowledged are to be
// held until they are, or never will be.
func TestHeld(t *testing.T) {
	begin := func() *Session {
		s := new(Session)
		s.Received(append([]byte(http2.ClientPreface), settingsFrame(0)...))
		if s.Held() != nil {
			t.Fatal("held before anything was injected")
		}
		if _, err := s.Rewrite(frames(t, (*http2.Framer).WriteSettingsAck)); err != nil {
			t.Fatal(err)
		}
		s.Enlarge(MaxFrameSize)
		if n := s.Inject(make([]byte, 100)); n != headerLen+settingLen {
			t.Fatal(n)
		}
		if s.Held() != nil {
			t.Fatal("held before the client sent any")
		}
		s.Received(settingsFrame(1 << 15)[:headerLen])
		return s
	}
	isClosed := func(held <-chan struct{}) bool {
		select {
		case <-held:
			return true
		default:
			return false
		}
	}
	s := begin()
	held := s.Held()
	if held == nil || isClosed(held) {
		t.Fatal("not held")
	}
	if _, err := s.Rewrite(frames(t, (*http2.Framer).WriteSettingsAck)); err != nil {
		t.Fatal(err)
	}
	if !isClosed(held) || s.Held() != nil {
		t.Error("still held after the acknowledgement")
	}
	s = begin()
	held = s.Held()
	s.Close(nil)
	if !isClosed(held) || s.Held() != nil {
		t.Error("still held after the end")
	}
}
