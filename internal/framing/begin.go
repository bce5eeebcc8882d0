package framing

import "golang.org/x/net/http2"

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
	o.frame, o.left, o.mode, o.abort = h, h.length, pass, false
	if (h.typ == http2.FrameData || h.typ == http2.FrameHeaders) && h.flags.Has(http2.FlagDataEndStream) { // the same bit
		o.ends = true
	}
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
		if standIn > 0 {
			o.full = o.pos == 0 || o.frames%verifyEach == 0
			o.frames++
		}
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
				o.abort = true
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
	case o.abort && h.length == 0:
		s.endFrame()
		return headerLen, nil
	case o.abort:
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
