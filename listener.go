package caddyktls

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"reflect"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddy-ktls/caddy-ktls/ktls"
)

// ListenerWrapper hands the encryption of HTTPS connections to the Linux kernel
// (kernel TLS, kTLS) after Caddy's own handshake. Certificates, protocol
// versions, cipher suites, session tickets and client authentication stay what
// they are; a connection that can't be offloaded is served as without the
// wrapper. It must come after the `tls` placeholder, if that is given.
//
// Alone it changes nothing a visitor could see: the `ktls` handler makes
// responses use it. Where the kernel has no TLS, one warning at start says what
// to do about it, and Caddy serves as if the wrapper weren't there.
type ListenerWrapper struct {
	// When a connection moves into the kernel: `lazy`, with the first response
	// that sendfile will serve, or `handshake`, as soon as its handshake is
	// complete, whatever is sent. Default: `lazy`.
	Upgrade string `json:"upgrade,omitempty"`

	// Refuse to start where the kernel has no usable TLS, instead of serving
	// without it. Default: false.
	Require bool `json:"require,omitempty"`

	// How long a TLS handshake may take before the connection is closed.
	// Default: the shortest of the server's `read_header`, `read_body` and
	// `write` timeouts, as in Caddy without the wrapper. Where the kernel has no
	// TLS, that default is all there is.
	HandshakeTimeout caddy.Duration `json:"handshake_timeout,omitempty"`

	// How many TLS handshakes of this server may compute at once: agree on a
	// key, sign. Further ones wait in a queue, at most for their
	// `handshake_timeout` (10 s if handshakes have none), and are then refused:
	// the connection is closed and counted. A client that is slow to send, or a
	// certificate that has yet to be obtained, doesn't count. Keeps a flood of
	// new connections from taking the processors away from those being served.
	// Default: 0, no bound, as in Caddy without the wrapper; so it is where the
	// kernel has no TLS.
	MaxHandshakes int `json:"max_handshakes,omitempty"`

	// Let a network card that encrypts read the files' pages where they lie,
	// which saves a copy (TLS_TX_ZEROCOPY_RO, Linux 5.19 or newer). Only for
	// files that are never changed in place: a retransmission of what has
	// changed meanwhile breaks the connection. Without such a card it has no
	// effect. Default: false.
	ZerocopyRO bool `json:"zerocopy_ro,omitempty"`

	// The most content that a TLS record encrypted by the kernel has, in bytes,
	// from 64 to 16384 (TLS_TX_MAX_PAYLOAD_LEN, Linux 7.2 or newer). Smaller
	// records cost more processor time, and let a slow client decrypt sooner.
	// Default: 16384, the protocol's limit.
	RecordSize int `json:"record_size,omitempty"`

	// Let the kernel decrypt as well what clients send, on connections that it
	// encrypts: with `upgrade handshake` on all of them, or else from the first
	// response by sendfile on. Not with the listener wrappers proxy_protocol and
	// http_redirect, which read ahead. A client's KeyUpdate then ends the
	// connection where the kernel can't follow (before Linux 6.14). A file server
	// gains nothing by it. Default: false, Go decrypts.
	RX bool `json:"rx,omitempty"`

	// How many TLS records the kernel may encrypt under one key, at least 64.
	// After so many, a connection with TLS 1.3 gets a new key (Linux 6.14 or
	// newer); others are told to end, with `Connection: close` or GOAWAY, when
	// half of them are used. Default, and at most, what the cipher allows:
	// 23726566 for AES-GCM (RFC 8446, section 5.5), some 388 GB.
	KeyLimit uint64 `json:"key_limit,omitempty"`

	ctx       caddy.Context
	server    *caddyhttp.Server
	features  *ktls.Features
	usable    bool
	admission *admission
	timeout   time.Duration // of handshakes; known when the server starts, guarded by servers
	logger    *zap.Logger
}

