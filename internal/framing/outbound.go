package framing

import "golang.org/x/net/http2"

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
	abort bool   // the stream is reset after the frame
	ends  bool   // it, or one before it, ends a stream: see Ended

	// Stand-in bytes.
	body    *Body // nil if it was given up before the frame began
	pos     int64 // of the next in what is announced
	standIn int   // how many there are in the frame
	frames  uint  // with stand-in bytes so far
	full    bool  // this one is verified byte by byte
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

// Ended reports whether a stream has ended with the bytes that Rewrite was called
// with last: its last frame is complete.
func (s *Session) Ended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	ended := s.out.ends && s.out.left == 0
	if ended {
		s.out.ends = false
	}
	return ended
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
			same := isStandInSampled
			if o.full {
				same = isStandIn
			}
			if !same(b, o.pos) {
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
			size := s.pieceSize()
			if o.standIn <= size+headerLen { // as the server's are until it knows of larger ones
				size = o.standIn // a second record is cheaper than a second frame
			}
			o.emitFile(b, b.off+begin, o.standIn, size, o.frame.flags.Has(http2.FlagDataEndStream))
		}
	}
	if o.abort {
		o.emitReset(o.frame.stream)
	}
	o.body = nil // no longer kept in memory from here
}
