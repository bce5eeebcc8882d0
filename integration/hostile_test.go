//go:build linux

package integration

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// hostileCaddy is what `go build` makes of integration/hostile: KTLS_CADDY_HOSTILE,
// or else it is built. The race detector isn't in it: there would be reports of what
// the hostile handler does.
func hostileCaddy(t *testing.T) string {
	t.Helper()
	if binary := os.Getenv("KTLS_CADDY_HOSTILE"); binary != "" {
		return binary
	}
	if os.Getenv("KTLS_CADDY") != "" {
		t.Skip("KTLS_CADDY is set, but not KTLS_CADDY_HOSTILE")
	}
	binary := filepath.Join(scratch, "hostile")
	if out, err := exec.Command("go", "build", "-o", binary, "./hostile").CombinedOutput(); err != nil {
		t.Fatalf("building hostile: %v\n%s", err, out)
	}
	return binary
}

// startHostile starts a Caddy with a hostile handler in front of ours and one
// behind, and a listener with the same and without ours.
func startHostile(t *testing.T, root string) *caddy {
	t.Helper()
	binary := hostileCaddy(t)
	defer func(own string) { caddyBinary = own }(caddyBinary)
	caddyBinary = binary
	sites := func(ours string) []site {
		head := "log\nroot * " + root + "\n"
		return []site{
			{body: head + "route {\nhostile below\n" + ours + "hostile above\nfile_server\n}"},
			{host: "fs.localhost", body: head + "fs hostile\nroute {\n" + ours + "file_server\n}"},
		}
	}
	return setup{
		listeners: []listener{
			{wrappers: "ktls", sites: sites("ktls {\nmin_size 1\nchunk 64KiB\nhttp2_frame_size 16384\n}\n")},
			{sites: sites("")},
		},
		global: "filesystem hostile hostile",
	}.start(t)
}

// heard is all that a client gets of a response.
type heard struct {
	status string
	header http.Header
	body   []byte
	err    error
}

func (client *goClient) hear(t *testing.T, url, id string) (h heard) {
	t.Helper()
	resp, err := client.Do(newRequest(t, "GET", url, "X-Id", id))
	if err != nil {
		return heard{err: err}
	}
	defer resp.Body.Close()
	h.status, h.header = resp.Proto+" "+resp.Status, maps.Clone(resp.Header)
	delete(h.header, "Date")
	h.body, h.err = io.ReadAll(resp.Body)
	return h
}

// sameAs compares what was heard with what stock Caddy's client heard. Where that
// one got a whole response, so must ours. Where not, ours must not either, and
// what came is the same as far as both go.
func (h heard) sameAs(t *testing.T, stock heard) {
	t.Helper()
	if (h.err == nil) != (stock.err == nil) {
		t.Errorf("%v, stock: %v", h.err, stock.err)
	}
	if n := min(len(h.body), len(stock.body)); !bytes.Equal(h.body[:n], stock.body[:n]) {
		at := 0
		for h.body[at] == stock.body[at] {
			at++
		}
		t.Errorf("other bytes from %d on: %.20x..., stock: %.20x...", at, h.body[at:], stock.body[at:])
	}
	if stock.err == nil && (len(h.body) != len(stock.body) || h.status != stock.status || fmt.Sprint(h.header) != fmt.Sprint(stock.header)) {
		t.Errorf("%s %v, %d bytes\nstock: %s %v, %d bytes", h.status, h.header, len(h.body), stock.status, stock.header, len(stock.body))
	}
}

