package framing

import (
	"encoding/binary"

	"golang.org/x/net/http2"
)

const (
	headerLen = 9 // of a frame (RFC 9113, section 4.1)

	// Limits of SETTINGS_MAX_FRAME_SIZE (RFC 9113, section 6.5.2). The least is
	// what holds until a peer says otherwise.
	minFrame = 1 << 14
	maxFrame = 1<<24 - 1

	settingLen = 6 // of one setting in SETTINGS
	pingLen    = 8 // of the payload of PING
)

// header is a frame's header.
type header struct {
	length int // of the payload
	typ    http2.FrameType
	flags  http2.Flags
	stream uint32
}

func parseHeader(b []byte) header {
	_ = b[headerLen-1]
	return header{
		length: int(b[0])<<16 | int(b[1])<<8 | int(b[2]),
		typ:    http2.FrameType(b[3]),
		flags:  http2.Flags(b[4]),
		stream: binary.BigEndian.Uint32(b[5:]) & (1<<31 - 1),
	}
}

func (h header) append(dst []byte) []byte {
	dst = append(dst, byte(h.length>>16), byte(h.length>>8), byte(h.length), byte(h.typ), byte(h.flags))
	return binary.BigEndian.AppendUint32(dst, h.stream)
}

// appendReset appends a RST_STREAM frame.
func appendReset(dst []byte, stream uint32, code http2.ErrCode) []byte {
	dst = header{length: 4, typ: http2.FrameRSTStream, stream: stream}.append(dst)
	return binary.BigEndian.AppendUint32(dst, uint32(code))
}
