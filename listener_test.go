package caddyktls

import (
	"encoding/json"
	"strings"
	"testing"
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
