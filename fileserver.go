package caddyktls

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddy-ktls/caddy-ktls/internal/framing"
	"github.com/caddy-ktls/caddy-ktls/ktls"
)

// Handler lets the handlers after it, `file_server` above all, send files with
// sendfile over kernel TLS. It needs the `ktls` listener wrapper on the same
// server. It changes no byte of a response: whatever isn't certain to be a plain
// part of a regular file is sent as without it.
//
// A file that is truncated while it is sent ends the connection, so that the
// client notices.
//
// Each response has an object `ktls` in the access log: `path` (`sendfile` or
// `plain`), `reason` (why not sendfile) and `sent` (bytes sent by sendfile). The
// same is in placeholders:
//
// Placeholder | Description
// ------------|---------------
// `{http.ktls.offloaded}` | Whether the kernel encrypts the connection
// `{http.ktls.path}` | `sendfile` or `plain`
// `{http.ktls.reason}` | Why not sendfile; empty if it was
type Handler struct {
	// Send responses as without this module. Default: false.
	Off bool `json:"off,omitempty"`

	// The smallest body, in bytes, that is worth a sendfile; smaller ones take
	// exactly Caddy's own path. Values below 8192 count as 8192.
	// Default: 262144, and 131072 over HTTP/2.
	MinSize int64 `json:"min_size,omitempty"`

	// How much of a file is sent with one write, in bytes, from 65536 to
	// 2097152. Each write costs a walk through the handlers' writers, so that
	// small ones cost more; time-outs don't depend on it. Where a server has a
	// `write_min_rate`, it is at most its `max_write_chunk`. Default: 2097152.
	Chunk int64 `json:"chunk,omitempty"`

	// Whether HTTP/2 responses may use the kernel at all. If false, they are
	// sent as without this module, and no connection is moved into the kernel
	// for their sake; the wrapper's `upgrade handshake` moves it all the same.
	// Default: true.
	HTTP2 *bool `json:"http2,omitempty"`

	// How large the frames are that an HTTP/2 connection is served in, in bytes,
	// from 16384 to 1048576; clients get theirs of the size they accept. Larger
	// ones cost less processor time, and as much memory for each HTTP/2 connection
	// that a file was sent on by sendfile. Multiples of 16375 are best. Default:
	// 114625.
	HTTP2FrameSize int64 `json:"http2_frame_size,omitempty"`

	// File systems to send from that are not trusted by default, by their
	// names in mount(8); `unknown` for those without a name here. Trusted by
	// default are local ones. Not trusted, because their pages come and go by
	// the will of another machine or process, are fuse, nfs, cifs, smb3, smbfs,
	// vboxsf, vmhgfs, 9p, afs, kafs, ceph, lustre, gfs2, ocfs2, orangefs, coda,
	// gpfs, ecryptfs and unknown ones. An overlay counts as local: what its
	// layers lie on can't be told. If that is one of these, deny `overlay`.
	AllowFS []string `json:"allow_fs,omitempty"`

	// File systems not to send from, although they are trusted by default.
	DenyFS []string `json:"deny_fs,omitempty"`

	logger   *zap.Logger
	unlogged bool // the server has no access log
}

// The defaults of Handler.MinSize, in bytes: where sendfile costs no more than the
// plain path on any kernel, neither on a kept-alive connection nor with one for
// each response. HTTP/2's plain path is the dearer one. docs/min-size.md has what
// was measured on both sides.
const (
	defaultMinSize      = 256 << 10
	defaultMinSizeHTTP2 = 128 << 10
)

