//go:build linux

package integration

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// BenchmarkHandshakeStorm measures what a flood of new connections leaves of a
// large download, with and without max_handshakes: MB/s of the download (curl,
// a process of its own), handshakes/s of the flood (this process), and the share
// of the download's rate without a flood that is left. Server and clients share
// the machine, so only what one run prints can be compared.
func BenchmarkHandshakeStorm(b *testing.B) {
	if !kernel.ulp {
		b.Skip("this kernel has no kernel TLS")
	}
	const size, clients = 64 * mib, 64
	root := b.TempDir()
	if err := os.WriteFile(filepath.Join(root, "big"), make([]byte, size), 0o644); err != nil {
		b.Fatal(err)
	}
	for _, certificate := range []struct {
		name string
		tls  []string // directives
	}{{"ECDSA", nil}, {"RSA-2048", []string{rsaCertificate(b, 2048)}}} {
		bounds := []int{0, 1, 2, 4}
		var s setup
		for _, n := range bounds {
			wrapper := "ktls"
			if n > 0 {
				wrapper = fmt.Sprintf("ktls {\n\tmax_handshakes %d\n}", n)
			}
			s.listeners = append(s.listeners, listener{wrappers: wrapper, sites: []site{{body: filesFrom(root, certificate.tls...)}}})
		}
		s.listeners = append(s.listeners, listener{sites: []site{{body: plainFiles(root, certificate.tls...)}}})
		s.patch = func(config map[string]any) { // each handshake would be several lines
			config["logging"].(map[string]any)["logs"].(map[string]any)["default"].(map[string]any)["exclude"] = []any{"tls.handshake", "events", "http", "caddy.listeners"}
		}
		c := s.start(b)
		for i := range s.listeners {
			name := "stock Caddy"
			if i < len(bounds) {
				name = fmt.Sprintf("max_handshakes %d", bounds[i])
			}
			b.Run(certificate.name+"/"+name, func(b *testing.B) {
				var alone, flooded, handshakes, seconds float64
				for b.Loop() {
					rate, _ := c.downloadRate(b, i, size)
					alone += rate
					stop := c.storm(b, i, clients)
					rate, took := c.downloadRate(b, i, size)
					flooded += rate
					handshakes += float64(stop())
					seconds += took.Seconds()
				}
				n := float64(b.N)
				b.ReportMetric(0, "ns/op") // says nothing
				b.ReportMetric(alone/n/1e6, "MB/s-alone")
				b.ReportMetric(flooded/n/1e6, "MB/s")
				b.ReportMetric(100*flooded/alone, "%-left")
				b.ReportMetric(handshakes/seconds, "handshakes/s")
			})
		}
	}
}

// downloadRate measures a download of a file, in bytes/s, from its first byte on.
func (c *caddy) downloadRate(b *testing.B, i int, size float64) (rate float64, took time.Duration) {
	b.Helper()
	host, port, err := net.SplitHostPort(c.addr(i))
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	out, err := exec.Command(command(b, "curl"), "--silent", "--show-error", "--fail", "--insecure", "--http1.1", "--output", "/dev/null",
		"--connect-to", fmt.Sprintf("::[%s]:%s", host, port), "--write-out", "%{json}", c.url(i, "/big")).Output()
	took = time.Since(began)
	var report struct {
		Size  float64 `json:"size_download"`
		First float64 `json:"time_starttransfer"` // seconds
		Total float64 `json:"time_total"`
	}
	if err == nil {
		err = json.Unmarshal(out, &report)
	}
	if err != nil || report.Size != size {
		b.Fatalf("curl: %v: %s", err, out)
	}
	return size / (report.Total - report.First), took
}

// storm makes full handshakes, as many at once as there are clients, until stop
// is called, which returns how many there were.
func (c *caddy) storm(b *testing.B, i, clients int) (stop func() int64) {
	config := tlsConfig(b, anyCertificate)
	var done atomic.Int64
	var ended atomic.Bool
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for !ended.Load() {
				tcp, err := net.Dial("tcp", c.addr(i))
				if err != nil {
					b.Error(err)
					return
				}
				if err := tls.Client(tcp, config).Handshake(); err == nil {
					done.Add(1)
				} else if !ended.Load() {
					b.Error(err)
				}
				tcp.Close()
			}
		})
	}
	for done.Load() < int64(clients) && !b.Failed() { // it rages
		time.Sleep(time.Millisecond)
	}
	begin := done.Load()
	return func() int64 {
		n := done.Load() - begin
		ended.Store(true)
		wg.Wait()
		return n
	}
}
