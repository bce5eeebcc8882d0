//go:build linux

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caddy-ktls/caddy-ktls/ktls"
)

// measure runs the scenarios against each of the servers, NAME=BINARY, one after
// the other, and writes results as they come.
func measure(out io.Writer, servers []string, p *plan) error {
	for _, protocol := range p.protocols {
		if alpn[protocol] == "" {
			return fmt.Errorf("no protocol %q: want h1 or h2", protocol)
		}
	}
	for _, version := range p.versions {
		if tlsVersions[version] == 0 {
			return fmt.Errorf("no TLS version %q: want 1.3 or 1.2", version)
		}
	}
	if len(p.protocols) == 0 || len(p.versions) == 0 {
		return errors.New("nothing to measure: want a protocol and a version of TLS")
	}
	if !p.here {
		if err := unix.Mount("cgroup2", cgroups, "cgroup2", 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w (this is for guests of the lab)", cgroups, err)
		}
	}
	b, err := newBench(p.here)
	if err != nil {
		return err
	}
	defer b.remove()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, unix.SIGINT, unix.SIGTERM)
	go func() {
		<-interrupted
		b.remove()
		os.Exit(1)
	}()
	kernel := ktls.Probe()
	enc := json.NewEncoder(out)
	for _, server := range servers {
		name, binary, _ := strings.Cut(server, "=")
		kind, ok := serverKinds[name]
		if !ok {
			return fmt.Errorf("no server %q", name)
		}
		if kernel.ULP.Support != ktls.Yes && kind.kernelFrom != 0 {
			if kind.kernelFrom != whatever {
				fmt.Fprintf(os.Stderr, "%s is left out: this kernel has no kernel TLS (%s)\n", name, kernel.Reason())
				continue
			}
			fmt.Fprintf(os.Stderr, "%s encrypts in user space: this kernel has no kernel TLS (%s)\n", name, kernel.Reason())
		}
		if err := b.measureServer(enc, name, binary, p); err != nil {
			return err
		}
	}
	return nil
}

// measureServer runs the scenarios against one server. For one of memory it starts
// anew, so that it has nothing of others.
func (b *bench) measureServer(enc *json.Encoder, name, binary string, p *plan) (err error) {
	version, err := versionOf(binary)
	if err != nil {
		return err
	}
	var srv *server
	stop := func() {
		if srv == nil {
			return
		}
		if stopped := srv.stop(); err == nil {
			err = stopped
		}
		b.runs(nil)
		srv = nil
	}
	defer func() { stop() }()
	for _, sc := range p.scenarios(serverKinds[name]) {
		if p.knows(b.kernel, name, version, sc) {
			continue
		}
		if srv != nil && sc.ofMemory() {
			stop()
		}
		if srv == nil {
			if srv, err = b.start(name, binary, sc.ofMemory()); err != nil {
				return err
			}
		}
		r, err := b.measure(srv, sc)
		if err != nil {
			log, _ := os.ReadFile(srv.log)
			return fmt.Errorf("%s %+v: %w; the server's log:\n%s", name, sc, err, log)
		}
		if err := enc.Encode(r); err != nil {
			return err
		}
		if sc.ofMemory() {
			stop()
		}
	}
	return err
}

// start starts a server; with an admin endpoint, if it is Caddy and told so.
func (b *bench) start(name, binary string, admin bool) (*server, error) {
	s := b.site
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	s.addr = ports[0]
	if admin {
		s.admin = ports[1]
	}
	b.started++
	s.dir = filepath.Join(b.dir, fmt.Sprintf("%s-%d", name, b.started))
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		return nil, err
	}
	srv, err := startServer(name, binary, s, b.here)
	if err == nil {
		b.runs(srv)
	}
	return srv, err
}

// freePorts returns addresses that nobody listens at.
func freePorts(n int) (addrs []string, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}

