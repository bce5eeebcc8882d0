//go:build linux

package integration

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
)

// downloads fetches a file from a host of listener i over HTTP/1.1 and HTTP/2,
// and returns the certificate, which is verified.
func (c *caddy) downloads(t *testing.T, p *pebble, i int, host string) *x509.Certificate {
	t.Helper()
	var leaf *x509.Certificate
	var secrets []string
	for _, proto := range []string{"h1", "h2"} {
		client := c.goClient(t, i, proto, p.trusted, func(tr *http.Transport) {
			tr.TLSClientConfig.KeyLogWriter = lineWriter(func(line string) { secrets = append(secrets, line) })
		})
		uri := fmt.Sprintf("/%s?%s-%d-%s", medium.name, proto, i, host)
		a := client.get(t, fmt.Sprintf("https://%s:%d%s", host, c.ports[i], uri))
		a.isFile(t, medium)
		if c.setup.listeners[i].wrappers != "" {
			c.tookFile(t, uri, medium.size)
		}
		leaf = a.tls.PeerCertificates[0]
	}
	if err := leaf.VerifyHostname(host); err != nil || !strings.HasPrefix(leaf.Issuer.CommonName, "Pebble Intermediate CA") {
		t.Errorf("the certificate is for %v, by %s: %v", leaf.DNSNames, leaf.Issuer, err)
	}
	if len(secrets) == 0 {
		t.Error("the client logged no secrets")
	}
	log := c.log.text()
	for _, line := range secrets {
		if secret := line[strings.LastIndex(line, " ")+1:]; strings.Contains(log, secret) {
			t.Errorf("Caddy's log has the %.30s...", line)
		}
	}
	return leaf
}

// upgraded counts the connections that the kernel was given, according to the
// log: while Caddy starts, its own probe counts in /proc/net/tls_stat.
func (c *caddy) upgraded() int { return c.log.count((*line).isUpgrade) }

// challenges counts the challenges that Caddy answered.
func (c *caddy) challenges(challenge string) int {
	return c.log.count(func(l *line) bool {
		return strings.HasPrefix(l.Msg, "served key authentication") && strings.Contains(l.raw, `"challenge":"`+challenge+`"`)
	})
}

// TestACMEHTTP: the first certificate, by HTTP-01 through a listener with the
// wrapper, and downloads with it.
func TestACMEHTTP(t *testing.T) {
	notEmulated(t)
	port := freePort(t)
	p := startPebble(t, pebbleConfig{HTTPPort: port})
	const host = "www.example.com"
	c := start(t,
		listener{wrappers: "ktls", sites: []site{{host: host, body: files(p.tls(only("http", port)...))}, {}}},
		listener{wrappers: "ktls", clear: true, port: port, sites: []site{{host: host, body: "respond wrong 404"}}},
	)
	if n := c.challenges("http-01"); n == 0 {
		t.Error("there was no challenge")
	}
	check := countUpgrades(t)
	c.downloads(t, p, 0, host)
	check(t, 2)
}

// TestACMETLSALPN: the first certificate, by TLS-ALPN-01 through the listener
// that it is for. What the CA sees of the challenge's connections is what stock
// Caddy shows it, and none of them is given to the kernel.
func TestACMETLSALPN(t *testing.T) {
	notEmulated(t)
	var stock []string
	for _, test := range []struct{ name, wrappers string }{
		{"stock", ""},
		{"lazy", "ktls"},
		{"handshake", "ktls {\n\tupgrade handshake\n}"},
		{"one handshake at a time", "ktls {\n\tmax_handshakes 1\n}"},
	} {
		t.Run(test.name, func(t *testing.T) {
			port := freePort(t)
			between := newRelay(t, port)
			p := startPebble(t, pebbleConfig{TLSPort: between.port()})
			const host = "www.example.com"
			c := start(t, listener{wrappers: test.wrappers, port: port, sites: []site{
				{host: host, body: files(p.tls(only("tls-alpn", port)...))}, {},
			}})
			if n := c.challenges("tls-alpn-01"); n == 0 {
				t.Error("there was no challenge")
			}
			got := between.recorded(t)
			if n := c.upgraded(); n != 0 {
				t.Errorf("%d connections for the challenge were upgraded", n)
			}
			if test.wrappers == "" {
				stock = got
			} else if !slices.Equal(got, stock) {
				t.Errorf("the server's records were %q, stock Caddy's %q", got, stock)
			}
			if n := c.status(t).Handshakes.Count; kernel.ulp && (n > 0) != (test.wrappers != "") {
				t.Errorf("%d handshakes went through the wrapper", n)
			}
			check := countUpgrades(t)
			c.downloads(t, p, 0, host)
			check(t, map[bool]int{true: 2}[test.wrappers != ""])
		})
	}
	t.Logf("the server's records: %q", stock)
}

