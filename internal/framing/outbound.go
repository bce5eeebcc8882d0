package framing

import (
	"golang.org/x/net/http2"
)

// outbound is where in what the server writes a session is.
type outbound struct {
	parts

	// A frame's beginning that came in pieces is held until there is enough of
	// it to know what it is; so much of it that stand-in bytes are recognized.
	head [headerLen + 1 + blockLen]byte
	have int // bytes of head

	// The frame whose payload comes.
	frame header
	left  int // bytes of the payload that are still to come
	mode  mode
	then  mode   // after cutting
	cut   cutter // if cutting
	reset bool   // the stream is reset after the frame

	// Stand-in bytes.
	body    *Body // nil if it was given up before the frame began
	pos     int64 // of the next in what is announced
	standIn int   // how many there are in the frame
}

// mode is what is done with the payload.
type mode byte

const (
	pass   mode = iota // it goes out as it is
	drop               // it doesn't go out
	cut                // it goes out in pieces
	verify             // it is stand-in bytes, and dropped
)

// Rewrite takes the next bytes that the server writes, and returns what to send
// in their place, in order. It is valid until the next call, and of p what isn't
// part of it is not needed any more. The caller may clear the slice returned.
//
// What a frame becomes is known at its end only, if it has stand-in bytes. All
// else goes out without delay, but for a frame's first few bytes; p itself, if
// nothing in it is to be changed.
//
// After an error the connection must be closed, and nothing of p may be sent:
// some of it is stand-in bytes that aren't announced, or isn't what is announced.
func (s *Session) Rewrite(p []byte) ([]Part, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	s.out.parts.reset()
	if err := s.rewrite(p); err != nil {
		s.fail(err)
		return nil, err
	}
	return s.out.list, nil
}

