//go:build linux

package integration

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// chromium is a Chromium without a window, and one page of it. It is driven by
// the DevTools protocol (chromedevtools.github.io/devtools-protocol) over a pair
// of pipes, on which a zero byte ends each message.
type chromium struct {
	cmd     *exec.Cmd
	stderr  bytes.Buffer
	to      *os.File
	from    *os.File
	buffer  *bufio.Reader
	page    string // the session with the page
	calls   int
	events  []event // of the page, so far
	stopped bool
}

// event is something that Chromium tells unasked.
type event struct {
	Method string
	Params eventParams
	raw    string
}

// eventParams has what the tests look at of all kinds of events.
type eventParams struct {
	Canceled bool                              // Network.loadingFailed
	Entry    struct{ Level, Text, URL string } // Log.entryAdded
	Response struct {                          // Network.responseReceived
		URL             string
		Status          int
		Protocol        string
		SecurityState   string
		SecurityDetails struct{ Protocol string }
	}
}

// startChromium starts a Chromium that trusts the root of Caddy's internal CA
// as a user's would: by the certificate database in its home.
func startChromium(t *testing.T) *chromium {
	t.Helper()
	home := t.TempDir()
	db := filepath.Join(home, ".pki/nssdb")
	if err := os.MkdirAll(db, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"-N", "--empty-password"},
		{"-A", "-n", "Caddy's internal CA", "-t", "C,,", "-i", rootFile()},
	} {
		out, err := exec.Command(command(t, "certutil"), append(args, "-d", "sql:"+db)...).CombinedOutput()
		if err != nil {
			t.Fatalf("certutil %v: %v: %s", args, err, out)
		}
	}

	b := new(chromium)
	b.cmd = exec.Command(command(t, "chromium"), "--headless", "--remote-debugging-pipe",
		"--user-data-dir="+filepath.Join(home, "profile"), "--window-size=1000,1000", "--no-first-run",
		"--no-sandbox", // it refuses to run as root with one
		"--disable-gpu", "--disable-dev-shm-usage", "--disable-component-update", "--disable-background-networking")
	b.cmd.Env = append(os.Environ(), "HOME="+home, "XDG_CONFIG_HOME="+home, "XDG_CACHE_HOME="+home, "XDG_DATA_HOME="+home)
	b.cmd.Stderr = &b.stderr
	b.cmd.WaitDelay = patience // for what a killed one leaves behind
	commands, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	from, answers, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	b.cmd.ExtraFiles = []*os.File{commands, answers} // descriptors 3 and 4, as Chromium wants them
	b.to, b.from, b.buffer = to, from, bufio.NewReader(from)
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	commands.Close()
	answers.Close()
	t.Cleanup(func() { b.stop(t) })

	var target struct{ TargetID string }
	b.call(t, &target, "Target.createTarget", map[string]any{"url": "about:blank"})
	var session struct{ SessionID string }
	b.call(t, &session, "Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true})
	b.page = session.SessionID
	for _, domain := range []string{"Network", "Log", "Runtime", "Page"} {
		b.call(t, nil, domain+".enable", nil)
	}
	return b
}

// stop closes Chromium, unless it is closed.
func (b *chromium) stop(t *testing.T) {
	t.Helper()
	if b.stopped {
		return
	}
	b.stopped = true
	b.page = ""
	b.send(t, "Browser.close", nil)
	// What nobody reads must not keep it from going.
	_ = b.from.SetReadDeadline(time.Time{})
	go func() { _, _ = io.Copy(io.Discard, b.from) }()
	ended := time.AfterFunc(patience, func() { b.cmd.Process.Kill() })
	err := b.cmd.Wait()
	ended.Stop()
	b.to.Close()
	b.from.Close()
	if err != nil {
		t.Errorf("chromium: %v", err)
	}
	if t.Failed() {
		t.Logf("chromium says:\n%s", b.stderr.String())
	}
}

func (b *chromium) send(t *testing.T, method string, params map[string]any) {
	t.Helper()
	b.calls++
	message := map[string]any{"id": b.calls, "method": method}
	if params != nil {
		message["params"] = params
	}
	if b.page != "" {
		message["sessionId"] = b.page
	}
	text, err := json.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.to.Write(append(text, 0)); err != nil {
		t.Errorf("chromium doesn't listen: %v", err)
	}
}

// call does something in the page, or in the browser as long as there is none,
// and waits for its result.
func (b *chromium) call(t *testing.T, result any, method string, params map[string]any) {
	t.Helper()
	b.send(t, method, params)
	for {
		answer := b.receive(t)
		if answer.ID != b.calls {
			continue
		}
		if answer.Error != nil {
			t.Fatalf("%s: %s", method, answer.Error.Message)
		}
		if result != nil {
			if err := json.Unmarshal(answer.Result, result); err != nil {
				t.Fatalf("%s: %v: %s", method, err, answer.Result)
			}
		}
		return
	}
}

// open goes to a page and waits until it is loaded, with all that belongs to it.
func (b *chromium) open(t *testing.T, url string) {
	t.Helper()
	next := len(b.events)
	var result struct{ ErrorText string }
	b.call(t, &result, "Page.navigate", map[string]any{"url": url})
	if result.ErrorText != "" {
		t.Fatalf("chromium: %s: %s", url, result.ErrorText)
	}
	for ; ; next++ {
		for next == len(b.events) {
			b.receive(t)
		}
		if b.events[next].Method == "Page.loadEventFired" {
			return
		}
	}
}

type chromiumMessage struct {
	ID     int
	Result json.RawMessage
	Error  *struct{ Message string }
	Method string
	Params json.RawMessage
}

// receive waits for the next message. Events go to b.events.
func (b *chromium) receive(t *testing.T) (m chromiumMessage) {
	t.Helper()
	if err := b.from.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	text, err := b.buffer.ReadBytes(0)
	if err != nil {
		t.Fatalf("no word from chromium: %v", err)
	}
	text = text[:len(text)-1]
	if err := json.Unmarshal(text, &m); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if m.Method != "" {
		e := event{Method: m.Method, raw: string(text)}
		// Events of a shape of their own are kept by name only.
		_ = json.Unmarshal(m.Params, &e.Params)
		b.events = append(b.events, e)
	}
	return m
}

// evaluate runs an expression in the page; result gets its value, or what a
// promise comes to.
func (b *chromium) evaluate(t *testing.T, result any, expression string) {
	t.Helper()
	var answer struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails *struct {
			Text      string
			Exception struct{ Description string }
		}
	}
	b.call(t, &answer, "Runtime.evaluate", map[string]any{
		"expression": expression, "awaitPromise": true, "returnByValue": true,
	})
	if e := answer.ExceptionDetails; e != nil {
		t.Fatalf("%s: %s %s", expression, e.Text, e.Exception.Description)
	}
	if err := json.Unmarshal(answer.Result.Value, result); err != nil {
		t.Fatalf("%s: %v: %s", expression, err, answer.Result.Value)
	}
}

// screenshot is what the page looks like, as a PNG.
func (b *chromium) screenshot(t *testing.T) []byte {
	t.Helper()
	var shot struct{ Data []byte }
	b.call(t, &shot, "Page.captureScreenshot", map[string]any{"format": "png"})
	return shot.Data
}