// relay passes TCP connections on to a port, and records which TLS records the
// server sent over each.
type relay struct {
	ln net.Listener
	wg sync.WaitGroup

	mu    sync.Mutex
	types []string // of the records of each connection that has ended
}

func newRelay(t *testing.T, to int) *relay {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{ln: ln}
	r.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			r.wg.Go(func() { r.pass(conn.(*net.TCPConn), to) })
		}
	})
	t.Cleanup(func() { ln.Close() })
	return r
}

func (r *relay) port() int { return r.ln.Addr().(*net.TCPAddr).Port }

func (r *relay) pass(client *net.TCPConn, to int) {
	defer client.Close()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", to))
	if err != nil {
		return
	}
	defer conn.Close()
	server := conn.(*net.TCPConn)
	go func() {
		io.Copy(server, client)
		server.CloseWrite()
	}()
	var types []string
	header := make([]byte, 5)
	for {
		if _, err := io.ReadFull(server, header); err != nil {
			break
		}
		record := make([]byte, int(header[3])<<8|int(header[4]))
		if _, err := io.ReadFull(server, record); err != nil {
			types = append(types, "part of a record")
			break
		}
		types = append(types, fmt.Sprint(header[0]))
		client.Write(append(header, record...)) // who has left doesn't end the recording
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.types = append(r.types, strings.Join(types, " "))
}

// recorded stops the relay and returns what it recorded, sorted.
func (r *relay) recorded(t *testing.T) []string {
	t.Helper()
	r.ln.Close()
	r.wg.Wait()
	slices.Sort(r.types)
	return r.types
}

// TestACMERenewal: files that are being sent, and connections that are open,
// outlive the certificate that they began with.
func TestACMERenewal(t *testing.T) {
	notEmulated(t)
	port := freePort(t)
	p := startPebble(t, pebbleConfig{TLSPort: port, Validity: 10 * time.Minute})
	const host = "www.example.com"
	sites := []site{{host: host, body: files(p.tls(only("tls-alpn", port)...))}, {}}
	c := setup{
		global: "renew_interval 1s\nrenewal_window_ratio 0.995", // three seconds after it was issued, again and again
		listeners: []listener{
			{wrappers: "ktls", port: port, sites: sites},
			{wrappers: "ktls {\n\tupgrade handshake\n}", sites: sites},
		},
	}.start(t)
	type download struct {
		uri  string
		body io.ReadCloser
	}
	var downloads []download
	var old []string // serial numbers
	var idle []*goClient
	for i := range c.ports {
		// A connection that holds little of the file, and one with HTTP/2.
		tcp := dialSmall(t, c.addr(i), 0)
		slow := c.goClient(t, i, "h1", p.trusted, func(tr *http.Transport) {
			tr.DialContext = func(context.Context, string, string) (net.Conn, error) { return tcp, nil }
		})
		for proto, client := range map[string]*goClient{"h1": slow, "h2": c.goClient(t, i, "h2", p.trusted)} {
			uri := fmt.Sprintf("/%s?%d-%s", large.name, i, proto)
			resp, err := client.Do(newRequest(t, "GET", c.url(i, uri)))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			downloads = append(downloads, download{uri, resp.Body})
			old = append(old, resp.TLS.PeerCertificates[0].SerialNumber.String())
		}
		awaitStall(t, tcp)
		kept := c.goClient(t, i, "h1", p.trusted)
		a := kept.get(t, c.url(i, "/"+medium.name+"?before"))
		a.isFile(t, medium)
		c.tookFile(t, "/"+medium.name+"?before", medium.size)
		old = append(old, a.tls.PeerCertificates[0].SerialNumber.String())
		idle = append(idle, kept)
	}
	for i := range c.ports {
		client := c.goClient(t, i, "h1", p.trusted, fresh(func(*tls.Config) {}))
		eventually(t, "new connections get a new certificate", func() bool {
			a := client.get(t, c.url(i, "/"+medium.name+"?during"))
			a.isFile(t, medium)
			c.tookFile(t, "/"+medium.name+"?during", medium.size)
			return !slices.Contains(old, a.tls.PeerCertificates[0].SerialNumber.String())
		})
	}
	for _, d := range downloads {
		n, got, err := sumReader(d.body)
		if err != nil {
			t.Errorf("%s: %v", d.uri, err)
		}
		checkBody(t, d.uri, n, got, large.size, large.sum)
		c.tookFile(t, d.uri, large.size)
	}
	for i, kept := range idle {
		a := kept.get(t, c.url(i, "/"+medium.name+"?after"))
		a.isFile(t, medium)
		c.tookFile(t, "/"+medium.name+"?after", medium.size)
		if !a.reused || !slices.Contains(old, a.tls.PeerCertificates[0].SerialNumber.String()) {
			t.Errorf("listener %d: a connection from before the renewal wasn't used again", i)
		}
	}
}

// TestACMEOnDemand: a certificate that is obtained within the handshake that
// needs it, by a challenge through the same listener. If but one handshake may
// compute at a time, those that wait don't keep the challenge's out.
func TestACMEOnDemand(t *testing.T) {
	notEmulated(t)
	for _, upgrade := range []string{"lazy", "handshake"} {
		t.Run(upgrade, func(t *testing.T) {
			port := freePort(t)
			p := startPebble(t, pebbleConfig{TLSPort: port})
			ask := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(r.FormValue("domain"), "refused") {
					w.WriteHeader(http.StatusForbidden)
				}
			}))
			defer ask.Close()
			directive := strings.Replace(p.tls(only("tls-alpn", port)...), "{", "{\non_demand", 1)
			c := setup{
				global: "on_demand_tls {\n\task " + ask.URL + "\n}",
				listeners: []listener{
					{wrappers: "ktls {\n\tmax_handshakes 1\n\tupgrade " + upgrade + "\n}", port: port, sites: []site{
						{host: "*.example.com", body: files(directive)}, {},
					}},
					{sites: []site{{host: "*.example.com", body: plainFiles(www, directive)}}},
				},
			}.start(t)
			// The first alone makes the account at the CA. Of several at once, one may
			// find another's half made and take its name, default, for an address
			// (Caddy v2.11.9): the CA refuses, and Caddy waits for a minute.
			c.downloads(t, p, 0, "allowed.example.com")
			before := c.upgraded()
			var wg sync.WaitGroup
			for n := range 6 {
				host := fmt.Sprintf("allowed%d.example.com", n/2) // two clients for each
				client := c.goClient(t, 0, "h1", p.trusted, fresh(func(*tls.Config) {}))
				wg.Go(func() {
					a, err := client.do(newRequest(t, "GET", fmt.Sprintf("https://%s:%d/%s?%d", host, port, medium.name, n)))
					if err != nil {
						t.Errorf("%s: %v", host, err)
						return
					}
					a.isFile(t, medium)
				})
			}
			wg.Wait()
			if t.Failed() {
				return
			}
			for n := range 6 {
				c.tookFile(t, fmt.Sprintf("/%s?%d", medium.name, n), medium.size)
			}
			if n := c.upgraded() - before; kernel.ulp && n != 6 {
				t.Errorf("%d connections were upgraded", n)
			}
			for _, version := range versions {
				var errs [2]string
				for i := range errs {
					conn := tls.Client(c.dial(t, i), tlsConfig(t, func(config *tls.Config) {
						config.ServerName = "refused.example.com"
						config.MaxVersion = version.number
					}))
					errs[i] = fmt.Sprint(conn.Handshake())
				}
				if errs[1] != "remote error: tls: internal error" {
					t.Errorf("%s: stock Caddy said %q", version.name, errs[1])
				}
				if errs[0] != errs[1] {
					t.Errorf("%s: %q, with stock Caddy %q", version.name, errs[0], errs[1])
				}
			}
			if kernel.ulp {
				c.checkNoQueue(t)
			}
			c.downloads(t, p, 0, "allowed0.example.com")
		})
	}
}

