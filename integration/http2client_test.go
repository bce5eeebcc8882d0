//go:build linux

package integration

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2client is an HTTP/2 client that a test drives frame by frame. It holds the
// server to the rules (RFC 9113): no frame longer than the client accepts at that
// time, none of a type that wasn't negotiated, no octet more than the windows
// allow, no acknowledgement too many, and no byte of a body that isn't right.
type h2client struct {
	t    *testing.T
	tcp  *net.TCPConn
	conn *tls.Conn
	out  io.Writer // conn, or what stands before it
	done chan struct{}

	wmu   sync.Mutex // one frame, or one field block, at a time
	w     *http2.Framer
	enc   *hpack.Encoder
	block bytes.Buffer

	mu      sync.Mutex // guards what follows
	changed sync.Cond
	streams map[uint32]*h2stream
	next    uint32
	err     error // what ended the connection; io.EOF is close_notify
	goAway  *http2.GoAwayFrame
	hold    bool    // don't read
	manual  bool    // windows are the test's business
	limits  []limit // what is in force, then what was sent since and isn't acknowledged
	sent    int     // SETTINGS
	acks    int
	pongs   [][8]byte
	window  int64 // of the connection: octets that the server may still send
	octets  int64 // of DATA, in all
}

// limit is what the client has told in SETTINGS.
type limit struct{ frame, window int64 }

// h2stream is a request and its answer.
type h2stream struct {
	client *h2client
	id     uint32
	want   []byte // what the body must be; nil: anything
	hash   hash.Hash
	body   []byte // if want is nil

	// Guarded by client.mu.
	fields  map[string]string
	trailer map[string]string
	size    int64
	octets  int64
	granted int64 // by WINDOW_UPDATE
	ended   bool
	reset   bool
	code    http2.ErrCode
	asked   int64 // the connection's octets when the request was sent,
	came    int64 // and when the header came
}

// h2options is how an h2client begins.
type h2options struct {
	settings []http2.Setting
	window   int64 // of the connection, beyond the first 65535 octets
	manual   bool
	small    bool // a small receive buffer
	segment  int  // with small: the most bytes of a segment, on which depends how large the server's send buffer is at first
	single   bool // each byte in a record of its own
	tls      func(*tls.Config)
}

// singly writes byte by byte: with crypto/tls below, a record each.
type singly struct{ w io.Writer }