// CaddyModule returns the Caddy module information.
func (Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.ktls",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision sets the defaults, and finds out, once per process, what the kernel
// can do and whether net/http treats stand-in bytes as it must.
func (h *Handler) Provision(ctx caddy.Context) error {
	h.logger = ctx.Logger()
	if h.MinSize < 0 {
		return fmt.Errorf("min_size: %d is negative", h.MinSize)
	}
	if h.Chunk == 0 {
		h.Chunk = maxChunk
	}
	if h.Chunk < minChunk || h.Chunk > maxChunk {
		return fmt.Errorf("chunk: %d is not between %d and %d", h.Chunk, minChunk, maxChunk)
	}
	if h.HTTP2FrameSize == 0 {
		h.HTTP2FrameSize = defaultFrameSize
	}
	if h.HTTP2FrameSize < minFrameSize || h.HTTP2FrameSize > maxFrameSize {
		return fmt.Errorf("http2_frame_size: %d is not between %d and %d", h.HTTP2FrameSize, minFrameSize, maxFrameSize)
	}
	if err := checkFileSystems(h.AllowFS, h.DenyFS); err != nil {
		return err
	}
	if err := registerMetrics(ctx.GetMetricsRegistry()); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	if server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok {
		h.unlogged = server.Logs == nil
		if !h.Off {
			pairs.handler(ctx, server, h.logger)
		}
	}
	ktls.Probe() // not with the first request
	framing.StandIn(0, int(h.HTTP2FrameSize))
	for writer, s := range http2Servers() {
		if s.err != nil {
			h.logger.Warn("no sendfile over HTTP/2: this build's server isn't known", zap.String("writer", writer), zap.Error(s.err))
		}
	}
	if err := standInWorks(); err != nil {
		h.logger.Warn("sendfile off: this build's net/http isn't known", zap.Error(err))
	}
	return nil
}

// ServeHTTP passes the request on with a writer that knows sendfile. Where one
// ktls handler stands behind another, the first decides: that is the one with
// the more specific matcher. A response that has begun through one stays its own.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	reserve[forHandler](0)
	vars, _ := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	first, _ := vars[firstVar].(*responseWriter)
	if standsOnOurs(w) || first != nil && first.latest.wroteHeader {
		return next.ServeHTTP(w, r)
	}
	rw := &responseWriter{
		ResponseWriterWrapper: caddyhttp.ResponseWriterWrapper{ResponseWriter: w},
		handler:               h,
		ctx:                   r.Context(),
		http2:                 r.ProtoMajor == 2,
		length:                -1,
	}
	rw.own, _ = rw.ctx.Value(connKey{}).(*conn)
	if rw.reason = h.ineligible(r, rw.own); rw.reason == "" {
		rw.conn = rw.own
	}
	if !h.unlogged {
		if extra, ok := rw.ctx.Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
			extra.Set(zap.Object("ktls", rw))
		}
	}
	rw.answerPlaceholders(vars, first)
	var err error
	defer func() { // also in a panic, which is an answer of its own
		if rw.stream != nil {
			rw.stream.Void()
		}
		rw.conn = nil // who keeps the writer and uses it later finds Caddy's own path
		if err != nil && !rw.wroteHeader {
			return // an error route will answer
		}
		path, reason := rw.outcome()
		countResponse(path, reason, rw.sent+rw.copied)
	}()
	err = next.ServeHTTP(rw, r)
	return err
}

// standsOnOurs reports whether a responseWriter is among the writers below.
func standsOnOurs(w http.ResponseWriter) bool {
	for {
		if _, ok := w.(*responseWriter); ok {
			return true
		}
		u, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return false
		}
		w = u.Unwrap()
	}
}

// ineligible applies the rules that need no response. It returns why no file can
// be sent on c, the request's connection or nil if it isn't ours; else "".
func (h *Handler) ineligible(r *http.Request, c *conn) string {
	switch {
	case h.Off:
		return reasonDisabled
	case r.ProtoMajor == 3:
		return reasonHTTP3
	case c == nil && !ktls.Probe().Usable():
		return ktls.ReasonKernel
	case c == nil:
		return reasonNotWrapped
	case r.Method != http.MethodGet || clientMethod(r) != http.MethodGet:
		return reasonMethod
	case r.ProtoMajor == 2 && h.HTTP2 != nil && !*h.HTTP2:
		return reasonHTTP2
	case r.ProtoMajor == 2:
		return ""
	case standInWorks() != nil:
		return reasonUnknownHTTP1
	}
	return ""
}

// clientMethod is the method the client used. Handlers may change r's, but
// net/http goes by this one: it eats the body of the answer to a HEAD.
func clientMethod(r *http.Request) string {
	if o, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		return o.Method
	}
	return r.Method
}

// responseWriter sends what it can of a response by sendfile. It is used by the
// one goroutine that serves the request.
type responseWriter struct {
	caddyhttp.ResponseWriterWrapper
	handler *Handler
	own     *conn           // that the request came on; nil if it isn't ours
	conn    *conn           // the same; nil if the request rules the kernel out
	latest  *responseWriter // of the request, as far as its first one knows
	http2   bool
	ctx     context.Context // of the request
	reason  string          // why not sendfile; empty while nothing was decided

	wroteHeader bool
	wroteBody   bool
	multiRange  bool   // a multipart/byteranges response
	length      int64  // Content-Length that went out; -1 if there is none
	fields      int    // of the header, when it was last looked at
	promised    string // the first Content-Length that was in the header
	withdrawn   bool   // it was changed or removed again
	typed       bool   // Content-Type is settled
	sent        int64  // bytes sent by sendfile
	cut         bool   // the connection was ended within the body
	copied      int64  // bytes sent the plain way

	// HTTP/2
	stream  *framing.Body // nil: not followed
	idle    []idleWriter  // found with stream
	ceiling time.Time     // write deadline that a handler has set
}

