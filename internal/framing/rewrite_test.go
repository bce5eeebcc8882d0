package framing

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/caddy-ktls/caddy-ktls/internal/lockorder"
)

// frames returns what a golang.org/x/net/http2.Framer writes.
func frames(t testing.TB, write ...func(f *http2.Framer) error) []byte {
	t.Helper()
	var buf bytes.Buffer
	framer := http2.NewFramer(&buf, nil)
	framer.AllowIllegalWrites = true
	for _, w := range write {
		if err := w(framer); err != nil {
			t.Fatal(err)
		}
	}
	return buf.Bytes()
}

func data(stream uint32, end bool, b []byte) func(*http2.Framer) error {
	return func(f *http2.Framer) error { return f.WriteData(stream, end, b) }
}

func padded(stream uint32, end bool, b []byte, pad int) func(*http2.Framer) error {
	return func(f *http2.Framer) error { return f.WriteDataPadded(stream, end, b, make([]byte, pad)) }
}

func reset(stream uint32, code http2.ErrCode) func(*http2.Framer) error {
	return func(f *http2.Framer) error { return f.WriteRSTStream(stream, code) }
}

func headers(p http2.HeadersFrameParam) func(*http2.Framer) error {
	return func(f *http2.Framer) error { return f.WriteHeaders(p) }
}

func continuation(stream uint32, end bool, b []byte) func(*http2.Framer) error {
	return func(f *http2.Framer) error { return f.WriteContinuation(stream, end, b) }
}

