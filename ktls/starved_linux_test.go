package ktls

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sends are all ways to send p, of which f begins, through the kernel.
func (l *link) sends(f *os.File, p []byte) map[string]func() error {
	return map[string]func() error{
		"Write":    func() error { _, err := l.Write(p); return err },
		"SendFile": func() error { _, err := l.SendFile(f, 0, int64(len(p)), nil); return err },
		"WriteMore": func() error {
			_, err := l.WriteMore(p[:len(p)/2])
			if err == nil {
				_, err = l.Write(p[len(p)/2:])
			}
			return err
		},
		"SendFramed": func() error {
			const header = 9
			return l.Batch(func(b *Batch) error {
				framed := Framed{Size: len(p) - header, Len: header, Headers: p[:header]}
				_, err := b.SendFramed(f, header, int64(framed.Size), framed, nil)
				return err
			})
		},
	}
}

// starve has the calls that send on a connection fail with EAGAIN, as if there were
// no memory for TCP, until relieved. first is closed at the first one.
func starve(t *testing.T) (first <-chan struct{}, relieve func()) {
	var starved atomic.Bool
	var failed atomic.Int32
	seen := make(chan struct{})
	starved.Store(true)
	testHookCall = func(name string, n int) (int, error) {
		switch name {
		case "write", "sendto", "sendfile", "sendmsg":
			if starved.Load() {
				if failed.Add(1) == 1 {
					close(seen)
				}
				return 0, unix.EAGAIN
			}
		}
		return n, nil
	}
	t.Cleanup(func() { testHookCall = nil })
	return seen, func() { starved.Store(false) }
}

// TestStarvedSend: a send for which there is no memory, while nothing is in flight
// whose acknowledgement would wake it, goes on once there is some.
func TestStarvedSend(t *testing.T) {
	for _, how := range []string{"Write", "SendFile", "WriteMore", "SendFramed", "Close"} {
		t.Run(how, func(t *testing.T) {
			needSuite(t, upgradable[0])
			first, relieve := starve(t)
			l := setup{}.connect(t)
			client := l.with(upgradable[0])
			l.mustUpgrade()
			content := randomBytes(1000)
			send := l.sends(testFile(t, content), content)[how]
			if how == "Close" { // that is, close_notify
				send, content = l.Close, nil
			}
			sent := make(chan error, 1)
			go func() {
				err := send()
				if err == nil && how != "Close" {
					err = l.Close()
				}
				sent <- err
			}()
			<-first
			relieve()
			if got, err := io.ReadAll(client); err != nil || !bytes.Equal(got, content) {
				t.Errorf("the client got %d bytes, %v", len(got), err)
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestStarvedSendEnds: deadlines, Close and Abort end such a send.
func TestStarvedSendEnds(t *testing.T) {
	why := errors.New("the test's own reason")
	for _, test := range []struct {
		name string
		end  func(*link)
		want error
	}{
		{"deadline", func(l *link) { l.SetWriteDeadline(time.Now().Add(10 * time.Millisecond)) }, os.ErrDeadlineExceeded},
		{"past deadline", func(l *link) { l.SetWriteDeadline(time.Unix(1, 0)) }, os.ErrDeadlineExceeded},
		{"Close", func(l *link) { l.Close() }, net.ErrClosed},
		{"Abort", func(l *link) { l.Abort(why) }, why},
	} {
		for _, how := range []string{"Write", "SendFile"} {
			t.Run(test.name+"/"+how, func(t *testing.T) {
				needSuite(t, upgradable[0])
				first, _ := starve(t)
				l := setup{}.connect(t)
				l.with(upgradable[0])
				l.mustUpgrade()
				content := randomBytes(1000)
				send := l.sends(testFile(t, content), content)[how]
				sent := make(chan error, 1)
				go func() { sent <- send() }()
				<-first
				test.end(l)
				err := <-sent
				if !errors.Is(err, test.want) {
					t.Errorf("%v", err)
				}
				var op *net.OpError
				if errors.As(err, &op) && op.Op != "write" {
					t.Errorf("the error is of %q", op.Op)
				}
			})
		}
	}
}

const tcpMem = "/proc/sys/net/ipv4/tcp_mem"

// memoryPressure makes all sockets together exceed net.ipv4.tcp_mem until it is
// relieved or the test ends. That disturbs every other connection of the system:
// it is done only where the kernel was chosen for the tests.
func memoryPressure(t *testing.T) (press, relieve func()) {
	t.Helper()
	if os.Getenv("KTLS_REQUIRED") == "" {
		t.Skip("KTLS_REQUIRED isn't set: net.ipv4.tcp_mem stays as it is")
	}
	old, err := os.ReadFile(tcpMem)
	if err != nil {
		t.Skip(err)
	}
	set := func(to []byte) {
		if err := os.WriteFile(tcpMem, to, 0); err != nil {
			t.Skip(err)
		}
	}
	t.Cleanup(func() { os.WriteFile(tcpMem, old, 0) })
	for range 2 { // somebody who holds some memory
		a, _ := tcpPair(t)
		a.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := a.Write(make([]byte, 16<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
	return func() { set([]byte("1 2 3")) }, func() { set(old) }
}

// TestMemoryPressure: what can't be sent because TCP is short of memory is sent
// when it isn't any more. Without the kernel's TLS it is sent before. A connection
// is also upgraded under pressure.
func TestMemoryPressure(t *testing.T) {
	needSuite(t, upgradable[0])
	press, relieve := memoryPressure(t)
	for _, how := range []string{"crypto/tls", "Write", "SendFile", "WriteMore", "SendFramed"} {
		for _, late := range []bool{false, true} {
			name := how
			if late {
				name += " upgraded under pressure"
			}
			if late && how == "crypto/tls" {
				continue
			}
			t.Run(name, func(t *testing.T) {
				l := setup{}.connect(t)
				client := l.with(upgradable[0])
				content := randomBytes(1000) // in more than 4.5 KiB the kernel isn't so strict
				send := l.sends(testFile(t, content), content)[how]
				switch {
				case how == "crypto/tls":
					send = l.sends(nil, content)["Write"]
				case !late:
					l.mustUpgrade()
				}
				press()
				defer relieve()
				if late {
					l.mustUpgrade()
				}
				sent := make(chan error, 1)
				go func() {
					err := send()
					if err == nil {
						err = l.CloseWrite()
					}
					sent <- err
				}()
				if how != "crypto/tls" {
					select {
					case err := <-sent:
						t.Skipf("there was memory (%v)", err)
					case <-time.After(200 * time.Millisecond):
					}
					relieve()
				}
				if got, err := io.ReadAll(client); err != nil || !bytes.Equal(got, content) {
					t.Errorf("the client got %d bytes, %v", len(got), err)
				}
				if err := <-sent; err != nil {
					t.Error(err)
				}
			})
		}
	}
}
