//go:build linux

package integration

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// comparison is a site that must answer the same with ktls and without.
type comparison struct {
	host     string
	body     string // KTLS stands where the handler is, if there is one
	sniffed  int64  // bytes that a handler behind ours writes before it lets a file pass
	requests []exchange
}

// exchange is a request, and how its answer must go over HTTP/1.1: want is
// "file" for sendfile, a reason why not, or empty where another test says.
type exchange struct {
	method  string
	uri     string
	want    string
	headers []string
}

func get(uri, want string, headers ...string) exchange {
	return exchange{"GET", uri, want, headers}
}

func head(uri string, headers ...string) exchange {
	return exchange{"HEAD", uri, "method", headers}
}

// TestSameAsStock sends the same requests, in the same order over the same
// number of connections, to a listener with ktls and to one without a word of
// it. Everything but the date must be the same.
func TestSameAsStock(t *testing.T) {
	all := comparisonsOfFiles()
	files := len(all)
	all = append(all, comparisonsOfOptions(makeTree(t))...)
	var with, without []site
	for _, cmp := range all {
		with = append(with, site{cmp.host, strings.ReplaceAll(cmp.body, "KTLS", "ktls {\nmin_size 1\n}")})
		without = append(without, site{cmp.host, strings.ReplaceAll(cmp.body, "KTLS", "")})
	}
	c := start(t,
		listener{wrappers: "ktls", sites: with},
		listener{wrappers: "ktls {\n\tupgrade handshake\n}", sites: with},
		listener{sites: without},
	)
	names := []string{"lazy", "handshake"}
	for _, proto := range []string{"h1", "h2"} {
		for j, cmp := range all {
			if slow && proto == "h2" && j >= files {
				continue // options don't depend on the kernel's version
			}
			t.Run(proto+"/"+cmp.host, func(t *testing.T) {
				var clients [3]*goClient
				for i := range clients {
					clients[i] = c.goClient(t, i, proto)
					clients[i].CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
				}
				// ask sends a request to all three, and checks how ours went.
				ask := func(n, attempt int) (got [3]string, reused [3]bool) {
					r := cmp.requests[n]
					for i, client := range clients {
						id := fmt.Sprintf("%s %s %d %d %d", proto, cmp.host, i, n, attempt)
						req := newRequest(t, r.method, c.urlOf(i, j, "/"), append(r.headers, "X-Id", id)...)
						req.URL.Opaque = r.uri
						req.Host = cmp.host
						a, err := client.do(req)
						got[i], reused[i] = describe(a, err), a.reused
						if i == 2 || r.want == "" {
							continue
						}
						if l := c.responseTo(t, "X-Id", id); r.want == "file" {
							l.isFile(t, a.size-cmp.sniffed)
						} else {
							l.isPlain(t, r.want)
						}
					}
					return got, reused
				}
				for n, r := range cmp.requests {
					got, reused := ask(n, 0)
					for i, name := range names {
						if got[i] != got[2] {
							t.Errorf("%d %s %s %q:\n%s: %s\nstock: %s", n, r.method, r.uri, r.headers, name, got[i], got[2])
						}
					}
					// Go's client gives a connection up that it took long to write to. A
					// server that closes one does so again after the request before.
					for attempt := 1; reused != [3]bool{reused[2], reused[2], reused[2]}; attempt++ {
						if attempt > 5 {
							t.Errorf("%d %s %s %q: lazy, handshake and stock reused the connection: %t", n, r.method, r.uri, r.headers, reused)
							break
						}
						ask(max(n-1, 0), attempt)
						_, reused = ask(n, attempt+100)
					}
				}
			})
		}
	}
}