// Limits of ListenerWrapper.RecordSize, those of the kernel
// (Documentation/networking/tls.rst).
const (
	minRecordSize = 64
	maxRecordSize = 16384
)

// minKeyLimit is the least ListenerWrapper.KeyLimit.
const minKeyLimit = 64

// Values of ListenerWrapper.Upgrade.
const (
	upgradeLazy      = "lazy"
	upgradeHandshake = "handshake"
)

// CaddyModule returns the Caddy module information.
func (ListenerWrapper) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "caddy.listeners.ktls",
		New: func() caddy.Module { return new(ListenerWrapper) },
	}
}

// Provision asks the kernel what it can do and ties the wrapper to its server.
func (w *ListenerWrapper) Provision(ctx caddy.Context) error {
	w.ctx = ctx
	w.logger = ctx.Logger()
	switch w.Upgrade {
	case "":
		w.Upgrade = upgradeLazy
	case upgradeLazy, upgradeHandshake:
	default:
		return fmt.Errorf("upgrade: %q is neither %q nor %q", w.Upgrade, upgradeLazy, upgradeHandshake)
	}
	if w.HandshakeTimeout < 0 {
		return fmt.Errorf("handshake_timeout: %s is negative", time.Duration(w.HandshakeTimeout))
	}
	if w.MaxHandshakes < 0 {
		return fmt.Errorf("max_handshakes: %d is negative", w.MaxHandshakes)
	}
	if w.RecordSize != 0 && (w.RecordSize < minRecordSize || w.RecordSize > maxRecordSize) {
		return fmt.Errorf("record_size: %d isn't from %d to %d", w.RecordSize, minRecordSize, maxRecordSize)
	}
	if w.KeyLimit != 0 && w.KeyLimit < minKeyLimit {
		return fmt.Errorf("key_limit: %d is less than %d", w.KeyLimit, minKeyLimit)
	}
	server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if !ok {
		return errors.New("the ktls listener wrapper works in servers of the http app only")
	}
	if err := afterTLS(server.ListenerWrappersRaw); err != nil {
		return err
	}
	w.server = server
	pairs.wrapper(ctx, server)

	if err := registerMetrics(ctx.GetMetricsRegistry()); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	w.features = ktls.ProbeAgain()
	remedy := w.features.Reason()
	if w.features.Usable() && !knowsTLSListener() {
		remedy = "build with the Go version of a release of this module: this one's TLS listener isn't known"
	}
	switch {
	case remedy == "":
		if err := w.dropUnsupported(); err != nil {
			return err
		}
		w.usable = true
		w.admission = newAdmission(w.MaxHandshakes)
		server.RegisterConnContext(connContext)
		w.logger.Info("kernel TLS on", append([]zap.Field{
			zap.Strings("listen", server.Listen),
			zap.String("kernel", w.features.Kernel),
			zap.String("upgrade", w.Upgrade),
			zap.Strings("transmit", transmits(w.features))},
			w.settings()...)...)
	case w.Require:
		return fmt.Errorf("require: no usable kernel TLS: %s", remedy)
	default:
		w.logger.Warn("kernel TLS off, serving as without it",
			zap.Strings("listen", server.Listen),
			zap.String("kernel", w.features.Kernel),
			zap.String("remedy", remedy))
	}
	servers.add(w)
	return nil
}

// Cleanup is called when the configuration is no longer used.
func (w *ListenerWrapper) Cleanup() error {
	servers.remove(w)
	return nil
}

