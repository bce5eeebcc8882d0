//go:build linux

package integration

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// file is a file served, and what its bytes must be.
type file struct {
	name string
	size int64
	sum  string // SHA-256
}

const kib, mib = 1 << 10, 1 << 20

// minSendfile is the least body that goes by sendfile, whatever min_size says.
const minSendfile = 8 * kib

var (
	sizes  = wholeSizes()
	whole  []file // one for each of sizes
	empty  file   // 0 bytes
	tiny   file   // 1 byte
	small  file   // the least that sendfile is used for
	medium file   // 2 MiB + 100
	large  file   // 8 MiB + 7: more than a connection holds that isn't read from
	big    file   // the largest
)

// wholeSizes are the sizes round which something changes: the sniffing buffer,
// pages, records, Caddy's and our own chunks.
func wholeSizes() []int64 {
	s := []int64{
		0, 1, 511, 512, 513, 4095, 4096, 4097, 8191, 8192, 8193, 16383, 16384, 16385, 65535, 65536, 65537,
		mib - 1, mib, mib + 1, 2*mib - 1, 2 * mib, 2*mib + 1, 2*mib + 100, 8*mib + 7,
	}
	if !slow {
		s = append(s, 64*mib)
	}
	return s
}

func makeFixtures() error {
	if err := os.MkdirAll(www, 0o755); err != nil {
		return err
	}
	for _, size := range sizes {
		f, err := makeFile(www, fmt.Sprintf("%d.bin", size), size)
		if err != nil {
			return err
		}
		whole = append(whole, f)
		switch size {
		case 0:
			empty = f
		case 1:
			tiny = f
		case minSendfile:
			small = f
		case 2*mib + 100:
			medium = f
		case 8*mib + 7:
			large = f
		}
	}
	big = whole[len(whole)-1]

	// A compressible page with its sidecars. The sidecars need no
	// decoding to be told apart.
	text := []byte(strings.Repeat("the quick brown fox jumps over the lazy dog\n", 5000))
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(text); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"page.txt":      text,
		"page.txt.gz":   packed.Bytes(),
		"page.txt.br":   []byte(strings.Repeat("not really brotli ", 3000)),
		"template.html": []byte(`<p>{{printf "templa%s" "ted"}}</p>`),
	} {
		if err := os.WriteFile(filepath.Join(www, name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// ofSize is the file with one of sizes.
func ofSize(size int64) file { return whole[slices.Index(sizes, size)] }

// makeFile writes a file of random bytes that depend on nothing but its name.
func makeFile(dir, name string, size int64) (file, error) {
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		return file{}, err
	}
	hash := sha256.New()
	random := rand.NewChaCha8(sha256.Sum256([]byte(name)))
	_, err = io.CopyN(io.MultiWriter(f, hash), random, size)
	if err := firstError(err, f.Close()); err != nil {
		return file{}, err
	}
	return file{name, size, hex.EncodeToString(hash.Sum(nil))}, nil
}

// newFile makes a file for one test alone.
func newFile(t *testing.T, dir, name string, size int64) file {
	t.Helper()
	f, err := makeFile(dir, name, size)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// content is what a file in www holds.
func content(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(www, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// sumFile is the length and SHA-256 of a file a client has stored.
func sumFile(path string) (int64, string, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, "", err
	}
	defer f.Close()
	return sumReader(f)
}

func sumReader(r io.Reader) (int64, string, error) {
	hash := sha256.New()
	n, err := io.Copy(hash, r)
	return n, hex.EncodeToString(hash.Sum(nil)), err
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
