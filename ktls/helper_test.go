package ktls

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"math/big"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// slow is set where the CPU is emulated: tests then move less data.
var slow = os.Getenv("KTLS_SLOW") != ""

// testTimeout is how long a test waits for what takes no time at all.
const testTimeout = 60 * time.Second

// needKTLS skips the test where the kernel has no TLS, or fails it if
// KTLS_REQUIRED is set, as it is where the kernel was chosen for having it.
func needKTLS(t testing.TB) {
	t.Helper()
	f := Probe()
	if f.ULP.Support == Yes {
		return
	}
	if os.Getenv("KTLS_REQUIRED") != "" {
		t.Fatalf("KTLS_REQUIRED is set, but %s", f.Reason())
	}
	t.Skip(f.Reason())
}

// unhex decodes hexadecimal with any white space in it.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// tcpPair returns both ends of a loopback connection, with a deadline, closed
// when the test ends.
func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	return dialPair(t, new(net.Dialer))
}

// dialPair is tcpPair with b as d makes it.
func dialPair(t testing.TB, d *net.Dialer) (a, b *net.TCPConn) {
	t.Helper()
	l := listenLoopback(t)
	c, err := d.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, conn := range []net.Conn{c, s} {
		conn.SetDeadline(time.Now().Add(testTimeout))
		t.Cleanup(func() { conn.Close() })
	}
	return s.(*net.TCPConn), c.(*net.TCPConn)
}

// recorder is a connection that remembers what passed it.
type recorder struct {
	net.Conn
	mu       sync.Mutex
	rd, wrtn []byte
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rd = append(r.rd, p[:n]...)
	return n, err
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	r.wrtn = append(r.wrtn, p...) // before the peer can have seen it
	r.mu.Unlock()
	return r.Conn.Write(p)
}

func (r *recorder) read() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.rd)
}

func (r *recorder) written() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.wrtn)
}

// splitRecords cuts a stream into records.
func splitRecords(t testing.TB, stream []byte) [][]byte {
	t.Helper()
	var records [][]byte
	for len(stream) > 0 {
		end := RecordHeaderLen
		if len(stream) >= end {
			end += int(binary.BigEndian.Uint16(stream[3:]))
		}
		if len(stream) < end {
			t.Fatalf("the stream ends within a record, after %d bytes of %d", len(stream), end)
		}
		records = append(records, stream[:end:end])
		stream = stream[end:]
	}
	return records
}

// testKeyLog collects what crypto/tls logs, by label.
type testKeyLog struct {
	t     testing.TB
	mu    sync.Mutex
	lines map[string]KeyLogLine
}

func (k *testKeyLog) Write(line []byte) (int, error) {
	l, err := ParseKeyLogLine(line)
	if err != nil {
		k.t.Errorf("crypto/tls logged what doesn't parse: %v", err)
		return 0, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lines == nil {
		k.lines = map[string]KeyLogLine{}
	}
	k.lines[l.Label] = l
	return len(line), nil
}

func (k *testKeyLog) secret(label string) []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	l, ok := k.lines[label]
	if !ok {
		k.t.Fatalf("crypto/tls logged no %s", label)
	}
	return l.Secret
}

// testCertificate returns a self-signed certificate for localhost, the same for
// all tests. rsaKey chooses RSA rather than ECDSA.
func testCertificate(t testing.TB, rsaKey bool) tls.Certificate {
	t.Helper()
	make := ecdsaCertificate
	if rsaKey {
		make = rsaCertificate
	}
	cert, err := make()
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

var (
	ecdsaCertificate = sync.OnceValues(func() (tls.Certificate, error) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return tls.Certificate{}, err
		}
		return selfSigned(key)
	})
	rsaCertificate = sync.OnceValues(func() (tls.Certificate, error) {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return tls.Certificate{}, err
		}
		return selfSigned(key)
	})
)

func selfSigned(key crypto.Signer) (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "localhost"},
		DNSNames:     []string{"localhost"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// pattern returns n bytes that repeat at no power of two.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i % 251)
	}
	return b
}

// listenLoopback listens on a port of 127.0.0.1 until the test ends.
func listenLoopback(t testing.TB) net.Listener {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // MPTCP has no TCP_ULP
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.TCPListener).SetDeadline(time.Now().Add(testTimeout))
	t.Cleanup(func() { l.Close() })
	return l
}

func writeFile(t testing.TB, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// randomTestKeys returns keys of no connection.
func randomTestKeys(t testing.TB, version uint16, c Cipher) *Keys {
	t.Helper()
	k := &Keys{Version: version, Cipher: c}
	rand.Read(k.Key[:c.KeyLen()])
	if rand.Read(k.IV[:]); k.explicitNonce() {
		clear(k.IV[4:])
	}
	return k
}
