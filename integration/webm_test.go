//go:build linux

package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
	"math/rand/v2"
)

// The elements of WebM (RFC 9559, section 5.1) that spreadWebM knows; what else
// there is on the first level isn't needed to play it.
const (
	webmHeader      = 0x1A45DFA3
	webmSegment     = 0x18538067
	webmInfo        = 0x1549A966
	webmTracks      = 0x1654AE6B
	webmCluster     = 0x1F43B675
	webmTimestamp   = 0xE7
	webmVoid        = 0xEC
	webmCues        = 0x1C53BB6B
	webmCuePoint    = 0xBB
	webmCueTime     = 0xB3
	webmCueTracks   = 0xB7
	webmCueTrack    = 0xF7
	webmCuePosition = 0xF1
)

// spreadWebM puts as many bytes that mean nothing after each cluster of a video
// of one track. A small video becomes one that players don't have all of before
// they seek in it.
func spreadWebM(webm []byte, filler int) ([]byte, error) {
	file, err := webmElements(webm)
	if err != nil {
		return nil, err
	}
	if len(file) != 2 || file[0].id != webmHeader || file[1].id != webmSegment {
		return nil, fmt.Errorf("not a WebM file: %d elements", len(file))
	}
	segment, err := webmElements(file[1].content)
	if err != nil {
		return nil, err
	}
	var head []byte
	var clusters []webmElement
	for _, e := range segment {
		switch e.id {
		case webmInfo, webmTracks:
			head = append(head, webmWrite(e.id, e.content)...)
		case webmCluster:
			clusters = append(clusters, e)
		}
	}
	// The index stands in front and counts from there; its length is the same
	// whatever it says.
	var index, body []byte
	for range 2 {
		begin := len(head) + len(index)
		index, body = nil, nil
		random := rand.NewChaCha8(sha256.Sum256([]byte("filler")))
		for _, c := range clusters {
			inside, err := webmElements(c.content)
			if err != nil || len(inside) == 0 || inside[0].id != webmTimestamp {
				return nil, fmt.Errorf("a cluster without a time: %v", err)
			}
			index = append(index, webmWrite(webmCuePoint, webmWrite(webmCueTime, inside[0].content),
				webmWrite(webmCueTracks, webmWrite(webmCueTrack, []byte{1}),
					webmWrite(webmCuePosition, binary.BigEndian.AppendUint64(nil, uint64(begin+len(body))))))...)
			noise := make([]byte, filler)
			random.Read(noise)
			body = append(body, webmWrite(c.id, c.content)...)
			body = append(body, webmWrite(webmVoid, noise)...)
		}
		index = webmWrite(webmCues, index)
	}
	return append(webmWrite(webmHeader, file[0].content), webmWrite(webmSegment, head, index, body)...), nil
}

type webmElement struct {
	id      uint32
	content []byte
}

// webmElements are the elements that stand one after the other in b (RFC 8794).
func webmElements(b []byte) (elements []webmElement, err error) {
	for len(b) > 0 {
		// Both numbers begin with as many zero bits as bytes follow. In an
		// identifier they count, in a length they are taken off.
		idLen := bits.LeadingZeros8(b[0]) + 1
		if idLen > 4 || len(b) <= idLen {
			return nil, fmt.Errorf("no WebM element begins with %x", b[:min(len(b), 4)])
		}
		id := webmNumber(b[:idLen])
		b = b[idLen:]
		sizeLen := bits.LeadingZeros8(b[0]) + 1
		if sizeLen > 8 || len(b) < sizeLen {
			return nil, fmt.Errorf("WebM element %x has no length", id)
		}
		size := webmNumber(b[:sizeLen]) &^ (1 << (7 * sizeLen))
		b = b[sizeLen:]
		if size > uint64(len(b)) {
			return nil, fmt.Errorf("WebM element %x is cut short", id)
		}
		elements = append(elements, webmElement{uint32(id), b[:size]})
		b = b[size:]
	}
	return elements, nil
}

func webmNumber(b []byte) (n uint64) {
	for _, c := range b {
		n = n<<8 | uint64(c)
	}
	return n
}

// webmWrite is an element with a length of eight bytes.
func webmWrite(id uint32, content ...[]byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, id)
	b = b[bits.LeadingZeros32(id)/8:]
	all := bytes.Join(content, nil)
	b = binary.BigEndian.AppendUint64(b, 1<<56|uint64(len(all)))
	return append(b, all...)
}