// rewritten returns what is sent in the place of b.
func rewritten(t *testing.T, s *Session, b []byte) []byte {
	t.Helper()
	list, err := s.Rewrite(b)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := send(&out, list); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// bytewise is rewritten with writes of one byte.
func bytewise(t *testing.T, s *Session, b []byte) (out []byte) {
	t.Helper()
	for i := range b {
		out = append(out, rewritten(t, s, b[i:i+1:i+1])...)
	}
	return out
}

func announce(t *testing.T, s *Session, stream uint32, file *os.File, skip, off, n int64) *Body {
	t.Helper()
	b := s.Watch(stream)
	if err := b.Announce(file, skip, off, n); err != nil {
		t.Fatal(err)
	}
	return b
}

// isDone reports whether a body is done.
func isDone(b *Body) bool {
	select {
	case <-b.Done():
		return true
	default:
		return false
	}
}

const piece = 16<<10 - headerLen

// What comes out of a server's frames, written at once and byte by byte.
func TestRewrite(t *testing.T) {
	file, content := testFile(t, 100_000)
	real := bytes.Repeat([]byte("real"), 5000)
	for name, test := range map[string]struct {
		enlarged bool
		accepts  int // the client, if not the least
		record   int
		skip, n  int64 // announced on stream 1, if n > 0; from offset 10 on
		in, want []byte
		left     int64
	}{
		"nothing announced": {
			in:   frames(t, data(1, false, real[:100]), data(3, true, nil), data(1, true, real)),
			want: frames(t, data(1, false, real[:100]), data(3, true, nil), data(1, true, real)),
		},
		"one frame": {
			n:    1000,
			in:   frames(t, data(1, false, StandIn(0, 1000))),
			want: frames(t, data(1, false, content[10:1010])),
		},
		"END_STREAM on the last": {
			n:    3*piece + 1,
			in:   frames(t, data(1, true, StandIn(0, 3*piece+1))),
			want: frames(t, data(1, false, content[10:][:piece]), data(1, false, content[10+piece:][:piece]), data(1, false, content[10+2*piece:][:piece]), data(1, true, content[10+3*piece:][:1])),
		},
		"END_STREAM alone": {
			n:    5,
			in:   frames(t, data(1, false, StandIn(0, 5)), data(1, true, nil)),
			want: frames(t, data(1, false, content[10:15]), data(1, true, nil)),
		},
		"other streams between": {
			n:    50,
			in:   frames(t, data(3, false, real), data(1, false, StandIn(0, 20)), data(3, true, nil), data(1, true, StandIn(20, 30))),
			want: frames(t, data(3, false, real), data(1, false, content[10:30]), data(3, true, nil), data(1, true, content[30:60])),
		},
		"frames of one byte": {
			n:    2,
			in:   frames(t, data(1, false, StandIn(0, 1)), data(1, false, nil), data(1, true, StandIn(1, 1))),
			want: frames(t, data(1, false, content[10:11]), data(1, false, nil), data(1, true, content[11:12])),
		},
		"not all yet": {
			n: 100, left: 60,
			in:   frames(t, data(1, false, StandIn(0, 40))),
			want: frames(t, data(1, false, content[10:50])),
		},
		"real bytes first, in a frame of their own": {
			skip: 100, n: 50,
			in:   frames(t, data(1, false, real[:60]), data(1, false, real[60:100]), data(1, true, StandIn(0, 50))),
			want: frames(t, data(1, false, real[:60]), data(1, false, real[60:100]), data(1, true, content[10:60])),
		},
		"real bytes first, in the same frame": {
			skip: 100, n: 50,
			in:   frames(t, data(1, true, append(real[:100:100], StandIn(0, 50)...))),
			want: frames(t, data(1, false, real[:100]), data(1, true, content[10:60])),
		},
		"real bytes first, padded": {
			skip: 100, n: 50,
			in:   frames(t, padded(1, false, real[:100], 7), data(1, true, StandIn(0, 50))),
			want: frames(t, padded(1, false, real[:100], 7), data(1, true, content[10:60])),
		},
		"many real bytes first, in the same frame": {
			enlarged: true,
			skip:     piece + 1, n: 50,
			in:   frames(t, data(1, true, append(real[:piece+1:piece+1], StandIn(0, 50)...))),
			want: frames(t, data(1, false, real[:piece]), data(1, false, real[piece:piece+1]), data(1, true, content[10:60])),
		},
		"reset with bytes missing": {
			n: 100, left: 60,
			in:   frames(t, data(1, false, StandIn(0, 40)), reset(1, http2.ErrCodeCancel)),
			want: frames(t, data(1, false, content[10:50]), reset(1, http2.ErrCodeCancel)),
		},
		"smaller records": {
			record: 1000, n: 1001,
			in:   frames(t, data(1, false, StandIn(0, 1001))),
			want: frames(t, data(1, false, content[10:1001]), data(1, false, content[1001:1011])),
		},
		"a few bytes more than a record": {
			record: 1000, n: 1000,
			in:   frames(t, data(1, false, StandIn(0, 1000))),
			want: frames(t, data(1, false, content[10:1010])),
		},
		"too long for the client, but not enlarged": {
			in:   frames(t, data(1, false, real)),
			want: frames(t, data(1, false, real)),
		},
		"DATA too long": {
			enlarged: true,
			in:       frames(t, data(1, true, real)),
			want:     frames(t, data(1, false, real[:piece]), data(1, true, real[piece:])),
		},
		"DATA just not too long": {
			enlarged: true,
			in:       frames(t, data(1, true, real[:minFrame])),
			want:     frames(t, data(1, true, real[:minFrame])),
		},
		"DATA that the client accepts": {
			enlarged: true, accepts: 20_000,
			in:   frames(t, data(1, true, real)),
			want: frames(t, data(1, true, real)),
		},
		"DATA too long, padded": {
			enlarged: true,
			in:       frames(t, padded(1, true, real, 9)),
			want:     frames(t, data(1, false, real[:piece]), padded(1, true, real[piece:], 9)),
		},
		"DATA too long, padded with nothing": {
			enlarged: true,
			in:       frames(t, padded(1, true, real[:2*8000], 255), padded(1, true, real, 0)),
			want:     frames(t, padded(1, true, real[:2*8000], 255), data(1, false, real[:piece]), padded(1, true, real[piece:], 0)),
		},
		"DATA of whole pieces, padded with nothing": {
			enlarged: true,
			in:       frames(t, padded(1, true, real[:10_000], 0), padded(1, true, append(real, real...)[:2*piece], 0)),
			want:     frames(t, padded(1, true, real[:10_000], 0), data(1, false, real[:piece]), data(1, false, append(real, real...)[piece:2*piece]), padded(1, true, nil, 0)),
		},
		"padding longer than a record": {
			enlarged: true, record: 200 + headerLen,
			in:   frames(t, padded(1, true, real, 255)),
			want: append(bytes.Repeat(frames(t, data(1, false, real[:200])), 100), frames(t, padded(1, true, nil, 255))...),
		},
		"answers to the client's PING": {
			in:   frames(t, func(f *http2.Framer) error { return f.WritePing(true, [8]byte{}) }),
			want: frames(t, func(f *http2.Framer) error { return f.WritePing(true, [8]byte{}) }),
		},
		"DATA of a whole piece, padded": {
			enlarged: true,
			in:       frames(t, padded(1, true, real[:piece], 200)),
			want:     frames(t, data(1, false, real[:piece]), padded(1, true, nil, 200)),
		},
		"HEADERS too long": {
			enlarged: true,
			in:       frames(t, headers(http2.HeadersFrameParam{StreamID: 1, BlockFragment: real, EndStream: true, EndHeaders: true})),
			want:     frames(t, headers(http2.HeadersFrameParam{StreamID: 1, BlockFragment: real[:minFrame], EndStream: true}), continuation(1, true, real[minFrame:])),
		},
		"HEADERS too long, with all there is": {
			enlarged: true,
			in: frames(t, headers(http2.HeadersFrameParam{StreamID: 1, BlockFragment: real, PadLength: 10, Priority: http2.PriorityParam{StreamDep: 5, Weight: 3}}),
				continuation(1, true, real)),
			want: frames(t, headers(http2.HeadersFrameParam{StreamID: 1, BlockFragment: real[:minFrame-1-5-10], PadLength: 10, Priority: http2.PriorityParam{StreamDep: 5, Weight: 3}}),
				continuation(1, false, real[minFrame-1-5-10:]), continuation(1, false, real[:minFrame]), continuation(1, true, real[minFrame:])),
		},
		"PUSH_PROMISE too long": {
			enlarged: true,
			in: frames(t, func(f *http2.Framer) error {
				return f.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: real, EndHeaders: true, PadLength: 3})
			}),
			want: frames(t, func(f *http2.Framer) error {
				return f.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: real[:minFrame-1-4-3], PadLength: 3})
			}, continuation(1, true, real[minFrame-1-4-3:])),
		},
	} {
		for how, rewrite := range map[string]func(*testing.T, *Session, []byte) []byte{"at once": rewritten, "bytewise": bytewise} {
			t.Run(name+"/"+how, func(t *testing.T) {
				s := &Session{Record: test.record}
				if test.accepts > 0 {
					s.Received(append([]byte(http2.ClientPreface), settingsFrame(test.accepts)...))
					rewrite(t, s, frames(t, (*http2.Framer).WriteSettingsAck))
				}
				if test.enlarged {
					s.Enlarge(MaxFrameSize)
				}
				var b *Body
				if test.n > 0 {
					b = announce(t, s, 1, file, test.skip, 10, test.n)
				}
				if got := rewrite(t, s, test.in); !bytes.Equal(got, test.want) {
					got, _ := decode(got)
					want, _ := decode(test.want)
					t.Errorf("%v, want %v", got, want)
				}
				if b != nil && b.Left() != test.left {
					t.Errorf("%d bytes left, want %d", b.Left(), test.left)
				}
				if b != nil && isDone(b) != (name != "not all yet") {
					t.Errorf("done: %v", isDone(b))
				}
			})
		}
	}
}