// dropUnsupported turns off the options that this kernel has no means for, with
// a warning for each. With `require` they are errors.
func (w *ListenerWrapper) dropUnsupported() error {
	drop := func(option, can string, answer ktls.Answer) error {
		if w.Require {
			return fmt.Errorf("require: %s: this kernel can't %s: %s", option, can, answer)
		}
		w.logger.Warn("option has no effect with this kernel",
			zap.Strings("listen", w.server.Listen),
			zap.String("option", option),
			zap.String("kernel", w.features.Kernel),
			zap.String("remedy", "remove the option, or run a kernel that can "+can),
			zap.Stringer("answer", answer))
		return nil
	}
	if a := w.features.ZerocopyRO; w.ZerocopyRO && a.Support != ktls.Yes {
		w.ZerocopyRO = false
		if err := drop("zerocopy_ro", "let network cards read file pages (Linux 5.19)", a); err != nil {
			return err
		}
	}
	if a := w.features.MaxPayloadLen; w.RecordSize != 0 && a.Support != ktls.Yes {
		w.RecordSize = 0
		if err := drop("record_size", "set the size of records (Linux 7.2)", a); err != nil {
			return err
		}
	}
	if w.RX && len(receives(w.features)) == 0 {
		w.RX = false
		return drop("rx", "decrypt (Linux 6.0 or newer)", w.features.RX[ktls.Combinations()[0]])
	}
	return nil
}

// settings are the options that were set and differ from Caddy's own ways.
func (w *ListenerWrapper) settings() []zap.Field {
	var set []zap.Field
	if w.HandshakeTimeout != 0 {
		set = append(set, zap.Duration("handshake_timeout", time.Duration(w.HandshakeTimeout)))
	}
	if w.MaxHandshakes != 0 {
		set = append(set, zap.Int("max_handshakes", w.MaxHandshakes))
	}
	if w.ZerocopyRO {
		set = append(set, zap.Bool("zerocopy_ro", true))
	}
	if w.RecordSize != 0 {
		set = append(set, zap.Int("record_size", w.RecordSize))
	}
	if w.KeyLimit != 0 {
		set = append(set, zap.Uint64("key_limit", w.KeyLimit))
	}
	if w.RX {
		set = append(set, zap.Strings("receive", receives(w.features)))
	}
	return set
}

// afterTLS refuses a wrapper that stands before TLS, where it would see
// ciphertext only.
func afterTLS(wrappers []json.RawMessage) error {
	seen := false
	for _, raw := range wrappers {
		var m struct {
			Wrapper string `json:"wrapper"`
		}
		if err := json.Unmarshal(raw, &m); err != nil {
			return nil // Caddy says so itself
		}
		switch m.Wrapper {
		case "ktls":
			if seen {
				return errors.New("listener_wrappers: ktls is given twice")
			}
			seen = true
		case "tls":
			if seen {
				return errors.New("listener_wrappers: ktls must come after tls")
			}
		}
	}
	return nil
}

// transmits lists what the kernel can encrypt.
func transmits(f *ktls.Features) []string { return those(f.CanTX) }

// receives lists what the kernel can decrypt.
func receives(f *ktls.Features) []string { return those(f.CanRX) }

// those lists the versions and ciphers of crypto/tls that the kernel can.
func those(can func(version uint16, c ktls.Cipher) bool) []string {
	var s []string
	for _, c := range ktls.Combinations() {
		if c.Cipher != ktls.AES128CCM && can(c.Version, c.Cipher) { // crypto/tls has no CCM
			s = append(s, c.String())
		}
	}
	return s
}

// WrapListener puts our connections in the place of those of the TLS listener
// ln. A listener without TLS is returned as it is.
func (w *ListenerWrapper) WrapListener(ln net.Listener) net.Listener {
	servers.starting(w, w.handshakeTimeout())
	if !w.usable {
		return ln
	}
	raw := belowTLS(ln)
	if raw == nil {
		if w.server.TLSConnPolicies != nil {
			w.logger.Debug("not a TLS listener, left as it is",
				zap.Stringer("address", ln.Addr()), zap.String("type", fmt.Sprintf("%T", ln)))
		}
		return ln
	}
	pairs.serving(w.server, w.logger)
	l := &listener{
		Listener: raw,
		config:   ktls.ServerConfig(w.server.TLSConnPolicies.TLSConfig(w.ctx)),
		timeout:  w.handshakeTimeout(),
		admit:    w.admission,
		logger:   w.logger,
	}
	if l.admit != nil {
		admitted(l.config)
	}
	l.opts = &ktls.Options{
		Features:           w.features,
		UpgradeAtHandshake: w.Upgrade == upgradeHandshake,
		Below:              belowConn,
		ZerocopyRO:         w.ZerocopyRO,
		RecordSize:         w.RecordSize,
		RX:                 w.RX,
		Unbuffered:         unbuffered,
		OnReceive:          l.receiving,
		KeyLimit:           w.KeyLimit,
		OnUpgrade:          l.upgraded,
		OnRekey:            l.rekeyed,
	}
	return l
}