func (s singly) Write(p []byte) (int, error) {
	for i := range p {
		if _, err := s.w.Write(p[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

const firstWindow = 65535 // RFC 9113, section 6.9.2

// dialHTTP2 connects and sends preface and SETTINGS.
func (c *caddy) dialHTTP2(t *testing.T, i int, o h2options) *h2client {
	t.Helper()
	var tcp *net.TCPConn
	if o.small {
		tcp = dialSmall(t, c.addr(i), o.segment)
	} else {
		conn, err := net.Dial("tcp", c.addr(i))
		if err != nil {
			t.Fatal(err)
		}
		tcp = conn.(*net.TCPConn)
	}
	config := tlsConfig(t, func(config *tls.Config) { config.NextProtos = []string{"h2"} })
	if o.tls != nil {
		o.tls(config)
	}
	conn := handshake(t, tcp, config)
	conn.SetDeadline(time.Time{})
	h := &h2client{
		t: t, tcp: tcp, conn: conn, out: conn, done: make(chan struct{}), streams: map[uint32]*h2stream{}, next: 1,
		manual: o.manual, limits: []limit{{1 << 14, firstWindow}}, window: firstWindow,
	}
	h.changed.L = &h.mu
	if o.single {
		h.out = singly{conn}
	}
	h.w = http2.NewFramer(h.out, nil)
	h.w.AllowIllegalWrites = true
	h.enc = hpack.NewEncoder(&h.block)
	if _, err := io.WriteString(h.out, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	h.settings(o.settings...)
	go h.read() // what it answers comes after the preface
	t.Cleanup(h.close)
	if o.window > 0 {
		h.grant(nil, o.window)
	}
	return h
}

// close ends the connection without further ado.
func (h *h2client) close() {
	h.resume()
	h.tcp.Close()
	<-h.done
}

// write writes a frame. Whether the connection has ended is the reader's to say.
func (h *h2client) write(f func(*http2.Framer) error) {
	h.wmu.Lock()
	defer h.wmu.Unlock()
	_ = f(h.w)
}

// settings sends SETTINGS.
func (h *h2client) settings(list ...http2.Setting) {
	h.wmu.Lock()
	defer h.wmu.Unlock()
	h.mu.Lock()
	l := h.limits[len(h.limits)-1]
	for _, s := range list {
		switch s.ID {
		case http2.SettingMaxFrameSize:
			l.frame = int64(s.Val)
		case http2.SettingInitialWindowSize:
			l.window = int64(s.Val)
		}
	}
	h.limits = append(h.limits, l)
	h.sent++
	h.mu.Unlock()
	_ = h.w.WriteSettings(list...)
}

// limit is the most that is allowed by any SETTINGS that may be in force.
func (h *h2client) limit() (l limit) {
	for _, each := range h.limits {
		l.frame, l.window = max(l.frame, each.frame), max(l.window, each.window)
	}
	return l
}

// grant lets the server send n octets more on a stream, or if that is nil, on the
// connection.
func (h *h2client) grant(s *h2stream, n int64) {
	h.mu.Lock()
	id := uint32(0)
	if s != nil {
		id = s.id
		s.granted += n
	} else {
		h.window += n
	}
	h.mu.Unlock()
	h.write(func(w *http2.Framer) error { return w.WriteWindowUpdate(id, uint32(n)) })
}

// get sends a request. The header fields are pairs of name and value.
func (h *h2client) get(uri string, want []byte, fields ...string) *h2stream {
	return h.request("GET", "localhost", uri, want, fields...)
}

func (h *h2client) request(method, host, uri string, want []byte, fields ...string) *h2stream {
	h.wmu.Lock()
	defer h.wmu.Unlock()
	s := &h2stream{client: h, want: want, hash: sha256.New()}
	h.mu.Lock()
	s.id, s.asked = h.next, h.octets
	h.next += 2
	h.streams[s.id] = s
	h.mu.Unlock()
	h.block.Reset()
	authority := fmt.Sprintf("%s:%d", host, h.tcp.RemoteAddr().(*net.TCPAddr).Port)
	list := append([]string{":method", method, ":scheme", "https", ":authority", authority, ":path", uri}, fields...)
	for i := 0; i+1 < len(list); i += 2 {
		if err := h.enc.WriteField(hpack.HeaderField{Name: list[i], Value: list[i+1]}); err != nil {
			h.t.Error(err)
		}
	}
	_ = h.w.WriteHeaders(http2.HeadersFrameParam{StreamID: s.id, BlockFragment: h.block.Bytes(), EndStream: true, EndHeaders: true})
	return s
}

// cancel resets a stream.
func (s *h2stream) cancel() {
	s.client.write(func(w *http2.Framer) error { return w.WriteRSTStream(s.id, http2.ErrCodeCancel) })
}

// await waits until done, called with the lock held, says so.
func (h *h2client) await(t *testing.T, what string, done func() bool) {
	t.Helper()
	expired := false
	timer := time.AfterFunc(patience, func() {
		h.mu.Lock()
		expired = true
		h.mu.Unlock()
		h.changed.Broadcast()
	})
	defer timer.Stop()
	h.mu.Lock()
	defer h.mu.Unlock()
	for !done() {
		if expired || h.err != nil {
			t.Fatalf("%s: still not so (connection: %v, GOAWAY: %v, window %d, %d of %d SETTINGS acknowledged)", what, h.err, h.goAway, h.window, h.acks, h.sent)
		}
		h.changed.Wait()
	}
}

// end waits until nothing more comes on a stream.
func (s *h2stream) end(t *testing.T) {
	t.Helper()
	s.client.await(t, fmt.Sprintf("stream %d ends", s.id), func() bool { return s.ended || s.reset })
}

// whole waits for the end of an answer, and checks all of it.
func (s *h2stream) whole(t *testing.T) {
	t.Helper()
	s.end(t)
	s.isWhole(t)
}

// isWhole checks all of an answer, which has ended.
func (s *h2stream) isWhole(t *testing.T) {
	t.Helper()
	s.client.mu.Lock()
	defer s.client.mu.Unlock()
	if !s.ended || s.fields[":status"] != "200" && s.fields[":status"] != "206" {
		t.Errorf("stream %d: status %s, ended %t, reset %t with %v after %d bytes", s.id, s.fields[":status"], s.ended, s.reset, s.code, s.size)
	}
	if s.want != nil {
		checkBody(t, fmt.Sprintf("stream %d", s.id), s.size, hex.EncodeToString(s.hash.Sum(nil)), int64(len(s.want)), sum(s.want))
	}
}

// has waits until n bytes of the body came.
func (s *h2stream) has(t *testing.T, n int64) {
	t.Helper()
	s.client.await(t, fmt.Sprintf("stream %d has %d bytes", s.id, n), func() bool { return s.size >= n })
}

// ping sends PING and waits for the answer: by then, the server has acknowledged
// all SETTINGS sent before.
func (h *h2client) ping(t *testing.T, data [8]byte) {
	t.Helper()
	h.mu.Lock()
	n, sent := len(h.pongs), len(h.limits)
	h.mu.Unlock()
	h.write(func(w *http2.Framer) error { return w.WritePing(false, data) })
	h.await(t, "PING is answered", func() bool { return len(h.pongs) > n && h.pongs[len(h.pongs)-1] == data })
	h.mu.Lock()
	defer h.mu.Unlock()
	// Go's server acknowledges several at once.
	if sent = min(sent, len(h.limits)); sent > 1 {
		h.limits = h.limits[sent-1:]
	}
}

// pause and resume stop the reader between two frames, and let it go on.
func (h *h2client) pause() {
	h.mu.Lock()
	h.hold = true
	h.mu.Unlock()
}

func (h *h2client) resume() {
	h.mu.Lock()
	h.hold = false
	h.mu.Unlock()
	h.changed.Broadcast()
}

// closed waits for the end of the connection.
func (h *h2client) closed(t *testing.T) error {
	t.Helper()
	select {
	case <-h.done:
		return h.err
	case <-time.After(patience):
		t.Fatal("the connection still hasn't ended")
	}
	return nil
}

// read reads frames until the connection ends.
func (h *h2client) read() {
	defer close(h.done)
	r := http2.NewFramer(nil, h.conn)
	r.SetMaxReadFrameSize(1<<24 - 1)
	decoder := hpack.NewDecoder(4096, nil)
	var block []byte
	var of *http2.HeadersFrame
	var ends bool
	for {
		h.mu.Lock()
		for h.hold {
			h.changed.Wait()
		}
		h.mu.Unlock()
		f, err := r.ReadFrame()
		if err != nil {
			h.mu.Lock()
			h.err = err
			h.mu.Unlock()
			h.changed.Broadcast()
			if ce := http2.ConnectionError(0); errors.As(err, &ce) {
				h.t.Errorf("the server's frames are illegal: %v: %v", err, r.ErrorDetail())
			}
			return
		}
		var answers []func(*http2.Framer) error
		h.mu.Lock()
		if n, most := int64(f.Header().Length), h.limit().frame; n > most {
			h.t.Errorf("%v, and the client accepts %d bytes", f.Header(), most)
		}
		switch f := f.(type) {
		case *http2.DataFrame:
			answers = h.data(f)
		case *http2.HeadersFrame:
			block, ends = append(block[:0], f.HeaderBlockFragment()...), f.StreamEnded()
			held := *f
			of = &held
			if f.HeadersEnded() {
				h.headers(of.StreamID, decoder, block, ends)
			}
		case *http2.ContinuationFrame:
			block = append(block, f.HeaderBlockFragment()...)
			if f.HeadersEnded() {
				h.headers(f.StreamID, decoder, block, ends)
			}
		case *http2.RSTStreamFrame:
			if s := h.streams[f.StreamID]; s == nil {
				h.t.Errorf("%v of no stream of ours", f.Header())
			} else {
				s.reset, s.code = true, f.ErrCode
			}
		case *http2.SettingsFrame:
			if f.IsAck() {
				if h.acks++; h.acks > h.sent {
					h.t.Errorf("acknowledgement %d of %d SETTINGS", h.acks, h.sent)
				}
				if len(h.limits) > 1 {
					h.limits = h.limits[1:]
				}
			} else {
				answers = append(answers, (*http2.Framer).WriteSettingsAck)
			}
		case *http2.PingFrame:
			if data := f.Data; f.IsAck() {
				h.pongs = append(h.pongs, data)
			} else {
				answers = append(answers, func(w *http2.Framer) error { return w.WritePing(true, data) })
			}
		case *http2.GoAwayFrame:
			held := *f
			h.goAway = &held
		case *http2.WindowUpdateFrame:
		default:
			h.t.Errorf("%v was not negotiated", f.Header())
		}
		h.mu.Unlock()
		h.changed.Broadcast()
		for _, answer := range answers {
			h.write(answer)
		}
	}
}

// data takes a DATA frame.
func (h *h2client) data(f *http2.DataFrame) (answers []func(*http2.Framer) error) {
	n, s := int64(f.Length), h.streams[f.StreamID]
	h.octets += n
	if h.window -= n; h.window < 0 {
		h.t.Errorf("%v: %d octets more than the connection's window", f.Header(), -h.window)
	}
	switch {
	case s == nil:
		h.t.Errorf("%v of no stream of ours", f.Header())
		return nil
	case s.ended || s.reset || s.fields == nil:
		h.t.Errorf("%v: headers %v, ended %t, reset %t", f.Header(), s.fields, s.ended, s.reset)
	}
	s.octets += n
	if left := h.limit().window + s.granted - s.octets; left < 0 && n > 0 {
		h.t.Errorf("%v: %d octets more than the stream's window", f.Header(), -left)
	}
	d := f.Data()
	switch {
	case s.want == nil:
		s.body = append(s.body, d...)
	case int64(len(s.want)) < s.size+int64(len(d)) || !bytes.Equal(d, s.want[s.size:s.size+int64(len(d))]):
		h.t.Errorf("stream %d: the %d bytes from %d on are wrong", s.id, len(d), s.size)
	}
	s.size += int64(len(d))
	s.hash.Write(d)
	s.ended = f.StreamEnded()
	if h.manual || n == 0 {
		return nil
	}
	h.window += n
	answers = append(answers, func(w *http2.Framer) error { return w.WriteWindowUpdate(0, uint32(n)) })
	if !s.ended {
		s.granted += n
		answers = append(answers, func(w *http2.Framer) error { return w.WriteWindowUpdate(s.id, uint32(n)) })
	}
	return answers
}

// headers takes a field block.
func (h *h2client) headers(stream uint32, decoder *hpack.Decoder, block []byte, ends bool) {
	list, err := decoder.DecodeFull(block)
	if err != nil {
		h.t.Errorf("header of stream %d: %v", stream, err)
	}
	s := h.streams[stream]
	if s == nil || s.ended || s.reset {
		h.t.Errorf("HEADERS of stream %d, which isn't open", stream)
		return
	}
	fields := map[string]string{}
	for _, f := range list {
		fields[f.Name] = f.Value
	}
	switch {
	case s.fields == nil && strings.HasPrefix(fields[":status"], "1"):
	case s.fields == nil:
		s.fields, s.came = fields, h.octets
	default:
		s.trailer = fields
	}
	s.ended = ends
}
