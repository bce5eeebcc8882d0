//go:build linux

package integration

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/http2"
)

// huntPatience is how long an answer may take, over the worst of the networks.
const huntPatience = 10 * time.Minute

// standInMark is in any 23 of the stand-in bytes that are known
// (internal/framing).
const standInMark = "STAND-IN"

// detector looks for stand-in bytes in all that is read.
type detector struct {
	io.Reader
	h     *hunt
	where string
	last  []byte // as much of what was read as can be the begin of a mark
}

func (d *detector) Read(p []byte) (int, error) {
	n, err := d.Reader.Read(p)
	const keep = len(standInMark) - 1
	seam := append(d.last, p[:min(n, keep)]...)
	if bytes.Contains(p[:n], []byte(standInMark)) || bytes.Contains(seam, []byte(standInMark)) {
		d.h.fails("STAND-IN BYTES in %s", d.where)
	}
	if n >= keep {
		d.last = append(d.last[:0], p[n-keep:n]...)
	} else {
		d.last = append([]byte{}, seam[max(0, len(seam)-keep):]...)
	}
	return n, err
}

// huntConn is a connection of the hunt: TLS over a socket, all bytes of both
// looked through.
type huntConn struct {
	*tls.Conn
	h       *hunt
	born    time.Time
	tcp     *net.TCPConn
	re      *rekeyer
	plain   detector
	kind    string      // protocol, version, cipher
	limited bool        // may meet a key_limit, and is of a version without KeyUpdates
	updated atomic.Bool // a KeyUpdate was sent
	more    atomic.Bool // the client has sent something that the server need not read

	mu        sync.Mutex
	truncated []time.Time // when streams were cut because their files were
	cuts      []cut       // without a reason of their own
}

// cut is an answer that was cut.
type cut struct {
	at    time.Time
	what  string
	reset bool // of the connection
}

// wire is the socket of a huntConn.
type wire struct {
	*net.TCPConn
	detector
}

func (w *wire) Read(p []byte) (int, error)     { return w.detector.Read(p) }
func (c *huntConn) Read(p []byte) (int, error) { return c.plain.Read(p) }

// reset ends the connection at once.
func (c *huntConn) reset() {
	c.tcp.SetLinger(0)
	c.tcp.Close()
}

