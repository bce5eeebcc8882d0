//go:build linux

package integration

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// TestPlaceholders: what Caddy says about a connection's TLS is the same with
// the wrapper as without.
func TestPlaceholders(t *testing.T) {
	cert, ca := clientCertificate(t)
	names := []string{
		"version", "cipher_suite", "proto", "proto_mutual", "server_name", "resumed", "ech",
		"client.subject", "client.issuer", "client.serial", "client.fingerprint", "client.san.dns_names",
	}
	var echo []string
	for _, name := range names {
		echo = append(echo, fmt.Sprintf("%s={http.request.tls.%s}", name, name))
	}
	other := []string{"scheme={http.request.scheme}", "proto={http.request.proto}", "host={http.request.host}", "remote={http.request.remote.host}"}
	respond := "log\nktls\nrespond \"" + strings.Join(append(echo, other...), " ") + "\""
	auth := "\ntls {\nclient_auth {\nmode verify_if_given\ntrust_pool file " + ca + "\n}\n}"
	sites := []site{{body: respond}, {host: "auth.localhost", body: respond + auth}}
	stock := slices.Clone(sites)
	for j := range stock {
		stock[j].body = strings.Replace(stock[j].body, "ktls\n", "", 1)
	}
	c := start(t,
		listener{wrappers: "ktls", sites: sites},
		listener{wrappers: "ktls {\n\tupgrade handshake\n}", sites: sites},
		listener{sites: stock},
	)
	for _, proto := range []string{"h1", "h2"} {
		for _, version := range versions {
			for j, with := range []string{"no certificate", "a certificate"} {
				t.Run(proto+"/"+version.name+"/"+with, func(t *testing.T) {
					var got [3][2]string
					for i := range got {
						client := c.goClient(t, i, proto, func(tr *http.Transport) {
							tr.TLSClientConfig.MaxVersion = version.number
							tr.TLSClientConfig.ClientSessionCache = tls.NewLRUClientSessionCache(0)
							if j == 1 {
								tr.TLSClientConfig.Certificates = []tls.Certificate{cert}
							}
						})
						for n := range got[i] { // the second connection resumes where it may
							answer := string(client.get(t, c.urlOf(i, j, "/")).body)
							got[i][n] = strings.ReplaceAll(answer, fmt.Sprint(c.ports[i]), "PORT")
							client.CloseIdleConnections()
						}
					}
					if got[0] != got[2] || got[1] != got[2] {
						t.Errorf("lazy:      %q\nhandshake: %q\nstock:     %q", got[0], got[1], got[2])
					}
					// Caddy resumes no session where it asks for certificates.
					want := "resumed=true ech=false client.subject= "
					if j == 1 {
						want = "resumed=false ech=false client.subject=CN=client-7 "
					}
					if !strings.Contains(got[0][1], want) {
						t.Errorf("no %q in %s", want, got[0][1])
					}
				})
			}
		}
	}
}
