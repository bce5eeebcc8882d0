//go:build linux

package integration

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tlsNames are the placeholders on a request's TLS connection.
var tlsNames = []string{
	"version", "cipher_suite", "proto", "proto_mutual", "server_name", "resumed", "ech",
	"client.subject", "client.issuer", "client.serial", "client.fingerprint", "client.public_key", "client.public_key_sha256",
	"client.certificate_der_base64", "client.san.dns_names", "client.san.dns_names.0", "client.san.emails", "client.san.ips", "client.san.uris",
}

// tellingTLS is the body of a site that serves files, and says in a header of
// its answers what it knows of the connection. KTLS stands for our handler.
func tellingTLS(directives ...string) string {
	var says []string
	for _, name := range tlsNames {
		says = append(says, fmt.Sprintf("%s={http.request.tls.%s}", name, name))
	}
	says = append(says, "scheme={http.request.scheme}", "proto={http.request.proto}", "remote={http.request.remote.host}", "client={client_ip}")
	return plainFiles(www, append(directives, "KTLS", `header X-Connection "`+strings.Join(says, " ")+`"`)...)
}

// threefold are three listeners with the same sites: with the wrapper, lazy and
// at the handshake, and without a word of ktls. WRAPPER in wrappers stands for
// ours, KTLS in a site's body for our handler, and LISTENER for the listener's
// number.
func threefold(wrappers string, l listener) []listener {
	all := []listener{l, l, l}
	for i, ours := range []string{"ktls", "ktls {\n\tupgrade handshake\n}", ""} {
		handler := "ktls {\nmin_size 1\n}"
		if i == 2 {
			handler = ""
		}
		all[i].wrappers = strings.TrimSpace(strings.ReplaceAll(wrappers, "WRAPPER", ours))
		all[i].sites = slices.Clone(l.sites)
		for j := range all[i].sites {
			s := &all[i].sites[j]
			s.body = strings.ReplaceAll(strings.ReplaceAll(s.body, "KTLS", handler), "LISTENER", fmt.Sprint(i))
		}
	}
	return all
}

// visit is a connection with requests for a file, one after the other.
type visit struct {
	name   string
	alpn   string // protocols offered
	sni    string // localhost if empty; a space for none
	hosts  []string
	config func(*tls.Config)
	dial   func(i int) (net.Conn, error)
	want   []string // each must be in what is seen
	plain  string   // why the file doesn't go by sendfile, if it mustn't
	handed int      // connections that the kernel gets though they serve no file by sendfile
}

// visited is the file that visits ask for.
func visited() file { return ofSize(65537) }

// compare pays the same visit to the listeners of threefold. All that the client
// and the access log see must be the same as with stock Caddy, and files must go
// by sendfile. It returns what was seen of stock Caddy.
func (c *caddy) compare(t *testing.T, v visit) string {
	t.Helper()
	check := countUpgrades(t)
	var seen [3]string
	upgrades := 0
	for i := range seen {
		var state tls.ConnectionState
		var lines []line
		seen[i], state, lines = c.see(t, i, v)
		if i == 2 || len(lines) == 0 {
			continue
		}
		served := false
		for _, l := range lines {
			if l.Status != http.StatusOK {
				continue
			}
			switch {
			case v.plain != "":
				l.isPlain(t, v.plain)
			case !kernelHas(&state):
				l.isPlain(t, "cipher")
			default:
				served = true
				l.isFile(t, visited().size)
			}
		}
		if served || i == 1 && v.plain == "" && kernelHas(&state) {
			upgrades++
		}
	}
	check(t, upgrades+v.handed)
	for i, name := range []string{"lazy", "handshake"} {
		if seen[i] != seen[2] {
			t.Errorf("%s:\n%s\nstock:\n%s", name, seen[i], seen[2])
		}
	}
	for _, want := range v.want {
		if !strings.Contains(seen[2], want) {
			t.Errorf("no %q in what stock Caddy does:\n%s", want, seen[2])
		}
	}
	return seen[2]
}

// kernelHas reports whether the kernel has a connection's version and cipher;
// without kernel TLS, that all goes the plain way is for isFile to say.
func kernelHas(state *tls.ConnectionState) bool {
	if !kernel.ulp {
		return true
	}
	suite := strings.ReplaceAll(tls.CipherSuiteName(state.CipherSuite), "_", "-")
	for combination, has := range kernel.ciphers {
		if combination[0] == tls.VersionName(state.Version) && strings.Contains(suite, combination[1]) {
			return has
		}
	}
	return false
}

