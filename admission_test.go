package caddyktls

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-ktls/caddy-ktls/ktls"
)

// testCertificate is for localhost.
var testCertificate = sync.OnceValue(func() *tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "localhost"},
		DNSNames:     []string{"localhost"},
		NotBefore:    time.Unix(0, 0), NotAfter: time.Now().AddDate(100, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

// gated makes the connections of a server with max_handshakes.
type gated struct {
	l listener
	// find gets the certificate, as certmagic does.
	find func(*tls.ClientHelloInfo) (*tls.Certificate, error)
}

func newGated(n int, timeout time.Duration) *gated {
	s := &gated{find: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return testCertificate(), nil }}
	chosen := &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) { return s.find(hello) }}
	s.l = listener{
		config:  ktls.ServerConfig(&tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return chosen, nil }}),
		opts:    &ktls.Options{Features: new(ktls.Features), Below: belowConn},
		timeout: timeout,
		admit:   newAdmission(n),
		logger:  zap.NewNop(),
	}
	admitted(s.l.config)
	return s
}

// over makes the server's end of a connection.
func (s *gated) over(below net.Conn) *conn {
	l := s.l
	l.Listener = &oneListener{conn: below}
	c, err := l.Accept()
	if err != nil {
		panic(err)
	}
	return c.(*conn)
}

// connect makes both ends of a connection. Nothing was sent on it.
func (s *gated) connect() (client net.Conn, server *conn) {
	client, below := net.Pipe()
	return client, s.over(below)
}

// connectTCP is connect with a buffer between the ends: both may write at once,
// as with a session ticket.
func (s *gated) connectTCP(t *testing.T) (client net.Conn, server *conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err = net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	below, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return client, s.over(below)
}

// serve runs a handshake with a client and ends the connection.
func (s *gated) serve(change ...func(*tls.Config)) (clientErr, serverErr error) {
	end, server := s.connect()
	return handshakeBetween(end, server, change...)
}

func handshakeBetween(end net.Conn, server *conn, change ...func(*tls.Config)) (clientErr, serverErr error) {
	done := make(chan error)
	go func() {
		err := server.handshake()
		if err == nil {
			_, err = server.Write([]byte("x"))
		}
		server.Close()
		done <- err
	}()
	client := tls.Client(end, clientConfig(change...))
	_, clientErr = io.ReadFull(client, make([]byte, 1)) // behind the handshake; takes the session ticket too
	end.Close()
	return clientErr, <-done
}

func clientConfig(change ...func(*tls.Config)) *tls.Config {
	config := &tls.Config{ServerName: "localhost", InsecureSkipVerify: true}
	for _, f := range change {
		f(config)
	}
	return config
}

// places is how many places are free, and how many wait.
func (a *admission) places() (free, waiting int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.free, a.begun.Len() + a.others.Len()
}

func (s *gated) checkFree(t *testing.T, want int) {
	t.Helper()
	if free, waiting := s.l.admit.places(); free != want || waiting != 0 {
		t.Errorf("%d places are free and %d handshakes wait, want %d and none", free, waiting, want)
	}
}

// kinds are handshakes that differ in when they compute what.
var kinds = []struct {
	name   string
	change func(*tls.Config)
}{
	{"TLS 1.3", func(*tls.Config) {}},
	{"TLS 1.2", func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }},
	{"HelloRetryRequest", func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP521, tls.CurveP384} }},
}

// Whatever the handshake, with one place for all of them each gets through, and
// never two compute at once.
func TestAdmissionBoundsHandshakes(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			s := newGated(1, time.Minute)
			// Here the place was given up, to find the certificate; the handshake
			// must have one again when it signs.
			signer := testCertificate().PrivateKey.(*ecdsa.PrivateKey)
			counting := *testCertificate()
			counting.PrivateKey = &watchedSigner{PrivateKey: signer, seen: func() {
				if free, _ := s.l.admit.places(); free != 0 {
					t.Error("a handshake signs without having a place")
				}
			}}
			s.find = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &counting, nil }
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() {
					if clientErr, serverErr := s.serve(kind.change); clientErr != nil || serverErr != nil {
						t.Errorf("client: %v, server: %v", clientErr, serverErr)
					}
				})
			}
			wg.Wait()
			s.checkFree(t, 1)
			if n := counting.PrivateKey.(*watchedSigner).most.Load(); n != 1 {
				t.Errorf("up to %d handshakes were signing at once", n)
			}
		})
	}
}