func (s *Session) rewrite(p []byte) error {
	o := &s.out
	for len(p) > 0 {
		if o.left > 0 {
			n := min(o.left, len(p))
			if err := s.payload(p[:n]); err != nil {
				return err
			}
			p = p[n:]
			continue
		}
		if o.have == 0 && len(p) >= headerLen && s.prefix(p) <= len(p) {
			n, err := s.begin(p)
			if err != nil {
				return err
			}
			p = p[n:]
			continue
		}
		n, err := s.collect(p)
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// collect takes some of p to complete the beginning of a frame, and begins the
// frame when it has enough. It returns how much it took.
func (s *Session) collect(p []byte) (int, error) {
	o := &s.out
	n := 0
	for {
		need := headerLen
		if o.have >= headerLen {
			need = s.prefix(o.head[:o.have])
		}
		if o.have >= need {
			break
		}
		m := copy(o.head[o.have:need], p[n:])
		n += m
		o.have += m
		if o.have < need {
			return n, nil
		}
	}
	head := o.copied(o.head[:o.have])
	o.have = 0
	m, err := s.begin(head)
	if err == nil && m < len(head) {
		err = s.payload(head[m:])
	}
	return n, err
}

// prefix returns how many of a frame's first bytes are needed to begin it. b is
// what there is of them, the header at least.
func (s *Session) prefix(b []byte) int {
	h := parseHeader(b)
	switch h.typ {
	case http2.FrameData:
		fixed, data, _ := dataLen(h, b)
		if len(b) < headerLen+fixed {
			return headerLen + fixed
		}
		p, _ := s.lookup(h.stream)
		plain, _ := p.split(data)
		return headerLen + fixed + min(plain, blockLen)
	case http2.FrameHeaders, http2.FramePushPromise:
		if s.tooLong(h) {
			return headerLen + blockFixed(h)
		}
	case http2.FramePing:
		if s.isBarrier(h) {
			return headerLen + pingLen
		}
	}
	return headerLen
}

// dataLen returns how many bytes of a DATA frame's payload precede the data (the
// pad length), how many are data, and how many padding; -1 if there is no pad
// length. b is the frame's beginning; if it ends before the pad length, only the
// first is right.
func dataLen(h header, b []byte) (fixed, data, pad int) {
	if !h.flags.Has(http2.FlagDataPadded) || h.length == 0 {
		return 0, h.length, -1
	}
	if len(b) > headerLen {
		pad = int(b[headerLen])
	}
	return 1, max(h.length-1-pad, 0), pad
}

// blockFixed returns how many bytes precede the fragment of a field block.
func blockFixed(h header) int {
	n := 0
	switch h.typ {
	case http2.FrameHeaders:
		if h.flags.Has(http2.FlagHeadersPriority) {
			n = 5
		}
	case http2.FramePushPromise:
		n = 4
	default:
		return 0
	}
	if h.flags.Has(http2.FlagHeadersPadded) {
		n++
	}
	return n
}

// begin begins a frame. b is its first bytes, as many as prefix says or more. It
// returns how many it used.
func (s *Session) begin(b []byte) (int, error) {
	o := &s.out
	h := parseHeader(b)
	o.frame, o.left, o.mode, o.reset = h, h.length, pass, false
	switch h.typ {
	case http2.FrameData:
		return s.beginData(h, b)
	case http2.FrameHeaders, http2.FramePushPromise, http2.FrameContinuation:
		return s.beginBlock(h, b)
	case http2.FrameRSTStream:
		s.forget(h.stream)
	case http2.FrameSettings:
		if h.flags.Has(http2.FlagSettingsAck) && s.acked() {
			o.mode = drop
			return headerLen, nil
		}
	case http2.FramePing:
		if s.isBarrier(h) && s.settings.token == [pingLen]byte(b[headerLen:]) {
			if s.passed() {
				o.emitHeader(header{typ: http2.FrameSettings, flags: http2.FlagSettingsAck})
			}
			o.left = 0
			return headerLen + pingLen, nil
		}
	}
	o.emit(b[:headerLen])
	return headerLen, nil
}

func (s *Session) beginData(h header, b []byte) (int, error) {
	o := &s.out
	fixed, data, pad := dataLen(h, b)
	p, body := s.lookup(h.stream)
	plain, standIn := p.split(data)
	if p != nil {
		o.body, o.pos, o.standIn = body, p.position(), standIn
		switch {
		case standIn > 0 && pad >= 0:
			return 0, streamError(h.stream, "stand-in bytes with padding")
		case p.announced && p.seen+int64(data) > p.skip+p.n:
			return 0, streamError(h.stream, "more DATA than announced")
		}
		p.seen += int64(data)
		if body != nil {
			body.emitted += int64(standIn)
		}
		if h.flags.Has(http2.FlagDataEndStream) {
			if p.missing() && !p.void {
				return 0, streamError(h.stream, "ends before all that was announced")
			}
			if p.void && !p.whole {
				o.reset = true
				h.flags &^= http2.FlagDataEndStream
			}
			s.forget(h.stream)
		}
	}
	if looksLikeStandIn(b[headerLen+fixed : headerLen+fixed+min(plain, blockLen)]) {
		return 0, streamError(h.stream, "stand-in bytes that aren't announced")
	}
	o.frame = h
	switch {
	case plain == 0 && standIn > 0:
		o.mode = verify
		return headerLen, nil
	case standIn > 0:
		h.flags &^= http2.FlagDataEndStream
		o.cut, o.mode, o.then = cutData(h, s.pieceSize(), plain, -1), cut, verify
		return headerLen, nil
	case s.tooLong(h):
		// No padding is longer than a frame that is too long.
		o.cut, o.mode, o.then = cutData(h, s.pieceSize(), data, pad), cut, pass
		o.left -= fixed
		return headerLen + fixed, nil
	case o.reset && h.length == 0:
		s.endFrame()
		return headerLen, nil
	case o.reset:
		o.emitHeader(h)
		return headerLen, nil
	}
	o.emit(b[:headerLen])
	return headerLen, nil
}

func (s *Session) beginBlock(h header, b []byte) (int, error) {
	o := &s.out
	if h.typ == http2.FrameHeaders && h.flags.Has(http2.FlagHeadersEndStream) {
		if p, _ := s.lookup(h.stream); p != nil {
			if p.missing() || p.void && !p.whole {
				return 0, streamError(h.stream, "ends before all that was announced")
			}
			s.forget(h.stream)
		}
	}
	if !s.tooLong(h) {
		o.emit(b[:headerLen])
		return headerLen, nil
	}
	fixed := blockFixed(h)
	pad := 0
	if h.typ != http2.FrameContinuation && h.flags.Has(http2.FlagHeadersPadded) {
		pad = int(b[headerLen])
	}
	o.cut = cutBlock(&o.parts, h, int(s.settings.accepted()), b[headerLen:headerLen+fixed], h.length-fixed-pad, pad)
	o.mode, o.then = cut, drop
	o.left -= fixed
	return headerLen + fixed, nil
}

// payload takes some of the payload of the frame under way.
func (s *Session) payload(b []byte) error {
	o := &s.out
	for len(b) > 0 {
		n := len(b)
		switch o.mode {
		case pass:
			o.emit(b)
		case drop:
		case cut:
			n = min(n, o.cut.step(&o.parts))
			o.emit(b[:n])
			o.cut.took(&o.parts, n)
			if o.cut.done() {
				o.mode = o.then
			}
		case verify:
			if !isStandIn(b, o.pos) {
				return streamError(o.frame.stream, "not the stand-in bytes announced")
			}
			o.pos += int64(n)
		}
		b = b[n:]
		o.left -= n
	}
	if o.left == 0 {
		s.endFrame()
	}
	return nil
}

// endFrame is called after a frame's last byte, if it had a payload.
func (s *Session) endFrame() {
	o := &s.out
	if o.mode == verify {
		if b := o.body; b == nil {
			o.emitPadding(o.frame.stream, int64(o.standIn))
		} else {
			begin := o.pos - int64(o.standIn)
			o.emitFile(b, b.off+begin, o.standIn, s.pieceSize(), o.frame.flags.Has(http2.FlagDataEndStream))
		}
	}
	if o.reset {
		o.emitReset(o.frame.stream)
	}
	o.body = nil // no longer kept in memory from here
}

// tooLong reports whether a frame is longer than the client accepts. Only then
// may it be, and only then is it cut.
func (s *Session) tooLong(h header) bool {
	return s.settings.want > 0 && h.length > int(s.settings.accepted())
}

// pieceSize is how long the frames are that others are cut into, in bytes of
// payload: with its header, such a frame fills a TLS record. Every client accepts
// as much.
func (s *Session) pieceSize() int {
	record := s.Record
	if record <= headerLen || record > minFrame {
		record = minFrame
	}
	return record - headerLen
}
