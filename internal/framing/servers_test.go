package framing

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// sessionConn is a connection of an HTTP/2 server, followed by a session.
type sessionConn struct {
	net.Conn
	session Session
	in      chan []byte   // from the client
	rest    []byte        // of the last
	wake    chan struct{} // something is to be injected

	mu    sync.Mutex
	wrote bytes.Buffer // by the server
	err   error        // of the session
}

func newSessionConn(conn net.Conn) *sessionConn {
	c := &sessionConn{Conn: conn, in: make(chan []byte), wake: make(chan struct{}, 1)}
	go func() {
		defer close(c.in)
		for {
			buf := make([]byte, 4<<10)
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			c.in <- buf[:n]
		}
	}()
	return c
}

func (c *sessionConn) Read(p []byte) (int, error) {
	for {
		if c.session.WantsInject() {
			if n := c.session.Inject(p); n > 0 {
				return n, nil
			}
		}
		if len(c.rest) > 0 {
			n := copy(p, c.rest)
			c.rest = c.rest[n:]
			c.session.Received(p[:n])
			return n, nil
		}
		var ok bool
		select {
		case c.rest, ok = <-c.in:
			if !ok {
				return 0, io.EOF
			}
		case <-c.wake:
		}
	}
}

func (c *sessionConn) poke() {
	if c.session.WantsInject() {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

func (c *sessionConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrote.Write(p)
	list, err := c.session.Rewrite(p)
	if err != nil {
		if !errors.Is(err, net.ErrClosed) { // the server had closed it
			c.err = err
		}
		c.Conn.Close()
		return 0, err
	}
	if err := send(c.Conn, list); err != nil {
		c.session.Close(err)
		return 0, err
	}
	c.poke()
	return len(p), nil
}

func (c *sessionConn) Close() error {
	c.session.Close(net.ErrClosed)
	return c.Conn.Close()
}

// SetReadDeadline does nothing: the pump above reads.
func (c *sessionConn) SetReadDeadline(time.Time) error { return nil }

// largestData returns the length of the longest DATA that the server wrote.
func (c *sessionConn) largestData() (largest int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for b := c.wrote.Bytes(); len(b) >= headerLen; {
		h := parseHeader(b)
		if h.typ == http2.FrameData {
			largest = max(largest, h.length)
		}
		b = b[min(headerLen+h.length, len(b)):]
	}
	return largest
}

// streamOf returns the number of a ResponseWriter's stream.
func streamOf(w http.ResponseWriter) uint32 {
	return uint32(reflect.ValueOf(w).Elem().FieldByName("rws").Elem().FieldByName("stream").Elem().FieldByName("id").Uint())
}

// fileHandler serves parts of a file in several ways.
type fileHandler struct {
	conn    *sessionConn
	file    *os.File
	content []byte
	enlarge uint32
	failed  chan string
}

func (h *fileHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	off, _ := strconv.ParseInt(r.FormValue("off"), 10, 64)
	n, _ := strconv.ParseInt(r.FormValue("n"), 10, 64)
	prefix, _ := strconv.Atoi(r.FormValue("prefix"))
	w.Header().Set("Content-Length", strconv.FormatInt(n+int64(prefix), 10))
	if size, _ := strconv.Atoi(r.FormValue("header")); size > 0 {
		w.Header().Set("X-Large", strings.Repeat("x", size))
	}
	s := &h.conn.session
	body := s.Watch(streamOf(w))
	defer body.Void()
	if r.URL.Path == "/plain" {
		w.Write(h.content[off : off+n])
		return
	}
	if prefix == 0 {
		http.NewResponseController(w).Flush()
	}
	s.Enlarge(h.enlarge)
	h.conn.poke()
	w.Write(h.content[:prefix])
	if err := body.Announce(h.file, int64(prefix), off, n); err != nil {
		h.failed <- err.Error()
		return
	}
	for pos := int64(0); pos < n; {
		m, err := w.Write(StandIn(pos, int(min(n-pos, max(int64(h.enlarge), 64<<10)))))
		if err != nil {
			return // the client cancelled
		}
		pos += int64(m)
	}
	if err := http.NewResponseController(w).Flush(); err != nil {
		return
	}
	select {
	case <-body.Done():
	case <-r.Context().Done():
		return
	}
	if left := body.Left(); left > 0 && r.Context().Err() == nil {
		h.failed <- fmt.Sprintf("%d bytes were not sent", left)
	}
}

// serve serves one connection with one of the two HTTP/2 servers.
func serve(t *testing.T, server string, conn *sessionConn, h http.Handler) {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: h, Protocols: &protocols}
	pkg := "net/http"
	if server == "x/net" {
		pkg = "golang.org/x/net/http2"
		//lint:ignore SA1019 Caddy does so.
		if err := http2.ConfigureServer(srv, nil); err != nil {
			t.Fatal(err)
		}
	}
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got := reflect.TypeOf(w).Elem().PkgPath(); got != pkg {
			t.Errorf("served by %s", got)
		}
		h.ServeHTTP(w, r)
	})
	ln := &oneListener{conn: make(chan net.Conn, 1), done: make(chan struct{})}
	ln.conn <- conn
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
}

