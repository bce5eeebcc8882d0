//go:build linux

package main

import (
	"encoding/binary"
	"testing"
)

// record is a TLS record with so much content.
func record(kind byte, content int) []byte {
	n := content
	if kind == applicationData {
		n += int(overheads["1.3"])
	}
	p := make([]byte, 5+n)
	p[0], p[1], p[2] = kind, 3, 3
	binary.BigEndian.PutUint16(p[3:], uint16(n))
	return p
}

// However the bytes are cut, the records in them are the same.
func TestRecordsAreCounted(t *testing.T) {
	var stream []byte
	const handshake, changeCipherSpec = 22, 20
	stream = append(stream, record(handshake, 120)...)
	stream = append(stream, record(changeCipherSpec, 1)...)
	stream = append(stream, record(applicationData, 1)...)
	stream = append(stream, record(applicationData, 16384)...)
	stream = append(stream, record(applicationData, 300)...)
	for _, step := range []int{1, 2, 4, 5, 6, 7, 1000, 16384 + 5, len(stream)} {
		r := records{overhead: overheads["1.3"]}
		for p := stream; len(p) > 0; {
			n := min(step, len(p))
			r.follow(p[:n])
			p = p[n:]
		}
		if r.count != 3 || r.plaintext != 1+16384+300 {
			t.Errorf("by %d bytes: %d records with %d bytes", step, r.count, r.plaintext)
		}
	}
	r := records{overhead: overheads["1.3"]}
	r.follow(stream[:len(stream)-1])
	if r.count != 2 {
		t.Errorf("%d records where the last one lacks a byte", r.count)
	}
}

func TestWithoutTLSAllIsPlaintext(t *testing.T) {
	r := records{clear: true}
	r.follow([]byte("HTTP/1.1"))
	r.follow([]byte(" 200"))
	if r.plaintext != 12 || r.count != 0 {
		t.Errorf("%d records with %d bytes", r.count, r.plaintext)
	}
}

func TestBodyIsCompared(t *testing.T) {
	b := &body{want: []byte("0123456789")}
	if _, err := b.Write([]byte("0123")); err != nil {
		t.Fatal(err)
	}
	if b.whole() == nil {
		t.Error("four bytes of ten are taken for all")
	}
	if _, err := b.Write([]byte("45x")); err == nil {
		t.Error("a wrong byte isn't noticed")
	}
	if _, err := b.Write([]byte("456789")); err != nil || b.whole() != nil {
		t.Error(err, b.whole())
	}
	if _, err := b.Write([]byte("0")); err == nil {
		t.Error("a byte too many isn't noticed")
	}
}
