package caddyktls

import (
	"crypto/tls"
	"errors"
	"net"
	"testing"
	"time"
)

// Who has left the queue isn't computed for.
func TestGoneFromQueue(t *testing.T) {
	for name, leave := range map[string]func(*net.TCPConn){
		"FIN": func(c *net.TCPConn) { c.Close() },
		"RST": func(c *net.TCPConn) { c.SetLinger(0); c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			s := newGated(1, 0)
			_, holder := s.connect()
			holder.gate().enter(false)
			client, server := s.connectTCP(t)
			below := server.gate().Conn
			if clientGone(below) {
				t.Error("a client that has sent nothing is taken for gone")
			}
			done := make(chan error)
			go func() { done <- server.handshake() }()
			go tls.Client(client, clientConfig()).Handshake()
			for waiting := 0; waiting == 0; time.Sleep(time.Millisecond) {
				_, waiting = s.l.admit.places()
			}
			leave(client.(*net.TCPConn))
			for !clientGone(below) {
				time.Sleep(time.Millisecond)
			}
			holder.gate().leave()
			if err := <-done; !errors.Is(err, errLeftQueue) {
				t.Error(err)
			}
			s.checkFree(t, 1)
		})
	}
}
