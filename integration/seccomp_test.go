//go:build linux

package integration

import (
	"crypto/tls"
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// denial is a system call that a seccomp filter, like a container's profile,
// answers with an error.
type denial struct {
	call   uint32
	level  int // of setsockopt and its option; any if 0
	option int
	length int // of that option's value; any if 0
	errno  unix.Errno
}

// deniedEnv makes this program one that puts itself under a filter and becomes
// what its arguments say.
const deniedEnv = "KTLS_TEST_DENIED"

func init() {
	spec := os.Getenv(deniedEnv)
	if spec == "" {
		return
	}
	os.Unsetenv(deniedEnv)
	var d denial
	err := d.parse(spec)
	if err == nil {
		err = d.become(os.Args[1:])
	}
	fmt.Fprintln(os.Stderr, "seccomp:", err)
	os.Exit(1)
}

func (d denial) String() string {
	return fmt.Sprintf("%d %d %d %d %d", d.call, d.level, d.option, d.length, int(d.errno))
}

func (d *denial) parse(s string) error {
	var errno int
	_, err := fmt.Sscan(s, &d.call, &d.level, &d.option, &d.length, &errno)
	d.errno = unix.Errno(errno)
	return err
}

// become filters this process's system calls and runs another program in it.
func (d denial) become(args []string) error {
	// Offsets in struct seccomp_data (linux/seccomp.h): the call's number, and the
	// low halves of its second, third and fifth argument on a little-endian machine.
	const nr, arg1, arg2, arg4 = 0, 24, 32, 48
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	var filter []unix.SockFilter
	tests := [][2]uint32{{nr, d.call}}
	if d.level != 0 {
		tests = append(tests, [2]uint32{arg1, uint32(d.level)}, [2]uint32{arg2, uint32(d.option)})
	}
	if d.length != 0 {
		tests = append(tests, [2]uint32{arg4, uint32(d.length)})
	}
	for i, test := range tests {
		left := uint8(2*(len(tests)-1-i) + 1) // over the rest and the denial
		filter = append(filter, load(test[0]),
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: test[1], Jf: left})
	}
	ret := uint16(unix.BPF_RET | unix.BPF_K)
	filter = append(filter,
		unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(d.errno)},
		unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW})
	program := &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}

	runtime.LockOSThread() // the filter is this thread's; exec ends the others
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, reflect.ValueOf(program).Pointer(), 0, 0)
	runtime.KeepAlive(program)
	if err != nil {
		return os.NewSyscallError("prctl PR_SET_SECCOMP", err)
	}
	return os.NewSyscallError("exec "+args[0], syscall.Exec(args[0], args, os.Environ()))
}

