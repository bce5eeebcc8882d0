package caddyktls

import (
	"net/http"
	"time"

	"github.com/caddy-ktls/caddy-ktls/internal/framing"
	"github.com/caddy-ktls/caddy-ktls/internal/lockorder"
)

// Sizes of the frames that the HTTP/2 server is made to write, in bytes.
// Multiples of 16375, which with a header fills a TLS record, waste none.
//
// The server keeps a buffer for its largest frame for as long as the connection
// lives. It grows as append does, so that it may be a quarter larger than the
// frame: with the default 112 to 144 KiB, where stock Caddy has 18.
const (
	recordPayload    = 16<<10 - frameHeaderLen
	defaultFrameSize = 7 * recordPayload
	minFrameSize     = framing.MinFrameSize
	maxFrameSize     = framing.MaxFrameSize
)

// frameTime is how long one large frame may take: so long may it hold up other
// streams. Where a client takes less in that time, frames are smaller.
const frameTime = 10 * time.Millisecond

// watch begins to follow the stream of the response, before its first byte.
func (w *responseWriter) watch() {
	lowest, idle, unknown := writersBelow(w.ResponseWriter)
	if unknown != "" {
		return // plan says so
	}
	if s := http2ServerOf(lowest); s != nil && w.conn.http2 != nil {
		w.stream = w.conn.http2.frames.Watch(s.streamID(lowest))
		w.idle = idle
	}
}

// runHTTP2 writes the header, then stand-in bytes, which the connection replaces
// in the frames that the server makes of them. An error ends the stream.
func (s *sending) runHTTP2() (done int64, err error) {
	w, body, below := s.w, s.w.stream, s.w.ResponseWriter
	limit, restore := s.raiseChunk()
	announced, stop := false, func() {}
	defer func() {
		stop()
		restore()
		if announced {
			done = s.n - body.Left()
		}
		if done != s.n {
			w.cut = true
			body.Void()
		}
		w.sent = done
		s.advance(done)
	}()

	frame := w.handler.HTTP2FrameSize
	w.conn.enlarge(frame)
	if err := http.NewResponseController(below).Flush(); err != nil {
		return 0, err
	}
	if err := body.Announce(s.file, w.copied, s.off, s.n); err != nil {
		return 0, err
	}
	announced = true
	stop = s.keepAliveHTTP2(body)
	limit = min(limit, framing.MaxStandIn-minStandIn)
	step := wholeRecords(min(limit, frame))
	for pos := int64(0); pos < s.n; {
		n := nextStandIn(s.n-pos, step)
		begin := time.Now()
		if _, err := below.Write(framing.StandIn(pos, int(n))); err != nil {
			return 0, err
		}
		pos += n
		step = pace(n, time.Since(begin), frame, limit)
	}
	// The last of it may still be on its way to the connection.
	select {
	case <-body.Done():
	case <-s.ctx.Done():
	}
	if body.Left() > 0 {
		return 0, errBodyCut
	}
	return s.n, nil
}

// pace returns how much to write at once after n bytes took d, in bytes. frame is
// the most that can become one frame; several frames are written at once where
// each takes much less than frameTime.
func pace(n int64, d time.Duration, frame, limit int64) int64 {
	if d <= 0 {
		d = 1
	}
	perFrame := int64(float64(n) / float64(d) * float64(frameTime)) // bytes in frameTime
	switch {
	case perFrame >= 4*frame:
		return wholeRecords(min(4*frame, limit))
	case perFrame >= frame:
		return wholeRecords(min(frame, limit))
	}
	return wholeRecords(min(max(perFrame, minFrameSize), limit))
}

// wholeRecords rounds n, in bytes, down to what fills records, if it is more than
// one.
func wholeRecords(n int64) int64 {
	if n < recordPayload {
		return n
	}
	return n / recordPayload * recordPayload
}

// keepAliveHTTP2 keeps Caddy's idle time-out as it is without us: a client has
// its time for each of Caddy's chunks, of which we write many at once, and after
// the last one for what is on its way. The deadline of an HTTP/2 stream is a
// timer; so is this. It returns what ends it.
func (s *sending) keepAliveHTTP2(body *framing.Body) (stop func()) {
	var all []*idleTimer
	for _, w := range s.idle {
		if w.Deadline.MinRate <= 0 && w.Deadline.Timeout > 0 {
			all = append(all, newIdleTimer(w, body, s.w.ceiling))
		}
	}
	return func() {
		for _, t := range all {
			t.stop()
		}
	}
}

// idleTimer moves the write deadline of one stream.
type idleTimer struct {
	w       idleWriter
	body    *framing.Body
	ceiling time.Time // no deadline after it; zero: none
	period  time.Duration

	mu      lockorder.Mutex[lockorder.Deadline]
	timer   *time.Timer
	armed   bool // a deadline was set
	stopped bool
	left    int64 // of the body when the deadline last moved
	moved   time.Time
}

func newIdleTimer(w idleWriter, body *framing.Body, ceiling time.Time) *idleTimer {
	t := &idleTimer{w: w, body: body, ceiling: ceiling, left: body.Left(), moved: time.Now()}
	if hard := w.Deadline.HardDeadline; !hard.IsZero() && (ceiling.IsZero() || hard.Before(ceiling)) {
		t.ceiling = hard
	}
	t.period = w.Deadline.Timeout / 8
	t.mu.Lock()
	defer t.mu.Unlock()
	t.timer = time.AfterFunc(t.period, t.fire)
	return t
}

// fire moves the deadline if a chunk has gone since it was moved last. It sees
// that up to a period late, so that much is added.
func (t *idleTimer) fire() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopped {
		return
	}
	if left := t.body.Left(); t.left-left >= t.w.chunk {
		t.left, t.moved = left, time.Now()
	}
	t.arm(t.moved.Add(t.w.Deadline.Timeout + t.period))
	t.timer.Reset(t.period)
}

func (t *idleTimer) arm(deadline time.Time) {
	if !t.ceiling.IsZero() && (deadline.IsZero() || deadline.After(t.ceiling)) {
		deadline = t.ceiling
	}
	t.armed = t.w.Ctrl.SetWriteDeadline(deadline) == nil
}

// stop leaves the deadline as the idle writer leaves it between writes.
func (t *idleTimer) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped = true
	t.timer.Stop()
	if t.armed && (t.ceiling.IsZero() || time.Now().Before(t.ceiling)) {
		t.arm(time.Time{})
	}
}
