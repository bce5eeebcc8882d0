//go:build linux

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// setup describes a Caddy under test.
type setup struct {
	listeners []listener
	global    string                      // further global options
	patch     func(config map[string]any) // changes the JSON config; for what the Caddyfile can't say
	command   func(*exec.Cmd)             // changes how Caddy is run
}

// listener is an address Caddy listens on.
type listener struct {
	wrappers string // lines of listener_wrappers; none if empty
	options  string // further lines of the servers option
	bind     string // what to bind to; 127.0.0.1 if empty
	port     int    // one that is free if 0
	protos   string // "h1 h2" if empty
	clear    bool   // HTTP without TLS
	sites    []site // one with the defaults if none
}

// site is one site of a listener.
type site struct {
	host string // localhost if empty
	body string // directives; files() if empty
}

// files is the body of a site that serves the fixtures, each non-empty one by
// sendfile, with further directives.
func files(directives ...string) string { return filesFrom(www, directives...) }

func filesFrom(root string, directives ...string) string {
	return plainFiles(root, append(directives, "ktls {", "\tmin_size 1", "}")...)
}

// plainFiles does the same in stock Caddy's way.
func plainFiles(root string, directives ...string) string {
	body := []string{"log", "root * " + root}
	if !strings.Contains(strings.Join(directives, "\n"), "file_server") {
		body = append(body, "file_server")
	}
	return strings.Join(append(body, directives...), "\n")
}

// caddy is a running Caddy.
type caddy struct {
	cmd   *exec.Cmd
	log   *journal
	dir   string
	ports []int
	setup setup
	exit  chan error

	leaves bool // the test leaves it with another footprint than it began with

	mu   sync.Mutex
	seen map[string]int // lines of the access log already looked at, by URI
}

// start runs a Caddy with these listeners until the test ends.
func start(t *testing.T, listeners ...listener) *caddy {
	t.Helper()
	return setup{listeners: listeners}.start(t)
}

func (s setup) start(t testing.TB) *caddy {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "caddy") // t.TempDir is too long a name for a Unix socket
	if err != nil {
		t.Fatal(err)
	}
	c := &caddy{setup: s, dir: dir, log: newJournal(), exit: make(chan error, 1), seen: map[string]int{}}
	for _, ln := range s.listeners {
		if ln.port == 0 {
			ln.port = freePort(t)
		}
		c.ports = append(c.ports, ln.port)
	}
	config := filepath.Join(dir, "Caddyfile")
	text := c.caddyfile()
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if s.patch != nil {
		config = c.patched(t, config)
	}

	c.launch(t, config)

	c.awaitLine(t, "serving initial configuration", func(l *line) bool { return l.Msg == "serving initial configuration" })
	for i, ln := range s.listeners {
		for j := range ln.sites {
			if host := c.host(i, j); !ln.clear && !strings.Contains(ln.sites[j].body, "on_demand") {
				c.awaitLine(t, "certificate for "+host, func(l *line) bool {
					return l.Msg == "added certificate to cache" && slices.Contains(l.Subjects, host)
				})
			}
		}
	}
	// What Caddy has with a CA, and who it asks about names, outlasts a test.
	c.leaves = strings.Contains(text, "on_demand") || strings.Contains(text, "acme")
	before := c.settled(t)
	t.Cleanup(func() { c.leftNothing(t, before) })
	return c
}

// launch runs Caddy with a config file until the test ends.
func (c *caddy) launch(t testing.TB, config string, env ...string) {
	t.Helper()
	c.cmd = caddyCommand(c.dir, "run", "--config", config)
	c.cmd.Env = append(c.cmd.Env, env...)
	if c.setup.command != nil {
		c.setup.command(c.cmd)
	}
	stderr, err := c.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.cmd.Stdout = os.Stderr
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		c.log.follow(stderr)
		c.exit <- c.cmd.Wait()
	}()
	t.Cleanup(func() { c.stop(t) })
}

// caddyCommand is a command of the Caddy under test that keeps its files to dir.
func caddyCommand(dir string, args ...string) *exec.Cmd {
	cmd := exec.Command(caddyBinary, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir,
		"GORACE=exitcode=0") // stop looks at the reports
	return cmd
}

// awaitLine waits for a line of the log that must come.
func (c *caddy) awaitLine(t testing.TB, what string, match func(*line) bool) line {
	t.Helper()
	l, ok := c.log.await(0, match)
	if !ok {
		t.Fatalf("nothing in Caddy's log about: %s", what)
	}
	return l
}

