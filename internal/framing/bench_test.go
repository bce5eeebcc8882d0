package framing

import (
	"testing"

	"golang.org/x/net/http2"

	"github.com/caddy-ktls/caddy-ktls/internal/lockorder"
)

// BenchmarkPass is a response of an API: all goes out as it is.
func BenchmarkPass(b *testing.B) {
	response := frames(b, headers(http2.HeadersFrameParam{StreamID: 1, BlockFragment: make([]byte, 40), EndHeaders: true}), data(1, true, make([]byte, 600)))
	for name, prepare := range map[string]func(s *Session){
		"alone":    func(*Session) {},
		"watching": func(s *Session) { s.Enlarge(nineRecords); s.Watch(3) },
	} {
		b.Run(name, func(b *testing.B) {
			var s Session
			prepare(&s)
			b.ReportAllocs()
			b.SetBytes(int64(len(response)))
			for b.Loop() {
				if list, err := s.Rewrite(response); err != nil || len(list) != 1 {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkFile is a file in large frames, as they come out of the server's
// buffer: 4 KiB, and the rest.
func BenchmarkFile(b *testing.B) {
	file, _ := testFile(b, 1)
	for name, size := range map[string]int{"16K": 16 << 10, "144K": nineRecords, "1M": MaxFrameSize} {
		b.Run(name, func(b *testing.B) {
			var s Session
			s.Enlarge(MaxFrameSize)
			body := s.Watch(1)
			if err := body.Announce(file, 0, 0, 1<<62); err != nil {
				b.Fatal(err)
			}
			var frame [blockLen][]byte
			for phase := range frame {
				frame[phase] = frames(b, data(1, false, StandIn(int64(phase), size)))
			}
			pos := int64(0)
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				p := frame[pos%blockLen]
				for _, p := range [][]byte{p[:4096], p[4096:]} {
					if _, err := s.Rewrite(p); err != nil {
						b.Fatal(err)
					}
				}
				body.Sent(int64(size))
				pos += int64(size)
			}
		})
	}
}

// BenchmarkCut is large frames of something else.
func BenchmarkCut(b *testing.B) {
	var s Session
	s.Enlarge(MaxFrameSize)
	frame := frames(b, data(1, false, make([]byte, nineRecords)))
	b.ReportAllocs()
	b.SetBytes(nineRecords)
	for b.Loop() {
		if _, err := s.Rewrite(frame); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReceived(b *testing.B) {
	var s Session
	s.Received(append([]byte(http2.ClientPreface), settingsFrame(0)...))
	update := frames(b, func(f *http2.Framer) error { return f.WriteWindowUpdate(1, 1000) })
	b.ReportAllocs()
	for b.Loop() {
		s.Received(update[:headerLen])
		s.Received(update[headerLen:])
	}
}

// TestPassAndReceivedDoNotAllocate: what isn't a file's is passed on, and what the
// client sends is looked at, without memory of Go's.
func TestPassAndReceivedDoNotAllocate(t *testing.T) {
	if lockorder.Asserted {
		t.Skip("finding out which locks a goroutine holds allocates")
	}
	var s Session
	s.Received(append([]byte(http2.ClientPreface), settingsFrame(0)...))
	s.Enlarge(nineRecords)
	s.Watch(3)
	response := frames(t, headers(http2.HeadersFrameParam{StreamID: 1, BlockFragment: make([]byte, 40), EndHeaders: true}), data(1, true, make([]byte, 600)))
	update := frames(t, func(f *http2.Framer) error { return f.WriteWindowUpdate(1, 1000) })
	if n := testing.AllocsPerRun(100, func() {
		if _, err := s.Rewrite(response); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for a response", n)
	}
	if n := testing.AllocsPerRun(100, func() { s.Received(update) }); n != 0 {
		t.Errorf("%v allocations for a WINDOW_UPDATE", n)
	}
}
