package caddyktls

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// TestReason gives each reason that no client can bring about and that isn't a
// connection's; folder integration has the others.
func TestReason(t *testing.T) {
	t.Run("short_file", func(t *testing.T) {
		const size = 64 << 10
		f, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		h := &Handler{MinSize: 1, AllowFS: fileSystemNames()}
		var path, reason string
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rw := &responseWriter{ResponseWriterWrapper: caddyhttp.ResponseWriterWrapper{ResponseWriter: w}, handler: h, conn: bareConn(), length: -1}
			rw.Header().Set("Content-Type", "application/octet-stream")
			rw.Header().Set("Content-Length", strconv.Itoa(size+1)) // it had that when it was opened
			io.CopyN(rw, f, size+1)
			path, reason = rw.outcome()
		}))
		resp, err := http.Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		srv.Close()
		if n != size || err != io.ErrUnexpectedEOF {
			t.Errorf("the client got %d bytes, %v", n, err)
		}
		if path != pathPlain || reason != "short_file" {
			t.Errorf("%s, %s", path, reason)
		}
	})
	t.Run("http3", func(t *testing.T) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/3.0", 3, 0
		if reason := new(Handler).ineligible(r, nil); reason != "http3" {
			t.Error(reason)
		}
	})
	t.Run("http2_unknown_server", func(t *testing.T) {
		servers := http2Servers
		defer func() { http2Servers = servers }()
		http2Servers = func() map[string]*http2Server {
			unknown := map[string]*http2Server{}
			for writer := range servers() {
				unknown[writer] = &http2Server{writer: writer, err: io.ErrShortWrite}
			}
			return unknown
		}
		const size = 64 << 10
		f, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		h := &Handler{MinSize: 1, AllowFS: fileSystemNames()}
		var path, reason string
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rw := &responseWriter{ResponseWriterWrapper: caddyhttp.ResponseWriterWrapper{ResponseWriter: w}, handler: h, conn: bareConn(), http2: true, length: -1}
			rw.Header().Set("Content-Type", "application/octet-stream")
			rw.Header().Set("Content-Length", strconv.Itoa(size))
			io.CopyN(rw, f, size)
			path, reason = rw.outcome()
		}))
		srv.EnableHTTP2 = true
		srv.StartTLS()
		resp, err := srv.Client().Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		srv.Close()
		if n != size || err != nil || resp.ProtoMajor != 2 {
			t.Errorf("the client got %d bytes over %s, %v", n, resp.Proto, err)
		}
		if path != pathPlain || reason != "http2_unknown_server" {
			t.Errorf("%s, %s", path, reason)
		}
	})
	t.Run("http1_unknown_server", func(t *testing.T) {
		works := standInWorks
		defer func() { standInWorks = works }()
		standInWorks = func() error { return io.ErrShortWrite }
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		if reason := new(Handler).ineligible(r, &conn{}); reason != "http1_unknown_server" {
			t.Error(reason)
		}
	})
}

// reasonCodes are the reasons in the source, without what may follow them.
func reasonCodes(t *testing.T) map[string]bool {
	t.Helper()
	codes := map[string]bool{}
	for file, prefix := range map[string]string{"reasons.go": "reason", "ktls/reason.go": "Reason"} {
		inspect(t, file, func(n ast.Node) {
			v, ok := n.(*ast.ValueSpec)
			if ok && strings.HasPrefix(v.Names[0].Name, prefix) {
				codes[strings.TrimSuffix(literal(t, v.Values[0]), ":")] = true
			}
		})
	}
	return codes
}

// Each reason in the source has a subtest of its name in a TestReason, and a line
// in the README and in the handler's page.
func TestEveryReasonHasATest(t *testing.T) {
	codes := reasonCodes(t)
	tests := map[string]bool{}
	for _, file := range []string{"reasons_test.go", "ktls/reason_test.go", "integration/reasons_test.go"} {
		inspect(t, file, func(n ast.Node) {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) != 2 {
				return
			}
			if f, ok := call.Fun.(*ast.SelectorExpr); ok && f.Sel.Name == "Run" {
				tests[literal(t, call.Args[0])] = true
			}
		})
	}
	for code := range codes {
		if !tests[code] {
			t.Errorf("no test gives the reason %s", code)
		}
		if code == "handshake" {
			continue // never reaches a user: there is no response before it
		}
		for _, page := range []string{"README.md", handlerPage} {
			if text := readPage(t, page); !strings.Contains(text, "`"+code+"`") && !strings.Contains(text, "`"+code+":<") {
				t.Errorf("%s doesn't have %s", page, code)
			}
		}
	}
	for name := range tests {
		if !codes[name] {
			t.Errorf("there is a test of %s, but no such reason", name)
		}
	}
	if len(codes) < 20 {
		t.Errorf("only %d reasons were found", len(codes))
	}
}

// inspect calls f for each node of a Go file.
func inspect(t *testing.T, file string, f func(ast.Node)) {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(parsed, func(n ast.Node) bool {
		f(n)
		return true
	})
}

// literal is the value of a string literal.
func literal(t *testing.T, e ast.Expr) string {
	t.Helper()
	l, ok := e.(*ast.BasicLit)
	if !ok {
		t.Fatalf("%T where a string was expected", e)
	}
	s, err := strconv.Unquote(l.Value)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
