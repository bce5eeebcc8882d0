//go:build linux

package integration

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// kernelTLS is what the kernel under the tests can do.
type kernelTLS struct {
	ulp     bool
	ciphers map[[2]string]bool // by version and cipher, named as in Caddy's log
}

var kernel kernelTLS

// cryptoInfo has, for each cipher, its number and the length of the struct
// that TLS_TX takes (linux/tls.h).
var cryptoInfo = map[string]struct {
	number uint16
	size   int
}{
	"AES-128-GCM":       {51, 40},
	"AES-256-GCM":       {52, 56},
	"CHACHA20-POLY1305": {54, 56},
}

const tlsTX = 1 // linux/tls.h

var versionNumber = map[string]uint16{"TLS 1.2": 0x0303, "TLS 1.3": 0x0304}

// probeKernel tries kernel TLS on loopback connections. It doesn't use the
// product's own probe: the tests must not believe what they test.
func probeKernel() kernelTLS {
	k := kernelTLS{ulp: tryTX("", 0, 0, 0), ciphers: map[[2]string]bool{}}
	for vname, version := range versionNumber {
		for cname, info := range cryptoInfo {
			k.ciphers[[2]string{vname, cname}] = k.ulp && tryTX(cname, version, info.number, info.size)
		}
	}
	return k
}

func tryTX(cipher string, version, number uint16, size int) bool {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return false
	}
	defer ln.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		return false
	}
	defer conn.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return false
	}
	ok := false
	raw.Control(func(fd uintptr) {
		if unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_ULP, "tls") != nil {
			return
		}
		if cipher != "" {
			info := make([]byte, size)
			binary.NativeEndian.PutUint16(info, version)
			binary.NativeEndian.PutUint16(info[2:], number)
			if unix.SetsockoptString(int(fd), unix.SOL_TLS, tlsTX, string(info)) != nil {
				return
			}
		}
		ok = true
	})
	return ok
}

// needKTLS skips what has no meaning without kernel TLS.
func needKTLS(t *testing.T) {
	t.Helper()
	if !kernel.ulp {
		t.Skip("this kernel has no kernel TLS")
	}
}

// tlsStat reads one counter of /proc/net/tls_stat.
func tlsStat(t testing.TB, name string) int {
	t.Helper()
	if !kernel.ulp {
		return 0
	}
	b, err := os.ReadFile("/proc/net/tls_stat")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == name {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("/proc/net/tls_stat has no %s", name)
	return 0
}

// notEmulated leaves out, where a guest is emulated, what takes long there and is
// the same whatever the kernel: this machine and User-Mode Linux have run it.
func notEmulated(t *testing.T) {
	t.Helper()
	if slow {
		t.Skip("doesn't depend on the kernel's version, and emulation takes long")
	}
}

// countUpgrades returns a function that checks how many connections the kernel
// was given since.
func countUpgrades(t *testing.T) func(t *testing.T, want int) {
	t.Helper()
	before := tlsStat(t, "TlsTxSw")
	return func(t *testing.T, want int) {
		t.Helper()
		if !kernel.ulp {
			want = 0
		}
		if got := tlsStat(t, "TlsTxSw") - before; got != want {
			t.Errorf("TlsTxSw rose by %d, want %d", got, want)
		}
	}
}

// sendQueue is how many bytes the server's end of a loopback connection has
// yet to get rid of; -1 if there is no such connection any more.
func sendQueue(t *testing.T, client net.Conn) int {
	t.Helper()
	n, _ := queues(t, client.RemoteAddr(), client.LocalAddr())
	return n
}

// receiveQueue is how many bytes have come to the client's end that it hasn't
// read.
func receiveQueue(t *testing.T, client net.Conn) int {
	t.Helper()
	_, n := queues(t, client.LocalAddr(), client.RemoteAddr())
	return n
}

// queues are those of the socket between two addresses, in bytes.
func queues(t *testing.T, local, remote net.Addr) (send, receive int) {
	t.Helper()
	f, err := os.Open("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	from, to := fmt.Sprintf(":%04X", local.(*net.TCPAddr).Port), fmt.Sprintf(":%04X", remote.(*net.TCPAddr).Port)
	for s := bufio.NewScanner(f); s.Scan(); {
		col := strings.Fields(s.Text())
		if len(col) > 4 && strings.HasSuffix(col[1], from) && strings.HasSuffix(col[2], to) {
			if _, err := fmt.Sscanf(col[4], "%x:%x", &send, &receive); err != nil {
				t.Fatal(err)
			}
			return send, receive
		}
	}
	return -1, -1
}

// awaitStall waits until the server can't send any more to a client that does
// not read: its send queue is filled and has stopped growing.
func awaitStall(t *testing.T, client net.Conn) {
	t.Helper()
	last, same := 0, 0
	eventually(t, "the server fills the connection of a client that does not read", func() bool {
		n := sendQueue(t, client)
		if n > 0 && n == last {
			same++
		} else {
			last, same = n, 0
		}
		return same >= 30
	})
}