var huntTLS = []struct {
	name    string
	version uint16
	suite   uint16 // of TLS 1.2
}{
	{"TLS 1.3", tls.VersionTLS13, 0},
	{"TLS 1.3", tls.VersionTLS13, 0},
	{"TLS 1.3", tls.VersionTLS13, 0},
	{"TLS 1.2 AES-128-GCM", tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
	{"TLS 1.2 AES-256-GCM", tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384},
	{"TLS 1.2 CHACHA20-POLY1305", tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256},
}

// dial opens a connection of any kind. It returns nil if there is none to be had.
func (h *hunt) dial(rng *rand.Rand, proto string) *huntConn {
	began := time.Now()
	d := net.Dialer{Timeout: huntPatience}
	if rng.IntN(6) == 0 {
		d.Control = receiveBuffer((2<<10)<<rng.IntN(6), 0)
	}
	listener := rng.IntN(huntListeners)
	tcp, err := d.Dial("tcp", h.addr(listener))
	if err != nil {
		h.noAnswer(began, "connect", err)
		return nil
	}
	c := &huntConn{h: h, tcp: tcp.(*net.TCPConn), born: began}
	c.tcp.SetDeadline(time.Now().Add(huntPatience))
	kind := huntTLS[rng.IntN(len(huntTLS))]
	c.limited = kind.version == tls.VersionTLS12 && hasKeyLimit(h.t, listener)
	config := h.tls.Clone()
	config.MinVersion, config.MaxVersion = kind.version, kind.version
	config.NextProtos = []string{map[string]string{"h1": "http/1.1", "h2": "h2"}[proto]}
	if kind.suite != 0 {
		config.CipherSuites = []uint16{kind.suite}
	}
	if rng.IntN(2) == 0 {
		config.ClientSessionCache = h.sessions
	}
	c.re = &rekeyer{Conn: &wire{c.tcp, detector{Reader: c.tcp, h: h, where: "what is on the wire"}}}
	if c.Conn, err = c.re.client(config); err != nil {
		tcp.Close()
		h.noAnswer(began, "handshake", err)
		return nil
	}
	c.kind = proto + " " + kind.name
	if kind.suite == 0 {
		c.kind += " " + strings.TrimPrefix(tls.CipherSuiteName(c.ConnectionState().CipherSuite), "TLS_")
	}
	if c.ConnectionState().DidResume {
		h.count("connections resumed", 1)
	}
	c.plain = detector{Reader: c.Conn, h: h, where: c.kind}
	h.count("connections: "+c.kind, 1)
	return c
}

// noAnswer is for requests that nothing came back for, over a connection made at
// a time. A reload ends the connections there are, perhaps just when one is used
// (with stock Caddy too).
func (h *hunt) noAnswer(born time.Time, what string, err error) {
	if h.configGone(born) {
		return
	}
	h.fails("%s: %v, %v after the connection began", what, err, time.Since(born))
}

// configGone counts a request that nothing came back for, if that may be because
// of a reload.
func (h *hunt) configGone(born time.Time) bool {
	gone := h.reloadedSince(born)
	if gone {
		h.count("no answer, for the configuration was gone", 1)
	}
	return gone
}

// answered counts an answer, whole or not, and the bytes of its body.
func (h *hunt) answered(kind string, n int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.counts["responses"]++
	h.counts["responses: "+kind]++
	h.bytes += n
}

// huntRequest is a request of the hunt, and what is to become of its answer.
type huntRequest struct {
	file   *huntFile
	size   int64 // of the file when it was asked for
	method string
	rang   string // value of Range
	multi  bool   // more than one range
	stop   int64  // give up after so many bytes of the body; -1: never
	slow   bool
	update int // KeyUpdates to send: 1: the client's alone, 2: ask for the server's too
}

func (h *hunt) newRequest(rng *rand.Rand) huntRequest {
	r := huntRequest{file: h.files[rng.IntN(len(h.files))], method: "GET", stop: -1}
	if r.size = r.file.now().size; r.size > 128*kib && rng.IntN(12) > 0 {
		return h.newRequest(rng)
	}
	size := max(r.size, 1)
	switch rng.IntN(12) {
	case 0, 1:
		from := rng.Int64N(size)
		r.rang = fmt.Sprintf("bytes=%d-%d", from, from+rng.Int64N(size-from))
	case 2:
		r.rang = fmt.Sprintf("bytes=%d-", rng.Int64N(size))
	case 3:
		r.rang = fmt.Sprintf("bytes=-%d", 1+rng.Int64N(size))
	case 4:
		if rng.IntN(2) == 0 {
			r.method = "HEAD"
		} else if size > 10 {
			middle := size / 2
			r.rang, r.multi = fmt.Sprintf("bytes=%d-%d,%d-", rng.Int64N(middle), middle-1, middle+rng.Int64N(size-middle)), true
		}
	}
	if rng.IntN(12) == 0 {
		r.stop = rng.Int64N(size)
	}
	r.slow = rng.IntN(30) == 0
	if rng.IntN(8) == 0 {
		r.update = 1 + rng.IntN(2)
	}
	return r
}

func (r huntRequest) String() string {
	return fmt.Sprintf("%s %s (%s)", r.method, r.file.name, r.rang)
}

// visit is one connection's time, or one of curl's.
func (h *hunt) visit(rng *rand.Rand) {
	switch n := rng.IntN(200); {
	case n == 0 && !slow:
		h.visitCurl(rng)
	case n%2 == 0:
		h.visitHTTP1(rng)
	default:
		h.visitHTTP2(rng)
	}
}

// visitHTTP1 asks for some files, sometimes for several at once.
func (h *hunt) visitHTTP1(rng *rand.Rand) {
	c := h.dial(rng, "h1")
	if c == nil {
		return
	}
	defer c.explainCuts()
	defer c.Close()
	in := bufio.NewReaderSize(c, 4<<10)
	for left := 1 + rng.IntN(100); left > 0; {
		batch := make([]huntRequest, 1)
		if rng.IntN(2) == 0 {
			batch = make([]huntRequest, 1+rng.IntN(8))
		}
		left -= len(batch)
		var out bytes.Buffer
		for i := range batch {
			r := h.newRequest(rng)
			batch[i] = r
			fmt.Fprintf(&out, "%s %s HTTP/1.1\r\nHost: localhost\r\n", r.method, r.file.name)
			if r.rang != "" {
				fmt.Fprintf(&out, "Range: %s\r\n", r.rang)
			}
			out.WriteString("\r\n")
		}
		c.tcp.SetDeadline(time.Now().Add(huntPatience))
		c.more.Store(len(batch) > 1)
		asked := time.Now()
		if _, err := c.Write(out.Bytes()); err != nil {
			c.ended("write", err)
			return
		}
		for _, r := range batch {
			resp, err := http.ReadResponse(in, &http.Request{Method: r.method})
			if err != nil {
				c.unanswered(r, asked, err)
				return
			}
			goesOn := c.take(rng, r, asked, resp)
			if resp.Close && goesOn {
				h.count("connections ended by Connection: close", 1)
			}
			if !goesOn || resp.Close {
				return
			}
		}
	}
	if rng.IntN(3) == 0 {
		c.reset()
	}
}

// ended is what to do when a request gets no answer.
func (c *huntConn) ended(what string, err error) {
	if c.refusedUpdate() {
		c.h.count("connections ended for a KeyUpdate that the kernel can't do", 1)
		return
	}
	if c.metLimit(err) {
		c.h.count("connections ended by key_limit", 1)
		return
	}
	if c.h.configGone(c.born) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cuts = append(c.cuts, cut{time.Now(), fmt.Sprintf("%s: %v, %v after the connection began", what, err, time.Since(c.born)), wasReset(err)})
}

// wasReset reports whether a connection was reset. After GOAWAY the HTTP/2 client
// tells of that alone.
func wasReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || strings.Contains(err.Error(), "server sent GOAWAY and closed the connection")
}

