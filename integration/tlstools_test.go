//go:build linux

package integration

import (
	"bufio"
	"bytes"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// gnutls sends one request with gnutls-cli, which complains about a connection
// that ends without close_notify.
func (c *caddy) gnutls(t *testing.T, i int, request string, args ...string) answer {
	t.Helper()
	client, notes := c.gnutlsCommand(t, i, args...)
	a := speak(t, client, request)
	if log := notes(); !strings.Contains(log, "Peer has closed the GnuTLS connection") {
		t.Errorf("gnutls-cli saw no clean end:\n%s", log)
	}
	return a
}

// gnutlsCommand returns gnutls-cli and what reads its notes on the connection,
// which it keeps out of its output.
func (c *caddy) gnutlsCommand(t *testing.T, i int, args ...string) (client *exec.Cmd, notes func() string) {
	t.Helper()
	host, port, err := net.SplitHostPort(c.addr(i))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "gnutls.log")
	args = append([]string{
		"--x509cafile=" + rootFile(), "--sni-hostname=localhost", "--verify-hostname=localhost",
		"--port=" + port, "--logfile=" + path,
	}, append(args, host)...)
	return exec.Command(command(t, "gnutls-cli"), args...), func() string {
		log, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(log)
	}
}

// openssl sends one request with openssl s_client, which since OpenSSL 3 fails
// if a connection ends without close_notify.
func (c *caddy) openssl(t *testing.T, i int, request string, args ...string) answer {
	t.Helper()
	args = append([]string{
		"s_client", "-connect", c.addr(i), "-servername", "localhost",
		"-CAfile", rootFile(), "-verify_return_error", "-quiet",
	}, args...)
	return speak(t, exec.Command(command(t, "openssl"), args...), request)
}

// speak gives a TLS client a request, and reads the response and then the end
// of the connection. The client's input stays open until it goes by itself.
func speak(t *testing.T, client *exec.Cmd, request string) answer {
	t.Helper()
	stdin, err := client.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := client.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	client.Stderr = &stderr
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := stdin.Write([]byte(request)); err != nil {
		t.Fatal(err)
	}
	a, err := readAnswer(bufio.NewReader(stdout))
	if err != nil {
		t.Errorf("%s: %v", client.Path, err)
	}
	if err := client.Wait(); err != nil {
		t.Errorf("%s: %v: %s", client.Path, err, stderr.String())
	}
	return a
}

// readAnswer reads a response from a connection.
func readAnswer(r *bufio.Reader) (a answer, err error) {
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	a.status, a.proto, a.header = resp.StatusCode, resp.Proto, resp.Header
	a.size, a.sum, err = sumReader(resp.Body)
	return a, err
}

// lastRequest asks for something and for the end of the connection.
func lastRequest(uri string) string {
	return "GET " + uri + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
}