// wrap makes cmd run under the filter.
func (d denial) wrap(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Args = append([]string{self, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = self
	cmd.Env = append(cmd.Env, deniedEnv+"="+d.String())
}

// TestDeniedSystemCalls: where a seccomp filter denies what kernel TLS needs, by
// whatever error, Caddy starts, says so once, and serves as without the module.
// What sendfile can do without doesn't keep it from being used.
func TestDeniedSystemCalls(t *testing.T) {
	needKTLS(t)
	notEmulated(t)
	const tlsRX = 2 // linux/tls.h
	for _, test := range []struct {
		name    string
		denial  denial
		reason  string // of a file that goes plain; empty: it doesn't
		remedy  string // in the line at the start
		warning string // of an option
	}{
		{"TCP_ULP", denial{unix.SYS_SETSOCKOPT, unix.SOL_TCP, unix.TCP_ULP, 0, unix.EPERM}, "kernel", "TCP_ULP", ""},
		{"TCP_ULP unknown", denial{unix.SYS_SETSOCKOPT, unix.SOL_TCP, unix.TCP_ULP, 0, unix.ENOSYS}, "kernel", "TCP_ULP", ""},
		{"TLS_TX", denial{unix.SYS_SETSOCKOPT, unix.SOL_TLS, tlsTX, 0, unix.EPERM}, "kernel", "takes no keys for sending", ""},
		{"sendfile", denial{call: unix.SYS_SENDFILE, errno: unix.EPERM}, "kernel", "sendfile", ""},
		{"sendfile unknown", denial{call: unix.SYS_SENDFILE, errno: unix.ENOSYS}, "kernel", "sendfile", ""},
		{"TLS_RX", denial{unix.SYS_SETSOCKOPT, unix.SOL_TLS, tlsRX, 0, unix.EPERM}, "", "", "rx"},
		{"memfd_create", denial{call: unix.SYS_MEMFD_CREATE, errno: unix.ENOSYS}, "", "", ""},
		{"TCP_CORK", denial{unix.SYS_SETSOCKOPT, unix.SOL_TCP, unix.TCP_CORK, 0, unix.EPERM}, "", "", ""},
		{"fstatfs", denial{call: unix.SYS_FSTATFS, errno: unix.EPERM}, "filesystem:unknown", "", ""},
	} {
		if raceDetector && (test.reason != "" || test.warning != "") && test.name != "TLS_TX" {
			continue // takes long, and there is nothing at once
		}
		t.Run(test.name, func(t *testing.T) {
			c := setup{
				listeners: []listener{{wrappers: "ktls {\n\trx on\n}"}, {sites: []site{{body: plainFiles(www)}}}},
				command:   func(cmd *exec.Cmd) { test.denial.wrap(t, cmd) },
			}.start(t)
			l := c.awaitLine(t, "what the kernel can do", func(l *line) bool { return strings.HasPrefix(l.Msg, "kernel TLS o") })
			if !strings.Contains(l.Remedy, test.remedy) || (l.Remedy != "") != (test.reason == "kernel") {
				t.Errorf("at the start it says %s", l.raw)
			}
			warned := c.log.count(func(l *line) bool {
				return l.Msg == "option has no effect with this kernel" && strings.Contains(l.raw, `"option":"`+test.warning+`"`)
			})
			if (warned == 1) != (test.warning != "") {
				t.Errorf("%d warnings of option %q", warned, test.warning)
			}
			for _, proto := range []string{"h1", "h2"} {
				clients := []*goClient{c.goClient(t, 0, proto), c.goClient(t, 1, proto)}
				for _, f := range []file{tiny, medium} {
					uri := fmt.Sprintf("/%s?%s", f.name, proto)
					var answers [2]string
					for i, client := range clients {
						a := client.get(t, c.url(i, uri))
						a.isFile(t, f)
						answers[i] = describe(a, nil)
					}
					if answers[0] != answers[1] {
						t.Errorf("%s: %s, stock %s", uri, answers[0], answers[1])
					}
					if l := c.response(t, uri); test.reason != "" && f.size >= minSendfile {
						l.isPlain(t, test.reason)
					} else if test.reason == "" {
						l.isFile(t, f.size)
					}
				}
			}
		})
	}
}

// TestMissingCipher: where the kernel has no module for one cipher, connections
// with it stay with Caddy, and say so; those with others are offloaded.
func TestMissingCipher(t *testing.T) {
	needKTLS(t)
	notEmulated(t)
	missing := denial{unix.SYS_SETSOCKOPT, unix.SOL_TLS, tlsTX, cryptoInfo["AES-128-GCM"].size, unix.ENOENT}
	for _, upgrade := range []string{"lazy", "handshake"} {
		c := setup{
			listeners: []listener{{wrappers: "ktls {\n\tupgrade " + upgrade + "\n}", sites: []site{
				{body: files("tls {", "protocols tls1.3", "}")}, // Go's choice is AES-128-GCM
				{host: "aes128.localhost", body: files("tls {", "protocols tls1.2 tls1.2", "ciphers TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "}")},
				{host: "aes256.localhost", body: files("tls {", "protocols tls1.2 tls1.2", "ciphers TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "}")},
				{host: "chacha.localhost", body: files("tls {", "protocols tls1.2 tls1.2", "ciphers TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "}")},
			}}},
			command: func(cmd *exec.Cmd) { missing.wrap(t, cmd) },
		}.start(t)
		for _, proto := range []string{"h1", "h2"} {
			for j := range 4 {
				uri := fmt.Sprintf("/%s?%s-%d", medium.name, proto, j)
				a := c.goClient(t, 0, proto).get(t, c.urlOf(0, j, uri))
				a.isFile(t, medium)
				if strings.Contains(tls.CipherSuiteName(a.tls.CipherSuite), "AES_128") {
					c.tookPlain(t, uri, "kernel")
				} else {
					c.tookFile(t, uri, medium.size)
				}
				if (j < 2) != strings.Contains(tls.CipherSuiteName(a.tls.CipherSuite), "AES_128") {
					t.Errorf("site %d: %s", j, tls.CipherSuiteName(a.tls.CipherSuite))
				}
			}
		}
	}
}
