package framing

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"testing"

	"golang.org/x/net/http2"
)

// source makes choices of a fuzzer's input.
type source struct{ b []byte }

func (s *source) byte() int {
	if len(s.b) == 0 {
		return 0
	}
	v := s.b[0]
	s.b = s.b[1:]
	return int(v)
}

// intn returns a number under n, which is at most 1<<24.
func (s *source) intn(n int) int {
	v := s.byte()
	for limit := 256; limit < n; limit <<= 8 {
		v = v<<8 | s.byte()
	}
	return v % n
}

// length returns a length of up to limit: often a small or a round one.
func (s *source) length(limit int) int {
	n := 0
	switch s.byte() % 8 {
	case 0:
	case 1, 2:
		n = s.intn(40)
	case 3:
		n = 1 << s.intn(18)
	case 4:
		n = s.intn(20) * piece
	case 5:
		n = s.intn(limit + 1)
	default:
		n = s.intn(2000)
	}
	return min(n, limit)
}

func (s *source) chance(oneIn int) bool { return s.byte()%oneIn == 1%oneIn }

// event is what frames say, no matter how they are cut.
type event struct {
	typ    http2.FrameType
	stream uint32
	flags  http2.Flags // END_STREAM and END_HEADERS, where they have a meaning
	fixed  string      // of a field block: what precedes the fragment
	pad    int         // of a field block
	data   []byte      // payload
	octets int         // of DATA: what counts for flow control
}

// events collects them, and joins what belongs together.
type events []event

func (l *events) add(e event) {
	if n := len(*l); n > 0 {
		last := &(*l)[n-1]
		switch {
		case e.typ == http2.FrameData && last.typ == http2.FrameData && last.stream == e.stream && last.flags == 0:
			last.data = append(last.data, e.data...)
			last.octets += e.octets
			last.flags = e.flags
			return
		case e.typ == http2.FrameContinuation:
			last.data = append(last.data, e.data...)
			last.flags |= e.flags
			return
		}
	}
	if e.typ == http2.FrameData && e.octets == 0 && e.flags == 0 {
		return
	}
	*l = append(*l, e)
}

// addFrame adds what golang.org/x/net/http2 has read.
func (l *events) addFrame(f http2.Frame, payload []byte) {
	h := f.Header()
	e := event{typ: h.Type, stream: h.StreamID, flags: h.Flags}
	switch f := f.(type) {
	case *http2.DataFrame:
		e.data, e.octets = bytes.Clone(f.Data()), int(h.Length)
		e.flags &= http2.FlagDataEndStream
	case *http2.HeadersFrame:
		e.data = bytes.Clone(f.HeaderBlockFragment())
		if h.Flags.Has(http2.FlagHeadersPriority) {
			e.fixed = fmt.Sprint(f.Priority)
		}
		e.pad = int(h.Length) - blockFixed(parseHeader(header{typ: h.Type, flags: h.Flags}.append(nil))) - len(e.data)
	case *http2.PushPromiseFrame:
		e.data, e.fixed = bytes.Clone(f.HeaderBlockFragment()), fmt.Sprint(f.PromiseID)
		e.pad = int(h.Length) - blockFixed(header{typ: h.Type, flags: h.Flags}) - len(e.data)
	case *http2.ContinuationFrame:
		e.data = bytes.Clone(f.HeaderBlockFragment())
	default:
		e.data = bytes.Clone(payload)
	}
	l.add(e)
}

// decode reads frames with golang.org/x/net/http2. That knows no CONTINUATION of
// PUSH_PROMISE, so their order is checked here.
func decode(b []byte) (events, error) {
	var l events
	r := bytes.NewReader(b)
	framer := http2.NewFramer(io.Discard, r)
	framer.AllowIllegalReads = true
	block := uint32(0) // stream whose field block is under way
	for {
		begin := len(b) - r.Len()
		f, err := framer.ReadFrame()
		if err == io.EOF {
			return l, nil
		}
		if err != nil {
			return l, fmt.Errorf("%v at %d of %d: %w, %v", parseHeader(b[begin:]), begin, len(b), err, framer.ErrorDetail())
		}
		h := f.Header()
		if (h.Type == http2.FrameContinuation) != (block != 0) || block != 0 && h.StreamID != block {
			return l, fmt.Errorf("%v at %d of %d: block of stream %d", h, begin, len(b), block)
		}
		switch h.Type {
		case http2.FrameHeaders, http2.FramePushPromise, http2.FrameContinuation:
			block = h.StreamID
			if h.Flags.Has(http2.FlagHeadersEndHeaders) {
				block = 0
			}
		}
		l.addFrame(f, b[begin+headerLen:len(b)-r.Len()])
	}
}

// equal compares events.
func (l events) equal(t *testing.T, want events) {
	t.Helper()
	for i := range max(len(l), len(want)) {
		switch {
		case i >= len(l):
			t.Fatalf("event %d is missing: %v", i, want[i])
		case i >= len(want):
			t.Fatalf("event %d is too much: %v", i, l[i])
		case !l[i].equal(want[i]):
			t.Fatalf("event %d: %v, want %v", i, l[i], want[i])
		}
	}
}