// watchedSigner notices who else signs.
type watchedSigner struct {
	*ecdsa.PrivateKey
	now, most atomic.Int32
	seen      func()
}

func (s *watchedSigner) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	s.most.Store(max(s.most.Load(), s.now.Add(1)))
	defer s.now.Add(-1)
	s.seen()
	return s.PrivateKey.Sign(r, digest, opts)
}

// A resumed session signs nothing but agrees on a key.
func TestAdmissionOfResumedSessions(t *testing.T) {
	for _, kind := range kinds {
		s := newGated(1, time.Minute)
		cache := tls.NewLRUClientSessionCache(0)
		for n := range 3 {
			end, server := s.connectTCP(t)
			resume := func(c *tls.Config) { kind.change(c); c.ClientSessionCache = cache }
			if clientErr, serverErr := handshakeBetween(end, server, resume); clientErr != nil || serverErr != nil {
				t.Errorf("%s: client: %v, server: %v", kind.name, clientErr, serverErr)
			}
			if server.ConnectionState().DidResume != (n > 0) {
				t.Errorf("%s: connection %d: resumed %v", kind.name, n, n == 0)
			}
			s.checkFree(t, 1)
		}
	}
}

// With all places taken a handshake is refused when its time is up, or that of
// the queue if it has none.
func TestHandshakeRefused(t *testing.T) {
	testCertificate()
	for timeout, want := range map[time.Duration]time.Duration{3 * time.Second: 3 * time.Second, 0: queueTimeout} {
		synctest.Test(t, func(t *testing.T) {
			s := newGated(1, timeout)
			_, other := s.connect()
			other.gate().begin(0)
			if err := other.gate().enter(false); err != nil {
				t.Fatal(err)
			}
			s.find = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				t.Error("the handshake went on without a place")
				return testCertificate(), nil
			}
			begin := time.Now()
			clientErr, serverErr := s.serve()
			if clientErr == nil || !errors.Is(serverErr, errNotAdmitted) {
				t.Errorf("client: %v, server: %v", clientErr, serverErr)
			}
			if took := time.Since(begin); took != want {
				t.Errorf("refused after %v, want %v", took, want)
			}
			s.checkFree(t, 0)
			other.gate().leave()
			s.checkFree(t, 1)
		})
	}
}

// Clients that don't go on with a handshake, at whatever point of it, hold no
// place.
func TestSlowClientsHoldNoPlace(t *testing.T) {
	testCertificate()
	for _, kind := range kinds {
		synctest.Test(t, func(t *testing.T) {
			s := newGated(1, time.Minute)
			var ends []net.Conn
			// Each client passes one write more than the one before it.
			for n := range 6 {
				end, server := s.connect()
				ends = append(ends, end)
				go server.handshake()
				client := tls.Client(&limitedConn{Conn: end, writes: n}, clientConfig(kind.change))
				go client.Handshake()
			}
			// And these write byte by byte, and leave in the middle of it.
			for _, n := range []int{1, 5, 100} {
				end, server := s.connect()
				ends = append(ends, end)
				go server.handshake()
				go end.Write(append([]byte{22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3}, make([]byte, 100)...)[:n])
			}
			// This one doesn't take the server's flight.
			end, server := s.connect()
			ends = append(ends, end)
			go server.handshake()
			go tls.Client(&deafConn{end}, clientConfig(kind.change)).Handshake()
			synctest.Wait()
			s.checkFree(t, 1)
			if clientErr, serverErr := s.serve(kind.change); clientErr != nil || serverErr != nil {
				t.Errorf("%s: client: %v, server: %v", kind.name, clientErr, serverErr)
			}
			for _, end := range ends {
				end.Close()
			}
		})
	}
}

// limitedConn blocks after some writes until it is closed.
type limitedConn struct {
	net.Conn
	writes int
}

func (c *limitedConn) Write(p []byte) (int, error) {
	if c.writes == 0 {
		return 0, errors.New("no more")
	}
	c.writes--
	return c.Conn.Write(p)
}

func (c *limitedConn) Close() error { return nil } // nor does it say goodbye

// deafConn reads nothing.
type deafConn struct{ net.Conn }

func (c *deafConn) Read([]byte) (int, error)    { return 0, errors.New("deaf") }
func (c *deafConn) Write(p []byte) (int, error) { return c.Conn.Write(p) }
func (c *deafConn) Close() error                { return nil }

