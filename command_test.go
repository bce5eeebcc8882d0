package caddyktls

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"unicode/utf8"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/caddy-ktls/caddy-ktls/ktls"
)

// commandEnv makes the test binary the caddy command.
const commandEnv = "KTLS_TEST_COMMAND"

// TestCommandMain is no test: it is the program that caddyCommand runs.
func TestCommandMain(t *testing.T) {
	args := os.Getenv(commandEnv)
	if args == "" {
		t.Skip("run by the other tests")
	}
	os.Args = append([]string{"caddy"}, strings.Fields(args)...)
	caddycmd.Main()
	os.Exit(0)
}

// caddyCommand runs Caddy's main program with this module in a process of its
// own.
func caddyCommand(t *testing.T, args string) (stdout, stderr string, status int) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^TestCommandMain$")
	cmd.Env = append(os.Environ(), commandEnv+"="+args, "CADDY_ADMIN=127.0.0.1:1")
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// TestCommand runs the doctor on this machine.
func TestCommand(t *testing.T) {
	features := ktls.Probe()
	want, verdict := exitNotReady, "\n\nNot ready: "
	if features.Usable() {
		want, verdict = 0, "\n\nReady"
	}
	stdout, stderr, status := caddyCommand(t, "ktls")
	t.Logf("exit status %d\n%s", status, stdout)
	if status != want || stderr != "" {
		t.Errorf("exit status %d, want %d; on standard error: %s", status, want, stderr)
	}
	parts := []string{features.Kernel, "answers at 127.0.0.1:1.", verdict}
	if runtime.GOOS == "linux" {
		parts = append(parts, "tcp_notsent_lowat", "network cards")
	}
	for _, part := range parts {
		if !strings.Contains(stdout, part) {
			t.Errorf("says nothing of %q", part)
		}
	}
	for line := range strings.Lines(stdout) {
		if utf8.RuneCountInString(strings.TrimSuffix(line, "\n")) > 80 {
			t.Errorf("too wide: %q", line)
		}
	}
	if strings.Contains(stdout, "\x1b") {
		t.Error("colours, though this is no terminal")
	}

	stdout, stderr, status = caddyCommand(t, "ktls --json --address 127.0.0.1:2")
	var report struct {
		Ready   bool
		Verdict string
		Kernel  struct{ Kernel string }
		Server  struct{ Address, Status string }
	}
	if err := json.Unmarshal([]byte(stdout), &report); err != nil {
		t.Fatalf("%v in %s", err, stdout)
	}
	if status != want || stderr != "" {
		t.Errorf("--json: exit status %d, want %d; on standard error: %s", status, want, stderr)
	}
	if report.Ready != (want == 0) || report.Verdict == "" || report.Kernel.Kernel != features.Kernel ||
		report.Server.Address != "127.0.0.1:2" || report.Server.Status != "none" {
		t.Errorf("--json: %+v", report)
	}
}

func TestCommandUsage(t *testing.T) {
	for _, tc := range []struct{ args, message string }{
		{"ktls --nope", "unknown flag: --nope"},
		{"ktls --json=maybe", "invalid argument"},
		{"ktls --address", "flag needs an argument"},
		{"ktls now", `unknown command "now" for "caddy ktls"`},
	} {
		stdout, stderr, status := caddyCommand(t, tc.args)
		if status != exitUsage || stdout != "" || !strings.Contains(stderr, tc.message) ||
			!strings.Contains(stderr, "\nUsage: caddy ktls [--address <admin>] [--json]\n") {
			t.Errorf("%s: exit status %d\nstandard output: %s\nstandard error: %s", tc.args, status, stdout, stderr)
		}
	}
	stdout, _, status := caddyCommand(t, "help ktls")
	if status != 0 || !strings.Contains(stdout, "exit status") || !strings.Contains(stdout, "--json") {
		t.Errorf("help: exit status %d: %s", status, stdout)
	}
}

func TestColourful(t *testing.T) {
	if colourful(nil) {
		t.Error("nothing is a terminal")
	}
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if colourful(f) {
		t.Error("a file is a terminal")
	}
}
