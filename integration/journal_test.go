//go:build linux

package integration

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// journal is what Caddy writes to its standard error: its log and its access
// log, a JSON object a line, and whatever else a crash would leave there.
type journal struct {
	mu    sync.Mutex
	lines []line
	ended bool
	grown chan struct{} // closed and replaced with every line
}

// line is one line of the log. The fields are those the tests look at.
type line struct {
	raw string

	Level    string
	Logger   string
	Msg      string
	Subjects []string // "added certificate to cache"
	Remedy   string   // "kernel TLS ..."
	Listen   []string // likewise

	// "connection upgraded to kernel TLS"
	Version  string
	Cipher   string
	Sequence *uint64
	Upgrade  string
	Remote   string

	// "handled request"
	Request struct {
		Proto      string
		Method     string
		URI        string
		RemoteIP   string `json:"remote_ip"`
		RemotePort string `json:"remote_port"`
		Headers    http.Header
	}
	Status int
	Size   int64
	KTLS   *struct {
		Path   string
		Reason string
		Sent   int64
	}
}

func (l *line) isAccess() bool  { return strings.HasPrefix(l.Logger, "http.log.access") }
func (l *line) isUpgrade() bool { return l.Msg == "connection upgraded to kernel TLS" }

func newJournal() *journal { return &journal{grown: make(chan struct{})} }

// follow reads the log until it ends.
func (j *journal) follow(r io.Reader) {
	for b := bufio.NewReader(r); ; {
		text, err := b.ReadString('\n')
		if text != "" {
			l := line{raw: strings.TrimSuffix(text, "\n")}
			if strings.HasPrefix(text, "{") {
				// A line of another shape is kept as text only.
				_ = json.Unmarshal([]byte(text), &l)
			}
			j.add(&l)
		}
		if err != nil {
			j.add(nil)
			return
		}
	}
}

func (j *journal) add(l *line) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if l == nil {
		j.ended = true
	} else {
		j.lines = append(j.lines, *l)
	}
	close(j.grown)
	j.grown = make(chan struct{})
}

// snapshot is the log so far.
func (j *journal) snapshot() (lines []line, ended bool, grown <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.lines[:len(j.lines):len(j.lines)], j.ended, j.grown
}

// await returns the nth line (from 0) that match accepts, once it is there.
// It is false if the log ended, or patience did, before.
func (j *journal) await(nth int, match func(*line) bool) (line, bool) {
	timeout := time.After(patience)
	for next, found := 0, 0; ; {
		lines, ended, grown := j.snapshot()
		for ; next < len(lines); next++ {
			if match(&lines[next]) {
				if found == nth {
					return lines[next], true
				}
				found++
			}
		}
		if ended {
			return line{}, false
		}
		select {
		case <-grown:
		case <-timeout:
			return line{}, false
		}
	}
}

// count says how many lines so far are accepted by match.
func (j *journal) count(match func(*line) bool) (n int) {
	lines, _, _ := j.snapshot()
	for i := range lines {
		if match(&lines[i]) {
			n++
		}
	}
	return n
}

// text is all of the log.
func (j *journal) text() string {
	lines, _, _ := j.snapshot()
	var b strings.Builder
	for i := range lines {
		b.WriteString(lines[i].raw)
		b.WriteByte('\n')
	}
	return b.String()
}

// tail is the end of the log, for a test that failed.
func (j *journal) tail(n int) string {
	lines, _, _ := j.snapshot()
	var b strings.Builder
	for _, l := range lines[max(0, len(lines)-n):] {
		raw := l.raw
		if len(raw) > 600 {
			raw = raw[:600] + " ..."
		}
		b.WriteString(raw)
		b.WriteByte('\n')
	}
	return b.String()
}

