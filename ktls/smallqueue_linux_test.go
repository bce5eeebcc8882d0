package ktls

import (
	"bytes"
	"io"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPush: what TCP holds back is sent.
func TestPush(t *testing.T) {
	needSuite(t, upgradable[0])
	l := setup{}.connect(t)
	l.with(upgradable[0])
	l.mustUpgrade()
	held := func() (n uint32) {
		if err := control(l.sock, func(fd int) error {
			info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
			if err == nil {
				n = info.Notsent_bytes
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	err := l.Batch(func(b *Batch) error {
		if _, err := b.Write([]byte("x"), false); err != nil {
			return err
		}
		if held() == 0 {
			t.Error("nothing is held back")
		}
		if err := control(l.sock, push); err != nil {
			return err
		}
		if n := held(); n > 0 {
			t.Errorf("%d bytes are held back", n)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestSmallSendBuffer: with a send buffer that takes no more than a record, what is
// held back in the expectation of more is sent when no more fits; and all is sent
// if that fails: by TCP's timer, which 6.1 doesn't start for it.
func TestSmallSendBuffer(t *testing.T) {
	for _, how := range []string{"SendFile", "SendFramed"} {
		for _, fails := range []bool{false, true} {
			name := how
			if fails {
				name += " without TCP_NODELAY"
			}
			t.Run(name, func(t *testing.T) {
				needSuite(t, upgradable[0])
				if fails {
					needRekey(t) // as new a kernel
				}
				l := setup{}.connect(t)
				client := l.with(upgradable[0])
				l.mustUpgrade()
				if err := l.sock.SetWriteBuffer(1); err != nil {
					t.Fatal(err)
				}
				content := randomBytes(3 * MaxPlaintext)
				send := l.sends(testFile(t, content), content)[how]
				var pushed atomic.Int32
				testHookCall = func(name string, n int) (int, error) {
					if name == "setsockopt TCP_NODELAY" {
						pushed.Add(1)
						if fails {
							return 0, unix.EPERM
						}
					}
					return n, nil
				}
				t.Cleanup(func() { testHookCall = nil })
				sent := make(chan error, 1)
				go func() {
					err := send()
					if err == nil {
						err = l.Close()
					}
					sent <- err
				}()
				if got, err := io.ReadAll(client); err != nil || !bytes.Equal(got, content) {
					t.Errorf("the client got %d bytes, %v", len(got), err)
				}
				if err := <-sent; err != nil {
					t.Error(err)
				}
				if pushed.Load() == 0 {
					t.Error("nothing was pushed")
				}
			})
		}
	}
}
