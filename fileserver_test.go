package caddyktls

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-ktls/caddy-ktls/ktls"
)

func TestUnwrapFileFindsTheFileUnderItsLimits(t *testing.T) {
	f, err := os.Open("fileserver_test.go")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	limit := func(r io.Reader, n int64) io.Reader { return &io.LimitedReader{R: r, N: n} }
	for name, test := range map[string]struct {
		r    io.Reader
		file bool
		left int64
	}{
		"file":             {f, true, -1},
		"limited":          {limit(f, 10), true, 10},
		"nested, inner":    {limit(limit(f, 10), 20), true, 10},
		"nested, outer":    {limit(limit(f, 20), 10), true, 10},
		"used up":          {limit(f, 0), true, 0},
		"negative":         {limit(f, -5), true, 0},
		"buffer":           {limit(new(bytes.Buffer), 10), false, 0},
		"hidden in struct": {limit(struct{ io.Reader }{f}, 10), false, 0},
		"multi reader":     {io.MultiReader(f), false, 0},
	} {
		file, left := unwrapFile(test.r)
		if (file != nil) != test.file {
			t.Errorf("%s: file %v", name, file)
		}
		if test.file && left != test.left {
			t.Errorf("%s: %d left, want %d", name, left, test.left)
		}
	}
}

// chain runs a request through a real net/http server and returns what
// writersBelow says of the writer that wrap makes of net/http's.
func chain(t *testing.T, wrap func(http.ResponseWriter) http.ResponseWriter) (idle int, unknown string) {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var writers []idleWriter
		_, writers, unknown = writersBelow(wrap(w))
		idle = len(writers)
	}))
	defer srv.Close()
	resp, err := http.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return idle, unknown
}

func TestWritersBelow(t *testing.T) {
	rec := func(w http.ResponseWriter, buffer bool, written bool) http.ResponseWriter {
		r := caddyhttp.NewResponseRecorder(w, new(bytes.Buffer), func(int, http.Header) bool { return buffer })
		if written {
			r.WriteHeader(http.StatusOK)
		}
		return r
	}
	idle := func(w http.ResponseWriter) http.ResponseWriter {
		return &caddyhttp.IdleTimeoutWriter{ResponseWriterWrapper: &caddyhttp.ResponseWriterWrapper{ResponseWriter: w}}
	}
	for name, test := range map[string]struct {
		wrap    func(http.ResponseWriter) http.ResponseWriter
		idle    int
		unknown string
	}{
		"net/http's own": {func(w http.ResponseWriter) http.ResponseWriter { return w }, 0, ""},
		"idle time-out":  {idle, 1, ""},
		"recorder under idle time-outs": {func(w http.ResponseWriter) http.ResponseWriter {
			return idle(idle(rec(w, false, true)))
		}, 2, ""},
		"recorder that buffers": {func(w http.ResponseWriter) http.ResponseWriter {
			return rec(w, true, true)
		}, 0, "*github.com/caddyserver/caddy/v2/modules/caddyhttp.responseRecorder"},
		"recorder that may still decide to buffer": {func(w http.ResponseWriter) http.ResponseWriter {
			return rec(w, false, false)
		}, 0, "*github.com/caddyserver/caddy/v2/modules/caddyhttp.responseRecorder"},
		"recorder of someone else": {func(w http.ResponseWriter) http.ResponseWriter {
			return &foreignRecorder{rec(w, false, true).(caddyhttp.ResponseRecorder)}
		}, 0, "*github.com/caddy-ktls/caddy-ktls.foreignRecorder"},
		"unknown writer with Unwrap": {func(w http.ResponseWriter) http.ResponseWriter {
			return idle(&cachingWriter{&caddyhttp.ResponseWriterWrapper{ResponseWriter: w}})
		}, 0, "*github.com/caddy-ktls/caddy-ktls.cachingWriter"},
		"bare ResponseWriterWrapper": {func(w http.ResponseWriter) http.ResponseWriter {
			return &caddyhttp.ResponseWriterWrapper{ResponseWriter: w}
		}, 0, "*github.com/caddyserver/caddy/v2/modules/caddyhttp.ResponseWriterWrapper"},
		"not net/http at the bottom": {func(w http.ResponseWriter) http.ResponseWriter {
			return idle(httptest.NewRecorder())
		}, 0, "*net/http/httptest.ResponseRecorder"},
	} {
		t.Run(name, func(t *testing.T) {
			idle, unknown := chain(t, test.wrap)
			if idle != test.idle || unknown != test.unknown {
				t.Errorf("%d idle writers, unknown %q; want %d, %q", idle, unknown, test.idle, test.unknown)
			}
		})
	}
}

