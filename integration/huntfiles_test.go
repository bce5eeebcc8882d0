//go:build linux

package integration

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// What happens to a file of the hunt while it is served.
type fate int

const (
	steady      fate = iota
	replaced         // by rename, and sometimes deleted for a while
	appended         // grows, and is replaced when it is large
	truncated        // in place, and grows again to what it was
	overwritten      // in place, without a change of size
)

var fates = [...]string{"steady", "replaced", "appended", "truncated", "overwritten"}

// The bytes of all files are parts of one pool, random, so that bytes from
// anywhere else (another file or version, another place) are wrong bytes.
const (
	huntMaxSize = 8 * mib
	huntPool    = 2 * huntMaxSize
)

var pool = sync.OnceValue(func() []byte {
	p := make([]byte, huntPool)
	rand.NewChaCha8([32]byte{'h', 'u', 'n', 't'}).Read(p)
	return p
})

// version is what a file holds for some time: size bytes of the pool from shift
// on. A file that isn't there has size -1.
type version struct {
	shift      int
	size       int64
	born, died time.Time // before and after the change; died is zero while it lives
}

// content is n bytes of the version from off on.
func (v version) content(off int64, n int) []byte {
	at := int64(v.shift) + off
	return pool()[at : at+int64(n)]
}

// huntFile is a file whose history is known.
type huntFile struct {
	name string // in the site
	path string
	fate fate

	mu       sync.Mutex
	versions []version // the last ones
}

// keptVersions is more than a file has while a request takes.
const keptVersions = 4000

// known are the versions that lived between two times, the newest last.
func (f *huntFile) known(from, to time.Time) (all []version) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, v := range slices.Backward(f.versions) {
		if !v.died.IsZero() && v.died.Before(from) {
			break
		}
		if !v.born.After(to) {
			all = append(all, v)
		}
	}
	slices.Reverse(all)
	return all
}

func (f *huntFile) now() version {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.versions[len(f.versions)-1]
}

// changed makes a change, and notes it.
func (f *huntFile) changed(next version, do func() error) error {
	next.born = time.Now()
	f.mu.Lock()
	f.versions = append(f.versions, next)
	if n := len(f.versions) - keptVersions; n > 0 {
		f.versions = f.versions[n:]
	}
	f.mu.Unlock()
	err := do()
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.versions); n > 1 {
		f.versions[n-2].died = time.Now()
	}
	return err
}

// put puts a version in the file's place.
func (f *huntFile) put(v version) error {
	next := f.path + ".next"
	if err := os.WriteFile(next, v.content(0, int(v.size)), 0o644); err != nil {
		return err
	}
	return f.changed(v, func() error { return os.Rename(next, f.path) })
}

// mutate does what is the file's fate.
func (f *huntFile) mutate(rng *rand.Rand) error {
	v := f.now()
	switch f.fate {
	case replaced:
		if v.size >= 0 && rng.IntN(4) == 0 {
			return f.changed(version{size: -1}, func() error { return os.Remove(f.path) })
		}
		return f.put(newVersion(rng))
	case appended:
		if v.size > 256*kib {
			return f.put(version{shift: newVersion(rng).shift, size: rng.Int64N(16 * kib)})
		}
		return f.grow(v, v.size+1+rng.Int64N(32*kib))
	case truncated:
		if v.size > 4*kib && rng.IntN(2) == 0 {
			next := v
			next.size = rng.Int64N(v.size)
			return f.changed(next, func() error { return os.Truncate(f.path, next.size) })
		}
		return f.grow(v, min(v.size+1+rng.Int64N(256*kib), mib))
	case overwritten:
		next := version{shift: newVersion(rng).shift, size: v.size}
		return f.changed(next, func() error { return f.write(0, next.content(0, int(next.size))) })
	}
	return nil
}

// grow appends what belongs there.
func (f *huntFile) grow(v version, size int64) error {
	next := version{shift: v.shift, size: size}
	return f.changed(next, func() error { return f.write(v.size, next.content(v.size, int(size-v.size))) })
}