// unanswered is ended for a request that was sent. With a file that is truncated
// before any of it is sent, its response's header is held back for good.
func (c *huntConn) unanswered(r huntRequest, asked time.Time, err error) {
	if now := time.Now(); r.file.truncatedIn(asked, now, r.file.longest(asked, now)) {
		c.h.count("no answer: the file was truncated", 1)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.truncated = append(c.truncated, now)
		return
	}
	c.ended(r.String(), err)
}

// metLimit reports whether a connection was ended because its key may encrypt no
// more: what was under way when the client was told to connect anew was too much.
// The alert that says so may be lost, for TCP ends behind it without waiting.
func (c *huntConn) metLimit(err error) bool {
	if !c.limited {
		return false
	}
	for _, text := range []string{"server sent GOAWAY", "unexpected EOF", "tls: internal error"} {
		if strings.Contains(err.Error(), text) {
			return true
		}
	}
	return false
}

// refusedUpdate reports whether the connection may have been ended for a KeyUpdate:
// one that asks for the server's key too, or any if the kernel decrypts.
func (c *huntConn) refusedUpdate() bool { return c.updated.Load() && kernel.ulp && !canRekey(c.h.t) }

// take reads an answer and checks it. It reports whether the connection goes on.
func (c *huntConn) take(rng *rand.Rand, r huntRequest, asked time.Time, resp *http.Response) bool {
	h := c.h
	begun := time.Now()
	defer resp.Body.Close()
	if r.update != 0 {
		c.updated.Store(true)
		c.more.Store(true)
		if ok, err := c.re.update(r.update == 2); err == nil && ok {
			h.count([]string{1: "KeyUpdates, of the client", 2: "KeyUpdates, of both"}[r.update], 1)
		}
	}
	body, err := c.check(rng, r, asked, begun, resp)
	h.answered(c.kind, body.n)
	var unexpected unexpectedAnswer
	switch {
	case err == nil:
		h.count("whole, as the file was: "+fates[r.file.fate], 1)
		return true
	case errors.Is(err, errStopped):
		h.count("given up by the client", 1)
		if resp.ProtoMajor == 1 {
			c.reset()
		}
	case errors.As(err, &unexpected) || body.wrong:
		h.fails("%s, %v: %v", c.kind, r, err)
		c.reset()
	default:
		h.count("cut", 1)
		c.mu.Lock()
		defer c.mu.Unlock()
		switch {
		case r.file.truncatedIn(asked, time.Now(), body.end):
			h.count("cut: the file was truncated", 1)
			c.truncated = append(c.truncated, time.Now())
		case strings.Contains(err.Error(), "force closed via ClientConn.Close"):
			h.count("cut: Go's HTTP/2 client has closed the connection itself", 1)
		case c.refusedUpdate():
			h.count("cut: a KeyUpdate that the kernel can't do", 1)
		case c.metLimit(err):
			h.count("cut: key_limit", 1)
		default:
			c.cuts = append(c.cuts, cut{time.Now(), fmt.Sprintf("%v, cut after %d bytes of %d: %v", r, body.n, resp.ContentLength, err), wasReset(err)})
		}
	}
	return false
}