// TestOnDemandTimeout: who has to wait for a certificate longer than a handshake
// may take is sent away as stock Caddy does it. The next finds the certificate.
func TestOnDemandTimeout(t *testing.T) {
	notEmulated(t)
	hosts := []string{"slow0.example.com", "slow1.example.com"}
	asked, answer := make(chan string, 10), map[string]chan bool{}
	for _, host := range hosts {
		answer[host] = make(chan bool)
	}
	ask := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.FormValue("domain")
		asked <- host
		<-answer[host]
	}))
	defer ask.Close()
	const directive = "tls internal {\n\ton_demand\n}"
	const timeouts = "timeouts {\n\tread_header 1s\n}"
	c := setup{
		global: "on_demand_tls {\n\task " + ask.URL + "\n}",
		listeners: []listener{
			{wrappers: "ktls {\n\tmax_handshakes 1\n}", options: timeouts, sites: []site{{host: "*.example.com", body: files(directive)}, {}}},
			{options: timeouts, sites: []site{{host: "*.example.com", body: plainFiles(www, directive)}}},
		},
	}.start(t)
	var errs [2]string
	for i, host := range hosts {
		config := tlsConfig(t, func(config *tls.Config) { config.ServerName = host })
		waiting, result := c.dial(t, i), make(chan error, 1)
		go func() { result <- tls.Client(waiting, config).Handshake() }()
		select {
		case got := <-asked:
			if got != host {
				t.Fatalf("asked for %s", got)
			}
		case err := <-result:
			t.Fatalf("nobody asked for the certificate: %v", err)
		case <-time.After(patience):
			t.Fatal("nobody asked for the certificate")
		}
		readToEnd(t, c.dial(t, i)) // this one's time ends after the other's
		close(answer[host])
		err := <-result
		if err == nil {
			t.Fatalf("listener %d: the handshake had all the time it wanted", i)
		}
		errs[i] = err.Error()
		eventually(t, "the certificate is there", func() bool {
			return tls.Client(c.dial(t, i), config).Handshake() == nil
		})
	}
	if errs[0] != errs[1] {
		t.Errorf("%q, with stock Caddy %q", errs[0], errs[1])
	}
	if kernel.ulp {
		c.checkNoQueue(t)
	}
}