// oneListener accepts one connection.
type oneListener struct {
	conn chan net.Conn
	done chan struct{}
	once sync.Once
}

func (l *oneListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *oneListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *oneListener) Addr() net.Addr { return &net.UnixAddr{Name: "test", Net: "pipe"} }

// testServers runs a test with each HTTP/2 server, over one connection of the
// client.
func testServers(t *testing.T, enlarge uint32, test func(t *testing.T, h *fileHandler, client http.RoundTripper)) {
	testServersRaw(t, enlarge, func(t *testing.T, h *fileHandler, conn net.Conn) {
		var protocols http.Protocols
		protocols.SetUnencryptedHTTP2(true)
		transport := &http.Transport{Protocols: &protocols, DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}
		client, err := transport.NewClientConn(context.Background(), "http", "localhost:80")
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		test(t, h, client)
	})
}

// testServersRaw does so with the client's end of the connection.
func testServersRaw(t *testing.T, enlarge uint32, test func(t *testing.T, h *fileHandler, client net.Conn)) {
	for _, server := range []string{"x/net", "net/http"} {
		t.Run(server, func(t *testing.T) {
			here, there := net.Pipe()
			conn := newSessionConn(there)
			h := &fileHandler{conn: conn, enlarge: enlarge, failed: make(chan string, 100)}
			h.file, h.content = testFile(t, 6<<20)
			serve(t, server, conn, h)
			test(t, h, here)
			conn.mu.Lock()
			err := conn.err
			conn.mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			select {
			case text := <-h.failed:
				t.Error(text)
			default:
			}
		})
	}
}

// get requests something and compares it with what it must be.
func (h *fileHandler) get(client http.RoundTripper, path string, prefix, off, n int) error {
	url := fmt.Sprintf("http://localhost%s?prefix=%d&off=%d&n=%d", path, prefix, off, n)
	resp, err := client.RoundTrip(mustRequest(context.Background(), url))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, resp.Body); err != nil {
		return fmt.Errorf("%s: %w", url, err)
	}
	want := sha256.New()
	want.Write(h.content[:prefix])
	want.Write(h.content[off : off+n])
	if !bytes.Equal(hash.Sum(nil), want.Sum(nil)) {
		return fmt.Errorf("%s: other bytes", url)
	}
	return nil
}

func mustRequest(ctx context.Context, url string) *http.Request {
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		panic(err)
	}
	return req
}

// The size that fits nine records.
const nineRecords = 9 * (16<<10 - headerLen)

// Both servers write frames as long as Enlarge says, and no longer.
func TestServersWriteFramesAsLargeAsAsked(t *testing.T) {
	for _, size := range []uint32{MinFrameSize, 64 << 10, nineRecords, MaxFrameSize} {
		t.Run(strconv.Itoa(int(size)), func(t *testing.T) {
			testServers(t, size, func(t *testing.T, h *fileHandler, client http.RoundTripper) {
				got := 0
				for n := 0; n < 20 && got != int(size); n++ { // the server learns of it while it writes
					if err := h.get(client, "/file", 0, 0, 4<<20); err != nil {
						t.Fatal(err)
					}
					got = h.conn.largestData()
				}
				if got != int(size) {
					t.Errorf("longest frame: %d, asked for %d", got, size)
				}
			})
		})
	}
}

