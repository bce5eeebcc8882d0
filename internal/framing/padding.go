package framing

import "golang.org/x/net/http2"

// maxPadded is the most that one frame without data takes of the flow-control
// window, in octets: the pad length, and as much padding (RFC 9113, section 6.1).
const maxPadded = 256

var zeros [maxPadded]byte

// appendPadding appends DATA frames without data that take n octets of the
// flow-control windows in all.
func appendPadding(dst []byte, stream uint32, n int64) []byte {
	for n > 0 {
		length := int(min(n, maxPadded))
		h := header{length: length, typ: http2.FrameData, flags: http2.FlagDataPadded, stream: stream}
		dst = append(h.append(dst), byte(length-1))
		dst = append(dst, zeros[:length-1]...)
		n -= int64(length)
	}
	return dst
}