// MarshalLogObject is the access log's view of the response.
func (w *responseWriter) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	path, reason := w.outcome()
	enc.AddString("path", path)
	if reason != "" {
		enc.AddString("reason", reason)
	}
	enc.AddInt64("sent", w.sent)
	return nil
}

// firstVar is the request variable with the request's first responseWriter: an
// error route may have one of its own.
const firstVar = "github.com/caddy-ktls/caddy-ktls"

// answerPlaceholders makes w the one that {http.ktls.*} tell of. first is that of
// vars, the request's variables, or nil.
func (w *responseWriter) answerPlaceholders(vars map[string]any, first *responseWriter) {
	if first != nil {
		first.latest = w
		return
	}
	if repl, ok := w.ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok && vars != nil {
		w.latest = w
		vars[firstVar] = w
		repl.Map(w.placeholder)
	}
}

// placeholder answers for {http.ktls.*}. What it says of a response is settled
// once the response was written, as for log_append.
func (w *responseWriter) placeholder(key string) (any, bool) {
	name, ok := strings.CutPrefix(key, "http.ktls.")
	if !ok {
		return nil, false
	}
	path, reason := w.latest.outcome()
	switch name {
	case "offloaded":
		return w.own != nil && w.own.Offloaded(), true
	case "path":
		return path, true
	case "reason":
		return reason, true
	}
	return nil, false
}

// outcome is the path the response took, and why if it wasn't sendfile.
func (w *responseWriter) outcome() (path, reason string) {
	switch {
	case w.cut:
		return pathSendfile, reasonCut
	case w.sent > 0:
		return pathSendfile, ""
	case w.reason != "":
		return pathPlain, w.reason
	case w.wroteBody:
		return pathPlain, w.noFile()
	}
	return pathPlain, reasonNoBody
}

// noFile tells the kinds of bodies that arrive as something else than a file.
func (w *responseWriter) noFile() string {
	switch {
	case w.withdrawn:
		return reasonTransformed
	case w.multiRange:
		return reasonMultiRange
	}
	return reasonNotFile
}

// Header watches Content-Length. Who answers with a body of known length puts it
// there before anything is written; who makes another body of that one, as
// `encode` and `templates` do, must take it out or change it.
func (w *responseWriter) Header() http.Header {
	h := w.ResponseWriterWrapper.Header()
	if !w.wroteHeader && w.reason == "" && (w.promised != "" || len(h) != w.fields) {
		w.fields = len(h)
		w.watchLength(h)
	}
	return h
}