// hostilities have why a file takes the plain way, by what the handler does that is
// in front of ours (below it, among the writers) and the one behind; "file" where it
// doesn't, "cut" where the connection must end.
var hostilities = []struct{ name, below, above string }{
	{"nothing", unknownWriter, "not_a_file"},
	{"hidden", unknownWriter, "not_a_file"},
	{"buffers", unknownWriter, "not_a_file"},
	{"buffers the file", unknownWriter, "not_a_file"},
	{"splits", unknownWriter, "not_a_file"},
	{"splits the file", unknownWriter, "file"},
	{"duplicates", "chunked", "transformed"},
	{"duplicates and says so", "length", "transformed"},
	{"duplicates the file", unknownWriter, "file"},
	{"duplicates the file and says so", "length", "file"},
	{"reorders", unknownWriter, "not_a_file"},
	{"reorders the file", unknownWriter, "file"},
	{"compresses", "chunked", "transformed"},
	{"inverts", unknownWriter, "not_a_file"},
	{"inverts in place", unknownWriter, "not_a_file"},
	{"lengthens", "length", "transformed"},
	{"promises more", "length", "transformed"},
	{"promises less", "length", "transformed"},
	{"hides the length", "chunked", "transformed"},
	{"hides the type", "no_content_type", "not_a_file"},
	{"writes before", "length", "transformed"},
	{"writes before unsaid", unknownWriter, "not_a_file"},
	{"writes after", unknownWriter, "not_a_file"},
	{"writes between", "length", "file"},
	{"swallows", unknownWriter, "no_body"},
	{"swallows some", unknownWriter, "not_a_file"},
	{"swallows the file", unknownWriter, "no_body"},
	{"lies about the count", unknownWriter, "not_a_file"},
	{"lies about the file's count", unknownWriter, "file"},
	{"flushes", unknownWriter, "not_a_file"},
	{"flushes the header", unknownWriter, "not_a_file"},
	{"header twice", "length", "not_a_file"},
	{"aborts", "", "no_body"},
	{"aborts half-way", unknownWriter, "no_body"},
	{"aborts half-way in the file", unknownWriter, "length"},
	{"aborts at the end", unknownWriter, "not_a_file"},
	{"fails half-way", unknownWriter, "no_body"},
	{"stops half-way in the file", unknownWriter, "length"},
	{"hijacks", unknownWriter, "not_a_file"},
	{"hijacks half-way", unknownWriter, "length"},
	{"another goroutine", unknownWriter, "not_a_file"},
	{"another goroutine for the file", unknownWriter, "file"},
	{"unwraps to nothing", unknownWriter, "not_a_file"},
	{"unwraps to another", unknownWriter, "not_a_file"},
	{"recorder", unknownWriter, "not_a_file"},
	{"recorder that doesn't record", "file", "file"},
	{"recorder on a buffer", unknownWriter, "not_a_file"},
	{"idle time-out on a buffer", unknownWriter, "not_a_file"},
	{"twice", unknownWriter, "not_a_file"},
	{"twice, unwrapped", "file", "file"},
	{"leaves its writer", "file", "file"},
	{"goes round before", unknownWriter, "cut"},
	{"goes round large", unknownWriter, "cut"},
	{"goes round between", unknownWriter, "cut"},
	{"goes round after", unknownWriter, "file"},
	{"goes round with the file", unknownWriter, "no_body"},
}

const unknownWriter = "unknown_writer:"

// took checks which path a response took, and why.
func (l *line) took(t *testing.T, want string) {
	t.Helper()
	switch {
	case want == "":
	case l.KTLS == nil:
		t.Errorf("no ktls in the access log: %s", l.raw)
	case !kernel.ulp:
		if l.KTLS.Path != "plain" || l.KTLS.Sent != 0 {
			t.Errorf("%+v; want plain", *l.KTLS)
		}
	case want == "file":
		if l.KTLS.Path != "sendfile" || l.KTLS.Reason != "" || l.KTLS.Sent == 0 {
			t.Errorf("%+v; want sendfile", *l.KTLS)
		}
	case want == "cut":
		if l.KTLS.Path != "sendfile" || l.KTLS.Reason != "cut" {
			t.Errorf("%+v; want one that was cut", *l.KTLS)
		}
	case l.KTLS.Path != "plain" || l.KTLS.Sent != 0 || !strings.HasPrefix(l.KTLS.Reason, want):
		t.Errorf("%+v; want plain, %s", *l.KTLS, want)
	}
}

