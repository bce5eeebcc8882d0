//go:build linux

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// memoryGroup moves the running Caddy to a control group of its own, in which so
// many bytes are too much; what it has already counts where it was. In a guest,
// where nobody else minds.
func (c *caddy) memoryGroup(t *testing.T, high int64) (dir string) {
	t.Helper()
	if os.Getenv("KTLS_KERNEL") == "" || os.Getuid() != 0 {
		t.Skip("for guests: makes control groups")
	}
	root := t.TempDir()
	mount(t, "cgroup2", root, "")
	if has, _ := os.ReadFile(filepath.Join(root, "cgroup.controllers")); !strings.Contains(string(has), "memory") {
		t.Skipf("no control groups for memory, just: %s", has)
	}
	dir = filepath.Join(root, "caddy")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	pid := strconv.Itoa(c.cmd.Process.Pid)
	t.Cleanup(func() {
		os.WriteFile(filepath.Join(root, "cgroup.procs"), []byte(pid), 0) // fails if Caddy has ended
		eventually(t, "the control group is left", func() bool { return os.Remove(dir) == nil })
	})
	for _, set := range []struct{ dir, name, value string }{
		{root, "cgroup.subtree_control", "+memory"},
		{dir, "memory.high", strconv.FormatInt(high, 10)},
		{dir, "cgroup.procs", pid},
	} {
		if err := os.WriteFile(filepath.Join(set.dir, set.name), []byte(set.value), 0); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestMemoryControlGroup: clients that don't read make a container's sockets hold
// more than its memory.high, so that the kernel slows down whatever Caddy does. When
// there is memory again, all downloads come whole.
func TestMemoryControlGroup(t *testing.T) {
	notEmulated(t)
	c := start(t, listener{wrappers: "ktls"}, listener{})
	c.fetch(t, large, 1, "before") // what Caddy does once
	dir := c.memoryGroup(t, 6*mib)
	var downloads []*download
	for i := range 8 {
		downloads = append(downloads, c.stalled(t, i%2, fmt.Sprintf("/%s?%d", large.name, i)))
	}
	events, err := os.ReadFile(filepath.Join(dir, "memory.events"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(events), "\nhigh ") || strings.Contains(string(events), "\nhigh 0\n") {
		t.Errorf("the memory was enough: %s", events)
	}
	if err := os.WriteFile(filepath.Join(dir, "memory.high"), []byte("max"), 0); err != nil {
		t.Fatal(err)
	}
	for i, d := range downloads {
		n, got, err := sumReader(d.resp.Body)
		if err != nil {
			t.Errorf("download %d: %v", i, err)
		}
		uri := fmt.Sprintf("/%s?%d", large.name, i)
		checkBody(t, uri, n, got, large.size, large.sum)
		if i%2 == 0 {
			c.tookFile(t, uri, large.size)
		}
	}
}
