//go:build linux

package integration

import (
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"testing"
)

// mutated is a download of a large file of the test's own, that the server has
// sent some of when the test changes the file.
type mutated struct {
	*caddy
	*download
	file
	path  string
	whole []byte // what the file held at first
}

func newMutated(t *testing.T) mutated {
	t.Helper()
	root := t.TempDir()
	f := newFile(t, root, "mutable.bin", large.size)
	path := filepath.Join(root, f.name)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c := start(t, listener{wrappers: "ktls", sites: []site{{body: filesFrom(root)}}})
	return mutated{c, c.stalled(t, 0, "/"+f.name), f, path, whole}
}

// isComplete checks that the download yields all of the file as it was.
func (m mutated) isComplete(t *testing.T) {
	t.Helper()
	n, got, err := sumReader(m.resp.Body)
	if err != nil {
		t.Error(err)
	}
	checkBody(t, "the file as it was", n, got, m.size, m.sum)
	m.tookFile(t, "/"+m.name, m.size)
}

// again fetches what is there now.
func (m mutated) again(t *testing.T) answer {
	t.Helper()
	return m.goClient(t, 0, "h1").get(t, m.url(0, "/"+m.name+"?again"))
}

// TestTruncatedFile: when a file gets shorter than what was promised, the
// connection ends; nothing is put in place of what is missing.
func TestTruncatedFile(t *testing.T) {
	for name, keep := range map[string]int64{
		"to nothing":            0,
		"behind what was sent":  300*kib + 5,
		"before what was sent":  6*mib + 5,
		"to a page":             6 * mib,
		"by the last byte":      large.size - 1,
		"by more than a record": large.size - 16385,
		"by less than a chunk":  large.size - 100*kib,
	} {
		t.Run(name, func(t *testing.T) {
			m := newMutated(t)
			if err := os.Truncate(m.path, keep); err != nil {
				t.Fatal(err)
			}
			checkPrefix(t, m.resp.Body, m.whole)
			if l := m.response(t, "/"+m.name); l.Size >= m.size {
				t.Errorf("the access log says that %d of %d bytes were sent", l.Size, m.size)
			}
			m.again(t).isBytes(t, "afterwards", m.whole[:keep])
		})
	}
}

// TestReplacedFile: a file replaced by rename, as it should be, changes nothing
// for a download in progress.
func TestReplacedFile(t *testing.T) {
	m := newMutated(t)
	next := newFile(t, filepath.Dir(m.path), "next.bin", mib+3)
	if err := os.Rename(filepath.Join(filepath.Dir(m.path), next.name), m.path); err != nil {
		t.Fatal(err)
	}
	m.isComplete(t)
	m.again(t).isFile(t, next)
}

// TestDeletedFile: a deleted file is there as long as it is open.
func TestDeletedFile(t *testing.T) {
	m := newMutated(t)
	if err := os.Remove(m.path); err != nil {
		t.Fatal(err)
	}
	m.isComplete(t)
	if a := m.again(t); a.status != http.StatusNotFound {
		t.Errorf("status %d", a.status)
	}
}

// TestAppendedFile: a file that grows yields the length that was promised.
func TestAppendedFile(t *testing.T) {
	m := newMutated(t)
	out, err := os.OpenFile(m.path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.CopyN(out, rand.NewChaCha8([32]byte{1}), mib)
	if err := firstError(err, out.Close()); err != nil {
		t.Fatal(err)
	}
	m.isComplete(t)
	if a := m.again(t); a.size != m.size+mib {
		t.Errorf("%d bytes afterwards", a.size)
	}
}
