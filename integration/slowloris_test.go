//go:build linux

package integration

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// trickle writes byte by byte, with a pause between, until all is written or the
// server has had enough. It reports which.
func trickle(conn io.Writer, p []byte, pause time.Duration) (all bool) {
	for i := range p {
		if _, err := conn.Write(p[i : i+1]); err != nil {
			return false
		}
		time.Sleep(pause) // the client's pace
	}
	return true
}

// clientHello is the first message of a handshake.
func clientHello(t *testing.T) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer server.Close()
	go func() {
		tls.Client(client, tlsConfig(t)).Handshake()
		client.Close()
	}()
	b := make([]byte, 16*kib)
	n, err := server.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// TestSlowHandshakeAndHeader: a client that sends its ClientHello, or the header
// of a request, byte by byte is sent away when read_header is over: a byte now
// and then doesn't buy it time. It makes no difference whether the connection is
// in the kernel already. The same is asked of stock Caddy.
func TestSlowHandshakeAndHeader(t *testing.T) {
	notEmulated(t)
	const pause = 50 * time.Millisecond
	options := "timeouts {\n\tread_header 1s\n}"
	c := start(t,
		listener{wrappers: "ktls", options: options},
		listener{wrappers: "ktls {\n\tupgrade handshake\n}", options: options},
		listener{options: options, sites: []site{{body: plainFiles(www)}}},
	)
	hello := clientHello(t)
	header := []byte("GET /" + medium.name + "?slow HTTP/1.1\r\nHost: localhost\r\nX-Long: " + strings.Repeat("x", 200) + "\r\n\r\n")
	said := make([]map[string]string, len(c.ports))
	type result struct {
		i          int
		name, said string
	}
	results := make(chan result)
	report := func(i int, name string, conn net.Conn, p []byte) {
		got := make(chan []byte, 1)
		go func() {
			b, _ := io.ReadAll(conn) // reset, if what was sent last came too late
			conn.Close()
			got <- b
		}()
		if trickle(conn, p, pause) {
			t.Errorf("listener %d, %s: the server has read all %d bytes", i, name, len(p))
		}
		results <- result{i, name, string(<-got)}
	}
	n := 0
	for i := range said {
		said[i] = map[string]string{}
		handshaking := c.dial(t, i)
		fresh, used := c.dialTLS(t, i), c.dialTLS(t, i)
		fmt.Fprintf(used, "GET /%s?%d HTTP/1.1\r\nHost: localhost\r\n\r\n", medium.name, i)
		a, err := readAnswer(bufio.NewReader(used))
		if err != nil {
			t.Fatal(err)
		}
		a.isFile(t, medium)
		go report(i, "handshake", handshaking, hello)
		go report(i, "first header", fresh, header)
		go report(i, "next header", used, header)
		n += 3
	}
	for range n {
		r := <-results
		said[r.i][r.name] = r.said
	}
	stock := said[len(said)-1]
	for i, got := range said[:len(said)-1] {
		for name, want := range stock {
			if got[name] != want {
				t.Errorf("listener %d, %s: the server said %q, stock Caddy %q", i, name, got[name], want)
			}
		}
		c.tookFile(t, fmt.Sprintf("/%s?%d", medium.name, i), medium.size)
	}
	c.stillServes(t)
}

// TestSlowReader: a client that reads too slowly is cut off by whichever of
// Caddy's time-outs is set: by write when its time is over, by write_idle when
// nothing has gone for so long, by the rate when it is below that; as by stock
// Caddy.
func TestSlowReader(t *testing.T) {
	notEmulated(t)
	for _, test := range []struct {
		name, timeouts string
		read           int // bytes each 50 ms
	}{
		{"write", "write 2s", 16 * kib},
		{"write_idle", "write_idle 2s", 1},
		{"rate", "write_idle 2s 10000000", 16 * kib},
	} {
		t.Run(test.name, func(t *testing.T) {
			options := "timeouts {\n\t" + test.timeouts + "\n}"
			c := start(t,
				listener{wrappers: "ktls", options: options},
				listener{options: options, sites: []site{{body: plainFiles(www)}}},
			)
			uris := []string{"/" + large.name + "?ktls", "/" + large.name + "?stock"}
			whole := content(t, large.name)
			var readers sync.WaitGroup
			for i, uri := range uris {
				d := c.download(t, i, uri)
				readers.Go(func() {
					isResponse := func(l *line) bool { return l.isAccess() && l.Request.URI == uri }
					var begin []byte
					b := make([]byte, test.read)
					for deadline := time.Now().Add(patience); c.log.count(isResponse) == 0; time.Sleep(50 * time.Millisecond) { // the client's pace
						n, err := d.resp.Body.Read(b)
						begin = append(begin, b[:n]...)
						if err != nil || time.Now().After(deadline) {
							t.Errorf("%s: the server goes on, after %d bytes: %v", uri, len(begin), err)
							return
						}
					}
					if l, _ := c.log.await(0, isResponse); l.Size >= large.size {
						t.Errorf("%s: the access log says that %d of %d bytes were sent", uri, l.Size, large.size)
					}
					checkPrefix(t, io.MultiReader(bytes.NewReader(begin), d.resp.Body), whole)
				})
			}
			readers.Wait()
			c.wasCut(t, uris[0], 1)
			c.stillServes(t)
		})
	}
}

// TestIdleTimeout: a connection on which nothing more is asked for is closed when
// idle is over, with close_notify (and GOAWAY), in the kernel or not; as by stock
// Caddy.
func TestIdleTimeout(t *testing.T) {
	notEmulated(t)
	options := "timeouts {\n\tidle 2s\n}"
	c := start(t, listener{wrappers: "ktls", options: options}, listener{options: options, sites: []site{{body: plainFiles(www)}}})
	for i := range 2 {
		uri := fmt.Sprintf("/%s?%d", medium.name, i)
		conn := c.dialTLS(t, i)
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", uri)
		r := bufio.NewReader(conn)
		a, err := readAnswer(r)
		if err != nil {
			t.Fatal(err)
		}
		a.isFile(t, medium)
		h := c.dialHTTP2(t, i, h2options{})
		h.get(uri, content(t, medium.name)).whole(t)
		if i == 0 {
			c.tookFile(t, uri, medium.size)
			c.tookFile(t, uri, medium.size)
		}

		if b, err := r.ReadByte(); err != io.EOF {
			t.Errorf("listener %d: byte %d and %v instead of close_notify", i, b, err)
		}
		h.await(t, "GOAWAY", func() bool { return h.goAway != nil })
		<-h.done
		if h.goAway.ErrCode != http2.ErrCodeNo || h.err != io.EOF {
			t.Errorf("listener %d: HTTP/2 ends with GOAWAY %v, %v", i, h.goAway.ErrCode, h.err)
		}
	}
}
