package caddyktls

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/caddy-ktls/caddy-ktls/ktls"
)

// Every configuration has a registry of its own: what was counted before a
// reload must be in the next one, and several modules may ask to register.
func TestMetricsSurviveReload(t *testing.T) {
	before := testutil.ToFloat64(metrics.responses.WithLabelValues(pathSendfile, ""))
	countResponse(pathSendfile, "", 1000)
	for range 2 { // two configurations
		registry := prometheus.NewRegistry()
		for range 3 { // wrappers and handlers
			if err := registerMetrics(registry); err != nil {
				t.Fatal(err)
			}
		}
		n, err := testutil.GatherAndCount(registry, "caddy_ktls_responses_total")
		if err != nil || n == 0 {
			t.Fatalf("%d series: %v", n, err)
		}
	}
	if got := testutil.ToFloat64(metrics.responses.WithLabelValues(pathSendfile, "")); got != before+1 {
		t.Errorf("%v responses, want %v", got, before+1)
	}
	if problems, err := testutil.GatherAndLint(mustOwnRegistry(t)); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v %v", problems, err)
	}
}

func mustOwnRegistry(t *testing.T) *prometheus.Registry {
	t.Helper()
	r, err := ownRegistry()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Types of writers aren't bounded, so they are no label.
func TestUnknownWritersAreOneSeries(t *testing.T) {
	before := testutil.CollectAndCount(metrics.responses)
	countResponse(pathPlain, reasonUnknown+"*a.B", 1)
	countResponse(pathPlain, reasonUnknown+"*c.D", 1)
	if got := testutil.CollectAndCount(metrics.responses); got > before+1 {
		t.Errorf("%d new series for two types of writers", got-before)
	}
}

func TestAdminAPITellsWhatWasCounted(t *testing.T) {
	refusal := &ktls.UpgradeError{Reason: ktls.ReasonUnproven, Err: errors.New("test")}
	countUpgrade(ktls.Info{Version: tls.VersionTLS13, Cipher: ktls.AES128GCM}, nil)
	countUpgrade(ktls.Info{Version: tls.VersionTLS12}, refusal)
	countResponse(pathPlain, reasonUnknown+"*a.B", 7)
	countHandshake(time.Now(), errors.New("test"))

	rec := httptest.NewRecorder()
	if err := serveStatus(rec, httptest.NewRequest(http.MethodGet, "/ktls/", nil)); err != nil {
		t.Fatal(err)
	}
	var s status
	if err := json.Unmarshal(rec.Body.Bytes(), &struct {
		*status
		Kernel json.RawMessage `json:"kernel"`
	}{status: &s}); err != nil {
		t.Fatalf("%v in %s", err, rec.Body)
	}
	has := func(outcome, reason, version, cipher string) bool {
		for _, c := range s.Connections {
			if c.Outcome == outcome && c.Reason == reason && c.Version == version && c.Cipher == cipher && c.Count > 0 {
				return true
			}
		}
		return false
	}
	if !has("upgraded", "", "TLS 1.3", "AES-128-GCM") || !has("refused", "unproven", "TLS 1.2", "other") {
		t.Errorf("connections: %+v", s.Connections)
	}
	found := false
	for _, r := range s.Responses {
		found = found || r.Path == pathPlain && r.Reason == "unknown_writer" && r.Count > 0 && r.Bytes >= 7
	}
	if !found {
		t.Errorf("responses: %+v", s.Responses)
	}
	if s.Handshakes.Failed == 0 || s.Handshakes.Count < s.Handshakes.Failed {
		t.Errorf("handshakes: %+v", s.Handshakes)
	}
	if len(s.Last) < 2 || s.Last[0].Reason != "unknown_writer" || s.Last[0].Detail != "*a.B" {
		t.Errorf("last: %+v", s.Last)
	}
	if !strings.Contains(rec.Body.String(), `"usable":`) {
		t.Error("nothing about the kernel")
	}
}

func TestAdminAPIRefusesOtherRequests(t *testing.T) {
	for request, want := range map[string]int{
		"POST /ktls/":    http.StatusMethodNotAllowed,
		"GET /ktls/more": http.StatusNotFound,
	} {
		method, path, _ := strings.Cut(request, " ")
		err := serveStatus(httptest.NewRecorder(), httptest.NewRequest(method, path, nil))
		var api caddy.APIError
		if !errors.As(err, &api) || api.HTTPStatus != want {
			t.Errorf("%s: %v", request, err)
		}
	}
}