// What the server must not have written.
func TestRewriteRefuses(t *testing.T) {
	file, _ := testFile(t, 1000)
	other := bytes.Clone(StandIn(0, 100))
	other[99]++
	real := []byte(strings.Repeat("real", 30))
	for name, in := range map[string][]byte{ // 10 bytes, then 100 announced, on stream 1; 5 is only watched
		"more than announced":             frames(t, data(1, false, append(real[:10:10], StandIn(0, 101)...))),
		"more, later":                     frames(t, data(1, false, append(real[:10:10], StandIn(0, 100)...)), data(1, false, real)),
		"one wrong byte":                  frames(t, data(1, false, append(real[:10:10], other...))),
		"out of order":                    frames(t, data(1, false, append(real[:10:10], StandIn(1, 50)...))),
		"real bytes":                      frames(t, data(1, false, real)),
		"END_STREAM with too few":         frames(t, data(1, true, append(real[:10:10], StandIn(0, 99)...))),
		"END_STREAM before any":           frames(t, data(1, true, real[:10])),
		"empty END_STREAM with too few":   frames(t, data(1, false, append(real[:10:10], StandIn(0, 99)...)), data(1, true, nil)),
		"trailers with too few":           frames(t, headers(http2.HeadersFrameParam{StreamID: 1, EndStream: true, EndHeaders: true})),
		"padded":                          frames(t, padded(1, false, append(real[:10:10], StandIn(0, 50)...), 3)),
		"too early":                       frames(t, data(1, false, StandIn(0, 50))),
		"another stream":                  frames(t, data(3, false, StandIn(0, 50))),
		"another stream, later in a body": frames(t, data(3, false, StandIn(13, 8))),
		"another stream, padded":          frames(t, padded(3, false, StandIn(0, 50), 1)),
		"a stream only watched":           frames(t, data(5, false, StandIn(7, 50))),
		"after the stream has ended":      frames(t, data(1, true, append(real[:10:10], StandIn(0, 100)...)), data(1, false, StandIn(0, 50))),
		"after the stream has been reset": frames(t, reset(1, http2.ErrCodeCancel), data(1, false, StandIn(0, 50))),
	} {
		t.Run(name, func(t *testing.T) {
			for _, step := range []int{len(in), 1, 13} {
				s := new(Session)
				s.Enlarge(1 << 20)
				b := announce(t, s, 1, file, 10, 0, 100)
				watched := s.Watch(5)
				var out bytes.Buffer
				var err error
				for rest := in; len(rest) > 0 && err == nil; rest = rest[min(step, len(rest)):] {
					var list []Part
					list, err = s.Rewrite(rest[:min(step, len(rest))])
					if err := send(&out, list); err != nil {
						t.Fatal(err)
					}
				}
				if err == nil {
					t.Fatal("no error")
				}
				if block := block(); bytes.Contains(out.Bytes(), block[:minRecognized]) {
					t.Error("stand-in bytes went out")
				}
				if _, again := s.Rewrite(nil); again != err {
					t.Errorf("then: %v", again)
				}
				if !isDone(b) || !isDone(watched) {
					t.Error("a body is not done")
				}
			}
		})
	}
}

