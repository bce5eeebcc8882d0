//go:build linux

package integration

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	bigint "math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// rsaCertificate is a directive for a certificate that the server takes
// milliseconds to sign with: many handshakes make a queue.
func rsaCertificate(t testing.TB, bits int) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: bigint.NewInt(1),
		Subject:      pkix.Name{CommonName: "localhost"},
		DNSNames:     []string{"localhost"},
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, block := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: der},
		"key.pem":  {Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return "tls " + filepath.Join(dir, "cert.pem") + " " + filepath.Join(dir, "key.pem")
}

// anyCertificate is for servers with a certificate of their own.
func anyCertificate(config *tls.Config) { config.InsecureSkipVerify = true }

// checkNoQueue checks that no handshake waits or was refused.
func (c *caddy) checkNoQueue(t *testing.T) {
	t.Helper()
	if s := c.status(t).Handshakes; s.Waiting != 0 || s.Refused != 0 {
		t.Errorf("handshakes: %+v", s)
	}
}

// TestMaxHandshakes: with a bound, and many more handshakes at once, all of them
// get through and are upgraded.
func TestMaxHandshakes(t *testing.T) {
	notEmulated(t)
	c := start(t,
		listener{wrappers: "ktls {\n\tmax_handshakes 1\n}"},
		listener{wrappers: "ktls {\n\tupgrade handshake\n\tmax_handshakes 2\n}"},
		listener{wrappers: "ktls {\n\tmax_handshakes 1\n}", sites: []site{{body: files("tls {", "curves secp384r1", "}")}}},
	)
	for i := range c.ports {
		c.goClient(t, i, "h1", fresh(func(*tls.Config) {})).get(t, c.url(i, "/"+tiny.name)).isFile(t, tiny)
	}
	before := c.settled(t)
	for _, test := range []struct {
		name     string
		listener int
		change   func(*tls.Config)
	}{
		{"TLS 1.3", 0, func(*tls.Config) {}},
		{"TLS 1.2", 0, func(config *tls.Config) { config.MaxVersion = tls.VersionTLS12 }},
		{"resumed", 0, func(config *tls.Config) { config.ClientSessionCache = tls.NewLRUClientSessionCache(0) }},
		{"upgrade with the handshake", 1, func(*tls.Config) {}},
		{"upgrade with the handshake, TLS 1.2", 1, func(config *tls.Config) { config.MaxVersion = tls.VersionTLS12 }},
		{"HelloRetryRequest", 2, func(config *tls.Config) {
			config.CurvePreferences = []tls.CurveID{tls.CurveP256, tls.CurveP384}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			const clients, each = 12, 3
			check := countUpgrades(t)
			uri := func(n int) string {
				return fmt.Sprintf("/%s?%s-%d", medium.name, strings.ReplaceAll(test.name, " ", "-"), n)
			}
			var wg sync.WaitGroup
			for n := range clients {
				client := c.goClient(t, test.listener, "h1", fresh(test.change))
				wg.Go(func() {
					for range each {
						a, err := client.do(newRequest(t, "GET", c.url(test.listener, uri(n))))
						if err != nil {
							t.Error(err)
							continue
						}
						a.isFile(t, medium)
					}
				})
			}
			wg.Wait()
			for n := range clients {
				for range each {
					c.tookFile(t, uri(n), medium.size)
				}
			}
			check(t, clients*each)
			c.checkNoQueue(t)
		})
	}
	t.Run("acme-tls/1", func(t *testing.T) {
		conn := tls.Client(c.dial(t, 0), tlsConfig(t, func(config *tls.Config) { config.NextProtos = []string{"acme-tls/1"} }))
		if err := conn.Handshake(); err == nil {
			readToEnd(t, conn)
		}
		c.stillServes(t)
	})
	c.awaitFootprint(t, before)
}

