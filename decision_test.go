package caddyktls

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/caddy-ktls/caddy-ktls/internal/lockorder"
)

// bottom is a writer that takes a body without a copy.
type bottom struct{ header http.Header }

func (b *bottom) Header() http.Header         { return b.header }
func (b *bottom) WriteHeader(int)             {}
func (b *bottom) Write(p []byte) (int, error) { return len(p), nil }
func (b *bottom) ReadFrom(r io.Reader) (int64, error) {
	return r.(*io.LimitedReader).N, nil
}

// smallFile returns what answers one request with a file under min_size, through
// h or, if that is nil, without it.
func smallFile(t testing.TB, h *Handler) func() {
	t.Helper()
	const size = 1024
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	limit := &io.LimitedReader{R: f, N: size}
	files := caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		header := w.Header()
		header["Content-Type"], header["Content-Length"] = []string{"text/plain"}, []string{"1024"}
		w.WriteHeader(http.StatusOK)
		n, err := w.(io.ReaderFrom).ReadFrom(limit)
		if err != nil || n != size {
			t.Errorf("%d bytes, %v", n, err)
		}
		return err
	})
	request := httptest.NewRequest(http.MethodGet, "/", nil)
	own := bareConn()
	lowest := &bottom{http.Header{}}
	return func() {
		r := caddyhttp.PrepareRequest(request, caddy.NewReplacer(), lowest, nil)
		r = r.WithContext(context.WithValue(r.Context(), connKey{}, own))
		var err error
		if h == nil {
			err = files.ServeHTTP(lowest, r)
		} else {
			err = h.ServeHTTP(lowest, r, files)
		}
		if err != nil {
			t.Error(err)
		}
	}
}

// TestDecisionAllocations: on a server without an access log a small file costs two
// allocations, of the writer and of what answers for the placeholders.
func TestDecisionAllocations(t *testing.T) {
	if lockorder.Asserted {
		t.Skip("finding out which locks a goroutine holds allocates")
	}
	without := testing.AllocsPerRun(100, smallFile(t, nil))
	with := testing.AllocsPerRun(100, smallFile(t, &Handler{unlogged: true}))
	if more := with - without; more > 2 {
		t.Errorf("%v allocations more than without the handler", more)
	}
	responses := countOf(pathPlain, reasonTooSmall).responses
	before := testutil.ToFloat64(responses)
	smallFile(t, &Handler{unlogged: true})()
	if got := testutil.ToFloat64(responses) - before; got != 1 {
		t.Errorf("%v responses counted as %s", got, reasonTooSmall)
	}
}

// BenchmarkDecision is what the handler does for a file under min_size, with the
// preparation of a request that "caddy" has too.
func BenchmarkDecision(b *testing.B) {
	for name, h := range map[string]*Handler{"with=caddy": nil, "with=ktls": {unlogged: true}, "with=ktls,log": {}} {
		b.Run(name, func(b *testing.B) {
			answer := smallFile(b, h)
			b.ReportAllocs()
			for b.Loop() {
				answer()
			}
		})
	}
}