// comparisonsOfFiles ask for all fixtures, whole and in parts, and for what is
// no file.
func comparisonsOfFiles() []comparison {
	var requests []exchange
	for _, f := range whole {
		if f.size >= large.size {
			continue // others have looked at it
		}
		want := "file"
		if f.size <= kib {
			want = "" // encode may write all of it
		}
		requests = append(requests, get("/"+f.name, want), head("/"+f.name))
	}
	m := "/" + ofSize(65537).name
	for _, r := range []struct{ span, want string }{
		{"0-0", ""}, {"5-60004", "file"}, {"-50001", "file"}, {"16383-", "file"}, {"0-99,30000-40000", "multi_range"},
		{"99999999-", ""}, {"nonsense", ""}, {"5-1", ""},
	} {
		requests = append(requests,
			get(m, r.want, "Range", "bytes="+r.span),
			head(m, "Range", "bytes="+r.span),
			get(m, "file", "Range", "bytes="+r.span, "If-Range", `"other"`),
		)
	}
	requests = append(requests,
		get(m, "no_body", "If-None-Match", "*"),
		get(m, "no_body", "If-Match", `"other"`),
		get(m, "file", "If-Modified-Since", "Thu, 01 Jan 2015 00:00:00 GMT"),
		get(m, "no_body", "If-Modified-Since", "Thu, 01 Jan 2099 00:00:00 GMT"),
		get(m, "file", "Connection", "close"),
		get("/page.txt", ""),
		get("/page.txt", "", "Accept-Encoding", "gzip"),
		get("/page.txt", "", "Accept-Encoding", "br"),
		get("/page.txt", "", "Accept-Encoding", "gzip", "Range", "bytes=10-20"),
		get("/?limit=3", "", "Accept", "application/json"),
		get("/nothing-here", ""),
		get("/../../etc/passwd", ""),
		get("/hello", ""),
		get("/moved", ""),
		get("/broken", ""),
		exchange{"POST", m, "", nil},
		exchange{"PUT", m, "", nil},
		exchange{"DELETE", m, "", nil},
		exchange{"OPTIONS", m, "", nil},
		exchange{"OPTIONS", "*", "", nil},
		get(m, "file", "Expect", "100-continue"),
		get(m, "file"),
	)
	return []comparison{
		{"localhost", plainFiles(www, "KTLS",
			`respond /hello "hello" 202`,
			"header /65537.bin X-Set-By handler",
			`redir /moved /65537.bin 302`,
			`error /broken "broken" 503`,
			"request_body {", "max_size 1KB", "}",
			"file_server {", "browse", "precompressed br gzip", "}",
		), 0, requests},
		{"encode.localhost", plainFiles(www, "KTLS", "encode gzip"), 512, requests},
	}
}