func (f *huntFile) write(off int64, p []byte) error {
	out, err := os.OpenFile(f.path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = out.WriteAt(p, off)
	return firstError(err, out.Close())
}

// newVersion is of a random size: mostly from 8 KiB, which is the least that is
// sent by sendfile, to 64 KiB; seldom larger.
func newVersion(rng *rand.Rand) version {
	size := int64(8*kib) << rng.IntN(3)
	switch rng.IntN(50) {
	case 0:
		size = (256 * kib) << rng.IntN(5)
	case 1, 2, 3, 4, 5, 6, 7, 8:
		size = 1 << rng.IntN(13)
	}
	return version{shift: rng.IntN(huntPool - huntMaxSize), size: min(size+rng.Int64N(size), huntMaxSize)}
}

// newHuntFiles makes the files under dir, on each file system that the guest has.
func newHuntFiles(t *testing.T, dir string, rng *rand.Rand) (all []*huntFile) {
	t.Helper()
	roots := []string{"."}
	if other, err := os.MkdirTemp("/ext4", "hunt"); err == nil {
		t.Cleanup(func() { os.RemoveAll(other) })
		if err := os.Symlink(other, filepath.Join(dir, "ext4")); err != nil {
			t.Fatal(err)
		}
		roots = append(roots, "ext4")
	}
	for _, root := range roots {
		for n := range 100 {
			f := &huntFile{fate: steady}
			if n >= 60 {
				f.fate = fate(1 + n%4)
			}
			v := newVersion(rng)
			switch {
			case n < 2:
				v.size = huntMaxSize - int64(n)
			case n < 8:
				v.size = int64(n-2) * 16 * kib // records and pages that end with the file
			case f.fate == truncated:
				v.size = 256 * kib
			}
			f.name = filepath.Join("/", root, fmt.Sprintf("%s%d.bin", fates[f.fate], n))
			f.path = filepath.Join(dir, f.name)
			if err := f.put(v); err != nil {
				t.Fatal(err)
			}
			all = append(all, f)
		}
	}
	return all
}

// verifier checks a body against what the file can have held.
type verifier struct {
	file   *huntFile
	asked  time.Time // when the request was sent
	total  int64     // size of the file, as the answer says
	off    int64     // of what comes next
	only   []version // of which it must be one; of files that aren't changed in place
	atomic bool
}

// verifier is for an answer to what was asked at a time, whose header was there at
// another: then the file had been opened.
func (f *huntFile) verifier(asked, begun time.Time, off, total int64) (*verifier, error) {
	v := &verifier{file: f, asked: asked, total: total, off: off}
	v.atomic = f.fate == steady || f.fate == replaced
	known := f.known(asked, begun)
	least, most := int64(huntPool), int64(-1)
	for _, k := range known {
		if least, most = min(least, k.size), max(most, k.size); k.size == total {
			v.only = append(v.only, k)
		}
	}
	// Writes and truncations of the others are seen half done.
	if v.atomic && len(v.only) == 0 || total < least || total > most {
		return nil, fmt.Errorf("the file was never of %d bytes; %s", total, describeVersions(known))
	}
	return v, nil
}

// Write checks the next bytes of the body.
func (v *verifier) Write(p []byte) (int, error) {
	defer func() { v.off += int64(len(p)) }()
	if v.off+int64(len(p)) > v.total {
		return 0, fmt.Errorf("more bytes than the file has")
	}
	if v.atomic {
		var left []version
		for _, k := range v.only {
			if bytes.Equal(p, k.content(v.off, len(p))) {
				left = append(left, k)
			}
		}
		if len(left) == 0 {
			return 0, v.wrong(p, v.only)
		}
		v.only = left
		return len(p), nil
	}
	// Any byte may be as it was at any time from the request on.
	known := v.file.known(v.asked, time.Now())
	for _, k := range known {
		if bytes.Equal(p, k.content(v.off, len(p))) {
			return len(p), nil
		}
	}
	for i, b := range p {
		at := v.off + int64(i)
		if !v.mayBe(known, at, b) {
			return i, v.wrong(p[i:], known)
		}
	}
	return len(p), nil
}

func (v *verifier) mayBe(known []version, at int64, b byte) bool {
	for _, k := range known {
		if at < int64(huntMaxSize) && k.size >= 0 && k.content(at, 1)[0] == b {
			return true
		}
		// Truncation sets the rest of the page to zero, and what is on its way is
		// the page, not a copy.
		if v.file.fate == truncated && b == 0 && at >= k.size && at < (k.size+4095)/4096*4096 {
			return true
		}
	}
	return false
}

func (v *verifier) wrong(p []byte, known []version) error {
	return fmt.Errorf("WRONG BYTES from %d on of %d: %x; %s", v.off, v.total, p[:min(len(p), 48)], describeVersions(known))
}

func describeVersions(known []version) string {
	var b bytes.Buffer
	for _, k := range known[max(0, len(known)-6):] {
		fmt.Fprintf(&b, "%d bytes from %d; ", k.size, k.shift)
	}
	return fmt.Sprintf("%d versions: %s", len(known), b.String())
}

// longest is the most that the file had between two times.
func (f *huntFile) longest(from, to time.Time) (n int64) {
	for _, v := range f.known(from, to) {
		n = max(n, v.size)
	}
	return n
}

// truncatedIn reports whether a body of n bytes from off on can have been cut.
func (f *huntFile) truncatedIn(from, to time.Time, end int64) bool {
	if f.fate != truncated {
		return false
	}
	for _, v := range f.known(from, to) {
		if v.size < end {
			return true
		}
	}
	return false
}
