package caddyktls

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// serveOn runs h for a request on a connection of ours and returns the writer that
// the next handler got, and whether that could send files.
func serveOn(t *testing.T, h *Handler, r *http.Request, next caddyhttp.HandlerFunc) (w http.ResponseWriter, sends bool) {
	t.Helper()
	err := h.ServeHTTP(httptest.NewRecorder(), r, caddyhttp.HandlerFunc(func(got http.ResponseWriter, r *http.Request) error {
		w = got
		if ours, ok := got.(*responseWriter); ok {
			sends = ours.conn != nil
		}
		return next(got, r)
	}))
	if err != nil {
		t.Fatal(err)
	}
	return w, sends
}

func requestOn(c *conn) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	ctx := context.WithValue(r.Context(), connKey{}, c)
	ctx = context.WithValue(ctx, caddyhttp.VarsCtxKey, map[string]any{})
	return r.WithContext(context.WithValue(ctx, caddy.ReplacerCtxKey, caddy.NewReplacer()))
}

// A handler that keeps its writer can't send files with it once the response is
// over.
func TestKeptWriterSendsNoFiles(t *testing.T) {
	w, sends := serveOn(t, new(Handler), requestOn(bareConn()), func(http.ResponseWriter, *http.Request) error { return nil })
	if !sends {
		t.Fatal("the writer could never send files")
	}
	if w.(*responseWriter).conn != nil {
		t.Error("the writer still has its connection")
	}
}

// A response that has begun through our handler is none of the second's business,
// if the handlers run once more; one that hasn't begun, as before an error route,
// is.
func TestResponseThatHasBegun(t *testing.T) {
	for name, test := range map[string]struct {
		status int
		again  bool // the second run is ours too
	}{
		"begun":     {http.StatusOK, false},
		"not begun": {0, true},
		"1xx":       {http.StatusEarlyHints, true},
	} {
		t.Run(name, func(t *testing.T) {
			h, r := new(Handler), requestOn(bareConn())
			serveOn(t, h, r, func(w http.ResponseWriter, _ *http.Request) error {
				if test.status != 0 {
					w.WriteHeader(test.status)
				}
				return nil
			})
			if _, sends := serveOn(t, h, r, func(http.ResponseWriter, *http.Request) error { return nil }); sends != test.again {
				t.Errorf("the second run could send files: %v", sends)
			}
		})
	}
}
