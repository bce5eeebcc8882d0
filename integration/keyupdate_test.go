//go:build linux

package integration

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"
)

// canRekey reports whether the kernel can change the key of a connection: those
// that can (6.14 and newer) count it.
func canRekey(t *testing.T) bool {
	t.Helper()
	if !kernel.ulp {
		return false
	}
	b, err := os.ReadFile("/proc/net/tls_stat")
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Contains(b, []byte("TlsTxRekeyOk"))
}

// countRekeys returns a function that checks how many changes of keys Caddy and
// the kernel have counted since, and how many Caddy refused. more allows for more
// than so many.
func (c *caddy) countRekeys(t *testing.T, by string) func(t *testing.T, ok, refused int, more bool) {
	t.Helper()
	series := func(result string) int {
		return int(c.scrape(t)[fmt.Sprintf("caddy_ktls_rekeys_total{by=%q,result=%q", by, result)])
	}
	inKernel := func() int {
		if !canRekey(t) {
			return series("ok")
		}
		return tlsStat(t, "TlsTxRekeyOk")
	}
	ok0, refused0, kernel0 := series("ok"), series("refused"), inKernel()
	return func(t *testing.T, ok, refused int, more bool) {
		t.Helper()
		is := func(got, want int) bool { return got == want || more && got > want }
		eventually(t, fmt.Sprintf("%d changes of keys and %d refused", ok, refused), func() bool {
			return is(series("ok")-ok0, ok) && series("refused")-refused0 == refused
		})
		if got, want := inKernel()-kernel0, series("ok")-ok0; got != want {
			t.Errorf("the kernel has changed %d keys, Caddy %d", got, want)
		}
		if n := series("failed") + series("flood"); n != 0 {
			t.Errorf("%d changes of keys failed", n)
		}
	}
}

// TestKeyUpdateGnuTLS: a client that changes its own key is served on, by the
// kernel as before. One that asks for a new key of the server's too gets it,
// before the upgrade and after it, unless the kernel can't: then it is sent away,
// but gets no wrong byte.
func TestKeyUpdateGnuTLS(t *testing.T) {
	c := start(t, listener{wrappers: "ktls"})
	const local, request = "^rekey1^\n", "^rekey^\n"
	f := small // gnutls-cli writes every byte by itself
	for _, test := range []struct {
		name    string
		updates [3]string // before each of three requests
		rekeys  int       // that the kernel must do
	}{
		{"client's before the upgrade", [3]string{local, "", ""}, 0},
		{"client's after the upgrade", [3]string{"", local, local}, 0},
		{"both before the upgrade", [3]string{request, "", ""}, 0},
		{"both after the upgrade", [3]string{"", request, request}, 2},
		{"both before and after the upgrade", [3]string{request, request, local + request}, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			check := c.countRekeys(t, "client")
			answers, ok, refused := 3, 0, 0
			switch {
			case canRekey(t):
				ok = test.rekeys
			case kernel.ulp && test.rekeys > 0:
				answers, refused = 1, 1
			}
			client, notes := c.gnutlsCommand(t, 0, "--inline-commands", "--priority=NORMAL:-VERS-ALL:+VERS-TLS1.3")
			stdin, err := client.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := client.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := client.Start(); err != nil {
				t.Fatal(err)
			}
			defer client.Wait()
			defer stdin.Close()
			r := bufio.NewReader(stdout)
			for n, update := range test.updates {
				uri := fmt.Sprintf("/%s?%x-%d", f.name, test.name, n)
				_, err := io.WriteString(stdin, update+"GET "+uri+" HTTP/1.1\r\nHost: localhost\r\n\r\n")
				if err != nil && n < answers {
					t.Fatal(err)
				}
				a, err := readAnswer(r)
				if n >= answers {
					if err == nil || a.size > 0 {
						t.Errorf("answer %d: %d bytes, %v", n, a.size, err)
					}
					break
				}
				if err != nil {
					t.Fatalf("answer %d: %v\n%s", n, err, notes())
				}
				a.isFile(t, f)
				c.tookFile(t, uri, f.size)
			}
			check(t, ok, refused, false)
		})
	}
	c.stillServes(t)
}

// sclient is a TLS 1.3 connection of openssl s_client, which changes its keys
// when it reads a line with the letter K or k. It must get that by a read of its
// own, with nothing before it that is to be sent.
type sclient struct {
	net.Conn // none
	cmd      *exec.Cmd
	stdin    *os.File
	stdout   io.Reader

	mu    sync.Mutex  // of stdin
	notes chan string // lines of stderr, until it ends
}