// A bench is what all measurements of a guest share.
type bench struct {
	dir    string
	site   site
	kernel string
	files  map[int64][]byte // by length
	stored [][]byte         // for each connection, memory to be used again

	here    bool // on this machine, in seconds
	started int  // servers so far

	mu      sync.Mutex
	running *server
}

// runs takes note of the server that runs, or of none.
func (b *bench) runs(srv *server) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.running = srv
}

// remove ends what runs and removes what was made.
func (b *bench) remove() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.running != nil {
		b.running.stop()
	}
	os.RemoveAll(b.dir)
}

// newBench makes the files and the certificate.
func newBench(here bool) (*bench, error) {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, err
	}
	b := &bench{dir: dir, here: here, files: make(map[int64][]byte), stored: make([][]byte, 8)}
	b.site = site{root: "/ext4/bench", cert: dir + "/cert.pem", key: dir + "/key.pem"}
	if here {
		b.site.root = filepath.Join(dir, "files")
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	b.kernel = unix.ByteSliceToString(name.Release[:])
	if err := os.Mkdir(b.site.root, 0o755); err != nil {
		return nil, err
	}
	random := mathrand.NewChaCha8([32]byte{})
	for _, size := range sizes {
		file := make([]byte, size.body)
		random.Read(file)
		b.files[size.body] = file
		if err := os.WriteFile(filepath.Join(b.site.root, fileName(size.body)), file, 0o644); err != nil {
			return nil, err
		}
	}
	unix.Sync() // not while something is measured
	return b, b.site.makeCertificate()
}

func fileName(size int64) string {
	return strconv.FormatInt(size, 10)
}

func (s site) makeCertificate() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600); err != nil {
		return err
	}
	return os.WriteFile(s.key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600)
}

// measure runs one scenario. All bodies are compared with the file.
func (b *bench) measure(srv *server, sc scenario) (*result, error) {
	r := &result{Kernel: b.kernel, Server: srv.name, Version: srv.version, scenario: sc}
	if b.here {
		r.Time = new(times)
	}
	before, err := kernelTLS()
	if err != nil {
		return nil, err
	}
	switch sc.Mode {
	case handshaking:
		err = b.handshakes(srv, r)
	case idling:
		err = b.idlers(srv, r)
	case slow:
		err = b.slowReaders(srv, r)
	default:
		err = b.keepAlive(srv, r)
	}
	if err != nil {
		return nil, err
	}
	after, err := kernelTLS()
	if err != nil {
		return nil, err
	}
	r.KernelTLS = after - before
	if !srv.pathIsRight(r) {
		return nil, fmt.Errorf("the kernel encrypted %d connections", r.KernelTLS)
	}
	return r, nil
}

// pathIsRight says whether the kernel encrypted the connections that it should
// have, and no others.
func (s *server) pathIsRight(r *result) bool {
	if s.kind.kernelFrom == whatever {
		return true
	}
	if s.kind.kernelFrom == 0 || r.Body < s.kind.kernelFrom {
		return r.KernelTLS == 0
	}
	if r.Mode == handshaking || r.ofMemory() {
		return r.KernelTLS >= int64(r.Requests)
	}
	return r.KernelTLS == int64(r.Connections)
}

// handshakes opens a connection for each request.
func (b *bench) handshakes(srv *server, r *result) error {
	one := func() (*client, error) {
		c, err := dial(srv.addr, r.Protocol, r.TLS)
		if err != nil {
			return nil, err
		}
		defer c.close()
		if err := c.request(fileName(r.Body), 1); err != nil {
			return nil, err
		}
		return c, c.receive(b.files[r.Body], 1)
	}
	for range 20 {
		c, err := one()
		if err != nil {
			return err
		}
		r.noteTLS(c)
	}
	requests := max(r.Requests/blocks, 1)
	return r.collect(srv, requests, func(block *block) error {
		for range requests {
			begin := time.Now()
			c, err := one()
			if err != nil {
				return err
			}
			block.took(c.wire.last.Sub(begin))
			block.busy += c.wire.last.Sub(begin)
			block.records += c.wire.records.count
			block.plaintext += c.wire.records.plaintext
		}
		return nil
	})
}

