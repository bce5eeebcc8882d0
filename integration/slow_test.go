//go:build linux

package integration

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// download is a response whose body the test reads at its own pace, over a
// connection with a small receive buffer.
type download struct {
	tcp  *net.TCPConn
	resp *http.Response
}

func (c *caddy) download(t *testing.T, i int, uri string) *download {
	t.Helper()
	tcp := dialSmall(t, c.addr(i), 0)
	conn := handshake(t, tcp, tlsConfig(t))
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", uri)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	return &download{tcp, resp}
}

// stalled reads some of a download and then nothing, until the server waits.
func (c *caddy) stalled(t *testing.T, i int, uri string) *download {
	t.Helper()
	d := c.download(t, i, uri)
	awaitStall(t, d.tcp)
	return d
}

// TestPausedClient: a client that stops reading for a while gets all of it.
func TestPausedClient(t *testing.T) {
	c := start(t, listener{wrappers: "ktls"})
	uri := "/" + large.name
	d := c.download(t, 0, uri)
	hash := sha256.New()
	var total int64
	for range 3 {
		awaitStall(t, d.tcp)
		n, err := io.CopyN(hash, d.resp.Body, mib+17)
		if total += n; err != nil {
			t.Fatalf("after %d bytes: %v", total, err)
		}
	}
	n, err := io.Copy(hash, d.resp.Body)
	if err != nil {
		t.Error(err)
	}
	checkBody(t, uri, total+n, hex.EncodeToString(hash.Sum(nil)), large.size, large.sum)
	c.tookFile(t, uri, large.size)
}

// TestStoppedClient: a client that never reads again is given up after
// write_idle, and leaves nothing behind.
func TestStoppedClient(t *testing.T) {
	c := start(t, listener{wrappers: "ktls", options: "timeouts {\n\twrite_idle 2s\n}"})
	c.goClient(t, 0, "h1", func(tr *http.Transport) { tr.DisableKeepAlives = true }).
		get(t, c.url(0, "/"+large.name+"?before")).isFile(t, large)
	before := c.settled(t)

	uri := "/" + large.name + "?stopped"
	d := c.stalled(t, 0, uri)
	l := c.response(t, uri) // logged once the server has given up
	if l.Size >= large.size {
		t.Errorf("the access log says that %d of %d bytes were sent", l.Size, large.size)
	}
	checkPrefix(t, d.resp.Body, content(t, large.name))
	d.tcp.Close()
	c.awaitFootprint(t, before)
	c.goClient(t, 0, "h1").get(t, c.url(0, "/"+medium.name)).isFile(t, medium)
}

// checkPrefix reads what arrives of a body that is cut short: not all of what
// was promised, and no byte that isn't the file's.
func checkPrefix(t *testing.T, r io.Reader, whole []byte) {
	t.Helper()
	got, err := io.ReadAll(r)
	if err == nil {
		t.Errorf("the body ended after %d bytes as if it were whole", len(got))
	}
	if len(got) >= len(whole) || sum(got) != sum(whole[:len(got)]) {
		n := 0
		for n < min(len(got), len(whole)) && got[n] == whole[n] {
			n++
		}
		t.Errorf("%d bytes arrived, right up to %d", len(got), n)
	}
}

// TestSlowClient: a client that takes its time, longer than write_idle for the
// whole and for what we send at once, but goes on reading, is not cut off. The
// same is asked of stock Caddy.
func TestSlowClient(t *testing.T) {
	const perSecond = 768 * kib
	size := large.size
	idle := "timeouts {\n\twrite_idle 2s\n}"
	c := start(t,
		listener{wrappers: "ktls", options: idle},
		listener{options: idle, sites: []site{{body: plainFiles(www)}}},
	)
	results := make(chan error)
	for i, name := range []string{"ktls", "stock"} {
		d := c.download(t, i, "/"+large.name+"?"+name)
		go func() {
			hash := sha256.New()
			began := time.Now()
			var n int64
			var err error
			for n < size && err == nil {
				var m int64
				m, err = io.CopyN(hash, d.resp.Body, min(32*kib, size-n))
				n += m
				due := began.Add(time.Duration(n) * time.Second / perSecond)
				time.Sleep(time.Until(due))
			}
			if err != nil || hex.EncodeToString(hash.Sum(nil)) != large.sum {
				err = fmt.Errorf("%s: after %d bytes of %d and %v: %v", name, n, size, time.Since(began).Round(time.Second), err)
			}
			results <- err
		}()
	}
	for range 2 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	c.tookFile(t, "/"+large.name+"?ktls", size)
}

// TestResettingClients: clients that reset the connection in the middle of a
// download, at different points of it, leave nothing behind.
func TestResettingClients(t *testing.T) {
	c := start(t, listener{wrappers: "ktls"})
	c.goClient(t, 0, "h1", func(tr *http.Transport) { tr.DisableKeepAlives = true }).
		get(t, c.url(0, "/"+large.name+"?before")).isFile(t, large)
	before := c.settled(t)
	for n, read := range []int64{0, 1, 16 * kib, mib, 2*mib + 1, 3 * mib} {
		uri := fmt.Sprintf("/%s?%d", large.name, n)
		d := c.download(t, 0, uri)
		if _, err := io.CopyN(io.Discard, d.resp.Body, read); err != nil {
			t.Fatal(err)
		}
		if n%2 == 0 {
			awaitStall(t, d.tcp)
		}
		d.tcp.SetLinger(0)
		d.tcp.Close()
		c.response(t, uri)
	}
	c.awaitFootprint(t, before)
	c.goClient(t, 0, "h1").get(t, c.url(0, "/"+medium.name)).isFile(t, medium)
	c.tookFile(t, "/"+medium.name, medium.size)
}

// TestLeavingClients: clients that end the connection with close_notify while
// they are being served.
func TestLeavingClients(t *testing.T) {
	c := start(t, listener{wrappers: "ktls"})
	c.goClient(t, 0, "h1", func(tr *http.Transport) { tr.DisableKeepAlives = true }).
		get(t, c.url(0, "/"+large.name+"?before")).isFile(t, large)
	before := c.settled(t)
	for n := range 4 {
		uri := fmt.Sprintf("/%s?%d", large.name, n)
		tcp := dialSmall(t, c.addr(0), 0)
		conn := handshake(t, tcp, tlsConfig(t))
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", uri)
		if _, err := io.CopyN(io.Discard, conn, 100*kib); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		c.response(t, uri)
	}
	c.awaitFootprint(t, before)
}