// caddyfile writes the setup as a Caddyfile.
func (c *caddy) caddyfile() string {
	var b strings.Builder
	fmt.Fprintf(&b, "{\n\tdebug\n\tadmin unix/%s\n\tpersist_config off\n\tstorage file_system %s\n", c.adminSocket(), storage)
	fmt.Fprintf(&b, "\tlocal_certs\n\tskip_install_trust\n\tauto_https disable_redirects\n\tgrace_period 2s\n")
	indent(&b, 1, c.setup.global)
	for i, ln := range c.setup.listeners {
		fmt.Fprintf(&b, "\tservers %s {\n\t\tprotocols %s\n", c.listenAddress(i), either(ln.protos, "h1 h2"))
		indent(&b, 2, ln.options)
		if ln.wrappers != "" {
			b.WriteString("\t\tlistener_wrappers {\n")
			indent(&b, 3, ln.wrappers)
			b.WriteString("\t\t}\n")
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	for i := range c.setup.listeners {
		ln := &c.setup.listeners[i]
		if len(ln.sites) == 0 {
			ln.sites = []site{{}}
		}
		for j, s := range ln.sites {
			scheme := "https"
			if ln.clear {
				scheme = "http"
			}
			fmt.Fprintf(&b, "%s://%s:%d {\n\tbind %s\n", scheme, c.host(i, j), c.ports[i], either(ln.bind, "127.0.0.1"))
			indent(&b, 1, either(s.body, files()))
			b.WriteString("}\n")
		}
	}
	return b.String()
}

func indent(b *strings.Builder, tabs int, lines string) {
	for l := range strings.Lines(lines) {
		b.WriteString(strings.Repeat("\t", tabs) + strings.TrimRight(l, "\n") + "\n")
	}
}

func either(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func (c *caddy) listenAddress(i int) string {
	bind := either(c.setup.listeners[i].bind, "127.0.0.1")
	if strings.HasPrefix(bind, "unix/") {
		return bind
	}
	return net.JoinHostPort(strings.Trim(bind, "[]"), strconv.Itoa(c.ports[i]))
}

// patched adapts the Caddyfile and writes the JSON config, changed.
func (c *caddy) patched(t testing.TB, caddyfile string) string {
	t.Helper()
	cmd := caddyCommand(c.dir, "adapt", "--config", caddyfile)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("caddy adapt: %v", err)
	}
	var config map[string]any
	if err := json.Unmarshal(out, &config); err != nil {
		t.Fatal(err)
	}
	c.setup.patch(config)
	if out, err = json.Marshal(config); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(c.dir, "caddy.json")
	if err := os.WriteFile(path, out, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// stop ends Caddy the way a service manager does, and checks that it went in
// peace.
func (c *caddy) stop(t testing.TB) {
	c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-c.exit:
		if err != nil {
			t.Errorf("caddy ended with %v", err)
		}
	case <-time.After(patience):
		t.Errorf("caddy still runs %v after SIGTERM", patience)
		c.cmd.Process.Signal(syscall.SIGQUIT) // leaves its goroutines in the log
		select {
		case <-c.exit:
		case <-time.After(patience):
			c.cmd.Process.Kill()
			<-c.exit
		}
	}
	text := c.log.text()
	for _, bad := range []string{"panic", "fatal error"} {
		if i := strings.Index(text, bad); i >= 0 {
			t.Errorf("caddy's log: %s", text[max(0, i-200):min(len(text), i+4000)])
		}
	}
	for _, report := range ourRaces(text) {
		t.Errorf("caddy's log: %s", report)
	}
	if t.Failed() {
		t.Logf("the end of caddy's log:\n%s", c.log.tail(60))
	}
	os.RemoveAll(c.dir)
}

// ourRaces returns the race detector's reports that this module has a part in.
// Caddy v2.11.9 has races of its own, between the start of its tls app and the
// events that certificates make meanwhile.
func ourRaces(log string) []string {
	const bar = "==================\n"
	var ours []string
	for report := range strings.SplitSeq(log, bar) {
		if strings.HasPrefix(report, "WARNING: DATA RACE") && strings.Contains(report, "github.com/caddy-ktls/caddy-ktls") {
			ours = append(ours, report)
		}
	}
	return ours
}

var givenPorts sync.Map // the keys are what freePort has returned

// freePort is a port that nobody listens on, and another one each time: who asked
// before may not listen yet.
func freePort(t testing.TB) int {
	t.Helper()
	for {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := ln.Addr().(*net.TCPAddr).Port
		ln.Close()
		if _, given := givenPorts.LoadOrStore(port, true); !given {
			return port
		}
	}
}

func (c *caddy) host(i, j int) string { return either(c.setup.listeners[i].sites[j].host, "localhost") }

// addr is where listener i listens.
func (c *caddy) addr(i int) string { return c.listenAddress(i) }

// url is the address of something on a listener's first site.
func (c *caddy) url(i int, uri string) string { return c.urlOf(i, 0, uri) }

func (c *caddy) urlOf(i, j int, uri string) string {
	scheme := "https"
	if c.setup.listeners[i].clear {
		scheme = "http"
	}
	return fmt.Sprintf("%s://%s:%d%s", scheme, c.host(i, j), c.ports[i], uri)
}

// rootFile is the certificate of Caddy's internal CA.
func rootFile() string { return filepath.Join(storage, "pki/authorities/local/root.crt") }

func (c *caddy) adminSocket() string { return filepath.Join(c.dir, "admin.sock") }

// admin asks Caddy's admin endpoint.
func (c *caddy) admin(t testing.TB, method, uri, contentType, body string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", c.adminSocket())
		},
	}}
	req, err := http.NewRequest(method, "http://caddy"+uri, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s, %v: %s", method, uri, resp.Status, err, b)
	}
	return string(b)
}