// TestOCSPStapling: clients get the same staple, or none, as from stock Caddy.
func TestOCSPStapling(t *testing.T) {
	notEmulated(t)
	port := freePort(t)
	responder := httptest.NewUnstartedServer(nil)
	defer responder.Close()
	p := startPebble(t, pebbleConfig{
		TLSPort: port, KeyAlgorithm: "rsa", OCSPResponderURL: "http://" + responder.Listener.Addr().String(),
	})
	var asked atomic.Int32
	issuer, answer := p.ocsp(t)
	responder.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		answer(w, r)
	})
	responder.Start()
	const host = "www.example.com"
	for _, stapling := range []bool{true, false} {
		t.Run(fmt.Sprint(stapling), func(t *testing.T) {
			directive := p.tls(only("tls-alpn", port)...)
			c := setup{
				global: map[bool]string{false: "ocsp_stapling off"}[stapling],
				listeners: []listener{
					{sites: []site{{host: host, body: plainFiles(www, directive)}, {}}},
					{wrappers: "ktls", port: port, sites: []site{{host: host, body: files(directive)}}},
					{wrappers: "ktls {\n\tupgrade handshake\n}", sites: []site{{host: host, body: files(directive)}}},
				},
			}.start(t)
			for _, version := range versions {
				var stock []byte
				for i := range c.ports {
					conn := c.dialTLS(t, i, func(config *tls.Config) {
						config.RootCAs, config.ServerName, config.MaxVersion = p.roots, host, version.number
					})
					staple := conn.OCSPResponse()
					if i == 0 {
						stock = staple
					} else if !bytes.Equal(staple, stock) {
						t.Errorf("listener %d, %s: the staple is %x, stock Caddy's %x", i, version.name, staple, stock)
					}
				}
				if !stapling {
					if stock != nil {
						t.Errorf("%s: a staple of %d bytes", version.name, len(stock))
					}
					continue
				}
				r, err := ocsp.ParseResponse(stock, issuer)
				if err != nil {
					t.Fatal(err)
				}
				if r.Status != ocsp.Good {
					t.Errorf("the certificate's status is %d", r.Status)
				}
			}
			for i := range c.ports {
				c.downloads(t, p, i, host)
			}
		})
		if n := asked.Swap(0); (n > 0) != stapling {
			t.Errorf("stapling %v: the OCSP responder was asked %d times", stapling, n)
		}
	}
}