// Content that repeats itself is no stand-in.
func TestRewritePassesContentThatRepeats(t *testing.T) {
	var s Session
	for _, b := range [][]byte{make([]byte, 100), bytes.Repeat([]byte("0123456789abcdef"), 10), StandIn(3, minRecognized-1)} {
		in := frames(t, data(1, false, b))
		if got := rewritten(t, &s, in); !bytes.Equal(got, in) {
			t.Errorf("%q became %q", in, got)
		}
	}
}

// What needs no change isn't copied, and comes in one part.
func TestRewriteReturnsTheServersOwnBytes(t *testing.T) {
	var s Session
	in := frames(t, (*http2.Framer).WriteSettingsAck, data(1, false, []byte("hello")), data(3, true, make([]byte, 5000)), reset(1, 0))
	for _, n := range []int{len(in) - 20, 20} { // the second begins within a frame
		list, err := s.Rewrite(in[:n])
		if err != nil || len(list) != 1 || len(list[0].Bytes) != n || &list[0].Bytes[0] != &in[0] {
			t.Fatalf("%d parts, %v", len(list), err)
		}
		in = in[n:]
	}
}

// The payload of a frame goes out as it comes: a long frame isn't held back.
func TestRewriteDoesNotHoldBack(t *testing.T) {
	var s Session
	s.Enlarge(MaxFrameSize)
	in := frames(t, data(1, false, make([]byte, 100_000)))
	for n := range len(in) {
		got := rewritten(t, &s, in[n:n+1])
		if n > headerLen+blockLen && len(got) == 0 {
			t.Fatalf("byte %d is held back", n)
		}
	}
}

