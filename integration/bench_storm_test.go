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
// large download: MB/s of the download (curl, a process of its own) and
// handshakes/s of the flood (this process) for stock Caddy, and for this module
// without and with max_handshakes. Server and clients share the machine, and
// what else it does changes by the minute: only the figures of one run can be
// compared, and the more rounds it has (-benchtime 10x), the better.
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
		names := []string{"stock", "unbounded"}
		s := setup{
			listeners: []listener{
				{sites: []site{{body: plainFiles(root, certificate.tls...)}}},
				{wrappers: "ktls", sites: []site{{body: filesFrom(root, certificate.tls...)}}},
			},
			patch: func(config map[string]any) { // each handshake would be several lines
				config["logging"].(map[string]any)["logs"].(map[string]any)["default"].(map[string]any)["exclude"] = []any{"tls.handshake", "events", "http", "caddy.listeners"}
			},
		}
		for _, n := range []int{1, 2, 4} {
			names = append(names, fmt.Sprintf("max%d", n))
			s.listeners = append(s.listeners, listener{
				wrappers: fmt.Sprintf("ktls {\n\tmax_handshakes %d\n}", n),
				sites:    []site{{body: filesFrom(root, certificate.tls...)}},
			})
		}
		c := s.start(b)
		b.Run(certificate.name, func(b *testing.B) {
			alone, flooded := make([]float64, len(names)), make([]float64, len(names)) // seconds
			seconds, handshakes := make([]float64, len(names)), make([]float64, len(names))
			for b.Loop() {
				for i := range names { // in turn: what disturbs meets them all
					alone[i] += c.transfer(b, i, size)
					stop := c.storm(b, i, clients)
					began := time.Now()
					flooded[i] += c.transfer(b, i, size)
					seconds[i] += time.Since(began).Seconds()
					handshakes[i] += float64(stop())
				}
			}
			b.ReportMetric(0, "ns/op") // says nothing
			for i, name := range names {
				megabytes := float64(b.N) * size / 1e6
				b.ReportMetric(megabytes/alone[i], name+"-alone-MB/s")
				b.ReportMetric(megabytes/flooded[i], name+"-MB/s")
				b.ReportMetric(handshakes[i]/seconds[i], name+"-handshakes/s")
			}
		})
	}
}

// transfer is how long a download takes, in seconds from its first byte on.
func (c *caddy) transfer(b *testing.B, i int, size float64) float64 {
	b.Helper()
	host, port, err := net.SplitHostPort(c.addr(i))
	if err != nil {
		b.Fatal(err)
	}
	out, err := exec.Command(command(b, "curl"), "--silent", "--show-error", "--fail", "--insecure", "--http1.1", "--output", "/dev/null",
		"--connect-to", fmt.Sprintf("::[%s]:%s", host, port), "--write-out", "%{json}", c.url(i, "/big")).Output()
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
	return report.Total - report.First
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
