package doctor

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestAskServer(t *testing.T) {
	good := func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.Path != "/ktls/" {
			http.NotFound(w, r)
			return
		}
		w.Write([]byte(serverJSON))
	}
	for _, tc := range []struct {
		name    string
		handler http.HandlerFunc
		status  string
		detail  string
	}{
		{"answers", func(w http.ResponseWriter, r *http.Request) {
			if origin := r.Header.Get("Origin"); origin != "http://"+r.Host {
				http.Error(w, "origin "+origin, http.StatusForbidden)
				return
			}
			good(w, r)
		}, ServerAnswers, ""},
		{"unknown members", func(w http.ResponseWriter, _ *http.Request) {
			w.Write([]byte(`{"new": [1], "current_connections": 3}`))
		}, ServerAnswers, ""},
		{"without the module", http.NotFound, ServerNone, "HTTP 404"},
		{"forbidden", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			w.Write([]byte(`{"error":"host not allowed: example.com"}`))
		}, ServerUnknown, "HTTP 403 host not allowed: example.com"},
		{"elsewhere", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusFound) }, ServerUnknown, "HTTP 302"},
		{"not JSON", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("<html>")) }, ServerUnknown, "can't be read"},
		{"other JSON", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(`{"connections": 7}`)) }, ServerUnknown, "can't be read"},
		{"no answer", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, ServerUnknown, "deadline exceeded"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := httptest.NewServer(tc.handler)
			defer srv.Close()
			ctx := t.Context()
			if tc.name == "no answer" {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
				defer cancel()
			}
			s := askServer(ctx, srv.Listener.Addr().String())
			if s.Status != tc.status || !strings.Contains(s.Detail, tc.detail) {
				t.Errorf("%+v", s)
			}
			if (s.Report != nil) != (tc.status == ServerAnswers) {
				t.Errorf("report %s", s.Report)
			}
			if tc.name == "answers" && s.upgraded() != 81123+111 {
				t.Errorf("%d upgraded", s.upgraded())
			}
		})
	}

	t.Run("unix socket", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "admin.sock")
		if s := askServer(t.Context(), "unix/"+path); s.Status != ServerNone {
			t.Errorf("no socket: %+v", s)
		}
		ln, err := net.Listen("unix", path)
		if err != nil {
			t.Skip(err)
		}
		srv := &httptest.Server{Listener: ln, Config: &http.Server{Handler: http.HandlerFunc(good)}}
		srv.Start()
		defer srv.Close()
		for _, address := range []string{"unix/" + path, "unix/" + path + "|0222"} {
			if s := askServer(t.Context(), address); s.Status != ServerAnswers {
				t.Errorf("%s: %+v", address, s)
			}
		}
	})

	t.Run("refused", func(t *testing.T) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ln.Close()
		if s := askServer(t.Context(), ln.Addr().String()); s.Status != ServerNone {
			t.Errorf("%+v", s)
		}
	})

	t.Run("no address", func(t *testing.T) {
		for _, address := range []string{"", "localhost:2019-2029", "localhost:x"} {
			if s := askServer(t.Context(), address); s.Status != ServerUnknown || s.Detail == "" {
				t.Errorf("%q: %+v", address, s)
			}
		}
	})
}