// handshakeTimeout is what net/http allows a handshake, unless configured.
func (w *ListenerWrapper) handshakeTimeout() time.Duration {
	if w.HandshakeTimeout > 0 {
		return time.Duration(w.HandshakeTimeout)
	}
	var d time.Duration
	for _, t := range []caddy.Duration{w.server.ReadHeaderTimeout, w.server.ReadTimeout, w.server.WriteTimeout} {
		if t > 0 && (d == 0 || time.Duration(t) < d) {
			d = time.Duration(t)
		}
	}
	return d
}

// status is what GET /ktls/ of the admin API tells of the wrapper.
func (w *ListenerWrapper) status() serverStatus {
	s := serverStatus{
		Listen:           w.server.Listen,
		Usable:           w.usable,
		Upgrade:          w.Upgrade,
		HandshakeTimeout: cmp.Or(time.Duration(w.HandshakeTimeout), w.timeout).Seconds(),
	}
	if w.usable {
		s.MaxHandshakes, s.ZerocopyRO, s.RecordSize, s.RX = w.MaxHandshakes, w.ZerocopyRO, w.RecordSize, w.RX
		s.KeyLimit = w.KeyLimit
		if s.RecordSize == 0 {
			s.RecordSize = maxRecordSize
		}
	}
	return s
}

// listener accepts connections below TLS and makes them ours.
type listener struct {
	net.Listener
	config  *tls.Config
	opts    *ktls.Options
	timeout time.Duration
	admit   *admission // nil: no bound
	logger  *zap.Logger
}

// Accept doesn't wait for the handshake: it is run by the connection's own
// goroutine, with its first Read.
func (l *listener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c, h := &conn{listener: l}, new(handshake)
	c.pending.Store(h)
	if l.admit != nil {
		h.gate = &gate{Conn: raw, to: l.admit}
		raw = h.gate
	}
	c.Conn = ktls.Server(raw, l.config, l.opts)
	return c, nil
}

// rekeyed counts and logs a change of the sending key.
func (l *listener) rekeyed(c *ktls.Conn, byPeer bool, err error) {
	countRekey(byPeer, err)
	if e := l.logger.Check(zapcore.DebugLevel, "sending key changed"); e != nil && err == nil {
		e.Write(zap.Stringer("remote", c.RemoteAddr()), zap.Bool("asked_by_client", byPeer))
	}
	if e := l.logger.Check(zapcore.DebugLevel, "sending key could not be changed"); e != nil && err != nil {
		e.Write(zap.Stringer("remote", c.RemoteAddr()), zap.Bool("asked_by_client", byPeer), zap.Error(err))
	}
}

// upgraded counts and logs how an upgrade went.
func (l *listener) upgraded(c *ktls.Conn, info ktls.Info, err error) {
	countUpgrade(info, err)
	if err != nil {
		if e := l.logger.Check(zapcore.DebugLevel, "connection stays in user space"); e != nil {
			u := upgradeError(err)
			e.Write(zap.Stringer("remote", c.RemoteAddr()), zap.String("version", tls.VersionName(info.Version)),
				zap.String("reason", u.Reason), zap.Error(u.Err))
		}
		return
	}
	if e := l.logger.Check(zapcore.DebugLevel, "connection upgraded to kernel TLS"); e != nil {
		how := upgradeHandshake
		if info.Lazy {
			how = upgradeLazy
		}
		e.Write(zap.Stringer("remote", c.RemoteAddr()), zap.String("version", tls.VersionName(info.Version)),
			zap.Stringer("cipher", info.Cipher), zap.Uint64("sequence", info.Sequence), zap.String("upgrade", how))
	}
}