func (c *caddy) sclient(t *testing.T, proto string, more ...string) *sclient {
	t.Helper()
	alpn := map[string]string{"h1": "http/1.1", "h2": "h2"}[proto]
	s := &sclient{notes: make(chan string, 1000)}
	s.cmd = exec.Command(command(t, "openssl"), append([]string{"s_client", "-connect", c.addr(0), "-servername", "localhost",
		"-CAfile", rootFile(), "-verify_return_error", "-quiet", "-no_ign_eof", "-tls1_3", "-alpn", alpn}, more...)...)
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s.cmd.Stdin, s.stdin = in, out
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := s.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.stdout = stdout
	err = s.cmd.Start()
	in.Close()
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer close(s.notes)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			s.notes <- lines.Text()
		}
	}()
	t.Cleanup(func() {
		s.cmd.Process.Kill()
		s.Close()
		<-read
		s.cmd.Wait()
	})
	return s
}

func (s *sclient) Read(p []byte) (int, error) { return s.stdout.Read(p) }

func (s *sclient) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stdin.Write(p)
}

func (s *sclient) Close() error { return s.stdin.Close() }

// keyUpdate has s_client send a KeyUpdate. It returns once it does so.
func (s *sclient) keyUpdate(request bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		n, err := unix.IoctlGetInt(int(s.stdin.Fd()), unix.TIOCINQ)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		if time.Now().After(deadline) {
			return errors.New("s_client doesn't read")
		}
	}
	letter := map[bool]string{false: "k\n", true: "K\n"}[request]
	if _, err := io.WriteString(s.stdin, letter); err != nil {
		return err
	}
	return s.awaitNote("KEYUPDATE")
}

// awaitNote waits for a line of s_client's own.
func (s *sclient) awaitNote(what string) error {
	timeout := time.After(patience)
	var seen []string
	for {
		select {
		case note, ok := <-s.notes:
			if strings.Contains(note, what) {
				return nil
			}
			if seen = append(seen, note); !ok {
				return fmt.Errorf("s_client ended without %q: %q", what, seen)
			}
		case <-timeout:
			return fmt.Errorf("s_client didn't say %q, but %q", what, seen)
		}
	}
}

// roundTripper returns what sends requests over s.
func (s *sclient) roundTripper(t *testing.T, proto string) func(*http.Request) (*http.Response, error) {
	t.Helper()
	if proto == "h2" {
		//lint:ignore SA1019 http.Transport wants a tls.Conn
		conn, err := new(http2.Transport).NewClientConn(s)
		if err != nil {
			t.Fatal(err)
		}
		return conn.RoundTrip
	}
	r := bufio.NewReader(s)
	return func(req *http.Request) (*http.Response, error) {
		if err := req.Write(s); err != nil {
			return nil, err
		}
		return http.ReadResponse(r, req)
	}
}

// TestKeyUpdateOpenSSL: keys change while files are being sent.
func TestKeyUpdateOpenSSL(t *testing.T) {
	c := start(t, listener{wrappers: "ktls"})
	const requests, updates = 4, 5 // each time with an answer and without
	for _, proto := range []string{"h1", "h2"} {
		t.Run(proto, func(t *testing.T) {
			check := c.countRekeys(t, "client")
			s := c.sclient(t, proto)
			roundTrip := s.roundTripper(t, proto)
			get := func(n int, meanwhile func() error) error {
				uri := fmt.Sprintf("/%s?%s-%d", large.name, proto, n)
				resp, err := roundTrip(newRequest(t, "GET", c.url(0, uri)))
				if err != nil {
					return err
				}
				done := make(chan error, 1)
				go func() { done <- meanwhile() }()
				size, sum, err := sumReader(resp.Body)
				if err := errors.Join(err, <-done); err != nil {
					return err
				}
				checkBody(t, uri, size, sum, large.size, large.sum)
				c.tookFile(t, uri, large.size)
				return nil
			}
			if err := get(0, func() error { return nil }); err != nil { // upgrades
				t.Fatal(err)
			}
			if kernel.ulp && !canRekey(t) {
				// One alone: what a client sends after that, and with HTTP/2 it
				// always does, meets a closed connection, and the reset may
				// overtake the alert.
				if err := get(1, func() error { return s.keyUpdate(true) }); err == nil {
					t.Error("the answer to a KeyUpdate that can't be done is whole")
				}
				if err := s.awaitNote("alert internal error"); err != nil && proto == "h1" {
					t.Error(err)
				}
				check(t, 0, 1, false)
				return
			}
			for n := 1; n <= requests; n++ {
				if err := get(n, func() error {
					for range updates {
						if err := errors.Join(s.keyUpdate(true), s.keyUpdate(false)); err != nil {
							return err
						}
					}
					return nil
				}); err != nil {
					t.Fatal(err)
				}
			}
			if kernel.ulp {
				check(t, requests*updates, 0, false)
			}
		})
	}
	c.stillServes(t)
}

