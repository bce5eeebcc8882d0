package framing

import (
	"bytes"
	"testing"

	"golang.org/x/net/http2"
)

// TestEnded: the end of a stream is told once, when its frame is complete.
func TestEnded(t *testing.T) {
	var out bytes.Buffer
	fr := http2.NewFramer(&out, nil)
	frame := func(write func() error) []byte {
		t.Helper()
		out.Reset()
		if err := write(); err != nil {
			t.Fatal(err)
		}
		return bytes.Clone(out.Bytes())
	}
	headers := func(end bool) []byte {
		return frame(func() error {
			return fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x88}, EndHeaders: true, EndStream: end})
		})
	}
	data := frame(func() error { return fr.WriteData(1, true, []byte("the end")) })
	ping := frame(func() error { return fr.WritePing(true, [8]byte{1}) }) // the same bit
	var s Session
	for i, step := range []struct {
		bytes []byte
		ended bool
	}{
		{headers(false), false},
		{data[:5], false},
		{data[5:12], false},
		{data[12:], true},
		{ping, false},
		{headers(true), true},
		{append(append([]byte{}, data...), ping...), true},
		{append(append([]byte{}, data...), data[:12]...), true}, // the first of them
		{data[12:], true},
	} {
		if _, err := s.Rewrite(step.bytes); err != nil {
			t.Fatal(err)
		}
		if got := s.Ended(); got != step.ended {
			t.Errorf("step %d: %t", i, got)
		}
		if s.Ended() {
			t.Errorf("step %d is told twice", i)
		}
	}
}
