//go:build linux

package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// scrape reads our series from Caddy's own metrics, by name and labels.
func (c *caddy) scrape(t *testing.T) map[string]float64 {
	t.Helper()
	series := map[string]float64{}
	for s := bufio.NewScanner(strings.NewReader(c.admin(t, "GET", "/metrics", "", ""))); s.Scan(); {
		name, value, ok := strings.Cut(s.Text(), "} ")
		if !ok {
			name, value, ok = strings.Cut(s.Text(), " ")
		}
		if !ok || !strings.HasPrefix(name, "caddy_ktls_") {
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatalf("%q: %v", s.Text(), err)
		}
		series[name] = n
	}
	return series
}

// apiStatus is what we look at in the answer of GET /ktls/.
type apiStatus struct {
	Kernel struct {
		Usable bool
		Reason string
	}
	Connections []struct {
		Outcome, Reason, Version, Cipher string
		Count                            int64
	}
	CurrentConnections int64 `json:"current_connections"`
	Responses          []struct {
		Path, Reason string
		Count, Bytes int64
	}
	Handshakes struct{ Waiting, Count, Failed, Refused int64 }
	Servers    []serverStatus
	Last       []struct{ What, Reason string }
}

// serverStatus is a server's settings there.
type serverStatus struct {
	Listen           []string
	Usable           bool
	Upgrade          string
	HandshakeTimeout float64 `json:"handshake_timeout"`
	MaxHandshakes    int     `json:"max_handshakes"`
	ZerocopyRO       bool    `json:"zerocopy_ro"`
	RecordSize       int     `json:"record_size"`
	RX               bool
}

