//go:build linux

package integration

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
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
	if err := unix.Mount("cgroup2", root, "cgroup2", 0, ""); err != nil {
		t.Skipf("cgroup2: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if has, _ := os.ReadFile(filepath.Join(root, "cgroup.controllers")); !strings.Contains(string(has), "memory") {
		t.Skipf("no control groups for memory, just: %s", has)
	}
	dir = filepath.Join(root, "caddy")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	move := func(to string) error {
		return os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte(strconv.Itoa(c.cmd.Process.Pid)), 0)
	}
	t.Cleanup(func() {
		move(root) // fails if Caddy has ended
		eventually(t, "the control group is left", func() bool { return os.Remove(dir) == nil })
	})
	if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+memory"), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "memory.high"), []byte(strconv.FormatInt(high, 10)), 0); err != nil {
		t.Fatal(err)
	}
	if err := move(dir); err != nil {
		t.Fatal(err)
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
		hash := sha256.New()
		n, err := io.Copy(hash, d.resp.Body)
		if err != nil {
			t.Errorf("download %d: %v", i, err)
		}
		uri := fmt.Sprintf("/%s?%d", large.name, i)
		checkBody(t, uri, n, hex.EncodeToString(hash.Sum(nil)), large.size, large.sum)
		if i%2 == 0 {
			c.tookFile(t, uri, large.size)
		}
	}
}
