//go:build linux

package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// lineWriter gets what is written to it, a line a call.
type lineWriter func(line string)

func (w lineWriter) Write(p []byte) (int, error) {
	w(strings.TrimSpace(string(p)))
	return len(p), nil
}

func readLines(t *testing.T, path string) map[string]bool {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := map[string]bool{}
	for l := range strings.Lines(string(b)) {
		lines[strings.TrimSpace(l)] = true
	}
	return lines
}

// TestExampleAdapts: the example is a config of ours.
func TestExampleAdapts(t *testing.T) {
	notEmulated(t)
	example, err := filepath.Abs("../examples/Caddyfile")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(example); err != nil {
		t.Fatal(err)
	}
	cmd := caddyCommand(t.TempDir(), "adapt", "--validate", "--config", example)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, errorOf(t, caddyCommand(t.TempDir(), "adapt", "--config", example)))
	}
	for _, want := range []string{`"wrapper":"ktls"`, `"handler":"ktls"`} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %s in the example's config", want)
		}
	}
}

// TestDirectiveOrder: the handler goes before what writes a body and what
// changes one, wherever it stands.
func TestDirectiveOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "Caddyfile")
	if err := os.WriteFile(path, []byte("https://localhost {\n\tfile_server\n\tencode\n\tktls\n}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := caddyCommand(t.TempDir(), "adapt", "--config", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(out) {
		t.Fatalf("not JSON: %s", out)
	}
	order := []string{`"handler":"ktls"`, `"handler":"encode"`, `"handler":"file_server"`}
	for i, last := 0, -1; i < len(order); i++ {
		at := strings.Index(string(out), order[i])
		if at <= last {
			t.Errorf("%s isn't where it should be: %s", order[i], out)
		}
		last = at
	}
}

// TestConfigErrors: what is wrong in a Caddyfile is named, with its line.
func TestConfigErrors(t *testing.T) {
	notEmulated(t)
	for _, test := range []struct {
		name    string
		wrapper string // on line 4
		handler string // on line 9
		want    []string
	}{
		{"unknown option of the wrapper", "ktls { \n bogus yes \n }", "ktls", []string{"bogus", ":5"}},
		{"unknown upgrade", "ktls {\n upgrade sometimes\n }", "ktls", []string{"sometimes", ":5"}},
		{"upgrade of nothing", "ktls {\n upgrade\n }", "ktls", []string{"upgrade", ":5"}},
		{"upgrade of two things", "ktls {\n upgrade lazy handshake\n }", "ktls", []string{":5"}},
		{"bad handshake_timeout", "ktls {\n handshake_timeout soon\n }", "ktls", []string{"soon", ":5"}},
		{"negative handshake_timeout", "ktls {\n handshake_timeout -1s\n }", "ktls", []string{"handshake_timeout", "-1s"}},
		{"argument of require", "ktls {\n require please\n }", "ktls", []string{":5"}},
		{"argument of the wrapper", "ktls please", "ktls", []string{":4"}},
		{"unknown option of the handler", "ktls", "ktls {\n bogus yes\n }", []string{"bogus", ":10"}},
		{"bad min_size", "ktls", "ktls {\n min_size lots\n }", []string{"lots", ":10"}},
		{"min_size of nothing", "ktls", "ktls {\n min_size\n }", []string{":10"}},
		{"negative min_size", "ktls", "ktls {\n min_size -5\n }", []string{"-5", ":10"}},
		{"bad chunk", "ktls", "ktls {\n chunk 1KiB\n }", []string{"chunk", "1KiB", ":10"}},
		{"bad http2", "ktls", "ktls {\n http2 maybe\n }", []string{"http2", "maybe", ":10"}},
		{"unknown word after the handler", "ktls", "ktls maybe", []string{"maybe", ":9"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "Caddyfile")
			config := "{\n\tservers {\n\t\tlistener_wrappers {\n\t\t\t" + test.wrapper + "\n\t\t}\n\t}\n}\nhttps://localhost {\n\t" + test.handler + "\n\tfile_server\n}\n"
			if err := os.WriteFile(path, []byte(config), 0o644); err != nil {
				t.Fatal(err)
			}
			got := errorOf(t, caddyCommand(dir, "adapt", "--validate", "--config", path))
			for _, want := range test.want {
				if !strings.Contains(got, want) {
					t.Errorf("the error doesn't say %q: %s", want, got)
				}
			}
		})
	}
}