type foreignRecorder struct{ caddyhttp.ResponseRecorder }

type cachingWriter struct {
	*caddyhttp.ResponseWriterWrapper
}

// One write is as large as configured, and no larger than Caddy's own where a
// minimum rate counts by them. Caddy's own comes back in the end.
func TestRaiseChunk(t *testing.T) {
	for _, test := range []struct {
		chunk, own int
		rate       int64
		want       int64
	}{
		{maxChunk, 64 << 10, 0, maxChunk},
		{minChunk, 64 << 10, 0, minChunk},
		{1 << 20, 4 << 20, 0, 1 << 20},
		{maxChunk, 64 << 10, 1000, 64 << 10},
		{minChunk, 1 << 20, 1000, minChunk},
		{maxChunk, 1 << 10, 1000, minStandIn},
	} {
		idle := &caddyhttp.IdleTimeoutWriter{MaxChunk: test.own}
		idle.Deadline.MinRate = test.rate
		s := &sending{w: &responseWriter{handler: &Handler{Chunk: int64(test.chunk)}}, idle: []idleWriter{{idle, int64(test.own)}}}
		limit, restore := s.raiseChunk()
		if limit != test.want || idle.MaxChunk < int(limit+minStandIn) {
			t.Errorf("%+v: %d, of which Caddy passes on %d at once", test, limit, idle.MaxChunk)
		}
		if restore(); idle.MaxChunk != test.own {
			t.Errorf("%+v: Caddy's own is %d afterwards", test, idle.MaxChunk)
		}
	}
}

func TestIsDirect(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	if isDirect(f) {
		t.Error("an ordinary file is taken for O_DIRECT")
	}
	f.Close()
	if !isDirect(f) {
		t.Error("a closed file must not be trusted")
	}
}

// Only wrappers that are known to pass Write on are looked through.
func TestConnContextFindsOurConnection(t *testing.T) {
	own := &conn{}
	for name, test := range map[string]struct {
		c    net.Conn
		want bool
	}{
		"itself":          {own, true},
		"unknown wrapper": {wrappedConn{own}, false},
		"another":         {&net.TCPConn{}, false},
	} {
		ctx := connContext(context.Background(), test.c)
		if got, _ := ctx.Value(connKey{}).(*conn); (got == own) != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// bareConn is a connection on nothing, before its handshake.
func bareConn() *conn { return &conn{Conn: ktls.Server(nil, new(tls.Config), nil)} }

type wrappedConn struct{ net.Conn }

// A flush sends the header: what a handler adds later doesn't count.
func TestFlushSettlesTheHeader(t *testing.T) {
	lengths := make(chan int64, 2)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rw := &responseWriter{ResponseWriterWrapper: caddyhttp.ResponseWriterWrapper{ResponseWriter: w}, conn: bareConn(), length: -1}
		early := r.URL.Path == "/early"
		if early {
			rw.Header().Set("Content-Length", "3")
		}
		if err := http.NewResponseController(rw).Flush(); err != nil {
			t.Error(err)
		}
		rw.Header().Set("Content-Length", "3")
		rw.Write([]byte("abc"))
		lengths <- rw.length
	}))
	defer srv.Close()
	for path, want := range map[string]int64{"/early": 3, "/late": -1} {
		resp, err := http.Get(srv.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if got := <-lengths; got != want || resp.ContentLength != want {
			t.Errorf("%s: length %d, the client sees %d; want %d", path, got, resp.ContentLength, want)
		}
	}
}