// explainCuts is called when the connection is over. What was announced in a frame
// must come, so a file that was truncated ends the connection, and with it the
// other streams.
func (c *huntConn) explainCuts() {
	for _, cut := range c.cuts {
		collateral := false
		for _, at := range c.truncated {
			if d := at.Sub(cut.at).Abs(); d < 10*time.Second {
				collateral = true
			}
		}
		if collateral {
			c.h.count("cut: another stream's file was truncated", 1)
		} else if cut.reset && c.more.Load() && c.h.reloadedSince(c.born) {
			// What it doesn't read makes the kernel send a reset, which overtakes
			// what the client hasn't read.
			c.h.count("cut: the configuration was gone, and the client still sent", 1)
		} else {
			c.h.fails("%s, %s", c.kind, cut.what)
		}
	}
}

var errStopped = errors.New("given up")

// unexpectedAnswer is about an answer that is whole and not right.
type unexpectedAnswer struct{ error }

func unexpectedf(format string, args ...any) error {
	return unexpectedAnswer{fmt.Errorf(format, args...)}
}

// bodyRead is what was read of a body.
type bodyRead struct {
	n     int64 // bytes
	end   int64 // of the file that was to come
	wrong bool
}

// check reads a body and compares it with the file.
func (c *huntConn) check(rng *rand.Rand, r huntRequest, asked, begun time.Time, resp *http.Response) (read bodyRead, err error) {
	known := r.file.known(asked, begun)
	switch resp.StatusCode {
	case http.StatusOK, http.StatusPartialContent:
	case http.StatusNotFound:
		for _, v := range known {
			if v.size < 0 {
				read.n, err = io.Copy(io.Discard, resp.Body)
				return read, err
			}
		}
		return read, unexpectedf("404, but the file was there; %s", describeVersions(known))
	case http.StatusRequestedRangeNotSatisfiable:
		for _, v := range known {
			if v.size < r.size {
				read.n, err = io.Copy(io.Discard, resp.Body)
				return read, err
			}
		}
		return read, unexpectedf("416, but the file was as long; %s", describeVersions(known))
	default:
		return read, unexpectedf("status %s", resp.Status)
	}
	if media, params, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); media == "multipart/byteranges" {
		return c.checkParts(rng, r, asked, begun, resp, params["boundary"])
	}
	off, total := int64(0), resp.ContentLength
	read.end = total
	if resp.StatusCode == http.StatusPartialContent {
		if off, read.end, total, err = contentRange(resp.Header.Get("Content-Range")); err != nil {
			return read, err
		}
		if read.end-off != resp.ContentLength {
			return read, unexpectedf("Content-Length %d, Content-Range %s", resp.ContentLength, resp.Header.Get("Content-Range"))
		}
	}
	v, err := r.file.verifier(asked, begun, off, total)
	if err != nil {
		return read, unexpectedAnswer{err}
	}
	if r.method == "HEAD" {
		return read, nil
	}
	read.n, read.wrong, err = c.read(rng, r, resp.Body, v)
	if err == nil && read.n != resp.ContentLength {
		return read, unexpectedf("CUT WITHOUT A SIGN: %d bytes of %d", read.n, resp.ContentLength)
	}
	return read, err
}

// checkParts does so for a body of several ranges.
func (c *huntConn) checkParts(rng *rand.Rand, r huntRequest, asked, begun time.Time, resp *http.Response, boundary string) (read bodyRead, err error) {
	whole := &io.LimitedReader{R: resp.Body, N: 1 << 40}
	parts := multipart.NewReader(whole, boundary)
	for {
		part, err := parts.NextPart()
		read.n = 1<<40 - whole.N
		if err == io.EOF {
			break
		} else if err != nil {
			return read, err
		}
		off, end, total, err := contentRange(part.Header.Get("Content-Range"))
		if err != nil {
			return read, err
		}
		read.end = end
		v, err := r.file.verifier(asked, begun, off, total)
		if err != nil {
			return read, unexpectedAnswer{err}
		}
		n, wrong, err := c.read(rng, r, part, v)
		if err != nil {
			read.wrong = wrong
			return read, err
		}
		if n != end-off {
			return read, unexpectedf("a part of %d bytes with %d", end-off, n)
		}
	}
	if read.n != resp.ContentLength {
		return read, unexpectedf("CUT WITHOUT A SIGN: %d bytes of %d in parts", read.n, resp.ContentLength)
	}
	return read, nil
}

