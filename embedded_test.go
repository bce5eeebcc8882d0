package caddyktls

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"embed"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/caddy-ktls/caddy-ktls/ktls"
)

//go:embed go.sum LICENSE
var embedded embed.FS

// embeddedFS is a file system of Caddy's whose files are no files of the kernel.
type embeddedFS struct{ embed.FS }

func (embeddedFS) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.fs.ktls_embedded", New: func() caddy.Module { return &embeddedFS{embedded} }}
}

func (*embeddedFS) UnmarshalCaddyfile(d *caddyfile.Dispenser) error { return nil }

func init() { caddy.RegisterModule(embeddedFS{}) }

// What file_server takes from another file system than the kernel's goes the
// plain way, and is the same as without the module.
func TestEmbeddedFileSystem(t *testing.T) {
	ports := freePorts(t, 2)
	config, _, err := adapt(fmt.Sprintf(`{
	admin off
	persist_config off
	storage file_system %[1]s
	auto_https off
	filesystem embedded ktls_embedded
	servers 127.0.0.1:%[2]d {
		protocols h1 h2
		listener_wrappers {
			ktls
		}
	}
	servers 127.0.0.1:%[3]d {
		protocols h1 h2
	}
}
https://localhost:%[2]d {
	bind 127.0.0.1
	tls %[1]s/cert.pem %[1]s/key.pem
	fs embedded
	ktls {
		min_size 1
	}
	file_server
}
https://localhost:%[3]d {
	bind 127.0.0.1
	tls %[1]s/cert.pem %[1]s/key.pem
	fs embedded
	file_server
}
`, selfSigned(t), ports[0], ports[1]))
	if err != nil {
		t.Fatal(err)
	}
	load(t, config)
	reason := reasonNotFile
	if !ktls.Probe().Usable() {
		reason = ktls.ReasonKernel
	}
	plain := metrics.responses.WithLabelValues(pathPlain, reason)

	for _, h2 := range []bool{false, true} {
		protocols := new(http.Protocols)
		protocols.SetHTTP1(!h2)
		protocols.SetHTTP2(h2)
		client := &http.Client{Transport: &http.Transport{
			Protocols:          protocols,
			DisableCompression: true,
			TLSClientConfig:    &tls.Config{InsecureSkipVerify: true},
		}}
		for _, test := range []struct{ uri, span string }{
			{"/go.sum", ""}, {"/LICENSE", ""}, {"/go.sum", "bytes=100-50000"}, {"/go.sum", "bytes=0-9,100-50000"},
		} {
			before := testutil.ToFloat64(plain)
			var got [2]string
			for i, port := range ports {
				req, err := http.NewRequest(http.MethodGet, fmt.Sprintf("https://localhost:%d%s", port, test.uri), nil)
				if err != nil {
					t.Fatal(err)
				}
				if test.span != "" {
					req.Header.Set("Range", test.span)
				}
				got[i] = answerTo(t, client, req)
			}
			if got[0] != got[1] {
				t.Errorf("%s %s: with ktls\n%.300s\nwithout\n%.300s", test.uri, test.span, got[0], got[1])
			}
			if content, err := embedded.ReadFile(test.uri[1:]); err != nil || test.span == "" && !strings.HasSuffix(got[0], string(content)) {
				t.Errorf("%s: %v or other bytes", test.uri, err)
			}
			if strings.Contains(test.span, ",") || h2 {
				continue // for reasons of their own
			}
			// It is counted when the handler returns, after the last byte.
			for deadline := time.Now().Add(10 * time.Second); testutil.ToFloat64(plain) != before+1; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%s %s: not counted as plain, %s", test.uri, test.span, reason)
				}
			}
		}
		client.CloseIdleConnections()
	}
}

// answerTo is all of the answer to a request but its date.
func answerTo(t *testing.T, client *http.Client, req *http.Request) string {
	t.Helper()
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	header := maps.Clone(resp.Header)
	delete(header, "Date")
	if _, boundary, ok := strings.Cut(header.Get("Content-Type"), "boundary="); ok {
		header.Set("Content-Type", "multipart/byteranges")
		body = bytes.ReplaceAll(body, []byte(boundary), nil) // it is random
	}
	return fmt.Sprintf("%s %d %v\n%s", resp.Proto, resp.StatusCode, header, body)
}

// freePorts are ports of 127.0.0.1 that nobody listens on.
func freePorts(t testing.TB, n int) (ports []int) {
	t.Helper()
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close() // not before there are all: each is another one
		ports = append(ports, ln.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

// load runs a configuration in this process until the test ends.
func load(t testing.TB, config []byte) {
	t.Helper()
	if err := caddy.Load(config, true); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
	})
}

// selfSigned returns a folder with a certificate for localhost and its key.
func selfSigned(t testing.TB) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, block := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: cert},
		"key.pem":  {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
