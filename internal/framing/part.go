package framing

import "golang.org/x/net/http2"

// Part is something to send.
type Part struct {
	// Bytes are sent as they are, if Body is nil.
	Bytes []byte

	// Else DATA frames are sent with N bytes of the body's file, from offset Off
	// on, in pieces of Size bytes, the last of which may be shorter. Before each
	// piece goes its header, the next 9 bytes of Headers.
	Body    *Body
	Off, N  int64
	Headers []byte
	Size    int
}

// AppendPadding appends what is to be sent in the place of a part's frames from
// the piece on that begins at byte from, when the body was given up: as much
// padding, and if the last of them ended the stream, a reset.
func (p *Part) AppendPadding(dst []byte, from int64) []byte {
	dst = appendPadding(dst, p.Body.stream, p.N-from)
	if parseHeader(p.Headers[len(p.Headers)-headerLen:]).flags.Has(http2.FlagDataEndStream) {
		dst = appendReset(dst, p.Body.stream, http2.ErrCodeInternal)
	}
	return dst
}

// parts collects what Rewrite returns.
type parts struct {
	list    []Part
	scratch []byte // what is neither in the server's bytes nor in a file
}

// maxScratch is how much scratch is kept from call to call, in bytes. Only
// padding takes more.
const maxScratch = 4 << 10

func (p *parts) reset() {
	clear(p.list)
	p.list = p.list[:0]
	if cap(p.scratch) > maxScratch {
		p.scratch = nil
	}
	p.scratch = p.scratch[:0]
}

// emit adds b, which is part of the server's bytes or of the scratch, and joins
// it to what precedes it if they are adjacent in memory.
func (p *parts) emit(b []byte) {
	if len(b) == 0 {
		return
	}
	if len(p.list) > 0 {
		last := &p.list[len(p.list)-1]
		if n := len(last.Bytes); n > 0 && n < cap(last.Bytes) && &last.Bytes[:n+1][n] == &b[0] {
			last.Bytes = last.Bytes[:n+len(b)]
			return
		}
	}
	p.list = append(p.list, Part{Bytes: b})
}

// copied copies b to the scratch.
func (p *parts) copied(b []byte) []byte {
	n := len(p.scratch)
	p.scratch = append(p.scratch, b...)
	return p.scratch[n:]
}

// emitHeader adds a frame's header.
func (p *parts) emitHeader(h header) {
	n := len(p.scratch)
	p.scratch = h.append(p.scratch)
	p.emit(p.scratch[n:])
}

// emitZeros adds n zeros, at most 255.
func (p *parts) emitZeros(n int) { p.emit(p.copied(zeros[:n])) }

// emitReset adds a RST_STREAM frame.
func (p *parts) emitReset(stream uint32) {
	n := len(p.scratch)
	p.scratch = appendReset(p.scratch, stream, http2.ErrCodeInternal)
	p.emit(p.scratch[n:])
}

// emitPadding adds DATA frames without data.
func (p *parts) emitPadding(stream uint32, n int64) {
	begin := len(p.scratch)
	p.scratch = appendPadding(p.scratch, stream, n)
	p.emit(p.scratch[begin:])
}

// emitFile adds n bytes of a body's file, in frames of size bytes.
func (p *parts) emitFile(b *Body, off int64, n, size int, endStream bool) {
	begin := len(p.scratch)
	for left := n; left > 0; {
		h := header{length: min(left, size), typ: http2.FrameData, stream: b.stream}
		left -= h.length
		if left == 0 && endStream {
			h.flags = http2.FlagDataEndStream
		}
		p.scratch = h.append(p.scratch)
	}
	p.list = append(p.list, Part{Body: b, Off: off, N: int64(n), Headers: p.scratch[begin:], Size: size})
}
