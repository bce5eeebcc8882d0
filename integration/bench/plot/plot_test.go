package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"testing"
)

// GiB makes costs easy: a request of 1 KiB for 1,000 instructions is 1.05 10⁹ a GiB.
func TestCharts(t *testing.T) {
	one := result{Kernel: "7.3.4+deb13-amd64", Server: "nginx", Protocol: "h1", Mode: "decrypting", Body: 1 << 10, Connections: 1, Streams: 1, Requests: 10, Instructions: 10_000}
	large, own, again, timed, other, several, fresh, old := one, one, one, one, one, one, one, one
	large.Mode, large.Body, large.Instructions = "storing", 1<<20, 20_000_000
	own.Server = "caddy-ktls"
	again.Instructions = 30_000
	timed.Instructions, timed.Time.CPU = 0, 5000
	other.Protocol = "h2"
	several.Connections = 8
	fresh.Mode = "handshaking"
	old.TLS = "1.2"
	got := charts([]result{large, one, own, several, fresh, old, timed, other, again})
	if len(got) != 3 {
		t.Fatalf("%d charts", len(got))
	}
	c := got[0]
	if a, b, d := c.file(true), got[1].file(true), got[2].file(false); a != "benchmarks-h1-7.3.4.svg" || b != "benchmarks-h1-7.3.4-seconds.svg" || d != "benchmarks-h2.svg" {
		t.Error(a, b, d)
	}
	if len(c.lines) != 2 || c.lines[0].server != "caddy-ktls" || c.lines[1].server != "nginx" {
		t.Fatalf("%+v", c.lines)
	}
	points := c.lines[1].points
	if len(points) != 2 || points[0].body != 1<<10 || points[1].body != 1<<20 {
		t.Fatalf("%+v", points)
	}
	for i, want := range []float64{3 * 1.048576, 2 * 1.024} {
		if math.Abs(points[i].cost-want) > 1e-9 {
			t.Errorf("%d bytes cost %v, want %v", points[i].body, points[i].cost, want)
		}
	}
}

// TestCommittedResults: what is in docs can be drawn, and is SVG.
func TestCommittedResults(t *testing.T) {
	dir := t.TempDir()
	if err := run(dir, "", []string{"../../../docs/benchmarks.jsonl"}); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "benchmarks-h[12]-*.svg"))
	if err != nil || len(files) < 2 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(text, []byte("Caddy with this module")) {
			t.Errorf("%s doesn't name the servers", name)
		}
		for d := xml.NewDecoder(bytes.NewReader(text)); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
}
