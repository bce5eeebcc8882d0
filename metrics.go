package caddyktls

import (
	"crypto/tls"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-ktls/caddy-ktls/internal/lockorder"
	"github.com/caddy-ktls/caddy-ktls/ktls"
)

// metrics are the process's collectors. They are made once and registered anew
// with each configuration's registry, so that a reload keeps what they counted.
// Every label has a bounded set of values: reasons are the constants of this
// module, versions and ciphers those of crypto/tls.
var metrics = struct {
	connections *prometheus.CounterVec
	current     prometheus.Gauge
	buffers     prometheus.GaugeFunc
	responses   *prometheus.CounterVec
	bytes       *prometheus.CounterVec
	inFlight    prometheus.Gauge
	waiting     prometheus.Gauge
	handshakes  *prometheus.HistogramVec
	rekeys      *prometheus.CounterVec
	receiving   *prometheus.CounterVec
}{
	connections: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "ktls", Name: "connections_total",
		Help: "Connections that were to move into the kernel, by how that went (upgraded, refused), why not, protocol version and cipher.",
	}, []string{"outcome", "reason", "version", "cipher"}),
	current: prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: "caddy", Subsystem: "ktls", Name: "connections",
		Help: "Open connections that the kernel encrypts.",
	}),
	buffers: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "caddy", Subsystem: "ktls", Name: "frame_buffers_bytes",
		Help: "Memory for large HTTP/2 frames of open connections; at most a sixteenth of Go's memory limit.",
	}, func() float64 { return float64(frameBuffers.Load()) }),
	responses: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "ktls", Name: "responses_total",
		Help: "Responses of sites with the ktls handler, by path (sendfile, plain) and why not sendfile.",
	}, []string{"path", "reason"}),
	bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "ktls", Name: "response_bytes_total",
		Help: "Bytes of the bodies of these responses, by path and reason.",
	}, []string{"path", "reason"}),
	inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: "caddy", Subsystem: "ktls", Name: "handshakes_in_flight",
		Help: "TLS handshakes under way.",
	}),
	waiting: prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: "caddy", Subsystem: "ktls", Name: "handshakes_waiting",
		Help: "TLS handshakes under way that wait in the queue of max_handshakes.",
	}),
	handshakes: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: "ktls", Name: "handshake_duration_seconds",
		Help:    "Duration of TLS handshakes, waiting for the client and in the queue of max_handshakes included, by result (ok, failed, refused: too long in that queue).",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
	}, []string{"result"}),
	rekeys: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "ktls", Name: "rekeys_total",
		Help: "Changes of the sending key of connections that the kernel encrypts, by who wanted it (client, limit: the usage limit of a key) and result (ok, refused: the kernel can't, flood: too many, failed).",
	}, []string{"by", "result"}),
	receiving: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "ktls", Name: "receiving_total",
		Help: "Connections that the kernel encrypts and, with rx on, was to decrypt, by how that went (upgraded, refused) and why not.",
	}, []string{"outcome", "reason"}),
}

func collectors() []prometheus.Collector {
	return []prometheus.Collector{metrics.connections, metrics.current, metrics.buffers, metrics.responses, metrics.bytes,
		metrics.inFlight, metrics.waiting, metrics.handshakes, metrics.rekeys, metrics.receiving}
}

// registerMetrics adds the collectors to a configuration's registry. Several
// modules of one configuration may ask for it.
func registerMetrics(registry *prometheus.Registry) error {
	for _, c := range collectors() {
		err := registry.Register(c)
		if are := (prometheus.AlreadyRegisteredError{}); err != nil && !errors.As(err, &are) {
			return err
		}
	}
	return nil
}

// countUpgrade counts how an upgrade went.
func countUpgrade(info ktls.Info, err error) {
	outcome, reason := "upgraded", ""
	if err != nil {
		u := upgradeError(err)
		outcome, reason = "refused", u.Reason
		detail := u.Err.Error()
		if reason == ktls.ReasonClosed {
			detail = "" // may have the client's address
		}
		noteRefusal(reason, detail)
	}
	cipher := "other"
	if info.Cipher != 0 {
		cipher = info.Cipher.String()
	}
	metrics.connections.WithLabelValues(outcome, reason, versionLabel(info.Version), cipher).Inc()
}

// upgradeError is the error of an upgrade, which is always of this type.
func upgradeError(err error) *ktls.UpgradeError {
	var u *ktls.UpgradeError
	if !errors.As(err, &u) {
		return &ktls.UpgradeError{Reason: ktls.ReasonKernel, Err: err}
	}
	return u
}