// TestHostileHandlers: whatever other handlers do to a response, in front of ours
// or behind it, a client gets what it gets without ours, on the path and for the
// reason that the table says; and nothing else in the place of a response that is
// not completed. What comes after it is as ever.
func TestHostileHandlers(t *testing.T) {
	notEmulated(t)
	root := t.TempDir()
	f := newFile(t, root, "f.bin", 90_000) // two writes of stand-in bytes
	c := startHostile(t, root)
	for _, proto := range []string{"h1", "h2"} {
		clients := [2]*goClient{c.goClient(t, 0, proto), c.goClient(t, 1, proto)}
		for _, place := range []string{"below", "above"} {
			for _, hostility := range hostilities {
				t.Run(proto+"/"+place+"/"+hostility.name, func(t *testing.T) {
					q, want := url.Values{place: {hostility.name}, "id": {t.Name()}}, hostility.below
					if place == "above" {
						want = hostility.above
						if want != unknownWriter && strings.HasPrefix(hostility.name, "goes round") {
							q.Set("below", "leaves its writer")
						}
					}
					var got [2]heard
					for i, client := range clients {
						got[i] = client.hear(t, c.url(i, "/"+f.name+"?"+q.Encode()), fmt.Sprint(i, t.Name()))
					}
					got[0].sameAs(t, got[1])
					if want != "" {
						l := c.responseTo(t, "X-Id", "0"+t.Name())
						l.took(t, want)
					}
					if want == "file" || want == "cut" || want == "length" { // something of ours was there
						clients[0].get(t, c.url(0, "/"+f.name)).isFile(t, f)
					}
				})
			}
		}
		t.Run(proto+"/file system", func(t *testing.T) {
			for i, client := range clients {
				a := client.get(t, c.urlOf(i, 1, "/"+f.name), "X-Id", fmt.Sprint(i, t.Name()))
				if a.size != f.size || a.sum == f.sum {
					t.Errorf("listener %d: %d bytes, inverted %t", i, a.size, a.sum != f.sum)
				}
			}
			l := c.responseTo(t, "X-Id", "0"+t.Name())
			l.took(t, "not_a_file")
		})
	}
}

// TestHostileKeptWriter: a handler keeps its writer of a response that is over, and
// writes a file to it while another connection's response is under way: with
// HTTP/1.1, net/http may have given its buffer to that. There must not be a byte in
// what the other client gets that isn't of a file or of its own response.
func TestHostileKeptWriter(t *testing.T) {
	notEmulated(t)
	root := t.TempDir()
	f := newFile(t, root, "f.bin", 90_000)
	whole, err := os.ReadFile(filepath.Join(root, f.name))
	if err != nil {
		t.Fatal(err)
	}
	c := startHostile(t, root)
	for _, proto := range []string{"h1", "h2"} {
		t.Run(proto, func(t *testing.T) {
			for n := range 2 {
				id := fmt.Sprint(proto, n)
				uri := func(what string) string {
					return "/" + f.name + "?" + url.Values{"above": {what}, "id": {id}}.Encode()
				}
				other := c.goClient(t, 0, proto)
				other.get(t, c.url(0, "/"+f.name)).isFile(t, f) // from now on in the kernel
				keeper := c.goClient(t, 0, proto)
				keeper.get(t, c.url(0, "/"+f.name)).isFile(t, f)
				if h := keeper.hear(t, c.url(0, uri("keeps")), id); h.err == nil {
					t.Errorf("%d bytes and no error", len(h.body))
				}
				h := other.hear(t, c.url(0, uri("uses what was kept")), id)
				const window, step = 32, 512
				rest := bytes.TrimPrefix(h.body, []byte("begin"))
				for at := 0; at+window <= len(rest); at += step {
					if !bytes.Contains(whole, rest[at:at+window]) {
						t.Fatalf("%d bytes (%v), from %d on: %x", len(h.body), h.err, at, rest[at:at+window])
					}
				}
				other.get(t, c.url(0, "/"+f.name)).isFile(t, f)
			}
		})
	}
}
