//go:build linux

package integration

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// memory is what a Caddy and the kernel use, in bytes.
type memory struct{ heap, stack, slab int64 }

func (m memory) minus(o memory) memory {
	return memory{m.heap - o.heap, m.stack - o.stack, m.slab - o.slab}
}

func (m memory) over(n int64) memory {
	return memory{m.heap / n, m.stack / n, m.slab / n}
}

// heapProfile is Caddy's, after what is garbage has gone, pools included.
func (c *caddy) heapProfile(t testing.TB) (profile string) {
	t.Helper()
	for range 4 { // sync.Pool keeps what it has for two
		profile = c.admin(t, "GET", "/debug/pprof/heap?gc=1&debug=1", "", "")
	}
	return profile
}

// heapStat is one of the numbers at the end of a heap profile, in bytes.
func heapStat(t testing.TB, profile, name string) (n int64) {
	t.Helper()
	_, rest, _ := strings.Cut(profile, "\n# "+name+" = ")
	if _, err := fmt.Sscanf(rest, "%d", &n); err != nil {
		t.Fatalf("no %s in the heap profile: %v", name, err)
	}
	return n
}

// heap is what is in use on Caddy's heap, in bytes.
func (c *caddy) heap(t testing.TB) int64 { return heapStat(t, c.heapProfile(t), "HeapAlloc") }

func (c *caddy) memory(t testing.TB) memory {
	t.Helper()
	profile := c.heapProfile(t)
	return memory{heapStat(t, profile, "HeapAlloc"), heapStat(t, profile, "Stack"), slab(t)}
}

// slab is the kernel's memory in small objects that are in use, or 0 for who may
// not know.
func slab(t testing.TB) (total int64) {
	t.Helper()
	b, err := os.ReadFile("/proc/slabinfo")
	if errors.Is(err, fs.ErrPermission) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var name string
		var active, all, size int64
		if _, err := fmt.Sscan(line, &name, &active, &all, &size); err == nil { // not the head
			total += active * size
		}
	}
	return total
}

// idleAfter opens a connection, fetches a file whole over it and leaves it open.
func (c *caddy) idleAfter(t testing.TB, proto, uri string, size int64, config *tls.Config) {
	t.Helper()
	tcp, err := net.Dial("tcp", c.addr(0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tcp.Close() })
	conn := handshake(t, tcp, config)
	conn.SetDeadline(time.Time{})
	var resp *http.Response
	if proto == "h2" {
		//lint:ignore SA1019 http.Transport gives no single connection back.
		client, err := new(http2.Transport).NewClientConn(conn)
		if err != nil {
			t.Fatal(err)
		}
		resp, err = client.RoundTrip(newRequest(t, "GET", c.url(0, uri)))
		if err != nil {
			t.Fatal(err)
		}
	} else {
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", uri)
		if resp, err = http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
			t.Fatal(err)
		}
	}
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil || n != size {
		t.Fatalf("%d bytes of %d: %v", n, size, err)
	}
}

// idleMemory is what each of n idle connections takes that a file of this size
// was served over.
func idleMemory(t testing.TB, l listener, proto string, n, size int64) memory {
	t.Helper()
	dir := t.TempDir()
	f, err := makeFile(dir, "idle.bin", size)
	if err != nil {
		t.Fatal(err)
	}
	offloaded := l.wrappers != ""
	body := plainFiles(dir)
	if offloaded {
		body = filesFrom(dir)
	}
	l.sites, l.options = []site{{body: body}}, "timeouts {\n\tidle 1h\n}"
	c := setup{listeners: []listener{l}}.start(t)
	config := tlsConfig(t, func(config *tls.Config) {
		config.NextProtos = []string{map[string]string{"h1": "http/1.1", "h2": "h2"}[proto]}
	})
	for range 5 { // what is made once
		c.idleAfter(t, proto, "/"+f.name, f.size, config)
	}
	before, descriptors, inKernel := c.memory(t), c.descriptors(t), tlsStat(t, "TlsCurrTxSw")
	for range n {
		c.idleAfter(t, proto, "/"+f.name, f.size, config)
	}
	m := c.memory(t).minus(before).over(n)
	descriptors, inKernel = c.descriptors(t)-descriptors, tlsStat(t, "TlsCurrTxSw")-inKernel
	// Caddy may have opened or closed one or two for itself.
	if int64(descriptors) < n-2 || offloaded != (int64(inKernel) == n) {
		t.Errorf("of %d connections %d are open and %d in the kernel", n, descriptors, inKernel)
	}
	return m
}

// idleSizes are files that move a connection into the kernel.
var idleSizes = map[string]int64{"h1": 256 * kib, "h2": 8 * mib}

// TestIdleConnections: a connection that was offloaded and idles takes little
// more of Caddy's memory than without the module: its state, but no buffers. On
// HTTP/2 net/http keeps 8 KiB of buffers that it doesn't have for a *tls.Conn,
// and the HTTP/2 server one for its largest frame (http2_frame_size, docs/http2.md).
func TestIdleConnections(t *testing.T) {
	needKTLS(t)
	for _, test := range []struct {
		proto string
		n     int64
		more  float64 // than without the module, at most,
		frame float64 // and this, in bytes
	}{{"h1", 200, 1.25, 0}, {"h2", 20, 1.5, 126 * kib}} {
		t.Run(test.proto, func(t *testing.T) {
			size := idleSizes[test.proto]
			if slow {
				test.n = map[string]int64{"h1": 50, "h2": 10}[test.proto]
			}
			stock := idleMemory(t, listener{}, test.proto, test.n, size)
			own := idleMemory(t, listener{wrappers: "ktls"}, test.proto, test.n, size)
			t.Logf("each connection: stock %+v, offloaded %+v", stock, own)
			if float64(own.heap) > float64(stock.heap)*test.more+test.frame {
				t.Errorf("heap: %d bytes, stock %d", own.heap, stock.heap)
			}
			// Stacks come in spans of 32 KiB, of which some more or less are in use.
			if float64(own.stack) > float64(stock.stack)*test.more+float64(128*kib/test.n) {
				t.Errorf("stack: %d bytes, stock %d", own.stack, stock.stack)
			}
		})
	}
}

// BenchmarkIdleConnections measures the same for 1,000 connections (or as many
// as KTLS_IDLE says) in bytes for each, the kernel's share included: with its
// small objects of both ends, as the client's is here too. Run it once
// (-benchtime 1x).
func BenchmarkIdleConnections(b *testing.B) {
	n := int64(1000)
	if s := os.Getenv("KTLS_IDLE"); s != "" {
		var err error
		if n, err = strconv.ParseInt(s, 10, 64); err != nil {
			b.Fatal(err)
		}
	}
	for _, proto := range []string{"h1", "h2"} {
		for name, l := range map[string]listener{"stock": {}, "ktls": {wrappers: "ktls"}} {
			b.Run(proto+"/"+name, func(b *testing.B) {
				var m memory
				for b.Loop() {
					m = idleMemory(b, l, proto, n, idleSizes[proto])
				}
				b.ReportMetric(0, "ns/op") // says nothing
				b.ReportMetric(float64(m.heap), "heap-B")
				b.ReportMetric(float64(m.stack), "stack-B")
				b.ReportMetric(float64(m.slab), "slab-B")
			})
		}
	}
}