func (e event) equal(o event) bool {
	return e.typ == o.typ && e.stream == o.stream && e.flags == o.flags && e.fixed == o.fixed &&
		e.pad == o.pad && e.octets == o.octets && bytes.Equal(e.data, o.data)
}

func (e event) String() string {
	return fmt.Sprintf("%v stream %d flags %#x fixed %q pad %d octets %d, %d bytes %.20q", e.typ, e.stream, e.flags, e.fixed, e.pad, e.octets, len(e.data), e.data)
}

// client is the other side's view: which frames it accepts.
type client struct {
	settings []int // SETTINGS_MAX_FRAME_SIZE as of each SETTINGS sent
	acks     int   // seen
	seen     int   // bytes of frames
	limited  bool  // frames longer than accepted are errors
	largest  int   // DATA seen
}

func newClient() *client { return &client{settings: []int{minFrame}} }

// accepts returns the longest frame that is legal: what holds since the last
// acknowledgement, or what was sent after it.
func (c *client) accepts() (n int) {
	for _, v := range c.settings[min(c.acks, len(c.settings)-1):] {
		n = max(n, v)
	}
	return n
}

// see looks at the frames that have begun in out, all that was sent.
func (c *client) see(out []byte) error {
	for len(out) >= c.seen+headerLen {
		h := parseHeader(out[c.seen:])
		c.seen += headerLen + h.length
		switch h.typ {
		case http2.FrameData:
			c.largest = max(c.largest, h.length)
			fallthrough
		case http2.FrameHeaders, http2.FrameContinuation, http2.FramePushPromise:
			if c.limited && h.length > c.accepts() {
				return fmt.Errorf("%v of %d bytes, the client accepts %d", h.typ, h.length, c.accepts())
			}
		case http2.FrameSettings:
			if h.flags.Has(http2.FlagSettingsAck) {
				c.acks++
				if c.acks >= len(c.settings) {
					return fmt.Errorf("%d acknowledgements of %d SETTINGS", c.acks, len(c.settings)-1)
				}
			}
		}
	}
	return nil
}

// server answers what it reads as those of Go do: one acknowledgement for all
// SETTINGS that came since the last, before answers to PING.
type server struct {
	in        []byte // read, not yet complete
	preface   int
	needAck   bool
	pongs     []string
	frameSize int
	settings  int  // of the client, processed
	injected  int  // SETTINGS, processed
	dead      bool // after an error of the client
}

// read processes what came; injected says that it is none of the client's.
func (v *server) read(p []byte, injected bool) {
	n := min(len(p), len(http2.ClientPreface)-v.preface)
	v.preface += n
	v.in = append(v.in, p[n:]...)
	for len(v.in) >= headerLen {
		h := parseHeader(v.in)
		if len(v.in) < headerLen+h.length {
			return
		}
		payload := v.in[headerLen : headerLen+h.length]
		v.in = v.in[headerLen+h.length:]
		switch {
		case v.dead:
		case h.typ == http2.FrameSettings && (h.stream != 0 || h.length%settingLen != 0 ||
			h.flags.Has(http2.FlagSettingsAck) && h.length > 0):
			v.dead = true
		case h.typ == http2.FrameSettings && !h.flags.Has(http2.FlagSettingsAck):
			v.needAck = true
			if injected {
				v.injected++
			} else {
				v.settings++
			}
			for ; len(payload) > 0; payload = payload[settingLen:] {
				if binary.BigEndian.Uint16(payload) == uint16(http2.SettingMaxFrameSize) {
					v.frameSize = int(binary.BigEndian.Uint32(payload[2:]))
					v.dead = v.dead || v.frameSize < minFrame
				}
			}
		case h.typ == http2.FramePing && !h.flags.Has(http2.FlagPingAck):
			v.pongs = append(v.pongs, string(payload))
		}
	}
}

// write returns what it has to answer.
func (v *server) write() (b []byte) {
	if v.dead {
		return nil
	}
	if v.needAck {
		b = header{typ: http2.FrameSettings, flags: http2.FlagSettingsAck}.append(b)
	}
	for _, payload := range v.pongs {
		b = append(header{length: pingLen, typ: http2.FramePing, flags: http2.FlagPingAck}.append(b), payload...)
	}
	v.needAck, v.pongs = false, nil
	return b
}

// settingsFrame returns a client's SETTINGS; size 0 says nothing.
func settingsFrame(size int) []byte {
	h := header{typ: http2.FrameSettings}
	if size == 0 {
		return h.append(nil)
	}
	h.length = 2 * settingLen
	b := h.append(nil)
	b = append(b, 0, byte(http2.SettingInitialWindowSize), 0, 1, 0, 0)
	b = append(b, 0, byte(http2.SettingMaxFrameSize))
	return binary.BigEndian.AppendUint32(b, uint32(size))
}