// TestStartupReport: one line per server at the start says what will happen,
// and what to do about it if that is nothing. Requests don't repeat it.
func TestStartupReport(t *testing.T) {
	c := start(t, listener{wrappers: "ktls"}, listener{wrappers: "ktls"})
	isReport := func(l *line) bool {
		return l.Logger == "caddy.listeners.ktls" && (l.Level == "info" || l.Level == "warn")
	}
	for i := range 2 {
		l := c.awaitLine(t, "what the kernel can do", func(l *line) bool {
			return isReport(l) && slices.Contains(l.Listen, c.addr(i))
		})
		t.Log(l.raw)
		switch {
		case kernel.ulp && (l.Level != "info" || !strings.Contains(l.Msg, "kernel TLS on")):
			t.Error("want an info that kernel TLS is on")
		case !kernel.ulp && l.Level != "warn":
			t.Error("want a warning that the kernel can't")
		case !kernel.ulp && !strings.Contains(l.Remedy+l.Msg, "modprobe tls"):
			t.Error("the warning doesn't say what to do")
		}
	}
	c.goClient(t, 0, "h1").get(t, c.url(0, "/"+medium.name)).isFile(t, medium)
	c.goClient(t, 1, "h1").get(t, c.url(1, "/"+medium.name+"?1")).isFile(t, medium)
	c.response(t, "/"+medium.name+"?1")
	if n := c.log.count(isReport); n != 2 {
		t.Errorf("two servers say so %d times", n)
	}
}

// TestOneWithoutTheOther: a server that has the wrapper and no handler, or the
// other way round, says so once, and serves as ever.
func TestOneWithoutTheOther(t *testing.T) {
	c := start(t,
		listener{wrappers: "ktls", sites: []site{{body: plainFiles(www)}, {host: "off.localhost", body: plainFiles(www, "ktls off")}}},
		listener{sites: []site{{body: files()}, {host: "other.localhost", body: files()}}},
		listener{wrappers: "ktls"},
		listener{},
	)
	for i := range 4 {
		uri := fmt.Sprintf("/%s?%d", medium.name, i)
		c.goClient(t, i, "h1").get(t, c.url(i, uri)).isFile(t, medium)
		l := c.response(t, uri)
		switch {
		case i == 0 && l.KTLS != nil:
			t.Errorf("no handler, but %+v", *l.KTLS)
		case i == 2:
			l.isFile(t, medium.size)
		case i == 1 || i == 3:
			l.isPlain(t, "not_wrapped")
		}
	}
	for i, want := range []struct{ level, logger string }{
		{"info", "caddy.listeners.ktls"}, {"warn", "http.handlers.ktls"}, {}, {"warn", "http.handlers.ktls"},
	} {
		n := c.log.count(func(l *line) bool {
			return strings.Contains(l.Msg, " without the ktls ") && slices.Contains(l.Listen, c.addr(i)) &&
				l.Level == want.level && l.Logger == want.logger
		})
		all := c.log.count(func(l *line) bool {
			return strings.Contains(l.Msg, " without the ktls ") && slices.Contains(l.Listen, c.addr(i))
		})
		expected := 1
		if want.level == "" || i == 0 && !kernel.ulp { // where the kernel can't, that is all there is to say
			expected = 0
		}
		if n != expected || all != expected {
			t.Errorf("listener %d: said %d times as it should be, %d times in all; want %d", i, n, all, expected)
		}
	}
}

// TestRequire: with `require`, Caddy doesn't start where the kernel can't.
func TestRequire(t *testing.T) {
	const wrapper = "ktls {\n\trequire\n}"
	if kernel.ulp {
		c := start(t, listener{wrappers: wrapper})
		c.stillServes(t)
		return
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "Caddyfile")
	config := "{\n\tadmin off\n\tlocal_certs\n\tskip_install_trust\n\tservers {\n\t\tlistener_wrappers {\n" + wrapper + "\n}\n}\n}\nhttps://localhost:8443 {\nktls\n}\n"
	if err := os.WriteFile(path, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := errorOf(t, caddyCommand(dir, "run", "--config", path)); !strings.Contains(got, "modprobe tls") {
		t.Errorf("the error doesn't say what to do: %s", got)
	}
}