// versionLabel is a protocol version; crypto/tls negotiates no others.
func versionLabel(v uint16) string {
	if v < tls.VersionTLS10 || v > tls.VersionTLS13 {
		return "other"
	}
	return tls.VersionName(v)
}

// countReceiving counts how the switch of a receiving side went.
func countReceiving(err error) {
	outcome, reason := "upgraded", ""
	if err != nil {
		outcome, reason = "refused", upgradeError(err).Reason
	}
	metrics.receiving.WithLabelValues(outcome, reason).Inc()
}

// countRekey counts a change of the sending key.
func countRekey(byPeer bool, err error) {
	by, result := "limit", "ok"
	if byPeer {
		by = "client"
	}
	switch {
	case errors.Is(err, ktls.ErrKeyUpdate):
		result = "refused"
	case errors.Is(err, ktls.ErrKeyUpdateFlood):
		result = "flood"
	case err != nil:
		result = "failed"
	}
	metrics.rekeys.WithLabelValues(by, result).Inc()
}

// countHandshake counts a handshake that began at begin.
func countHandshake(begin time.Time, err error) {
	result := "ok"
	switch {
	case errors.Is(err, errNotAdmitted):
		result = "refused"
	case err != nil:
		result = "failed"
	}
	metrics.handshakes.WithLabelValues(result).Observe(time.Since(begin).Seconds())
}

// series is what is counted of the responses with one path and reason.
type series struct {
	label     string // of the reason
	detail    string
	responses prometheus.Counter
	bytes     prometheus.Counter
	last      atomic.Int64 // Unix time in ns
}

// responseSeries has one for each path and reason so far: looked at for every
// response, and copied to add to it, which ends soon.
var responseSeries struct {
	mu      lockorder.Mutex[lockorder.Leaf] // of who adds
	entries atomic.Pointer[map[[2]string]*series]
}

// countOf is the entry for responses with this path and reason.
func countOf(path, reason string) *series {
	key, m := [2]string{path, reason}, &responseSeries
	if entries := m.entries.Load(); entries != nil {
		if c := (*entries)[key]; c != nil {
			return c
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	entries := map[[2]string]*series{}
	if old := m.entries.Load(); old != nil {
		maps.Copy(entries, *old)
	}
	c := entries[key]
	if c == nil {
		c = &series{label: reason}
		if kind := strings.TrimSuffix(reasonUnknown, ":"); strings.HasPrefix(reason, reasonUnknown) {
			c.label = kind // types aren't bounded by us
			c.detail = strings.TrimPrefix(reason, reasonUnknown)
		}
		c.responses = metrics.responses.WithLabelValues(path, c.label)
		c.bytes = metrics.bytes.WithLabelValues(path, c.label)
		entries[key] = c
		m.entries.Store(&entries)
	}
	return c
}

// countResponse counts a response with n body bytes.
func countResponse(path, reason string, n int64) {
	c := countOf(path, reason)
	c.responses.Inc()
	c.bytes.Add(float64(n))
	if reason != "" {
		c.last.Store(time.Now().UnixNano())
	}
}

// lastReason is the last time that something took the slower way.
type lastReason struct {
	Time   time.Time `json:"time"`
	What   string    `json:"what"` // connection or response
	Reason string    `json:"reason"`
	Detail string    `json:"detail,omitempty"`
}

// refusals remembers when a connection was last refused for each reason.
var refusals struct {
	mu      lockorder.Mutex[lockorder.Leaf]
	entries map[string]lastReason
}

func noteRefusal(reason, detail string) {
	refusals.mu.Lock()
	defer refusals.mu.Unlock()
	if refusals.entries == nil {
		refusals.entries = map[string]lastReason{}
	}
	refusals.entries[reason] = lastReason{time.Now(), "connection", reason, detail}
}

// lastReasons tells when each reason was given last, for the admin API; the
// latest first.
func lastReasons() []lastReason {
	refusals.mu.Lock()
	list := slices.AppendSeq([]lastReason{}, maps.Values(refusals.entries)) // [] in JSON, not null
	refusals.mu.Unlock()
	latest := map[string]lastReason{} // several types of unknown writers are one reason
	if entries := responseSeries.entries.Load(); entries != nil {
		for _, c := range *entries {
			ns := c.last.Load()
			if at := time.Unix(0, ns); ns != 0 && at.After(latest[c.label].Time) {
				latest[c.label] = lastReason{at, "response", c.label, c.detail}
			}
		}
	}
	list = slices.AppendSeq(list, maps.Values(latest))
	slices.SortFunc(list, func(a, b lastReason) int { return b.Time.Compare(a.Time) })
	return list
}