func TestServersServeManyStreams(t *testing.T) {
	testServers(t, nineRecords, func(t *testing.T, h *fileHandler, client http.RoundTripper) {
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for j := range 8 {
					off, n := i*12345, (j*j*j)<<11+i
					path, prefix := "/file", (i%3)*700
					if i%4 == 3 {
						path, prefix = "/plain", 0
					}
					if err := h.get(client, path, prefix, off, n); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	})
}

// A client that cancels gets no wrong byte on other streams, and its connection
// goes on.
func TestServersSurviveCancelledStreams(t *testing.T) {
	testServers(t, nineRecords, func(t *testing.T, h *fileHandler, client http.RoundTripper) {
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				for j := range 10 {
					if i%2 == 0 {
						if err := h.get(client, "/file", 0, j, 400_000+i); err != nil {
							t.Error(err)
						}
						continue
					}
					ctx, cancel := context.WithCancel(context.Background())
					resp, err := client.RoundTrip(mustRequest(ctx, "http://localhost/file?n=6000000"))
					if err != nil {
						t.Error(err)
						cancel()
						return
					}
					got := make([]byte, 1+j*50_000)
					if _, err := io.ReadFull(resp.Body, got); err != nil {
						t.Error(err)
					}
					if !bytes.Equal(got, h.content[:len(got)]) {
						t.Error("other bytes")
					}
					cancel()
					// It may all have come before the client knows that it is cancelled.
					n, err := io.Copy(io.Discard, resp.Body)
					if whole := int64(len(got))+n == 6_000_000; !errors.Is(err, context.Canceled) && (err != nil || !whole) {
						t.Errorf("%d bytes more, %v", n, err)
					}
				}
			})
		}
		wg.Wait()
	})
}

// The field blocks of these servers are cut by themselves; it must stay so.
func TestServersSendLargeHeaders(t *testing.T) {
	testServers(t, nineRecords, func(t *testing.T, h *fileHandler, client http.RoundTripper) {
		for range 2 {
			resp, err := client.RoundTrip(mustRequest(context.Background(), "http://localhost/file?n=100000&header=50000"))
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil || len(resp.Header.Get("X-Large")) != 50000 || !bytes.Equal(body, h.content[:100000]) {
				t.Fatal(err, len(body), len(resp.Header.Get("X-Large")))
			}
		}
	})
}

// A client that changes its SETTINGS all the time, and reads slowly enough that
// the server acknowledges several at once: frames are never longer than it
// accepts, and each SETTINGS is acknowledged by a frame of its own or a later one.
func TestServersWithSettingsMidWay(t *testing.T) {
	testServersRaw(t, nineRecords, func(t *testing.T, h *fileHandler, conn net.Conn) {
		defer conn.Close()
		const streams, size, changes = 3, 3_000_000, 300
		var mu sync.Mutex // of the client's view
		view := newClient()
		view.limited = true
		go func() {
			framer := http2.NewFramer(conn, nil)
			setting := func(s ...http2.Setting) {
				mu.Lock()
				size := view.settings[len(view.settings)-1]
				for _, s := range s {
					if s.ID == http2.SettingMaxFrameSize {
						size = int(s.Val)
					}
				}
				view.settings = append(view.settings, size)
				mu.Unlock()
				framer.WriteSettings(s...)
			}
			io.WriteString(conn, http2.ClientPreface)
			setting(http2.Setting{ID: http2.SettingInitialWindowSize, Val: size})
			framer.WriteWindowUpdate(0, streams*size)
			for i := range uint32(streams) {
				var block bytes.Buffer
				enc := hpack.NewEncoder(&block)
				enc.WriteField(hpack.HeaderField{Name: ":method", Value: "GET"})
				enc.WriteField(hpack.HeaderField{Name: ":scheme", Value: "http"})
				enc.WriteField(hpack.HeaderField{Name: ":authority", Value: "localhost"})
				enc.WriteField(hpack.HeaderField{Name: ":path", Value: fmt.Sprintf("/file?n=%d", size)})
				framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true})
			}
			for i := range uint32(changes) {
				if i%3 == 0 {
					setting()
				} else {
					setting(http2.Setting{ID: http2.SettingMaxFrameSize, Val: minFrame + i*i%20_000})
				}
			}
			framer.WritePing(false, [8]byte{1})
		}()
		var out []byte
		bodies := make(map[uint32][]byte)
		r := bufio.NewReader(io.TeeReader(conn, writerFunc(func(p []byte) {
			mu.Lock()
			defer mu.Unlock()
			out = append(out, p...)
			if err := view.see(out); err != nil {
				t.Error(err)
			}
		})))
		framer := http2.NewFramer(io.Discard, r)
		for ended, pong := 0, false; ended < streams || !pong; {
			f, err := framer.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			switch f := f.(type) {
			case *http2.DataFrame:
				bodies[f.StreamID] = append(bodies[f.StreamID], f.Data()...)
				if f.StreamEnded() {
					ended++
				}
			case *http2.PingFrame:
				pong = true
			case *http2.RSTStreamFrame, *http2.GoAwayFrame:
				t.Fatal(f)
			}
		}
		for stream, body := range bodies {
			if !bytes.Equal(body, h.content[:size]) {
				t.Errorf("stream %d: other bytes", stream)
			}
		}
		t.Logf("%d SETTINGS, %d acknowledgements, frames of up to %d bytes, of the server up to %d", len(view.settings)-1, view.acks, view.largest, h.conn.largestData())
	})
}

type writerFunc func(p []byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }
