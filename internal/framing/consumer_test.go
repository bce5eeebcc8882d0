package framing

import (
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// testFile makes a file of random bytes.
func testFile(t testing.TB, size int) (*os.File, []byte) {
	t.Helper()
	content := make([]byte, size)
	rand.Read(content)
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, content
}

// send does with what Rewrite returned what a connection does.
func send(w io.Writer, list []Part) error {
	var buf []byte
	for i := range list {
		p := &list[i]
		if p.Body == nil {
			if _, err := w.Write(p.Bytes); err != nil {
				return err
			}
			continue
		}
		for from := int64(0); from < p.N; from += int64(p.Size) {
			piece := min(int64(p.Size), p.N-from)
			if parseHeader(p.Headers[headerLen*(from/int64(p.Size)):]).length != int(piece) {
				return errors.New("header and piece differ in length")
			}
			if p.Body.Voided() {
				if _, err := w.Write(p.AppendPadding(nil, from)); err != nil {
					return err
				}
				break
			}
			buf = append(buf[:0], p.Headers[headerLen*(from/int64(p.Size)):][:headerLen]...)
			buf = append(buf, make([]byte, piece)...)
			if _, err := p.Body.File().ReadAt(buf[headerLen:], p.Off+from); err != nil {
				return err
			}
			if _, err := w.Write(buf); err != nil {
				return err
			}
			p.Body.Sent(piece)
		}
	}
	return nil
}