// TestMaxHandshakesHalfOpen: clients that don't get on with a handshake, far
// more than may compute at once and at whatever point of it, hold up nobody.
// Their time ends as ever.
func TestMaxHandshakesHalfOpen(t *testing.T) {
	notEmulated(t)
	needKTLS(t)
	c := start(t, listener{wrappers: "ktls {\n\tmax_handshakes 1\n\thandshake_timeout 3s\n}"})
	c.goClient(t, 0, "h1", fresh(func(*tls.Config) {})).get(t, c.url(0, "/"+tiny.name)).isFile(t, tiny)
	before := c.settled(t)
	check := countUpgrades(t)
	var conns []net.Conn
	for range 10 {
		for _, conn := range c.halfOpen(t) {
			conns = append(conns, conn)
		}
		for _, version := range versions {
			conn := c.dial(t, 0)
			conns = append(conns, conn)
			// Sends a ClientHello, gets the server's whole flight, and says no more.
			mute := &mutedConn{Conn: conn, muted: make(chan struct{})}
			go tls.Client(mute, tlsConfig(t, func(config *tls.Config) { config.MaxVersion = version.number })).Handshake()
			select {
			case <-mute.muted:
			case <-time.After(patience):
				t.Fatal("the server's flight didn't come")
			}
		}
	}
	for _, version := range versions {
		client := c.goClient(t, 0, "h1", fresh(func(config *tls.Config) { config.MaxVersion = version.number }))
		client.get(t, c.url(0, "/"+medium.name+"?"+fmt.Sprint(version.number))).isFile(t, medium)
		c.tookFile(t, "/"+medium.name+"?"+fmt.Sprint(version.number), medium.size)
	}
	check(t, 2)
	for _, conn := range conns {
		readToEnd(t, conn)
		conn.Close()
	}
	c.awaitFootprint(t, before)
	c.checkNoQueue(t)
	c.stillServes(t)
}

// mutedConn sends one message of a handshake, and says when there would be
// another.
type mutedConn struct {
	net.Conn
	writes int
	muted  chan struct{}
}

func (c *mutedConn) Write(p []byte) (int, error) {
	if c.writes++; c.writes == 1 {
		return c.Conn.Write(p)
	}
	close(c.muted)
	return 0, io.ErrClosedPipe
}

func (c *mutedConn) Close() error { return nil } // nor does it say goodbye

// TestMaxHandshakesTimeout: connections that wait too long in the queue are
// closed, counted and logged, and leave nothing behind.
func TestMaxHandshakesTimeout(t *testing.T) {
	notEmulated(t)
	needKTLS(t)
	c := start(t, listener{wrappers: "ktls {\n\tmax_handshakes 1\n\thandshake_timeout 100ms\n}", sites: []site{{body: files(rsaCertificate(t, 4096))}}})
	c.status(t)
	before := c.settled(t)
	var attempts, done int64
	eventually(t, "a handshake was refused", func() bool {
		var wg sync.WaitGroup
		var ok atomic.Int64
		const clients = 100
		for range clients {
			wg.Go(func() {
				tcp, err := net.Dial("tcp", c.addr(0))
				if err != nil {
					t.Error(err)
					return
				}
				defer tcp.Close()
				tcp.SetDeadline(time.Now().Add(patience))
				conn := tls.Client(tcp, tlsConfig(t, anyCertificate))
				if err = conn.Handshake(); err == nil {
					ok.Add(1)
				} else if isTimeout(err) {
					t.Error("a connection was left open")
				}
			})
		}
		wg.Wait()
		attempts += clients
		done += ok.Load()
		return c.status(t).Handshakes.Refused > 0
	})
	c.awaitFootprint(t, before)
	s := c.status(t).Handshakes
	t.Logf("of %d handshakes %d were refused, %d failed otherwise; %d clients were done", attempts, s.Refused, s.Failed, done)
	if s.Waiting != 0 || s.Count != attempts || s.Count-s.Failed-s.Refused > done {
		t.Errorf("handshakes: %+v", s)
	}
	if got := c.scrape(t)[`caddy_ktls_handshake_duration_seconds_count{result="refused"`]; int64(got) != s.Refused {
		t.Errorf("the metric says %v were refused, the API %d", got, s.Refused)
	}
	refusal := func(l *line) bool {
		return l.Msg == "TLS handshake error" && strings.Contains(l.raw, "no place among max_handshakes came free in time")
	}
	if _, ok := c.log.await(int(s.Refused)-1, refusal); !ok || c.log.count(refusal) > int(s.Refused) {
		t.Errorf("%d refusals are in the log, want %d", c.log.count(refusal), s.Refused)
	}
}

