package caddyktls

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-ktls/caddy-ktls/ktls"
)

// The crypto/tls built in here has the listener whose inner one is read by
// reflection. Fails when a new Go changes it.
func TestKnowsTLSListener(t *testing.T) {
	if !knowsTLSListener() {
		t.Fatal("the listener below crypto/tls can't be found")
	}
}

func TestBelowTLSLeavesOtherListenersAlone(t *testing.T) {
	if raw := belowTLS(&oneListener{}); raw != nil {
		t.Fatalf("found %T under a listener without TLS", raw)
	}
}

func TestWrapperMustComeAfterTLS(t *testing.T) {
	for order, want := range map[string]string{
		"ktls":                    "",
		"tls ktls":                "",
		"proxy_protocol tls ktls": "",
		"ktls tls":                "ktls must come after tls",
		"ktls proxy_protocol tls": "ktls must come after tls",
		"ktls ktls":               "ktls is given twice",
	} {
		var raws []json.RawMessage
		for name := range strings.FieldsSeq(order) {
			raws = append(raws, json.RawMessage(`{"wrapper": "`+name+`"}`))
		}
		err := afterTLS(raws)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", order, err, want)
		}
	}
}

// JSON gets past the Caddyfile's checks: a bad value fails the load with the
// option and the value.
func TestWrapperValueErrors(t *testing.T) {
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	defer cancel()
	for config, want := range map[string]string{
		`{"upgrade": "soon"}`:          `upgrade: "soon" is neither "lazy" nor "handshake"`,
		`{"handshake_timeout": "-1s"}`: "handshake_timeout: -1s is negative",
		`{"max_handshakes": -1}`:       "max_handshakes: -1 is negative",
		`{"record_size": -1}`:          "record_size: -1 isn't from 64 to 16384",
		`{"record_size": 63}`:          "record_size: 63 isn't from 64 to 16384",
		`{"record_size": 16385}`:       "record_size: 16385 isn't from 64 to 16384",
		`{"max_handshakes": 1, "record_size": 64, "rx": true, "zerocopy_ro": true}`: "in servers of the http app only", // nothing else is wrong
	} {
		var w ListenerWrapper
		if err := json.Unmarshal([]byte(config), &w); err != nil {
			t.Fatal(err)
		}
		if err := w.Provision(ctx); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", config, err, want)
		}
	}
}

// What the kernel can't is off, said once, and an error where it is required.
func TestOptionsTheKernelCant(t *testing.T) {
	can, cannot := ktls.Answer{Support: ktls.Yes}, ktls.Answer{Support: ktls.No, Errno: "ENOPROTOOPT"}
	gcm := ktls.Combination{Version: 0x0304, Cipher: ktls.AES128GCM}
	ccm := ktls.Combination{Version: 0x0304, Cipher: ktls.AES128CCM}
	for option, test := range map[string]struct {
		wrapper  ListenerWrapper
		features ktls.Features // the kernel that can do all but this
	}{
		"zerocopy_ro": {ListenerWrapper{ZerocopyRO: true}, ktls.Features{ZerocopyRO: cannot, MaxPayloadLen: can, RX: map[ktls.Combination]ktls.Answer{gcm: can}}},
		"record_size": {ListenerWrapper{RecordSize: 4096}, ktls.Features{ZerocopyRO: can, MaxPayloadLen: cannot, RX: map[ktls.Combination]ktls.Answer{gcm: can}}},
		"rx":          {ListenerWrapper{RX: true}, ktls.Features{ZerocopyRO: can, MaxPayloadLen: can, RX: map[ktls.Combination]ktls.Answer{gcm: cannot, ccm: can}}},
	} {
		core, logs := observer.New(zap.InfoLevel)
		w := test.wrapper
		w.features, w.server, w.logger, w.usable = &test.features, &caddyhttp.Server{Listen: []string{":443"}}, zap.New(core), true
		if err := w.dropUnsupported(); err != nil {
			t.Errorf("%s: %v", option, err)
		}
		if all := logs.All(); len(all) != 1 || all[0].Level != zap.WarnLevel || all[0].ContextMap()["option"] != option {
			t.Errorf("%s: logged %v", option, all)
		}
		if s := w.status(); s.ZerocopyRO || s.RecordSize != maxRecordSize || s.RX || len(w.settings()) != 0 {
			t.Errorf("%s: still on: %+v", option, s)
		}

		w = test.wrapper
		w.features, w.server, w.logger, w.Require = &test.features, &caddyhttp.Server{}, zap.NewNop(), true
		if err := w.dropUnsupported(); err == nil || !strings.Contains(err.Error(), option) || !strings.Contains(err.Error(), "ENOPROTOOPT") {
			t.Errorf("%s, required: %v", option, err)
		}

		// Nothing is said of what nobody asked for, nor of what the kernel can.
		for _, w := range []ListenerWrapper{{}, {ZerocopyRO: option != "zerocopy_ro", RX: option != "rx", Require: true}} {
			w.features, w.logger, w.server = &test.features, zap.New(core), &caddyhttp.Server{}
			if err := w.dropUnsupported(); err != nil || logs.Len() != 1 {
				t.Errorf("%s: %v, logged %v", option, err, logs.All()[1:])
			}
		}
	}
}

// The admin API and the line at start have each option.
func TestStatusOfServers(t *testing.T) {
	w := &ListenerWrapper{
		Upgrade: upgradeHandshake, HandshakeTimeout: caddy.Duration(1500 * time.Millisecond), MaxHandshakes: 4, ZerocopyRO: true, RecordSize: 1024, RX: true,
		server: &caddyhttp.Server{Listen: []string{":443"}}, usable: true,
		features: &ktls.Features{RX: map[ktls.Combination]ktls.Answer{{Version: 0x0304, Cipher: ktls.AES256GCM}: {Support: ktls.Yes}}},
	}
	got, err := json.Marshal(w.status())
	if want := `{"listen":[":443"],"usable":true,"upgrade":"handshake","handshake_timeout":1.5,"max_handshakes":4,"zerocopy_ro":true,"record_size":1024,"key_limit":0,"rx":true}`; err != nil || string(got) != want {
		t.Errorf("%s, want %s: %v", got, want, err)
	}
	var names []string
	for _, f := range w.settings() {
		names = append(names, f.Key)
	}
	if got := strings.Join(names, " "); got != "handshake_timeout max_handshakes zerocopy_ro record_size receive" {
		t.Errorf("the line at start has %s", got)
	}
	servers.add(w)
	if n := len(servers.status()); n != 1 {
		t.Errorf("%d servers", n)
	}
	if err := w.Cleanup(); err != nil || len(servers.status()) != 0 {
		t.Errorf("after the end of its configuration: %v, %v", servers.status(), err)
	}
}
