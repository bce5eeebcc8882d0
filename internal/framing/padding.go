package framing

import "golang.org/x/net/http2"

// maxPadded is the most that one frame without data takes of the flow-control
// window, in octets: the pad length, and as much padding (RFC 9113, section 6.1).
const maxPadded = 256

var zeros [maxPadded]byte

// AppendPadding appends DATA frames without data that take n octets of the
// flow-control windows in all; if endStream, the last of them ends the stream.
func AppendPadding(dst []byte, stream uint32, n int64, endStream bool) []byte {
	for n > 0 {
		h := header{length: int(min(n, maxPadded)), typ: http2.FrameData, flags: http2.FlagDataPadded, stream: stream}
		n -= int64(h.length)
		if n == 0 && endStream {
			h.flags |= http2.FlagDataEndStream
		}
		dst = append(h.append(dst), byte(h.length-1))
		dst = append(dst, zeros[:h.length-1]...)
	}
	return dst
}