// response returns the access log's line for a request. Asked again for the
// same URI, it returns the line of the next request for it.
func (c *caddy) response(t *testing.T, uri string) line {
	t.Helper()
	c.mu.Lock()
	nth := c.seen[uri]
	c.seen[uri]++
	c.mu.Unlock()
	l, ok := c.log.await(nth, func(l *line) bool { return l.isAccess() && l.Request.URI == uri })
	if !ok {
		t.Fatalf("the access log has no line %d for %s", nth, uri)
	}
	return l
}

// responseTo returns the access log's line for the request that had a header.
func (c *caddy) responseTo(t *testing.T, name, value string) line {
	t.Helper()
	l, ok := c.log.await(0, func(l *line) bool { return l.isAccess() && slices.Contains(l.Request.Headers[name], value) })
	if !ok {
		t.Fatalf("the access log has no request with %s: %s", name, value)
	}
	return l
}

// tookFile checks that a response whose body is n bytes of a file went by
// sendfile. Where kernel TLS or its size forbid that, it checks that it
// went the plain way for that reason.
func (c *caddy) tookFile(t *testing.T, uri string, n int64) line {
	t.Helper()
	l := c.response(t, uri)
	l.isFile(t, n)
	return l
}

// isFile is tookFile for a line of the access log.
func (l *line) isFile(t *testing.T, n int64) {
	t.Helper()
	uri := l.Request.URI
	switch {
	case l.KTLS == nil:
		t.Errorf("%s: no ktls in the access log: %s", uri, l.raw)
	case !kernel.ulp:
		if l.KTLS.Path != "plain" || l.KTLS.Reason != "kernel" {
			t.Errorf("%s: %+v; want plain because of the kernel", uri, *l.KTLS)
		}
	case n < minSendfile:
		if l.KTLS.Path != "plain" || l.KTLS.Reason != "too_small" {
			t.Errorf("%s: %+v; want plain, too_small", uri, *l.KTLS)
		}
	case l.KTLS.Path != "sendfile" || l.KTLS.Reason != "" || l.KTLS.Sent != n:
		t.Errorf("%s: %+v; want %d bytes by sendfile", uri, *l.KTLS, n)
	}
}

// tookPlain checks that a response did not go by sendfile, and why; an empty
// reason means any, even that the handler had no part in it.
func (c *caddy) tookPlain(t *testing.T, uri, reason string) line {
	t.Helper()
	l := c.response(t, uri)
	switch {
	case l.KTLS != nil:
		l.isPlain(t, reason)
	case reason != "":
		t.Errorf("%s: no ktls in the access log: %s", uri, l.raw)
	}
	return l
}

// isPlain is tookPlain for a line of the access log that has our object.
func (l *line) isPlain(t *testing.T, reason string) {
	t.Helper()
	switch {
	case l.KTLS == nil:
		t.Errorf("%s: no ktls in the access log: %s", l.Request.URI, l.raw)
	case l.KTLS.Path != "plain" || l.KTLS.Sent != 0:
		t.Errorf("%s: %+v; want plain", l.Request.URI, *l.KTLS)
	case reason != "" && l.KTLS.Reason != reason && (kernel.ulp || l.KTLS.Reason != "kernel"):
		t.Errorf("%s: %+v; want reason %s", l.Request.URI, *l.KTLS, reason)
	}
}

// upgradeOf returns the log's line on the upgrade of the connection that the
// response came over.
func (c *caddy) upgradeOf(t *testing.T, response line) line {
	t.Helper()
	port := ":" + response.Request.RemotePort
	l, ok := c.log.await(0, func(l *line) bool { return l.isUpgrade() && strings.HasSuffix(l.Remote, port) })
	if !ok {
		t.Fatalf("no line in the log says that the connection from port %s was upgraded", port)
	}
	if l.Logger != "caddy.listeners.ktls" || l.Level != "debug" {
		t.Errorf("the upgrade was logged by %s at %s", l.Logger, l.Level)
	}
	if l.Sequence == nil {
		t.Errorf("no sequence in the log's line on the upgrade: %s", l.raw)
	}
	return l
}