func TestVoid(t *testing.T) {
	file, content := testFile(t, 1000)
	for name, test := range map[string]struct {
		before, after []byte // of Void; 10 bytes, then 600 are announced
		want          []byte // after
	}{
		"later frames become padding": {
			after: frames(t, data(1, false, append(content[:10:10], StandIn(0, 300)...)), data(3, false, []byte("other")), data(1, false, StandIn(300, 1))),
			want:  frames(t, data(1, false, content[:10]), padded(1, false, nil, 255), padded(1, false, nil, 43), data(3, false, []byte("other")), padded(1, false, nil, 0)),
		},
		"a frame under way becomes padding": {
			before: frames(t, data(1, false, append(content[:10:10], StandIn(0, 256)...)))[:100],
			after:  frames(t, data(1, false, append(content[:10:10], StandIn(0, 256)...)))[100:],
			want:   frames(t, padded(1, false, nil, 255)),
		},
		"END_STREAM becomes a reset": {
			after: frames(t, data(1, true, nil)),
			want:  frames(t, reset(1, http2.ErrCodeInternal)),
		},
		"END_STREAM on padding becomes a reset": {
			after: frames(t, data(1, true, append(content[:10:10], StandIn(0, 1)...))),
			want:  frames(t, data(1, false, content[:10]), padded(1, false, nil, 0), reset(1, http2.ErrCodeInternal)),
		},
		"END_STREAM on real bytes becomes a reset": {
			after: frames(t, padded(1, true, content[:3], 5)),
			want:  frames(t, padded(1, false, content[:3], 5), reset(1, http2.ErrCodeInternal)),
		},
		"END_STREAM on a frame under way becomes a reset": {
			before: frames(t, data(1, true, append(content[:10:10], StandIn(0, 600)...)))[:300],
			after:  frames(t, data(1, true, append(content[:10:10], StandIn(0, 600)...)))[300:],
			want:   frames(t, padded(1, false, nil, 255), padded(1, false, nil, 255), padded(1, false, nil, 87), reset(1, http2.ErrCodeInternal)),
		},
		"END_STREAM of a whole body passes": {
			before: frames(t, data(1, false, append(content[:10:10], StandIn(0, 600)...))),
			after:  frames(t, data(1, true, nil)),
			want:   frames(t, data(1, true, nil)),
		},
		"reset passes": {
			before: frames(t, data(1, false, append(content[:10:10], StandIn(0, 6)...))),
			after:  frames(t, reset(1, http2.ErrCodeCancel)),
			want:   frames(t, reset(1, http2.ErrCodeCancel)),
		},
	} {
		t.Run(name, func(t *testing.T) {
			var s Session
			b := announce(t, &s, 1, file, 10, 0, 600)
			rewritten(t, &s, test.before)
			b.Void()
			if !isDone(b) {
				t.Error("not done")
			}
			if got := bytewise(t, &s, test.after); !bytes.Equal(got, test.want) {
				got, _ := decode(got)
				want, _ := decode(test.want)
				t.Errorf("%v, want %v", got, want)
			}
		})
	}
}

func TestVoidRefuses(t *testing.T) {
	file, _ := testFile(t, 1000)
	for name, in := range map[string][]byte{ // 100 are announced
		"other bytes":         frames(t, data(1, false, make([]byte, 50))),
		"more than announced": frames(t, data(1, false, StandIn(0, 101))),
		"trailers":            frames(t, headers(http2.HeadersFrameParam{StreamID: 1, EndStream: true, EndHeaders: true})),
	} {
		t.Run(name, func(t *testing.T) {
			var s Session
			announce(t, &s, 1, file, 0, 0, 100).Void()
			if _, err := s.Rewrite(in); err == nil {
				t.Error("no error")
			}
		})
	}
}

