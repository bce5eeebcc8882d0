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
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// measure runs the scenarios against each of the servers, NAME=BINARY, one after
// the other, and writes results as they come.
func measure(out io.Writer, servers []string, p *plan) error {
	for _, protocol := range p.protocols {
		if alpn[protocol] == "" {
			return fmt.Errorf("no protocol %q: want h1 or h2", protocol)
		}
	}
	if err := unix.Mount("cgroup2", cgroups, "cgroup2", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w (this is for guests of the lab)", cgroups, err)
	}
	b, err := newBench()
	if err != nil {
		return err
	}
	enc := json.NewEncoder(out)
	for i, name := range servers {
		name, binary, _ := strings.Cut(name, "=")
		s := b.site
		s.addr = fmt.Sprintf("127.0.0.1:%d", 8440+i)
		s.dir = filepath.Join(b.dir, name)
		if err := os.Mkdir(s.dir, 0o755); err != nil {
			return err
		}
		srv, err := startServer(name, binary, s)
		if err != nil {
			return err
		}
		for _, sc := range p.scenarios() {
			if srv.kind.matters != nil && !srv.kind.matters(sc) || p.knows(b.kernel, name, srv.version, sc) {
				continue
			}
			r, err := b.measure(srv, sc)
			if err != nil {
				log, _ := os.ReadFile(srv.log)
				return fmt.Errorf("%s %+v: %w; the server's log:\n%s", name, sc, err, log)
			}
			if err := enc.Encode(r); err != nil {
				return err
			}
		}
		if err := srv.stop(); err != nil {
			return err
		}
	}
	return nil
}

// A bench is what all measurements of a guest share.
type bench struct {
	dir    string
	site   site
	kernel string
	files  map[int64][]byte // by length
	stored [][]byte         // for each connection, memory to be used again
}

// newBench makes the files and the certificate.
func newBench() (*bench, error) {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, err
	}
	b := &bench{dir: dir, files: make(map[int64][]byte), stored: make([][]byte, 8)}
	b.site = site{root: "/ext4/bench", cert: dir + "/cert.pem", key: dir + "/key.pem"}
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
	before, err := kernelTLS()
	if err != nil {
		return nil, err
	}
	if sc.Mode == handshaking {
		err = b.handshakes(srv, r)
	} else {
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
	if s.kind.kernelFrom == 0 || r.Body < s.kind.kernelFrom {
		return r.KernelTLS == 0
	}
	if r.Mode == handshaking {
		return r.KernelTLS >= int64(r.Requests)
	}
	return r.KernelTLS == int64(r.Connections)
}

// handshakes opens a connection for each request.
func (b *bench) handshakes(srv *server, r *result) error {
	one := func() (*client, error) {
		c, err := dial(srv.addr, r.Protocol)
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
			c, err := one()
			if err != nil {
				return err
			}
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
		c, err := dial(srv.addr, r.Protocol)
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
		err := each(func(i int, c *client) (err error) {
			for range rounds {
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
			}
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

func (r *result) noteTLS(c *client) {
	state := c.tls.ConnectionState()
	r.Cipher, r.Curve = tls.CipherSuiteName(state.CipherSuite), state.CurveID.String()
}