// A certificate that has yet to be obtained (on-demand TLS) holds no place, and
// its handshake goes on as soon as it is there, before those that only begin.
func TestCertificateInTheMaking(t *testing.T) {
	testCertificate()
	for _, kind := range kinds {
		synctest.Test(t, func(t *testing.T) {
			s := newGated(1, time.Minute)
			obtained := make(chan bool)
			s.find = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
				if hello.ServerName == "new.localhost" {
					<-obtained
				}
				return testCertificate(), nil
			}
			first := make(chan error)
			go func() {
				clientErr, serverErr := s.serve(kind.change, func(c *tls.Config) { c.ServerName = "new.localhost" })
				first <- errors.Join(clientErr, serverErr)
			}()
			synctest.Wait()
			if clientErr, serverErr := s.serve(kind.change); clientErr != nil || serverErr != nil {
				t.Errorf("%s, another: client: %v, server: %v", kind.name, clientErr, serverErr)
			}
			obtained <- true
			if err := <-first; err != nil {
				t.Errorf("%s: %v", kind.name, err)
			}
			s.checkFree(t, 1)
		})
	}
}

// Handshakes are admitted in the order they came, those that had a place before
// ahead of the others.
func TestAdmissionOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newGated(1, time.Minute)
		_, holder := s.connect()
		holder.gate().enter(false)
		var order []int
		for n, again := range []bool{false, true, false, true} {
			_, c := s.connect()
			c.gate().begin(time.Minute)
			go func() {
				if err := c.gate().enter(again); err != nil {
					t.Error(err)
				}
				order = append(order, n)
				c.gate().leave()
			}()
			synctest.Wait()
		}
		holder.gate().leave()
		synctest.Wait()
		if want := [4]int{1, 3, 0, 2}; len(order) != 4 || [4]int(order) != want {
			t.Errorf("order %v, want %v", order, want)
		}
		s.checkFree(t, 1)
	})
}

// A connection that is closed while its handshake waits, by a shutdown or by the
// end of its context, leaves the queue at once.
func TestClosedInQueue(t *testing.T) {
	testCertificate()
	for name, end := range map[string]func(*conn, context.CancelFunc){
		"Close":   func(c *conn, _ context.CancelFunc) { c.Close() },
		"context": func(_ *conn, cancel context.CancelFunc) { cancel() },
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newGated(1, 0)
			_, holder := s.connect()
			holder.gate().enter(false)
			client, server := s.connect()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			server.pending.Load().ctx = ctx
			done := make(chan error)
			begin := time.Now()
			go func() { done <- server.handshake() }()
			go tls.Client(client, clientConfig()).Handshake()
			synctest.Wait()
			if _, waiting := s.l.admit.places(); waiting != 1 {
				t.Fatalf("%s: %d handshakes wait", name, waiting)
			}
			end(server, cancel)
			if err := <-done; err == nil || errors.Is(err, errNotAdmitted) {
				t.Errorf("%s: %v", name, err)
			}
			if took := time.Since(begin); took != 0 {
				t.Errorf("%s: the end came after %v", name, took)
			}
			holder.gate().leave()
			s.checkFree(t, 1)
			client.Close()
			if err := server.gate().enter(false); !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s: entering once more: %v", name, err)
			}
		})
	}
}

// Places that come free at the very moment when those who wait for them give up
// are not lost.
func TestAdmissionLosesNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const places, handshakes = 3, 3000
		s := newGated(places, 0)
		var holding, refused atomic.Int32
		var wg sync.WaitGroup
		for i := range handshakes {
			wg.Go(func() {
				time.Sleep(time.Duration(i/7) * time.Second)
				_, c := s.connect()
				c.gate().begin(time.Duration(1+i%3) * time.Second)
				if i%11 == 0 {
					time.AfterFunc(time.Second, func() { c.gate().Close() })
				}
				if err := c.gate().enter(i%2 == 0); err != nil {
					refused.Add(1)
					return
				}
				if n := holding.Add(1); n > places {
					t.Errorf("%d at once", n)
				}
				time.Sleep(time.Second)
				holding.Add(-1)
				c.gate().leave()
				c.gate().leave()
			})
		}
		wg.Wait()
		s.checkFree(t, places)
		if n := refused.Load(); n == 0 || n == handshakes {
			t.Errorf("%d of %d were refused", n, handshakes)
		}
	})
}

// gate is the connection's gate, while there is a handshake.
func (c *conn) gate() *gate { return c.pending.Load().gate }