// A body given up after Rewrite, but before it was sent.
func TestPartAppendPadding(t *testing.T) {
	file, _ := testFile(t, 100_000)
	for _, end := range []bool{false, true} {
		s := &Session{Record: 1000 + headerLen}
		b := announce(t, s, 1, file, 0, 0, 2500)
		list, err := s.Rewrite(frames(t, data(1, end, StandIn(0, 2500))))
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		b.Void()
		want := frames(t, padded(1, false, nil, 255), padded(1, false, nil, 243))
		if end {
			want = append(want, frames(t, reset(1, http2.ErrCodeInternal))...)
		}
		if got := list[0].AppendPadding(nil, 2000); !bytes.Equal(got, want) {
			t.Errorf("%q", got)
		}
	}
}

// A body all of which was in Parts, but not sent, isn't whole; nor is one whose
// bytes before the file are missing.
func TestVoidOfWhatIsNotWhole(t *testing.T) {
	file, _ := testFile(t, 1000)
	for name, prepare := range map[string]func(s *Session) *Body{
		"not sent": func(s *Session) *Body {
			b := announce(t, s, 1, file, 0, 0, 10)
			if _, err := s.Rewrite(frames(t, data(1, false, StandIn(0, 10)))); err != nil {
				t.Fatal(err)
			}
			return b
		},
		"nothing but real bytes": func(s *Session) *Body { return announce(t, s, 1, file, 10, 0, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			var s Session
			prepare(&s).Void()
			want := frames(t, reset(1, http2.ErrCodeInternal))
			if got := rewritten(t, &s, frames(t, data(1, true, nil))); !bytes.Equal(got, want) {
				t.Errorf("%q", got)
			}
			s = Session{}
			prepare(&s).Void()
			if _, err := s.Rewrite(frames(t, headers(http2.HeadersFrameParam{StreamID: 1, EndStream: true, EndHeaders: true}))); err == nil {
				t.Error("trailers: no error")
			}
		})
	}
}