func contentRange(s string) (off, end, total int64, err error) {
	if _, err := fmt.Sscanf(s, "bytes %d-%d/%d", &off, &end, &total); err != nil {
		return 0, 0, 0, unexpectedf("Content-Range %q", s)
	}
	return off, end + 1, total, nil
}

// read reads a body as it comes, at the pace of the request's client. Short of
// the end it returns an error; wrong says that it is about the bytes.
func (c *huntConn) read(rng *rand.Rand, r huntRequest, body io.Reader, v *verifier) (n int64, wrong bool, err error) {
	buf := make([]byte, 1<<(8+rng.IntN(9)))
	for {
		if r.stop >= 0 && n >= r.stop {
			return n, false, errStopped
		}
		k, err := body.Read(buf)
		if _, bad := v.Write(buf[:k]); bad != nil {
			return n, true, bad
		}
		n += int64(k)
		if err == io.EOF {
			return n, false, nil
		} else if err != nil {
			return n, false, err
		}
		if r.slow && rng.IntN(4) == 0 {
			time.Sleep(time.Duration(rng.IntN(5)) * time.Millisecond)
		}
	}
}

// visitHTTP2 asks for files on several streams at a time.
func (h *hunt) visitHTTP2(rng *rand.Rand) {
	c := h.dial(rng, "h2")
	if c == nil {
		return
	}
	c.more.Store(true) // WINDOW_UPDATE
	defer c.explainCuts()
	defer c.Close()
	t1 := &http.Transport{DisableCompression: true, HTTP2: &http.HTTP2Config{
		MaxReceiveBufferPerConnection: 64<<10 + rng.IntN(1<<uint(10+rng.IntN(12))),
		MaxReceiveBufferPerStream:     8<<10 + rng.IntN(1<<uint(10+rng.IntN(12))),
		MaxReadFrameSize:              16<<10 + rng.IntN(1<<uint(10+rng.IntN(13))),
	}}
	//lint:ignore SA1019 its successor has no way to a connection of one's own
	t2, err := http2.ConfigureTransports(t1)
	if err != nil {
		h.fails("%v", err)
		return
	}
	//lint:ignore SA1019 likewise
	client, err := t2.NewClientConn(c)
	if err != nil {
		c.ended("preface", err)
		return
	}
	var mu sync.Mutex // guards goesOn and the connection's updates
	goesOn := true
	var wg sync.WaitGroup
	streams, left := 1+rng.IntN(10), 1+rng.IntN(30)
	if rng.IntN(3) == 0 {
		streams = 1
	}
	for range streams {
		rng := rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64()))
		wg.Go(func() {
			for n := 0; n < left; n++ {
				mu.Lock()
				stop := !goesOn
				mu.Unlock()
				if stop {
					return
				}
				r := h.newRequest(rng)
				ctx, cancel := context.WithTimeout(context.Background(), huntPatience)
				req, _ := http.NewRequestWithContext(ctx, r.method, "https://localhost"+r.file.name, nil)
				if r.rang != "" {
					req.Header.Set("Range", r.rang)
				}
				asked := time.Now()
				c.tcp.SetDeadline(asked.Add(huntPatience))
				resp, err := client.RoundTrip(req)
				if err == nil {
					// A stream that was given up or cut leaves the others be.
					c.take(rng, r, asked, resp)
					cancel()
					continue
				}
				cancel()
				mu.Lock()
				first := goesOn
				goesOn = false
				mu.Unlock()
				if first && !client.State().Closing && !strings.Contains(err.Error(), "client conn not usable") {
					c.unanswered(r, asked, err)
				}
				return
			}
		})
	}
	wg.Wait()
	if rng.IntN(3) == 0 {
		c.reset()
	}
	client.Close()
}