// keepAlive measures requests on connections that are there already and have
// served what they are going to serve.
func (b *bench) keepAlive(srv *server, r *result) error {
	clients := make([]*client, r.Connections)
	length := make([]int64, r.Connections) // plaintext bytes of a round
	defer func() {
		for i, c := range clients {
			if c != nil {
				b.stored[i] = c.wire.stored
				c.close()
			}
		}
	}()
	for i := range clients {
		c, err := dial(srv.addr, r.Protocol, r.TLS)
		if err != nil {
			return err
		}
		clients[i] = c
		c.wire.stored = b.stored[i]
		if length[i], err = b.warmUp(c, r); err != nil {
			return fmt.Errorf("warming up: %w", err)
		}
	}
	r.noteTLS(clients[0])
	rounds := max(r.Requests/blocks/r.Connections/r.Streams, 1) // of a block
	want := b.files[r.Body]
	// each runs f for every connection at the same time.
	each := func(f func(i int, c *client) error) error {
		failed := make([]error, len(clients))
		var all sync.WaitGroup
		for i, c := range clients {
			all.Go(func() { failed[i] = f(i, c) })
		}
		all.Wait()
		return errors.Join(failed...)
	}
	return r.collect(srv, rounds*r.Connections*r.Streams, func(block *block) error {
		for _, c := range clients {
			c.wire.forget()
			block.records -= c.wire.records.count
			block.plaintext -= c.wire.records.plaintext
		}
		var mu sync.Mutex
		err := each(func(i int, c *client) (err error) {
			var busy time.Duration
			for range rounds {
				begin := time.Now()
				if err := c.request(fileName(r.Body), r.Streams); err != nil {
					return err
				}
				if r.Mode == decrypting {
					err = c.receive(want, r.Streams)
				} else {
					err = c.wire.store(c.wire.records.plaintext+length[i], r.Protocol == "h2")
				}
				if err != nil {
					return err
				}
				took := c.wire.last.Sub(begin)
				busy += took
				mu.Lock()
				block.took(took)
				mu.Unlock()
			}
			mu.Lock()
			block.busy = max(block.busy, busy)
			mu.Unlock()
			return nil
		})
		for _, c := range clients {
			block.records += c.wire.records.count
			block.plaintext += c.wire.records.plaintext
		}
		if err == nil && r.Mode == storing {
			block.check = func() error {
				return each(func(_ int, c *client) error {
					for range rounds {
						if err := c.receive(want, r.Streams); err != nil {
							return err
						}
					}
					return nil
				})
			}
		}
		return err
	})
}

// warmUp has a connection serve, so that what follows is the steady state. It
// returns the plaintext bytes of a round: exactly with HTTP/1.1; at least, with
// HTTP/2.
func (b *bench) warmUp(c *client, r *result) (length int64, err error) {
	c.wire.forget()
	size := min(r.Body, 1<<20)
	for range 2 {
		if err := c.request(fileName(size), r.Streams); err != nil {
			return 0, err
		}
		if err := c.receive(b.files[size], r.Streams); err != nil {
			return 0, err
		}
	}
	if r.Protocol == "h1" {
		header, err := c.headerLength(fileName(r.Body))
		return header + r.Body, err
	}
	const maxFrame, frameHeader = 16384, 9
	frames := (r.Body + maxFrame - 1) / maxFrame
	return int64(r.Streams) * (r.Body + frames*frameHeader), nil
}

// took takes note of a request's latency.
func (b *block) took(d time.Duration) {
	b.latencies = append(b.latencies, d)
}

func (r *result) noteTLS(c *client) {
	if c.tls == nil {
		return
	}
	state := c.tls.ConnectionState()
	r.Cipher, r.Curve = tls.CipherSuiteName(state.CipherSuite), state.CurveID.String()
}