// belowTLS returns the listener under the TLS listener of crypto/tls, or nil if
// ln is none. The type isn't exported, but its embedded net.Listener is.
func belowTLS(ln net.Listener) net.Listener {
	if typeName(ln) != "*crypto/tls.listener" {
		return nil
	}
	f := reflect.ValueOf(ln).Elem().FieldByName("Listener")
	if !f.IsValid() || !f.CanInterface() {
		return nil
	}
	raw, _ := f.Interface().(net.Listener)
	return raw
}

// knowsTLSListener reports whether belowTLS works with the crypto/tls built in.
func knowsTLSListener() bool {
	raw := &oneListener{}
	return belowTLS(tls.NewListener(raw, new(tls.Config))) == net.Listener(raw)
}

// belowConn knows our own gate and the connections of Caddy's own listener
// wrappers that pass on unchanged what is written to them.
func belowConn(c net.Conn) net.Conn {
	if g, ok := c.(*gate); ok {
		return g.Conn
	}
	switch typeName(c) {
	case "*github.com/pires/go-proxyproto.Conn": // listener wrapper proxy_protocol
		if r, ok := c.(interface{ Raw() net.Conn }); ok {
			return r.Raw()
		}
	case "*" + caddyhttpPath + ".httpRedirectConn": // listener wrapper http_redirect
		return embeddedConn(c)
	}
	return nil
}

const caddyhttpPath = "github.com/caddyserver/caddy/v2/modules/caddyhttp"

// typeName is the type of v with the whole path of its package.
func typeName(v any) string {
	t := reflect.TypeOf(v)
	if t == nil {
		return ""
	}
	if t.Kind() == reflect.Pointer {
		return "*" + t.Elem().PkgPath() + "." + t.Elem().Name()
	}
	return t.PkgPath() + "." + t.Name()
}

// embeddedConn returns the exported field Conn of a struct, or nil.
func embeddedConn(c net.Conn) net.Conn {
	v := reflect.Indirect(reflect.ValueOf(c))
	if v.Kind() != reflect.Struct {
		return nil
	}
	f := v.FieldByName("Conn")
	if !f.IsValid() || !f.CanInterface() {
		return nil
	}
	below, _ := f.Interface().(net.Conn)
	return below
}

// connKey is the context key of the *conn that a request came on.
type connKey struct{}

// connContext puts our connection into the context of its requests. c is what
// Caddy made of it; only wrappers that are known to pass Write on are looked
// through.
func connContext(ctx context.Context, c net.Conn) context.Context {
	for c != nil {
		if own, ok := c.(*conn); ok {
			if h := own.pending.Load(); h != nil {
				h.ctx = ctx
			}
			return context.WithValue(ctx, connKey{}, own)
		}
		switch typeName(c) {
		case caddyhttpPath + ".tlsStateConn", caddyhttpPath + ".http2StateConn", "*" + caddyhttpPath + ".http2Conn":
			c = embeddedConn(c)
		default:
			return ctx
		}
	}
	return ctx
}

// Interface guards
var (
	_ caddy.Module          = (*ListenerWrapper)(nil)
	_ caddy.Provisioner     = (*ListenerWrapper)(nil)
	_ caddy.CleanerUpper    = (*ListenerWrapper)(nil)
	_ caddy.ListenerWrapper = (*ListenerWrapper)(nil)
	_ caddyfile.Unmarshaler = (*ListenerWrapper)(nil)
)
