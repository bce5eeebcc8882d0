package caddyktls

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddytls"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/caddy-ktls/caddy-ktls/ktls"
)

// handshakeSpy is a handshake_context module, of which Caddy has none itself. It
// tells what it gets to see, and ends handshakes for a certain name.
type handshakeSpy struct{}

var spied = make(chan string, 1)

func (handshakeSpy) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "tls.context.ktls_spy", New: func() caddy.Module { return new(handshakeSpy) }}
}

func (handshakeSpy) HandshakeContext(hello *tls.ClientHelloInfo) (context.Context, error) {
	ctx := hello.Context()
	_, served := ctx.Value(http.ServerContextKey).(*http.Server)
	spied <- fmt.Sprintf("%s %v from %v to %v, in the context %v, a server %t, done %v", hello.ServerName, hello.SupportedProtos,
		hello.Conn.RemoteAddr(), hello.Conn.LocalAddr(), ctx.Value(http.LocalAddrContextKey), served, ctx.Err())
	if hello.ServerName == "refused" {
		return nil, errors.New("not this one")
	}
	return ctx, nil
}

func init() { caddy.RegisterModule(handshakeSpy{}) }

// What a handshake_context module gets is the same as without the wrapper, and so
// is what becomes of the handshake.
func TestHandshakeContextModule(t *testing.T) {
	ports := freePorts(t, 3)
	wrapper := "\t\tlistener_wrappers {\n\t\t\tktls {\n\t\t\t\tupgrade %s\n\t\t\t}\n\t\t}\n"
	caddyfile := fmt.Sprintf("{\n\tadmin off\n\tpersist_config off\n\tstorage file_system %s\n\tauto_https off\n", t.TempDir())
	certs := selfSigned(t)
	sites := ""
	for i, options := range []string{fmt.Sprintf(wrapper, upgradeLazy), fmt.Sprintf(wrapper, upgradeHandshake), ""} {
		caddyfile += fmt.Sprintf("\tservers 127.0.0.1:%d {\n\t\tprotocols h1 h2\n%s\t}\n", ports[i], options)
		sites += fmt.Sprintf("https://localhost:%d {\n\tbind 127.0.0.1\n\ttls %s/cert.pem %s/key.pem\n\trespond hello\n}\n", ports[i], certs, certs)
	}
	config, _, err := adapt(caddyfile + "}\n" + sites)
	if err != nil {
		t.Fatal(err)
	}
	var parsed map[string]any
	if err := json.Unmarshal(config, &parsed); err != nil {
		t.Fatal(err)
	}
	for _, server := range parsed["apps"].(map[string]any)["http"].(map[string]any)["servers"].(map[string]any) {
		for _, policy := range server.(map[string]any)["tls_connection_policies"].([]any) {
			policy := policy.(map[string]any)
			delete(policy, "match")
			policy["handshake_context"] = map[string]any{"module": "ktls_spy"}
		}
	}
	if config, err = json.Marshal(parsed); err != nil {
		t.Fatal(err)
	}
	load(t, config)

	for _, test := range []struct{ name, err string }{{"localhost", "<nil>"}, {"refused", "remote error: tls: internal error"}} {
		for i, port := range ports {
			before := testutil.ToFloat64(metrics.current)
			address := fmt.Sprintf("127.0.0.1:%d", port)
			tcp, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer tcp.Close()
			tcp.SetDeadline(time.Now().Add(time.Minute))
			conn := tls.Client(tcp, &tls.Config{ServerName: test.name, InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
			if err := conn.Handshake(); fmt.Sprint(err) != test.err {
				t.Errorf("%s from server %d: %v, want %s", test.name, i, err, test.err)
			}
			want := fmt.Sprintf("%s [http/1.1] from %v to %s, in the context %s, a server true, done <nil>", test.name, tcp.LocalAddr(), address, address)
			if got := <-spied; got != want {
				t.Errorf("server %d: %s; want %s", i, got, want)
			}
			if test.err != "<nil>" {
				continue
			}
			fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
			if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || resp.StatusCode != http.StatusOK {
				t.Errorf("server %d: %v, %v", i, resp, err)
			}
			upgraded := 0.0
			if i == 1 && ktls.Probe().Usable() {
				upgraded = 1
			}
			if got := testutil.ToFloat64(metrics.current) - before; got != upgraded {
				t.Errorf("server %d: the kernel encrypts %v more connections, want %v", i, got, upgraded)
			}
		}
	}
}

var _ caddytls.HandshakeContext = handshakeSpy{}