func (c *caddy) status(t *testing.T) (s apiStatus) {
	t.Helper()
	if err := json.Unmarshal([]byte(c.admin(t, "GET", "/ktls/", "", "")), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// wantPath is the path, and the reason, that an eligible file takes here.
func wantPath() (path, reason string) {
	if kernel.ulp {
		return "sendfile", ""
	}
	return "plain", "kernel"
}

// TestMetrics: what was counted is in /metrics, and still there after a reload.
func TestMetrics(t *testing.T) {
	c := start(t, listener{wrappers: "ktls"})
	client := c.goClient(t, 0, "h1")
	client.get(t, c.url(0, "/"+medium.name)).isFile(t, medium)
	c.tookFile(t, "/"+medium.name, medium.size)

	path, reason := wantPath()
	labels := fmt.Sprintf("{path=%q,reason=%q", path, reason)
	before := c.scrape(t)
	for name, want := range map[string]float64{
		"caddy_ktls_responses_total" + labels:      1,
		"caddy_ktls_response_bytes_total" + labels: float64(medium.size),
	} {
		if before[name] != want {
			t.Errorf("%s: %v, want %v", name, before[name], want)
		}
	}
	if kernel.ulp {
		if got := before["caddy_ktls_connections"]; got != 1 {
			t.Errorf("%v current connections, want 1", got)
		}
		if got := before[`caddy_ktls_connections_total{cipher="AES-128-GCM",outcome="upgraded",reason="",version="TLS 1.3"`]; got != 1 {
			t.Errorf("%v upgraded connections, want 1: %v", got, before)
		}
		if got := before[`caddy_ktls_handshake_duration_seconds_count{result="ok"`]; got < 1 {
			t.Errorf("%v handshakes", got)
		}
	}

	c.admin(t, "POST", "/load", "text/caddyfile", strings.Replace(c.caddyfile(), "grace_period 2s", "grace_period 1s", 1))
	after := c.scrape(t)
	for name, n := range before {
		if name != "caddy_ktls_connections" && after[name] < n {
			t.Errorf("%s: %v before the reload, %v after", name, n, after[name])
		}
	}
	c.goClient(t, 0, "h1").get(t, c.url(0, "/"+medium.name+"?2")).isFile(t, medium)
	c.tookFile(t, "/"+medium.name+"?2", medium.size)
	if got := c.scrape(t)["caddy_ktls_responses_total"+labels]; got != 2 {
		t.Errorf("%v responses after the reload, want 2", got)
	}
	if kernel.ulp {
		client.CloseIdleConnections()
		eventually(t, "only the connection that is left counts", func() bool { return c.scrape(t)["caddy_ktls_connections"] == 1 })
	}
}

// TestMetricsWithoutWrapper: a handler counts on its own.
func TestMetricsWithoutWrapper(t *testing.T) {
	c := start(t, listener{})
	c.goClient(t, 0, "h1").get(t, c.url(0, "/"+medium.name)).isFile(t, medium)
	reason := c.tookPlain(t, "/"+medium.name, "not_wrapped").KTLS.Reason
	if got := c.scrape(t)[fmt.Sprintf("caddy_ktls_responses_total{path=\"plain\",reason=%q", reason)]; got != 1 {
		t.Errorf("%v responses, want 1", got)
	}
}

// TestAdminAPI: GET /ktls/ tells what the kernel can do and what came of it.
func TestAdminAPI(t *testing.T) {
	c := start(t, listener{wrappers: "ktls", sites: []site{{body: files()}, {host: "off.localhost", body: plainFiles(www, "ktls off")}}})
	client := c.goClient(t, 0, "h1")
	client.get(t, c.url(0, "/"+medium.name)).isFile(t, medium)
	client.get(t, c.urlOf(0, 1, "/"+medium.name+"?off")).isFile(t, medium)
	c.tookPlain(t, "/"+medium.name+"?off", "disabled")

	s := c.status(t)
	if s.Kernel.Usable != kernel.ulp || (s.Kernel.Reason == "") != kernel.ulp {
		t.Errorf("kernel: %+v", s.Kernel)
	}
	path, reason := wantPath()
	seen := map[string]int64{}
	for _, r := range s.Responses {
		seen[r.Path+" "+r.Reason] = r.Bytes
	}
	if seen[path+" "+reason] != medium.size || seen["plain disabled"] != medium.size {
		t.Errorf("responses: %+v", s.Responses)
	}
	if len(s.Last) == 0 || s.Last[0].Reason != "disabled" {
		t.Errorf("last: %+v", s.Last)
	}
	if kernel.ulp && (len(s.Connections) != 1 || s.Connections[0].Outcome != "upgraded" || s.CurrentConnections != 1 || s.Handshakes.Count < 1) {
		t.Errorf("%+v", s)
	}
}

// TestDoctor: `caddy ktls` says whether this machine is ready, also by its exit
// status, and has the running server's counters.
func TestDoctor(t *testing.T) {
	c := start(t, listener{wrappers: "ktls"})
	c.goClient(t, 0, "h1").get(t, c.url(0, "/"+medium.name)).isFile(t, medium)
	c.tookFile(t, "/"+medium.name, medium.size)
	cmd := caddyCommand(c.dir, "ktls", "--json", "--address", "unix/"+c.adminSocket())
	out, err := cmd.Output()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	if got, want := cmd.ProcessState.ExitCode(), map[bool]int{true: 0, false: 1}[kernel.ulp]; got != want {
		t.Errorf("exit status %d, want %d", got, want)
	}
	var report struct {
		Ready   bool
		Verdict string
		Server  struct {
			Status string
			Report apiStatus
		}
	}
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if report.Ready != kernel.ulp || report.Verdict == "" {
		t.Errorf("ready %t: %s", report.Ready, report.Verdict)
	}
	if r := report.Server; r.Status != "answers" || len(r.Report.Responses) == 0 || r.Report.Responses[0].Bytes != medium.size {
		t.Errorf("server: %+v", r)
	}

	text, _ := caddyCommand(c.dir, "ktls", "--address", "unix/"+c.adminSocket()).Output()
	for line := range strings.Lines(string(text)) {
		if n := len([]rune(strings.TrimRight(line, "\n"))); n > 80 || strings.Contains(line, "\x1b") {
			t.Errorf("%d columns: %q", n, line)
		}
	}
	if !strings.Contains(string(text), "Running server") {
		t.Errorf("nothing about the running server:\n%s", text)
	}
}

// TestKTLSPlaceholders: what happened to a response can go into the access log in
// the user's own words.
func TestKTLSPlaceholders(t *testing.T) {
	c := start(t, listener{wrappers: "ktls", sites: []site{{body: files(
		"log_append a_offloaded {http.ktls.offloaded}", "log_append a_path {http.ktls.path}", "log_append a_reason {http.ktls.reason}")}}})
	client := c.goClient(t, 0, "h1")
	client.get(t, c.url(0, "/"+medium.name)).isFile(t, medium)
	l := c.tookFile(t, "/"+medium.name, medium.size)
	var got struct {
		Offloaded any    `json:"a_offloaded"`
		Path      string `json:"a_path"`
		Reason    string `json:"a_reason"`
	}
	if err := json.Unmarshal([]byte(l.raw), &got); err != nil {
		t.Fatal(err)
	}
	path, reason := wantPath()
	if got.Path != path || got.Reason != reason || fmt.Sprint(got.Offloaded) != fmt.Sprint(kernel.ulp) {
		t.Errorf("%+v in %s", got, l.raw)
	}

	// The connection stays offloaded, also for what isn't sent by sendfile.
	client.request(t, "HEAD", c.url(0, "/"+medium.name))
	l = c.tookPlain(t, "/"+medium.name, "method")
	if err := json.Unmarshal([]byte(l.raw), &got); err != nil {
		t.Fatal(err)
	}
	if got.Path != "plain" || kernel.ulp && got.Reason != "method" || fmt.Sprint(got.Offloaded) != fmt.Sprint(kernel.ulp) {
		t.Errorf("%+v in %s", got, l.raw)
	}
}
