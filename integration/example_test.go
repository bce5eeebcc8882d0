//go:build linux

package integration

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// TestExample: what the README promises of the example site, with the command
// that it gives: the right bytes, over HTTP/2 as curl has it by default; on a
// kernel with TLS one connection more that it encrypts, and a line that says so.
func TestExample(t *testing.T) {
	config, err := filepath.Abs("../examples/Caddyfile")
	if err != nil {
		t.Fatal(err)
	}
	c := &caddy{dir: t.TempDir(), log: newJournal(), exit: make(chan error, 1), seen: map[string]int{}}
	c.launch(t, config, "KTLS_EXAMPLE_FILES="+www)

	curl := func(f file) *exec.Cmd {
		return exec.Command(command(t, "curl"), "-sSk", "https://localhost:8443/"+f.name)
	}
	eventually(t, "the example serves", func() bool {
		out, err := curl(tiny).Output()
		return err == nil && int64(len(out)) == tiny.size
	})
	check := countUpgrades(t)
	cmd := curl(large)
	body, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n, sum, err := sumReader(body)
	if err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("curl: %v", err)
	}
	checkBody(t, large.name, n, sum, large.size, large.sum)
	check(t, 1)
	if !kernel.ulp {
		c.awaitLine(t, "why not", func(l *line) bool { return l.Level == "warn" && l.Logger == "caddy.listeners.ktls" && l.Remedy != "" })
		return
	}
	l := c.awaitLine(t, "the upgrade", func(l *line) bool { return l.isUpgrade() })
	if l.Version != "TLS 1.3" || l.Cipher == "" || l.Sequence == nil || l.Upgrade != "lazy" {
		t.Errorf("the upgrade's line lacks something: %s", l.raw)
	}
}
