//go:build linux

package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	bigint "math/big"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

var versions = []struct {
	name   string
	number uint16
}{{"TLS 1.2", tls.VersionTLS12}, {"TLS 1.3", tls.VersionTLS13}}

// fresh makes a client that keeps no connection, with a changed TLS config.
func fresh(change func(*tls.Config)) func(*http.Transport) {
	return func(tr *http.Transport) {
		tr.DisableKeepAlives = true
		change(tr.TLSClientConfig)
	}
}

// TestResumption: resumed sessions have other keys and another number of
// records before the first answer, and are upgraded all the same.
func TestResumption(t *testing.T) {
	c := start(t, listener{wrappers: "ktls"}, listener{wrappers: "ktls {\n\tupgrade handshake\n}"})
	for i, upgrade := range []string{"lazy", "handshake"} {
		for _, version := range versions {
			t.Run(upgrade+"/"+version.name, func(t *testing.T) {
				client := c.goClient(t, i, "h1", fresh(func(config *tls.Config) {
					config.MaxVersion = version.number
					config.ClientSessionCache = tls.NewLRUClientSessionCache(0)
				}))
				for n := range 3 {
					check := countUpgrades(t)
					uri := fmt.Sprintf("/%s?%s-%d-%d", medium.name, upgrade, version.number, n)
					a := client.get(t, c.url(i, uri))
					a.isFile(t, medium)
					if a.tls.Version != version.number || a.tls.DidResume != (n > 0) {
						t.Errorf("connection %d: version %x, resumed %v", n, a.tls.Version, a.tls.DidResume)
					}
					c.tookFile(t, uri, medium.size)
					check(t, 1)
				}
			})
		}
	}
}

// TestSessionTicketsOff: the server's first application record is then not a
// ticket.
func TestSessionTicketsOff(t *testing.T) {
	c := setup{
		listeners: []listener{{wrappers: "ktls"}},
		patch: func(config map[string]any) {
			apps := config["apps"].(map[string]any)
			apps["tls"].(map[string]any)["session_tickets"] = map[string]any{"disabled": true}
		},
	}.start(t)
	for _, version := range versions {
		t.Run(version.name, func(t *testing.T) {
			client := c.goClient(t, 0, "h1", fresh(func(config *tls.Config) {
				config.MaxVersion = version.number
				config.ClientSessionCache = tls.NewLRUClientSessionCache(0)
			}))
			for n := range 2 {
				uri := fmt.Sprintf("/%s?%d-%d", medium.name, version.number, n)
				a := client.get(t, c.url(0, uri))
				a.isFile(t, medium)
				if a.tls.DidResume {
					t.Error("a session was resumed")
				}
				c.tookFile(t, uri, medium.size)
			}
		})
	}
	t.Run("curl", func(t *testing.T) {
		c.curl(t, 0, []string{c.url(0, "/"+medium.name)}, "--http1.1")[0].isFile(t, medium)
		c.tookFile(t, "/"+medium.name, medium.size)
	})
}

// TestHelloRetryRequest: a second ClientHello is in the transcript.
func TestHelloRetryRequest(t *testing.T) {
	c := start(t, listener{wrappers: "ktls", sites: []site{{body: files("tls {", "curves secp384r1", "}")}}})
	t.Run("go", func(t *testing.T) {
		client := c.goClient(t, 0, "h1", func(tr *http.Transport) {
			tr.TLSClientConfig.CurvePreferences = []tls.CurveID{tls.CurveP256, tls.CurveP384}
		})
		a := client.get(t, c.url(0, "/"+medium.name+"?go"))
		a.isFile(t, medium)
		if !a.tls.HelloRetryRequest {
			t.Error("there was no HelloRetryRequest")
		}
		c.tookFile(t, "/"+medium.name+"?go", medium.size)
	})
	t.Run("curl", func(t *testing.T) { // OpenSSL sends a key share for the first group alone
		c.curl(t, 0, []string{c.url(0, "/"+medium.name+"?curl")}, "--http1.1", "--curves", "P-256:P-384")[0].isFile(t, medium)
		c.tookFile(t, "/"+medium.name+"?curl", medium.size)
	})
	t.Run("gnutls-cli", func(t *testing.T) {
		f := ofSize(16385)
		a := c.gnutls(t, 0, lastRequest("/"+f.name+"?gnutls"),
			"--priority=NORMAL:-VERS-ALL:+VERS-TLS1.3:-GROUP-ALL:+GROUP-SECP256R1:+GROUP-SECP384R1", "--single-key-share")
		a.isFile(t, f)
		c.tookFile(t, "/"+f.name+"?gnutls", f.size)
	})
}

// TestClientCertificates: with them the handshake's last record is the
// client's in TLS 1.3.
func TestClientCertificates(t *testing.T) {
	cert, ca := clientCertificate(t)
	auth := []string{"tls {", "client_auth {", "mode require_and_verify", "trust_pool file " + ca, "}", "}"}
	c := start(t, listener{wrappers: "ktls", sites: []site{{body: files(auth...)}}})
	for _, version := range versions {
		t.Run(version.name, func(t *testing.T) {
			client := c.goClient(t, 0, "h1", fresh(func(config *tls.Config) {
				config.MaxVersion = version.number
				config.Certificates = []tls.Certificate{cert}
			}))
			check := countUpgrades(t)
			uri := fmt.Sprintf("/%s?%d", medium.name, version.number)
			client.get(t, c.url(0, uri)).isFile(t, medium)
			c.tookFile(t, uri, medium.size)
			check(t, 1)
			t.Run("none", func(t *testing.T) {
				check := countUpgrades(t)
				client := c.goClient(t, 0, "h1", fresh(func(config *tls.Config) { config.MaxVersion = version.number }))
				if _, err := client.do(newRequest(t, "GET", c.url(0, "/"+medium.name))); err == nil {
					t.Error("a client without a certificate was served")
				}
				check(t, 0)
			})
		})
	}
}

// clientCertificate makes a CA and a certificate for a client; ca is the file
// of the CA's.
func clientCertificate(t *testing.T) (cert tls.Certificate, ca string) {
	t.Helper()
	make := func(name string, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{
			SerialNumber: bigint.NewInt(time.Now().UnixNano()),
			Subject:      pkix.Name{CommonName: name},
			NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			KeyUsage:    x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
		if parent == nil {
			template.IsCA, template.BasicConstraintsValid = true, true
			template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageCertSign, nil
			parent, signer = template, key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		made, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return made, key
	}
	root, rootKey := make("test clients", nil, nil)
	leaf, leafKey := make("client-7", root, rootKey)
	ca = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: leafKey}, ca
}