// comparisonsOfOptions go through what file_server, and handlers round it, can
// be told to do with files large enough for sendfile.
func comparisonsOfOptions(tree string) []comparison {
	const (
		accept = "Accept-Encoding"
		// The type of encode's writer. What lies below ours must be known.
		encoder = "unknown_writer:*github.com/caddyserver/caddy/v2/modules/caddyhttp/encode.responseWriter"
	)
	return []comparison{
		{"precompressed.localhost", plainFiles(tree, "KTLS", "file_server {", "precompressed zstd br gzip", "}"), 0, []exchange{
			get("/page.html", "file"),
			get("/page.html", "file", accept, "gzip"),
			get("/page.html", "file", accept, "br"),
			get("/page.html", "file", accept, "zstd"),
			get("/page.html", "file", accept, "gzip, br;q=0.5, zstd;q=0.1"),
			get("/page.html", "file", accept, "gzip;q=0"),
			get("/page.html", "file", accept, "gzip", "Range", "bytes=100-20099"),
			get("/page.html", "multi_range", accept, "gzip", "Range", "bytes=0-9,100-20099"),
			get("/page.html", "no_body", accept, "gzip", "If-None-Match", "*"),
			get("/data.bin", "file", accept, "gzip, br, zstd"),
			head("/page.html", accept, "gzip"),
			get("/page.html", "file", accept, "deflate"),
		}},
		{"browse.localhost", plainFiles(tree, "KTLS", "file_server browse"), 0, []exchange{
			get("/list/", "not_a_file"),
			get("/list/", "not_a_file", "Accept", "application/json"),
			get("/list/?sort=size&order=desc&limit=2", "not_a_file"),
			get("/list/?sort=name&order=asc&offset=1", "not_a_file", "Accept", "application/json"),
			head("/list/"),
			get("/list", ""),
			get("/list/c.bin", "file"),
			get("/list/c.bin/", ""),
			get("/list/", "", "If-Modified-Since", "Thu, 01 Jan 2099 00:00:00 GMT"),
		}},
		{"status.localhost", plainFiles(tree, "KTLS", "file_server {", "status 203", "}"), 0, []exchange{
			get("/data.bin", "not_a_file"), // file_server hides ReadFrom then
			get("/data.bin", "not_a_file", "Range", "bytes=100-50000"),
			get("/data.bin", "no_body", "If-None-Match", "*"),
			head("/data.bin"),
			get("/nothing-here", ""),
		}},
		{"pass-thru.localhost", plainFiles(tree, "route {\nKTLS\nfile_server {\npass_thru\n}\nrespond \"passed through\" 200\n}"), 0, []exchange{
			get("/data.bin", "file"),
			get("/nothing-here", "not_a_file"),
			get("/list/", "not_a_file"),
			get("/data.bin", "file"),
		}},
		{"hide.localhost", plainFiles(tree, "KTLS", "file_server {", "hide *.etag secret /page.html.gz", "browse", "precompressed gzip", "}"), 0, []exchange{
			get("/data.bin.etag", ""),
			get("/secret/key.bin", ""),
			get("/data.bin", "file"),
			get("/page.html", "file", accept, "gzip"),
			get("/", "file"),
		}},
		{"etag.localhost", plainFiles(tree, "KTLS", "file_server {", "etag_file_extensions .etag", "precompressed gzip", "}"), 0, []exchange{
			get("/data.bin", "file"),
			get("/data.bin", "no_body", "If-None-Match", `"made-by-hand"`),
			get("/data.bin", "file", "If-None-Match", `"other"`),
			get("/data.bin", "file", "If-Range", `"made-by-hand"`, "Range", "bytes=7-70000"),
			get("/page.html", "file", accept, "gzip"),
			head("/data.bin"),
		}},
		{"errors.localhost", plainFiles(tree, "KTLS", "file_server", `error /broken* "broken" 503`,
			"handle_errors {\nrewrite * /{err.status_code}.html\nKTLS\nfile_server\n}"), 0, []exchange{
			get("/data.bin", "file"),
			get("/nothing-here", "not_a_file"), // likewise
			get("/broken", "not_a_file"),
			get("/broken", "not_a_file", "Range", "bytes=100-50000"),
			head("/nothing-here"),
			{"POST", "/data.bin", "method", nil}, // 405, for which there is no page
			get("/data.bin", "file"),
		}},
		{"intercept.localhost", plainFiles(tree, "KTLS", "file_server", `respond /teapot "short and stout" 418`,
			"intercept {\n@teapot status 418\nhandle_response @teapot {\nrewrite * /404.html\nfile_server\n}\n}"), 0, []exchange{
			get("/teapot", "file"),
			get("/data.bin", "not_a_file"), // intercept hides ReadFrom of what it leaves alone
			head("/teapot"),
			get("/teapot", "file", "Range", "bytes=100-50000"),
		}},
		{"try-files.localhost", plainFiles(tree, "KTLS", "try_files {path} {path}.html /index.html"), 0, []exchange{
			get("/data.bin", "file"),
			get("/page", "file"),
			get("/some/client/route?a=b", "file"),
			get("/page", "file", "Range", "bytes=100-50000"),
			head("/some/client/route"),
		}},
		{"root.localhost", strings.ReplaceAll(plainFiles("ROOT", "KTLS"), "ROOT", tree+"/{http.request.header.X-Tenant}"), 0, []exchange{
			get("/site.bin", "file", "X-Tenant", "a"),
			get("/site.bin", "file", "X-Tenant", "b"),
			get("/site.bin", ""),
			get("/site.bin", "", "X-Tenant", "c"),
			get("/data.bin", "file"),
			get("/site.bin", "file", "X-Tenant", "a", "Range", "bytes=100-50000"),
		}},
		{"below.localhost", plainFiles(tree, "route {\nencode zstd gzip\nKTLS\nfile_server\n}"), 0, []exchange{
			get("/page.html", encoder, accept, "gzip"),
			get("/page.html", encoder, accept, "zstd"),
			get("/page.html", encoder),
			get("/data.bin", encoder, accept, "gzip"),
			get("/page.html", encoder, accept, "gzip", "Range", "bytes=100-50000"),
			head("/page.html", accept, "gzip"),
			get("/nothing-here", "", accept, "gzip"),
		}},
		{"above.localhost", plainFiles(tree, "route {\nKTLS\nencode zstd gzip\nfile_server\n}"), 512, []exchange{
			get("/page.html", "transformed", accept, "gzip"),
			get("/page.html", "transformed", accept, "zstd"),
			get("/page.html", "file"),
			get("/data.bin", "file", accept, "gzip"),
			get("/page.html", "file", accept, "gzip", "Range", "bytes=100-50000"),
			get("/page.html", "no_body", accept, "gzip", "If-None-Match", "*"),
			head("/page.html", accept, "gzip"),
			get("/nothing-here", "", accept, "gzip"),
		}},
		{"templates.localhost", plainFiles(tree, "KTLS", "templates"), 0, []exchange{
			get("/template.html", "transformed"),
			get("/template.html", "not_a_file", "Range", "bytes=100-200"), // nothing to expand in it
			get("/data.bin", "file"),
			head("/template.html"),
			get("/data.bin", "file", "Range", "bytes=100-50000"),
		}},
	}
}

