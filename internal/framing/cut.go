package framing

import "golang.org/x/net/http2"

// cutter makes several frames of one that is too long for the client.
type cutter struct {
	next  header      // of the next piece, but for its length
	end   http2.Flags // what the last piece has besides
	size  int         // the most payload of a piece
	data  int         // bytes that are still to come
	piece int         // how many of them belong to the piece under way
	last  bool        // it is the last piece
	pad   int         // padding of the last piece, which comes with the data; -1 if it has none
	zeros int         // padding of the first piece, which is made here
}

// cutData cuts a DATA frame with n bytes of data. Padding stays as it was, on the
// last piece, so that the pieces count as much for flow control as the frame.
func cutData(h header, size, n, pad int) cutter {
	c := cutter{size: size, data: n, pad: pad, end: h.flags & http2.FlagDataEndStream}
	h.flags &^= http2.FlagDataEndStream | http2.FlagDataPadded
	c.next = h
	return c
}

// step writes the header of the next piece if it is time for that, and returns
// how many bytes follow; 0 when the frame's last data have been passed on. The
// caller passes them on and says so with took.
//
// A header is written together with the data that follow; if there are none left
// to wait for, at once.
func (c *cutter) step(p *parts) int {
	if c.piece > 0 || c.last {
		return c.piece
	}
	h := c.next
	padding := 0
	if c.pad >= 0 {
		padding = 1 + c.pad
	}
	if c.data == 0 || c.data+padding <= c.size {
		c.last = true
		c.piece = c.data
		h.flags |= c.end
		h.length = c.data + padding
		if c.pad >= 0 {
			h.flags |= http2.FlagDataPadded
		}
	} else {
		c.piece = min(c.data, c.size)
		h.length = c.piece
	}
	p.emitHeader(h)
	if c.last && c.pad >= 0 {
		p.emit(p.copied([]byte{byte(c.pad)}))
	}
	return c.piece
}

// took says that n bytes of the piece were passed on.
func (c *cutter) took(p *parts, n int) {
	c.data -= n
	c.piece -= n
	if c.piece == 0 && c.zeros > 0 {
		p.emitZeros(c.zeros)
		c.zeros = 0
	}
	if c.data == 0 {
		c.step(p)
	}
}

// done reports whether all pieces were written.
func (c *cutter) done() bool { return c.last && c.piece == 0 }

// cutBlock cuts a HEADERS, PUSH_PROMISE or CONTINUATION frame with n bytes of a
// field block, and writes the first header. The first piece keeps the type and
// all flags but END_HEADERS, what precedes the fragment (fixed), and the padding
// (pad octets); the others are CONTINUATION.
func cutBlock(p *parts, h header, size int, fixed []byte, n, pad int) cutter {
	c := cutter{
		next:  header{typ: http2.FrameContinuation, stream: h.stream},
		end:   h.flags & http2.FlagHeadersEndHeaders,
		size:  size,
		data:  n,
		piece: size - len(fixed) - pad,
		pad:   -1,
		zeros: pad,
	}
	h.flags &^= http2.FlagHeadersEndHeaders
	h.length = size
	p.emitHeader(h)
	p.emit(fixed)
	return c
}