// see pays a visit to one listener: what is seen there, in words, and the lines
// of the access log.
func (c *caddy) see(t *testing.T, i int, v visit) (seen string, state tls.ConnectionState, lines []line) {
	t.Helper()
	config := tlsConfig(t)
	config.NextProtos = strings.Fields(v.alpn)
	config.ServerName = strings.TrimSpace(either(v.sni, "localhost"))
	if config.ServerName == "" {
		config.InsecureSkipVerify = true // there is no name to verify
	}
	if v.config != nil {
		v.config(config)
	}
	if v.dial == nil {
		v.dial = func(i int) (net.Conn, error) { return net.Dial("tcp", c.addr(i)) }
	}
	tcp, err := v.dial(i)
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	tcp.SetDeadline(time.Now().Add(patience))
	conn := tls.Client(tcp, config)
	var b strings.Builder
	if err := conn.Handshake(); err != nil {
		if isTimeout(err) {
			t.Fatal(err)
		}
		return "handshake: " + plainError(err), state, nil
	}
	state = conn.ConnectionState()
	leaf := state.PeerCertificates[0]
	fmt.Fprintf(&b, "%s %s alpn=%q curve=%v resumed=%t retried=%t ech=%t certificate=%s for %v ocsp=%d\n",
		tls.VersionName(state.Version), tls.CipherSuiteName(state.CipherSuite), state.NegotiatedProtocol, state.CurveID,
		state.DidResume, state.HelloRetryRequest, state.ECHAccepted, sum(leaf.Raw)[:8], leaf.DNSNames, len(state.OCSPResponse))

	ask := askHTTP1(conn)
	if state.NegotiatedProtocol == "h2" {
		ask = askHTTP2(t, conn)
	}
	if len(v.hosts) == 0 {
		v.hosts = []string{either(config.ServerName, "localhost")}
	}
	for n, host := range v.hosts {
		id := fmt.Sprintf("%s %s %d %d", t.Name(), v.name, i, n)
		req := newRequest(t, "GET", "https://localhost/"+visited().name, "X-Id", id)
		req.Host = host
		req.Close = n == len(v.hosts)-1 && state.NegotiatedProtocol != "h2"
		a, err := ask(req)
		if err != nil {
			fmt.Fprintf(&b, "%s: %s\n", host, plainError(err))
			return b.String(), state, lines
		}
		if a.status == http.StatusPermanentRedirect { // by http_redirect, which tells no access log and leaves the connection open
			fmt.Fprintf(&b, "%s: %s\n", host, describe(a, nil))
			return b.String(), state, lines
		}
		l := c.responseTo(t, "X-Id", id)
		lines = append(lines, l)
		fmt.Fprintf(&b, "%s: %s\n%s\n", host, describe(a, nil), essence(t, l, id, tcp.LocalAddr()))
		if a.status == http.StatusOK {
			a.isFile(t, visited())
		}
	}
	if state.NegotiatedProtocol != "h2" {
		_, err := conn.Read(make([]byte, 1))
		fmt.Fprintf(&b, "at the end: %s\n", plainError(err))
	}
	return strings.ReplaceAll(b.String(), fmt.Sprint(c.ports[i]), "PORT"), state, lines
}

// plainError is an error without the addresses, and with one name for the ways
// in which the system tells that the peer has gone.
func plainError(err error) string {
	var op *net.OpError
	switch {
	case errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.As(err, &op) && op.Op != "remote error":
		return op.Op + ": " + op.Err.Error()
	}
	return fmt.Sprint(err)
}

// askHTTP1 returns what sends requests over a connection. A server that refuses
// the client's certificate may be gone before the request: what it said counts.
func askHTTP1(conn net.Conn) func(*http.Request) (answer, error) {
	r := bufio.NewReader(conn)
	return func(req *http.Request) (answer, error) {
		req.Write(conn)
		return readAnswer(r)
	}
}

func askHTTP2(t *testing.T, conn net.Conn) func(*http.Request) (answer, error) {
	client := new(goClient)
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	tr := &http.Transport{
		Protocols: protocols, DisableCompression: true,
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
			if client.conns.Add(1) > 1 {
				return nil, errors.New("the connection was given up")
			}
			return conn, nil
		},
	}
	t.Cleanup(tr.CloseIdleConnections)
	client.Transport = tr
	return client.do
}

// essence is a line of the access log without what is each request's own, as is
// its id and the client's port, and without our object.
func essence(t *testing.T, l line, id string, client net.Addr) string {
	t.Helper()
	var fields map[string]any
	if err := json.Unmarshal([]byte(l.raw), &fields); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ts", "duration", "logger", "ktls"} {
		delete(fields, name)
	}
	request := fields["request"].(map[string]any)
	if tcp, ok := client.(*net.TCPAddr); ok && request["remote_port"] == fmt.Sprint(tcp.Port) {
		request["remote_port"] = "CLIENT"
	}
	delete(fields["resp_headers"].(map[string]any), "Date")
	b, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(b), id, "ID")
}
