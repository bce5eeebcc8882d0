//go:build linux

package integration

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// fetch has clients of both protocols fetch a file each from both listeners, n
// times, all at once. Those of the first must get it by sendfile.
func (c *caddy) fetch(t *testing.T, f file, n int, name string) {
	t.Helper()
	uri := func(i int) string { return fmt.Sprintf("/%s?%s-%d", f.name, name, i) }
	var running sync.WaitGroup
	for k := range 4 * n {
		client := c.goClient(t, k%2, []string{"h1", "h2"}[k/2%2], func(tr *http.Transport) { tr.DisableKeepAlives = true })
		running.Go(func() {
			a, err := client.do(newRequest(t, "GET", c.url(k%2, uri(k%2))))
			if err != nil {
				t.Errorf("client %d: %v after %d bytes", k, err, a.size)
			}
			a.isFile(t, f)
		})
	}
	running.Wait()
}

// TestLittleMemory: with Go's memory limit below what Caddy needs at rest, and
// hardly any more to be had from the system, downloads come whole, many at once:
// they cost processor time.
func TestLittleMemory(t *testing.T) {
	notEmulated(t)
	c := setup{
		listeners: []listener{{wrappers: "ktls"}, {sites: []site{{body: plainFiles(www)}}}},
		command:   func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "GOMEMLIMIT=1MiB", "GOGC=off") },
	}.start(t)
	if !raceDetector { // which wants much more
		defer c.limit(t, unix.RLIMIT_DATA, uint64(c.used(t, "VmData")+32*mib))()
	}
	c.fetch(t, large, 1, "little")
	for range 2 {
		c.tookFile(t, "/"+large.name+"?little-0", large.size)
	}
}

// mount mounts a file system that needs no device on dir until the test ends.
func mount(t *testing.T, kind, dir, options string) {
	t.Helper()
	if err := unix.Mount(kind, dir, kind, 0, options); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// TestFullDisk: where the access log can't be written, responses come whole all
// the same, as from stock Caddy.
func TestFullDisk(t *testing.T) {
	notEmulated(t)
	disk := t.TempDir()
	mount(t, "tmpfs", disk, fmt.Sprintf("size=%d", 64*kib))
	log := "log full {\n\toutput file " + filepath.Join(disk, "access.log") + "\n}"
	c := start(t, listener{wrappers: "ktls", sites: []site{{body: files(log)}}}, listener{sites: []site{{body: plainFiles(www, log)}}})
	if err := os.WriteFile(filepath.Join(disk, "rest"), make([]byte, mib), 0o644); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk isn't full: %v", err)
	}
	c.leaves = true // the log's file, which is opened with the first line
	c.fetch(t, tiny, 1, "first")
	before := c.settled(t)
	c.fetch(t, medium, 2, "full")
	for range 4 {
		c.tookFile(t, "/"+medium.name+"?full-0", medium.size) // the other access log has it
	}
	if !strings.Contains(c.log.text(), "no space left on device") {
		t.Error("no line was lost")
	}
	c.awaitFootprint(t, before)
}
