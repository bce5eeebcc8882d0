package caddyktls

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/caddy-ktls/caddy-ktls/internal/lockorder"
	"github.com/caddy-ktls/caddy-ktls/ktls"
)

// adminAPI tells at the admin endpoint, as `GET /ktls/`, what the kernel can do
// and what came of it. Nothing in it is secret.
type adminAPI struct{}

// CaddyModule returns the Caddy module information.
func (adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.ktls",
		New: func() caddy.Module { return new(adminAPI) },
	}
}

// Routes returns the module's one route.
func (adminAPI) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{{Pattern: "/ktls/", Handler: caddy.AdminHandlerFunc(serveStatus)}}
}

func serveStatus(w http.ResponseWriter, r *http.Request) error {
	if r.URL.Path != "/ktls/" {
		return caddy.APIError{HTTPStatus: http.StatusNotFound, Err: fmt.Errorf("no such endpoint: %s", r.URL.Path)}
	}
	if r.Method != http.MethodGet {
		return caddy.APIError{HTTPStatus: http.StatusMethodNotAllowed, Err: fmt.Errorf("method %s not allowed", r.Method)}
	}
	s, err := currentStatus()
	if err != nil {
		return caddy.APIError{HTTPStatus: http.StatusInternalServerError, Err: err}
	}
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(s)
}

// status is what GET /ktls/ answers. Counters are those of the process: a reload
// keeps them.
type status struct {
	Kernel             *ktls.Features    `json:"kernel"`
	Servers            []serverStatus    `json:"servers"`
	Connections        []connectionCount `json:"connections"`
	CurrentConnections int64             `json:"current_connections"`
	Responses          []responseCount   `json:"responses"`
	Handshakes         handshakeCount    `json:"handshakes"`
	Rekeys             map[string]int64  `json:"rekeys"`
	Last               []lastReason      `json:"last"`
}

// serverStatus is what holds for the connections of a server with the listener
// wrapper: defaults are filled in, and what the kernel can't is off.
type serverStatus struct {
	Listen           []string `json:"listen"`
	Usable           bool     `json:"usable"` // false: served as without the wrapper
	Upgrade          string   `json:"upgrade"`
	HandshakeTimeout float64  `json:"handshake_timeout"` // seconds; 0: none
	MaxHandshakes    int      `json:"max_handshakes"`    // 0: no bound
	ZerocopyRO       bool     `json:"zerocopy_ro"`
	RecordSize       int      `json:"record_size"`
	KeyLimit         uint64   `json:"key_limit"` // records; 0: as many as the cipher allows
	RX               bool     `json:"rx"`
}

// servers are the listener wrappers of the configuration in use, and during a
// reload those of the next one.
var servers wrapperSet

type wrapperSet struct {
	mu  lockorder.Mutex[lockorder.Leaf]
	all []*ListenerWrapper
}

func (s *wrapperSet) add(w *ListenerWrapper) {
	s.mu.Lock()
	s.all = append(s.all, w)
	s.mu.Unlock()
}

func (s *wrapperSet) remove(w *ListenerWrapper) {
	s.mu.Lock()
	s.all = slices.DeleteFunc(s.all, func(other *ListenerWrapper) bool { return other == w })
	s.mu.Unlock()
}

// starting keeps what can't be read from the server's settings later on: Caddy
// completes them after it has provisioned the wrapper.
func (s *wrapperSet) starting(w *ListenerWrapper, handshakeTimeout time.Duration) {
	s.mu.Lock()
	w.timeout = handshakeTimeout
	s.mu.Unlock()
}

func (s *wrapperSet) status() []serverStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := []serverStatus{}
	for _, w := range s.all {
		list = append(list, w.status())
	}
	return list
}

type connectionCount struct {
	Outcome string `json:"outcome"` // upgraded or refused
	Reason  string `json:"reason"`
	Version string `json:"version"`
	Cipher  string `json:"cipher"`
	Count   int64  `json:"count"`
}

type responseCount struct {
	Path   string `json:"path"` // sendfile or plain
	Reason string `json:"reason"`
	Count  int64  `json:"count"`
	Bytes  int64  `json:"bytes"`
}

type handshakeCount struct {
	InFlight int64   `json:"in_flight"`
	Waiting  int64   `json:"waiting"` // of those in flight
	Count    int64   `json:"count"`
	Failed   int64   `json:"failed"`
	Refused  int64   `json:"refused"` // waited too long; not among Failed
	Seconds  float64 `json:"seconds"` // time taken by all of Count
}

// ownRegistry has our collectors alone, to read them from.
var ownRegistry = sync.OnceValues(func() (*prometheus.Registry, error) {
	r := prometheus.NewRegistry()
	return r, registerMetrics(r)
})

func currentStatus() (*status, error) {
	registry, err := ownRegistry()
	if err != nil {
		return nil, err
	}
	families, err := registry.Gather()
	if err != nil {
		return nil, err
	}
	s := &status{
		Kernel:      ktls.Probe(),
		Servers:     servers.status(),
		Connections: []connectionCount{},
		Responses:   []responseCount{},
		Rekeys:      map[string]int64{},
		Last:        lastReasons(),
	}
	bytes := map[[2]string]int64{}
	for _, family := range families {
		for _, m := range family.Metric {
			l := labels(m)
			switch family.GetName() {
			case "caddy_ktls_connections_total":
				s.Connections = append(s.Connections, connectionCount{l["outcome"], l["reason"], l["version"], l["cipher"], int64(m.Counter.GetValue())})
			case "caddy_ktls_connections":
				s.CurrentConnections = int64(m.Gauge.GetValue())
			case "caddy_ktls_response_bytes_total": // sorts before responses_total
				bytes[[2]string{l["path"], l["reason"]}] = int64(m.Counter.GetValue())
			case "caddy_ktls_responses_total":
				s.Responses = append(s.Responses, responseCount{l["path"], l["reason"], int64(m.Counter.GetValue()), bytes[[2]string{l["path"], l["reason"]}]})
			case "caddy_ktls_handshakes_in_flight":
				s.Handshakes.InFlight = int64(m.Gauge.GetValue())
			case "caddy_ktls_handshakes_waiting":
				s.Handshakes.Waiting = int64(m.Gauge.GetValue())
			case "caddy_ktls_handshake_duration_seconds":
				n := int64(m.Histogram.GetSampleCount())
				s.Handshakes.Count += n
				s.Handshakes.Seconds += m.Histogram.GetSampleSum()
				switch l["result"] {
				case "failed":
					s.Handshakes.Failed += n
				case "refused":
					s.Handshakes.Refused += n
				}
			case "caddy_ktls_rekeys_total":
				s.Rekeys[l["result"]] += int64(m.Counter.GetValue())
			}
		}
	}
	return s, nil
}

func labels(m *dto.Metric) map[string]string {
	l := make(map[string]string, len(m.Label))
	for _, p := range m.Label {
		l[p.GetName()] = p.GetValue()
	}
	return l
}

// Interface guards
var (
	_ caddy.Module      = (*adminAPI)(nil)
	_ caddy.AdminRouter = (*adminAPI)(nil)
)