// makeTree makes the files that comparisonsOfOptions asks for, most of them
// large enough for sendfile.
func makeTree(t *testing.T) string {
	t.Helper()
	tree := t.TempDir()
	for _, dir := range []string{"list", "secret", "a", "b"} {
		if err := os.Mkdir(filepath.Join(tree, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, size := range map[string]int64{
		"data.bin": 100_001, "list/c.bin": 30_000, "list/d.bin": 20_000, "list/e.txt": 10,
		"secret/key.bin": 20_000, "a/site.bin": 70_000, "b/site.bin": 80_000,
		"page.html.br": 40_000, "page.html.zst": 50_000, // nobody decodes them
	} {
		newFile(t, tree, name, size)
	}
	// text is a page that can be compressed, but not to less than sendfile takes.
	text := func(name string, n int64) []byte {
		random := newFile(t, tree, "random", n)
		defer os.Remove(filepath.Join(tree, random.name))
		b, err := os.ReadFile(filepath.Join(tree, random.name))
		if err != nil {
			t.Fatal(err)
		}
		return []byte("<!DOCTYPE html><title>" + name + "</title><pre>" + base64.StdEncoding.EncodeToString(b))
	}
	page := text("page", 90_000)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(page); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"page.html":     page,
		"page.html.gz":  packed.Bytes(),
		"index.html":    text("index", 50_000),
		"404.html":      text("404", 60_000),
		"503.html":      text("503", 70_000),
		"template.html": append(text("template", 20_000), `<p>{{range $i, $e := list 1 2 3}}{{$e}},{{end}}{{.Req.Method}}</p>`...),
		"data.bin.etag": []byte(`"made-by-hand"`),
	} {
		if err := os.WriteFile(filepath.Join(tree, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return tree
}

// nonce is what file_server's listings have anew each time.
var nonce = regexp.MustCompile("nonce[-=]\"?[0-9a-f-]{36}")

// describe is all of an answer that must be the same, but for the connection.
func describe(a answer, err error) string {
	header := maps.Clone(a.header)
	delete(header, "Date")
	body := a.sum
	if v := header.Get("Content-Type"); strings.HasPrefix(v, "multipart/byteranges") {
		_, boundary, _ := strings.Cut(v, "boundary=") // it is random
		header.Set("Content-Type", "multipart/byteranges")
		body = sum(bytes.ReplaceAll(a.body, []byte(boundary), nil))
	}
	if v := header.Get("Content-Security-Policy"); nonce.MatchString(v) {
		header.Set("Content-Security-Policy", nonce.ReplaceAllString(v, "nonce"))
		body = sum(nonce.ReplaceAll(a.body, []byte("nonce")))
	}
	return fmt.Sprintf("%s %d %v, %d bytes %s, %v", a.proto, a.status, header, a.size, body, err)
}