// firstValue is the first value of a header field, or "".
func firstValue(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

func (w *responseWriter) watchLength(h http.Header) {
	length := firstValue(h["Content-Length"])
	if w.promised == "" {
		w.promised = length
	}
	w.withdrawn = w.withdrawn || length != w.promised
}

// WriteHeader looks at the header as net/http got it: writers below may change
// it, and later changes don't count.
func (w *responseWriter) WriteHeader(status int) {
	if status >= 200 && w.own != nil && w.own.Expiring() {
		w.ResponseWriterWrapper.Header().Set("Connection", "close") // HTTP/2: GOAWAY
	}
	w.ResponseWriterWrapper.WriteHeader(status)
	if w.wroteHeader || status < 200 {
		return
	}
	w.wroteHeader = true
	if w.conn == nil {
		return
	}
	h := w.ResponseWriterWrapper.Header()
	w.watchLength(h)
	contentType, typed := h["Content-Type"]
	w.typed = typed
	w.multiRange = status == http.StatusPartialContent && len(contentType) > 0 &&
		strings.HasPrefix(contentType[0], "multipart/byteranges")
	if status == http.StatusNoContent || status == http.StatusNotModified || firstValue(h["Transfer-Encoding"]) != "" {
		return
	}
	if n, err := strconv.ParseInt(firstValue(h["Content-Length"]), 10, 64); err == nil && n >= 0 {
		w.length = n
	}
	if w.http2 && w.length >= w.minSize() {
		w.watch()
	}
}

// minSize is the least body, in bytes, that is sent by sendfile.
func (w *responseWriter) minSize() int64 {
	switch n := w.handler.MinSize; {
	case n > 0:
		return max(n, minStandIn)
	case w.http2:
		return defaultMinSizeHTTP2
	default:
		return defaultMinSize
	}
}

// SetWriteDeadline remembers the deadline for those that are set while a file is
// sent.
func (w *responseWriter) SetWriteDeadline(t time.Time) error {
	err := http.NewResponseController(w.ResponseWriter).SetWriteDeadline(t)
	if err == nil {
		w.ceiling = t
	}
	return err
}

// Write takes the plain path.
func (w *responseWriter) Write(p []byte) (int, error) {
	if !w.wroteHeader {
		w.WriteHeader(http.StatusOK)
	}
	w.wroteBody = w.wroteBody || len(p) > 0
	n, err := w.ResponseWriterWrapper.Write(p)
	w.copied += int64(n)
	return n, err
}

// FlushError sends the header too, so it must be looked at here.
func (w *responseWriter) FlushError() error {
	if !w.wroteHeader {
		w.WriteHeader(http.StatusOK)
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// ReadFrom is where a file arrives: http.ServeContent copies it with io.CopyN.
func (w *responseWriter) ReadFrom(r io.Reader) (int64, error) {
	if w.conn != nil {
		if !w.wroteHeader {
			w.WriteHeader(http.StatusOK)
		}
		if s := w.plan(r); s != nil {
			w.wroteBody = true
			if w.http2 {
				return s.runHTTP2()
			}
			return s.run()
		}
	}
	w.wroteBody = true
	n, err := w.ResponseWriterWrapper.ReadFrom(r)
	w.copied += n
	return n, err
}

// plan applies the rules that need the response, in order; the first that fails
// names the reason. The upgrade comes last, so that a connection that needs none
// stays with crypto/tls.
func (w *responseWriter) plan(r io.Reader) *sending {
	refuse := func(reason string) *sending {
		w.reason = reason
		return nil
	}
	file, n := unwrapFile(r)
	if file == nil {
		return refuse(w.noFile())
	}
	switch {
	case w.length < 0:
		return refuse(reasonChunked)
	case w.copied+w.sent+n != w.length: // encode writes the first bytes by itself
		return refuse(reasonLength)
	case !w.typed:
		return refuse(reasonNoType)
	case n < w.minSize():
		return refuse(reasonTooSmall)
	}
	idle := w.idle
	if w.stream == nil {
		var unknown string
		if _, idle, unknown = writersBelow(w.ResponseWriter); unknown != "" {
			return refuse(reasonUnknown + unknown)
		}
		if w.http2 {
			return refuse(reasonUnknownHTTP2)
		}
	}
	fi, err := file.Stat()
	if err != nil || !fi.Mode().IsRegular() || isDirect(file) {
		return refuse(reasonNotFile)
	}
	if name := w.handler.distrusted(file); name != "" {
		return refuse(reasonFS + name)
	}
	off, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		return refuse(reasonNotFile)
	}
	if fi.Size()-off < n {
		return refuse(reasonShortFile)
	}
	if !w.conn.Room(n) {
		return refuse(ktls.ReasonKeyLimit)
	}
	if err := w.conn.upgrade(); err != nil {
		return refuse(upgradeError(err).Reason)
	}
	return &sending{w: w, file: file, off: off, n: n, from: r, idle: idle, ctx: w.ctx}
}

// unwrapFile finds the file under any number of limits, and what they leave of it;
// -1 if there are none.
func unwrapFile(r io.Reader) (f *os.File, left int64) {
	left = -1
	for {
		switch v := r.(type) {
		case *io.LimitedReader:
			if left < 0 || v.N < left {
				left = max(v.N, 0)
			}
			r = v.R
		case *os.File:
			return v, left
		default:
			return nil, 0
		}
	}
}

// Interface guards
var (
	_ caddy.Module                = (*Handler)(nil)
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
	_ caddyfile.Unmarshaler       = (*Handler)(nil)
	_ http.ResponseWriter         = (*responseWriter)(nil)
	_ io.ReaderFrom               = (*responseWriter)(nil)
	_ zapcore.ObjectMarshaler     = (*responseWriter)(nil)
)