// Nothing is allocated from call to call, and little is kept.
func TestRewriteAllocations(t *testing.T) {
	if lockorder.Asserted {
		t.Skip("finding out which locks a goroutine holds allocates")
	}
	file, _ := testFile(t, 1)
	var s Session
	s.Enlarge(MaxFrameSize)
	announce(t, &s, 1, file, 0, 0, 1<<40)
	in := frames(t, data(1, false, StandIn(0, 16*piece)), data(3, false, make([]byte, 100_000)), data(5, false, make([]byte, 10)))
	if n := testing.AllocsPerRun(3, func() {
		for range 50 {
			for rest := in; len(rest) > 0; rest = rest[min(4<<10, len(rest)):] {
				if _, err := s.Rewrite(rest[:min(4<<10, len(rest))]); err != nil {
					t.Fatal(err)
				}
			}
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
	announce(t, &s, 7, file, 0, 0, 1<<40).Void()
	rewritten(t, &s, frames(t, data(7, false, StandIn(0, 1<<20))))
	rewritten(t, &s, in[:1])
	if n := cap(s.out.scratch); n > maxScratch {
		t.Errorf("%d bytes are kept", n)
	}
}

// Streams that the client has reset are remembered, but not for ever; others are
// until the server has ended them.
func TestVoidStreamsAreForgotten(t *testing.T) {
	file, _ := testFile(t, 100)
	var s Session
	s.Received(append([]byte(http2.ClientPreface), settingsFrame(0)...))
	slow := announce(t, &s, 1, file, 0, 0, 100)
	slow.Void()
	for i := range uint32(10_000) {
		stream := 2*i + 3
		b := announce(t, &s, stream, file, 0, 0, 100)
		if i%2 == 0 {
			b.Void()
		}
		s.Received(frames(t, reset(stream, http2.ErrCodeCancel)))
		b.Void()
	}
	if len(s.void) > maxVoid+1 || len(s.bodies) > 0 {
		t.Errorf("%d and %d are remembered", len(s.void), len(s.bodies))
	}
	want := frames(t, padded(1, false, nil, 49), reset(1, http2.ErrCodeInternal))
	if got := rewritten(t, &s, frames(t, data(1, false, StandIn(0, 50)), data(1, true, nil))); !bytes.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if p, _ := s.lookup(1); p != nil {
		t.Error("not forgotten at its end")
	}
}

func TestAnnounceComesTooLate(t *testing.T) {
	file, _ := testFile(t, 100)
	closed := new(Session)
	closed.Close(io.EOF)
	for name, b := range map[string]func(s *Session) *Body{
		"twice":              func(s *Session) *Body { return announce(t, s, 1, file, 0, 0, 5) },
		"watched twice":      func(s *Session) *Body { announce(t, s, 1, file, 0, 0, 5); return s.Watch(1) },
		"watch was replaced": func(s *Session) *Body { b := s.Watch(1); s.Watch(1); return b },
		"given up":           func(s *Session) *Body { b := s.Watch(1); b.Void(); return b },
		"session is closed":  func(s *Session) *Body { b := s.Watch(1); s.Close(nil); return b },
		"session was closed": func(s *Session) *Body { s.Close(nil); return s.Watch(1) },
		"stream has ended":   func(s *Session) *Body { b := s.Watch(1); rewritten(t, s, frames(t, data(1, true, nil))); return b },
		"stream was reset":   func(s *Session) *Body { b := s.Watch(1); rewritten(t, s, frames(t, reset(1, 0))); return b },
		"response has no body": func(s *Session) *Body {
			b := s.Watch(1)
			rewritten(t, s, frames(t, headers(http2.HeadersFrameParam{StreamID: 1, EndStream: true, EndHeaders: true})))
			return b
		},
		"more was written": func(s *Session) *Body {
			b := s.Watch(1)
			rewritten(t, s, frames(t, data(1, false, make([]byte, 11))))
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := b(new(Session)).Announce(file, 10, 0, 5); err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestCloseEndsAll(t *testing.T) {
	file, _ := testFile(t, 100)
	var s Session
	b := announce(t, &s, 1, file, 0, 0, 5)
	s.Enlarge(MaxFrameSize)
	s.Received(append([]byte(http2.ClientPreface), settingsFrame(0)...))
	if !s.WantsInject() {
		t.Fatal("doesn't want to inject")
	}
	s.Close(io.EOF)
	s.Close(nil)
	if _, err := s.Rewrite([]byte("x")); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	if !isDone(b) || b.Left() != 5 {
		t.Errorf("%v, %d left", isDone(b), b.Left())
	}
	if s.WantsInject() || s.Inject(make([]byte, 99)) > 0 {
		t.Error("still injects")
	}
}

// A body whose stream was reset is done when what was on its way is sent.
func TestResetWaitsForWhatIsSent(t *testing.T) {
	file, _ := testFile(t, 100)
	var s Session
	b := announce(t, &s, 1, file, 0, 0, 50)
	if _, err := s.Rewrite(frames(t, data(1, false, StandIn(0, 20)), reset(1, 0))); err != nil {
		t.Fatal(err)
	}
	b.Sent(19)
	if isDone(b) {
		t.Error("done before all was sent")
	}
	b.Sent(1)
	if !isDone(b) || b.Left() != 30 {
		t.Errorf("%v, %d left", isDone(b), b.Left())
	}
}

func TestBodyOfNothing(t *testing.T) {
	file, _ := testFile(t, 1)
	var s Session
	b := announce(t, &s, 1, file, 0, 0, 0)
	if !isDone(b) || b.File() != file || b.Stream() != 1 {
		t.Error("not done")
	}
	end := frames(t, data(1, true, nil))
	if got := rewritten(t, &s, end); !bytes.Equal(got, end) {
		t.Errorf("%q", got)
	}
}
