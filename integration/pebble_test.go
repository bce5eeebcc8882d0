//go:build linux

package integration

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	bigint "math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
)

// pebble is a running ACME CA. It takes every name to be at 127.0.0.1.
type pebble struct {
	directory  string // URL
	management string // URL
	trust      string // file with the certificate that its own HTTPS has
	client     http.Client
	roots      *x509.CertPool // of what it issues
}

// pebbleConfig is Pebble's, as far as tests differ in it.
type pebbleConfig struct {
	HTTPPort int // where it validates HTTP-01
	TLSPort  int // and TLS-ALPN-01

	KeyAlgorithm     string // of the CA's keys; "ecdsa" if empty
	OCSPResponderURL string // goes into certificates
	Validity         time.Duration

	ListenAddress           string
	ManagementListenAddress string
	Certificate             string
	PrivateKey              string
	Profiles                map[string]pebbleProfile
}

type pebbleProfile struct {
	Description    string
	ValidityPeriod int // seconds
}

// startPebble runs a CA until the test ends.
func startPebble(t *testing.T, config pebbleConfig) *pebble {
	t.Helper()
	program, resolver := os.Getenv("KTLS_PEBBLE"), os.Getenv("KTLS_CHALLTESTSRV")
	if program == "" || resolver == "" {
		t.Skip("KTLS_PEBBLE and KTLS_CHALLTESTSRV name no Pebble: integration/run builds one")
	}
	dir := t.TempDir()
	config.Certificate, config.PrivateKey = serverCertificate(t, dir)
	config.ListenAddress = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	config.ManagementListenAddress = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	config.KeyAlgorithm = either(config.KeyAlgorithm, "ecdsa")
	if config.Validity == 0 {
		config.Validity = 90 * 24 * time.Hour
	}
	config.Profiles = map[string]pebbleProfile{"default": {"the only one", int(config.Validity.Seconds())}}
	file := filepath.Join(dir, "pebble.json")
	text, err := json.Marshal(map[string]any{"pebble": config})
	if err == nil {
		err = os.WriteFile(file, text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	dns := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	p := &pebble{
		directory:  "https://" + config.ListenAddress + "/dir",
		management: "https://" + config.ManagementListenAddress,
		trust:      config.Certificate,
		client:     http.Client{Timeout: patience},
		roots:      x509.NewCertPool(),
	}
	// Another Pebble may get this one's port: nothing may be left of it.
	t.Cleanup(func() {
		os.RemoveAll(filepath.Join(storage, "acme"))
		os.RemoveAll(filepath.Join(storage, "certificates", strings.ReplaceAll(config.ListenAddress, ":", "-")+"-dir"))
	})
	runProgram(t, nil, resolver, "-dnsserver", dns, "-management", fmt.Sprintf("127.0.0.1:%d", freePort(t)),
		"-defaultIPv6", "", "-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", "")
	runProgram(t, []string{"PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=0"}, program, "-config", file, "-dnsserver", dns)

	own := x509.NewCertPool()
	own.AppendCertsFromPEM(readFile(t, p.trust))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: own}}
	t.Cleanup(transport.CloseIdleConnections)
	p.client.Transport = transport
	eventually(t, "Pebble and its DNS server run", func() bool {
		conn, err := net.Dial("tcp", dns)
		if err != nil {
			return false
		}
		conn.Close()
		for _, address := range []string{config.ListenAddress, config.ManagementListenAddress} {
			if conn, err = net.Dial("tcp", address); err != nil {
				return false
			}
			conn.Close()
		}
		return true
	})
	if !p.roots.AppendCertsFromPEM(p.get(t, "/roots/0")) {
		t.Fatal("Pebble has no root certificate")
	}
	return p
}

// runProgram runs a program until the test ends, and prints what it said if the
// test fails.
func runProgram(t *testing.T, env []string, name string, args ...string) {
	t.Helper()
	var said bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s said:\n%s", filepath.Base(name), said.Bytes()[max(0, said.Len()-8*kib):])
		}
	})
}

// serverCertificate makes a certificate for 127.0.0.1 that vouches for itself,
// and returns its files.
func serverCertificate(t *testing.T, dir string) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: bigint.NewInt(1),
		Subject:      pkix.Name{CommonName: "Pebble"},
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	certificate, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{
		certificate: {Type: "CERTIFICATE", Bytes: der},
		key:         {Type: "PRIVATE KEY", Bytes: pkcs8},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certificate, key
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// get asks Pebble's management interface.
func (p *pebble) get(t *testing.T, uri string) []byte {
	t.Helper()
	resp, err := p.client.Get(p.management + uri)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v: %s", uri, resp.Status, err, b)
	}
	return b
}

// ocsp returns the certificate of what issues, and its OCSP responder, to which
// every certificate is good. The CA's keys must be RSA ones: others it doesn't
// give away.
func (p *pebble) ocsp(t *testing.T) (issuer *x509.Certificate, answer http.HandlerFunc) {
	t.Helper()
	certificate, _ := pem.Decode(p.get(t, "/intermediates/0"))
	private, _ := pem.Decode(p.get(t, "/intermediate-keys/0"))
	if certificate == nil || private == nil {
		t.Fatal("Pebble has no intermediate certificate, or no key")
	}
	issuer, err := x509.ParseCertificate(certificate.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKCS1PrivateKey(private.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return issuer, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		request, err := ocsp.ParseRequest(body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		response, err := ocsp.CreateResponse(issuer, issuer, ocsp.Response{
			Status:       ocsp.Good,
			SerialNumber: request.SerialNumber,
			ThisUpdate:   time.Now().Add(-time.Minute),
			NextUpdate:   time.Now().Add(time.Hour),
		}, key)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/ocsp-response")
		w.Write(response)
	}
}

// tls is the directive that lets a site have its certificate from Pebble, with
// further options of the issuer.
func (p *pebble) tls(options ...string) string {
	lines := []string{"tls {", "issuer acme {", "dir " + p.directory, "trusted_roots " + p.trust}
	return strings.Join(append(append(lines, options...), "}", "}"), "\n")
}

// only are the issuer's options for one kind of challenge, answered at a port.
func only(challenge string, port int) []string {
	if challenge == "http" {
		return []string{"disable_tlsalpn_challenge", fmt.Sprintf("alt_http_port %d", port)}
	}
	return []string{"disable_http_challenge", fmt.Sprintf("alt_tlsalpn_port %d", port)}
}

// trusted makes a client trust what Pebble issues, and nothing else.
func (p *pebble) trusted(tr *http.Transport) { tr.TLSClientConfig.RootCAs = p.roots }