// footprint is what a connection that isn't cleaned up would leave behind.
type footprint struct{ descriptors, goroutines, ours, offloaded int }

func (c *caddy) footprint(t testing.TB) footprint {
	t.Helper()
	profile := c.admin(t, "GET", "/debug/pprof/goroutine?debug=1", "", "")
	var goroutines, ours int
	if _, err := fmt.Sscanf(profile, "goroutine profile: total %d", &goroutines); err != nil {
		t.Fatal(err)
	}
	_, stacks, _ := strings.Cut(profile, "\n")
	for stack := range strings.SplitSeq(stacks, "\n\n") {
		if strings.Contains(stack, "github.com/caddy-ktls/caddy-ktls") {
			var n int
			if _, err := fmt.Sscanf(stack, "%d @", &n); err != nil {
				t.Fatalf("%v in %s", err, stack)
			}
			ours += n
		}
	}
	return footprint{c.descriptors(t), goroutines, ours, tlsStat(t, "TlsCurrTxSw")}
}

// settled is the footprint after the start, when what Caddy does once is done: it
// hasn't become smaller for a while.
func (c *caddy) settled(t testing.TB) footprint {
	t.Helper()
	least := c.footprint(t)
	for same := 0; same < 3; same++ {
		time.Sleep(5 * time.Millisecond)
		now := c.footprint(t)
		if now.descriptors < least.descriptors || now.goroutines < least.goroutines {
			same = 0
		}
		least.descriptors, least.goroutines = min(least.descriptors, now.descriptors), min(least.goroutines, now.goroutines)
		least.ours = max(least.ours, now.ours) // those that accept
	}
	return least
}

// leftNothing checks, when a test has ended and closed its connections, that
// Caddy has nothing left of it.
func (c *caddy) leftNothing(t testing.TB, before footprint) {
	t.Helper()
	if c.leaves || t.Failed() {
		return
	}
	c.awaitFootprint(t, before)
}

// descriptors is how many files and connections Caddy has open, without those of
// the admin endpoint, which come and go with each look at it.
func (c *caddy) descriptors(t testing.TB) (n int) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", c.cmd.Process.Pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	unixSockets, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		target, err := os.Readlink(filepath.Join(dir, fd.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		if inode, ok := strings.CutPrefix(target, "socket:["); ok && bytes.Contains(unixSockets, []byte(" "+strings.TrimSuffix(inode, "]"))) {
			continue
		}
		n++
	}
	return n
}

// awaitFootprint waits until nothing is left of what happened since before.
func (c *caddy) awaitFootprint(t testing.TB, before footprint) {
	t.Helper()
	var now footprint
	failed := t.Failed()
	defer func() {
		if t.Failed() && !failed {
			t.Logf("before: %+v, now: %+v\n%s", before, now, c.admin(t, "GET", "/debug/pprof/goroutine?debug=2", "", ""))
		}
	}()
	eventually(t, "descriptors, goroutines and kernel TLS sockets are given back", func() bool {
		now = c.footprint(t)
		return now.descriptors <= before.descriptors && now.goroutines <= before.goroutines &&
			now.ours <= before.ours && now.offloaded <= before.offloaded
	})
}

// errorOf runs a command of caddy that must fail and returns what it says.
func errorOf(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer time.AfterFunc(patience, func() { cmd.Process.Kill() }).Stop()
	if err := cmd.Wait(); err == nil || !cmd.ProcessState.Exited() {
		t.Errorf("%v did not fail: %v", cmd.Args[1:], err)
	}
	return stderr.String()
}