// TestKeyLimitChangesKeys: where the kernel can, a connection gets a new key
// whenever its limit is reached, and the client doesn't mind.
func TestKeyLimitChangesKeys(t *testing.T) {
	if !canRekey(t) {
		t.Skip("this kernel can't change keys")
	}
	c := start(t, listener{wrappers: "ktls {\n\tkey_limit 64\n}"})
	changes := func(f file) int { return int(f.size / (16 * kib) / 64) }
	for _, proto := range []string{"h1", "h2"} {
		t.Run("curl/"+proto, func(t *testing.T) {
			check := c.countRekeys(t, "limit")
			var urls []string
			for n := range 3 {
				urls = append(urls, c.url(0, fmt.Sprintf("/%s?curl-%s-%d", large.name, proto, n)))
			}
			flag := map[string]string{"h1": "--http1.1", "h2": "--http2"}[proto]
			for n, tr := range c.curl(t, 0, urls, flag, "--tlsv1.3") {
				tr.isFile(t, large)
				if tr.NumConnects != map[bool]int{true: 1}[n == 0] {
					t.Errorf("answer %d: %d connections", n, tr.NumConnects)
				}
				c.tookFile(t, fmt.Sprintf("/%s?curl-%s-%d", large.name, proto, n), large.size)
			}
			check(t, 3*changes(large), 0, true)
		})
		t.Run("go/"+proto, func(t *testing.T) {
			check := c.countRekeys(t, "limit")
			client := c.goClient(t, 0, proto)
			for n := range 3 {
				uri := fmt.Sprintf("/%s?go-%s-%d", large.name, proto, n)
				client.get(t, c.url(0, uri)).isFile(t, large)
				c.tookFile(t, uri, large.size)
			}
			if n := client.conns.Load(); n != 1 {
				t.Errorf("%d connections", n)
			}
			check(t, 3*changes(large), 0, true)
		})
	}
	t.Run("openssl", func(t *testing.T) {
		check := c.countRekeys(t, "limit")
		uri := "/" + large.name + "?openssl"
		c.openssl(t, 0, lastRequest(uri), "-tls1_3").isFile(t, large)
		c.tookFile(t, uri, large.size)
		check(t, changes(large), 0, true)
	})
	t.Run("gnutls-cli", func(t *testing.T) {
		check := c.countRekeys(t, "limit")
		client, notes := c.gnutlsCommand(t, 0)
		stdin, err := client.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout, err := client.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := client.Start(); err != nil {
			t.Fatal(err)
		}
		defer client.Wait()
		defer stdin.Close()
		r := bufio.NewReader(stdout)
		for n := range 40 { // of at least two records each
			uri := fmt.Sprintf("/%s?gnutls-%d", small.name, n)
			if _, err := io.WriteString(stdin, "GET "+uri+" HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			a, err := readAnswer(r)
			if err != nil {
				t.Fatalf("answer %d: %v\n%s", n, err, notes())
			}
			a.isFile(t, small)
			c.tookFile(t, uri, small.size)
		}
		check(t, 1, 0, true)
	})
}

// TestKeyLimitEndsConnections: where the key can't be changed, a connection is
// told to end in time, and what doesn't fit its key goes the plain way before the
// upgrade.
func TestKeyLimitEndsConnections(t *testing.T) {
	needKTLS(t)
	const limit = 256 // half must be enough for one answer
	c := start(t, listener{wrappers: fmt.Sprintf("ktls {\n\tkey_limit %d\n}", limit)})
	f := ofSize(65537) // five records
	const requests = 60
	for _, version := range versions {
		if version.number == tls.VersionTLS13 && canRekey(t) {
			continue
		}
		for _, proto := range []string{"h1", "h2"} {
			t.Run(version.name+"/"+proto, func(t *testing.T) {
				var mu sync.Mutex
				var wires []*countingConn
				client := c.goClient(t, 0, proto, func(tr *http.Transport) {
					tr.TLSClientConfig.MaxVersion = version.number
					dial := tr.DialContext
					tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
						conn, err := dial(ctx, network, addr)
						if err != nil {
							return nil, err
						}
						mu.Lock()
						defer mu.Unlock()
						wires = append(wires, &countingConn{Conn: conn})
						return wires[len(wires)-1], nil
					}
				})
				uri := fmt.Sprintf("/%s?%d-%s", large.name, version.number, proto)
				client.get(t, c.url(0, uri)).isFile(t, large)
				c.tookPlain(t, uri, "key_limit")
				client.CloseIdleConnections()

				before := client.conns.Load()
				closes := 0
				for n := range requests {
					uri := fmt.Sprintf("/%s?%d-%s-%d", f.name, version.number, proto, n)
					a := client.get(t, c.url(0, uri))
					a.isFile(t, f)
					if proto == "h1" && a.closes {
						closes++
					}
					c.tookFile(t, uri, f.size)
				}
				conns := int(client.conns.Load() - before)
				// With five to nine records each, and half of the limit.
				if conns < requests*5/limit || conns > requests*9/(limit/2-9)+1 {
					t.Errorf("%d connections for %d requests", conns, requests)
				}
				if proto == "h1" && closes < conns-1 {
					t.Errorf("%d answers with Connection: close, for %d connections", closes, conns)
				}
				mu.Lock()
				defer mu.Unlock()
				for i, w := range wires[1:] {
					most := limit
					if version.number == tls.VersionTLS13 {
						most += 5 // the rest of the handshake
					}
					if n := w.encrypted(); n > most {
						t.Errorf("connection %d: %d records", i, n)
					}
				}
			})
		}
	}
}