// visitCurl lets curl fetch some files, with a cipher that Go's client can't ask
// for.
//
// Not where send buffers are small: curl's own are, too, and then curl 7.88 reports
// errors for whole streams (also with stock Caddy).
func (h *hunt) visitCurl(rng *rand.Rand) {
	if !h.curl.TryRLock() {
		return
	}
	defer h.curl.RUnlock()
	dir, err := os.MkdirTemp(scratch, "curl")
	if err != nil {
		h.fails("%v", err)
		return
	}
	defer os.RemoveAll(dir)
	cipher := []string{"AES_128_GCM_SHA256", "AES_256_GCM_SHA384", "CHACHA20_POLY1305_SHA256"}[rng.IntN(3)]
	proto := []string{"h1", "h2"}[rng.IntN(2)]
	kind := fmt.Sprintf("%s TLS 1.3 %s (curl)", proto, cipher)
	addr := h.addr(rng.IntN(huntListeners))
	each := []string{"--silent", "--cacert", rootFile(), "--write-out", "%{json}\n", "--max-time", "120", "--connect-to", "::" + addr,
		"--tlsv1.3", "--tls13-ciphers", "TLS_" + cipher, map[string]string{"h1": "--http1.1", "h2": "--http2"}[proto]}
	var args []string
	if proto == "h2" {
		args = append(args, "--parallel", "--parallel-max", fmt.Sprint(1+rng.IntN(8)))
	}
	asked := time.Now()
	stored := map[string]huntRequest{}
	for n := range 10 + rng.IntN(50) {
		r := h.newRequest(rng)
		path := filepath.Join(dir, fmt.Sprint(n))
		stored[path] = r
		if n > 0 {
			args = append(args, "--next")
		}
		args = append(append(args, each...), "https://localhost"+r.file.name, "--output", path, "--dump-header", path+".header")
	}
	cmd := exec.Command("curl", args...)
	out, _ := cmd.Output() // each transfer has its exit code
	truncated, cuts := false, []string(nil)
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var tr transfer
		if err := d.Decode(&tr); err != nil {
			h.fails("curl's report: %v", err)
			return
		}
		r, ok := stored[tr.Stored]
		switch {
		case tr.Status == 0 && h.configGone(asked):
		case tr.Status == 0:
			cuts = append(cuts, fmt.Sprintf("%s: curl: %d, %s", kind, tr.ExitCode, tr.Error))
		case ok:
			wasTruncated, cut := h.stored(r, tr, kind, asked)
			truncated = truncated || wasTruncated
			if cut != "" {
				cuts = append(cuts, cut)
			}
		}
	}
	// As in explainCuts; curl doesn't tell which connection it was.
	for _, cut := range cuts {
		if truncated && proto == "h2" {
			h.count("cut: another stream's file was truncated", 1)
		} else {
			h.fails("%s", cut)
		}
	}
}

// stored checks what curl has stored. It reports whether it was cut because its
// file was truncated, or what to say of a cut without that reason.
func (h *hunt) stored(r huntRequest, tr transfer, kind string, asked time.Time) (truncated bool, cut string) {
	body, err := os.ReadFile(tr.Stored)
	if err != nil && !os.IsNotExist(err) {
		h.fails("%v", err)
		return false, ""
	}
	h.answered(kind, int64(len(body)))
	now := time.Now()
	known := r.file.known(asked, now)
	length := int64(-1)
	header, _ := os.ReadFile(tr.Stored + ".header")
	for line := range strings.Lines(strings.ToLower(string(header))) {
		if value, ok := strings.CutPrefix(line, "content-length:"); ok {
			length, _ = strconv.ParseInt(strings.TrimSpace(value), 10, 64)
		}
	}
	switch {
	case strings.Contains(string(body), standInMark) || strings.Contains(string(header), standInMark):
		h.fails("STAND-IN BYTES in %s", kind)
	case tr.Status == http.StatusNotFound && r.file.fate == replaced:
		h.count("whole, as the file was: "+fates[r.file.fate], 1)
		return false, ""
	case tr.Status != http.StatusOK:
		h.fails("%s, %s: status %d", kind, r.file.name, tr.Status)
		return false, ""
	}
	v, err := r.file.verifier(asked, now, 0, length)
	if err == nil {
		_, err = v.Write(body)
	}
	switch {
	case err != nil:
		h.fails("%s, %s: %v", kind, r.file.name, err)
	case int64(len(body)) == length && tr.ExitCode == 0:
		h.count("whole, as the file was: "+fates[r.file.fate], 1)
	case tr.ExitCode == 0:
		h.fails("%s, %s: CUT WITHOUT A SIGN: %d bytes of %d", kind, r.file.name, len(body), length)
	case r.file.truncatedIn(asked, now, length):
		h.count("cut", 1)
		h.count("cut: the file was truncated", 1)
		return true, ""
	default:
		h.count("cut", 1)
		return false, fmt.Sprintf("%s, %s: cut after %d bytes of %d: curl: %d, %s; %s", kind, r.file.name, len(body), length, tr.ExitCode, tr.Error, describeVersions(known))
	}
	return false, ""
}