// TestMaxHandshakesCertificate: a handshake that waits for its certificate to be
// obtained holds up nobody.
func TestMaxHandshakesCertificate(t *testing.T) {
	notEmulated(t)
	asked, answer := make(chan bool, 1), make(chan bool)
	ask := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- true
		<-answer
	}))
	defer ask.Close()
	c := setup{
		listeners: []listener{{wrappers: "ktls {\n\tmax_handshakes 1\n}"}},
		global:    "on_demand_tls {\n\task " + ask.URL + "\n}",
		patch: func(config map[string]any) {
			automation := config["apps"].(map[string]any)["tls"].(map[string]any)["automation"].(map[string]any)
			policies := automation["policies"].([]any)
			others := policies[len(policies)-1].(map[string]any)
			localhost := maps.Clone(others)
			localhost["subjects"] = []any{"localhost"}
			others["on_demand"] = true
			automation["policies"] = []any{localhost, others}
		},
	}.start(t)
	first := make(chan error)
	tcp := c.dial(t, 0)
	go func() {
		first <- tls.Client(tcp, tlsConfig(t, func(config *tls.Config) { config.ServerName = "new.localhost" })).Handshake()
	}()
	select {
	case <-asked:
	case err := <-first:
		t.Fatalf("nobody asked for the certificate: %v", err)
	case <-time.After(patience):
		t.Fatal("nobody asked for the certificate")
	}
	for _, version := range versions {
		c.goClient(t, 0, "h1", fresh(func(config *tls.Config) { config.MaxVersion = version.number })).
			get(t, c.url(0, "/"+medium.name)).isFile(t, medium)
		c.tookFile(t, "/"+medium.name, medium.size)
	}
	answer <- true
	if err := <-first; err != nil {
		t.Error(err)
	}
	c.stillServes(t)
}

// TestMaxHandshakesReload: a new config while handshakes wait in a queue.
func TestMaxHandshakesReload(t *testing.T) {
	notEmulated(t)
	needKTLS(t)
	c := start(t, listener{wrappers: "ktls {\n\tmax_handshakes 1\n}", sites: []site{{body: files(rsaCertificate(t, 4096))}}})
	get := func() (config string, err error) {
		client := c.goClient(t, 0, "h1", fresh(anyCertificate))
		a, err := client.do(newRequest(t, "GET", c.url(0, "/"+tiny.name)))
		return a.header.Get("X-Config"), err
	}
	if _, err := get(); err != nil {
		t.Fatal(err)
	}
	before := c.settled(t)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			// A handshake under way in the old server may end with it.
			for deadline := time.Now().Add(patience); ; {
				config, err := get()
				if config == "new" {
					return
				}
				if time.Now().After(deadline) {
					t.Errorf("config %q, %v", config, err)
					return
				}
			}
		})
	}
	eventually(t, "handshakes wait", func() bool { return c.status(t).Handshakes.Waiting > 0 })
	c.admin(t, "POST", "/load", "text/caddyfile", strings.Replace(c.caddyfile(), "\tfile_server\n", "\theader X-Config new\n\tfile_server\n", 1))
	wg.Wait()
	eventually(t, "nobody waits", func() bool { return c.status(t).Handshakes.Waiting == 0 })
	c.awaitFootprint(t, before)
	if s := c.status(t).Servers; len(s) != 1 || s[0].MaxHandshakes != 1 {
		t.Errorf("servers: %+v", s)
	}
}

// TestServerSettings: the line at start and the admin API tell what is set, the
// latter also what isn't.
func TestServerSettings(t *testing.T) {
	c := start(t, listener{wrappers: "ktls {\n\tmax_handshakes 3\n\thandshake_timeout 90s\n\tupgrade handshake\n}"}, listener{wrappers: "ktls"})
	set, other := c.addr(0), c.addr(1)
	seen := map[string]serverStatus{}
	for _, s := range c.status(t).Servers {
		seen[s.Listen[0]] = s
	}
	if s := seen[set]; s.Usable != kernel.ulp || kernel.ulp && s.MaxHandshakes != 3 || s.HandshakeTimeout != 90 || s.Upgrade != "handshake" {
		t.Errorf("%+v", s)
	}
	if s := seen[other]; s.MaxHandshakes != 0 || s.HandshakeTimeout != 60 || s.Upgrade != "lazy" || s.ZerocopyRO || s.RX || kernel.ulp && s.RecordSize != 16384 {
		t.Errorf("%+v", s)
	}
	if kernel.ulp {
		c.awaitLine(t, "what is set", func(l *line) bool {
			return l.Msg == "kernel TLS on" && strings.Contains(l.raw, `"max_handshakes":3`) && strings.Contains(l.raw, `"handshake_timeout":90`)
		})
	}
}