// TestKeyLimitIsTold: whatever a connection is used for, its client is told that it
// ends before its key is used up, and not by a header that isn't the answer's.
func TestKeyLimitIsTold(t *testing.T) {
	needKTLS(t)
	const limit = 256
	c := start(t, listener{
		wrappers: fmt.Sprintf("ktls {\n\tupgrade handshake\n\tkey_limit %d\n}", limit),
		sites:    []site{{body: files("reverse_proxy /to/* " + backend(t))}},
	})
	old := func(config *tls.Config) { config.MaxVersion = tls.VersionTLS12 } // whose keys can't be changed
	for _, proto := range []string{"h1", "h2"} {
		t.Run("POST/"+proto, func(t *testing.T) {
			client := c.goClient(t, 0, proto, func(tr *http.Transport) { old(tr.TLSClientConfig) })
			const requests = 200 // of at least one record each
			for range requests {
				client.upload(t, c.url(0, "/to/backend"), []byte("x"), false)
			}
			if n := client.conns.Load(); n < 2 || n > requests/10 {
				t.Errorf("%d connections for %d requests", n, requests)
			}
		})
	}
	t.Run("101", func(t *testing.T) {
		conn := c.dialTLS(t, 0, old)
		defer conn.Close()
		r := bufio.NewReader(conn)
		uri := "/" + medium.name + "?half"
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", uri)
		a, err := readAnswer(r)
		if err != nil {
			t.Fatal(err)
		}
		a.isFile(t, medium)
		c.tookFile(t, uri, medium.size)
		io.WriteString(conn, "GET /to/backend HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		header, err := textproto.NewReader(r).ReadLine()
		if err != nil || !strings.Contains(header, " 101 ") {
			t.Fatal(header, err)
		}
		fields, err := textproto.NewReader(r).ReadMIMEHeader()
		if err != nil || fields.Get("Connection") != "Upgrade" || fields.Get("Upgrade") != "echo" {
			t.Error(fields, err)
		}
	})
}

// countingConn counts the records that a server sends. Wrapped by crypto/tls.
type countingConn struct {
	net.Conn
	mu      sync.Mutex
	header  []byte
	left    int
	records int // encrypted ones
	ccs     bool
}

func (w *countingConn) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	w.mu.Lock()
	defer w.mu.Unlock()
	for p = p[:n]; len(p) > 0; {
		if w.left == 0 {
			w.header = append(w.header, p[0])
			p = p[1:]
			if len(w.header) < 5 {
				continue
			}
			w.left = int(binary.BigEndian.Uint16(w.header[3:]))
			const changeCipherSpec = 20
			if w.ccs {
				w.records++
			}
			w.ccs = w.ccs || w.header[0] == changeCipherSpec
			w.header = w.header[:0]
		}
		m := min(w.left, len(p))
		w.left -= m
		p = p[m:]
	}
	return n, err
}

// encrypted is how many records came after ChangeCipherSpec: in TLS 1.3 those of
// the handshake, which have another key, are among them.
func (w *countingConn) encrypted() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.records
}
