package doctor

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/caddy-ktls/caddy-ktls/ktls"
)

var update = flag.Bool("update", false, "write the golden files of this package's tests")

func yes() ktls.Answer { return ktls.Answer{Support: ktls.Yes} }

func no(errno, detail string) ktls.Answer {
	return ktls.Answer{Support: ktls.No, Errno: errno, Detail: detail}
}

// readyReport is of a machine where everything works, without a server.
func readyReport() *Report {
	f := &ktls.Features{
		Kernel: "Linux 6.12.95+deb13-amd64 x86_64", ULP: yes(), Rekey: no("EBUSY", "setsockopt TLS_TX: device or resource busy"),
		MaxPayloadLen: no("ENOPROTOOPT", "setsockopt: protocol not available"), ZerocopyRO: yes(), SelfTest: yes(),
		TX: map[ktls.Combination]ktls.Answer{}, RX: map[ktls.Combination]ktls.Answer{},
	}
	for _, c := range ktls.Combinations() {
		f.TX[c], f.RX[c] = yes(), yes()
	}
	return &Report{
		OS:      "linux",
		Build:   Build{Caddy: "v2.11.9", Module: "v0.1.0", Go: "go1.26.8"},
		Kernel:  f,
		Release: testRelease("6.12.95+deb13-amd64"),
		Module:  Module{State: ModuleLoaded, Boot: "/etc/modules-load.d/tls.conf"},
		Sysctls: []Sysctl{
			{Name: sysctlNotsentLowat, Value: "4294967295"},
			{Name: sysctlULP, Value: "espintcp mptcp tls"},
			{Name: sysctlNoModules, Value: "0"},
		},
		Counters: Counters{Values: map[string]uint64{"TlsTxSw": 81234, "TlsCurrTxSw": 17}},
		Interfaces: Interfaces{List: []Interface{
			{Name: "lo", TX: OffloadNone, RX: OffloadNone, Record: OffloadNone},
			{Name: "eth0", Driver: "virtio_net", TX: OffloadNone, RX: OffloadNone, Record: OffloadNone},
		}},
		Server: Server{Address: "localhost:2019", Status: ServerNone, Detail: "connection refused"},
	}
}

func testRelease(name string) Release {
	v, ok := parseVersion(name)
	if !ok {
		panic(name)
	}
	return Release{Name: name, Version: v.String(), version: v}
}

// setKernel gives a report another kernel's name.
func (r *Report) setKernel(release string) {
	r.Kernel.Kernel = "Linux " + release + " x86_64"
	r.Release = testRelease(release)
}

// withoutTLS makes a report one of a kernel that answers TCP_ULP with a.
func (r *Report) withoutTLS(a ktls.Answer) {
	f := r.Kernel
	f.ULP, f.Rekey, f.MaxPayloadLen, f.ZerocopyRO, f.SelfTest = a, a, a, a, a
	for _, c := range ktls.Combinations() {
		f.TX[c], f.RX[c] = a, a
	}
	r.Counters = Counters{Error: "open /proc/net/tls_stat: no such file or directory"}
	r.Module = examineModule(os.DirFS("testdata/none"), false, f)
}

const serverJSON = `{
	"kernel": {"usable": true},
	"connections": [
		{"outcome": "upgraded", "version": "TLS 1.3", "cipher": "AES-128-GCM", "count": 81123},
		{"outcome": "upgraded", "version": "TLS 1.2", "cipher": "AES-128-GCM", "count": 111},
		{"outcome": "refused", "reason": "cipher", "version": "TLS 1.2", "cipher": "", "count": 12},
		{"outcome": "refused", "reason": "unproven", "version": "TLS 1.3", "cipher": "AES-128-GCM", "count": 2}],
	"current_connections": 17,
	"responses": [
		{"path": "sendfile", "count": 100412, "bytes": 1319413953331},
		{"path": "plain", "reason": "too_small", "count": 1204821, "bytes": 3650722201},
		{"path": "plain", "reason": "method", "count": 1022, "bytes": 0},
		{"path": "plain", "reason": "http2_off", "count": 20111, "bytes": 50722201},
		{"path": "plain", "reason": "transformed", "count": 13, "bytes": 1222},
		{"path": "plain", "reason": "unknown_writer:*example.org/caddy/cache.bufferingResponseWriter", "count": 42, "bytes": 99}],
	"handshakes": {"in_flight": 2, "count": 81420, "failed": 170, "seconds": 171.2},
	"last": [
		{"time": "2026-11-02T13:32:15Z", "what": "connection", "reason": "cipher", "detail": "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA has no counterpart in the kernel"},
		{"time": "2026-11-02T13:32:17Z", "what": "response", "reason": "too_small", "detail": "\u001b[31m4096\u0007 bytes"}]
}`

func testServer(t *testing.T, report string) Server {
	t.Helper()
	s := Server{Address: "localhost:2019", Status: ServerAnswers, Report: json.RawMessage(report)}
	if err := json.Unmarshal(s.Report, &s.report); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPrint(t *testing.T) {
	epermDetail := "setsockopt TCP_ULP: operation not permitted"
	for _, tc := range []struct {
		name   string
		ready  bool
		change func(r *Report)
	}{
		{"ready", true, func(*Report) {}},
		{"ready_server", true, func(r *Report) { r.Server = testServer(t, serverJSON) }},
		{"idle_server", true, func(r *Report) { r.Server = testServer(t, `{"kernel": {"usable": true}}`) }},
		{"server_differs", true, func(r *Report) {
			r.Server = testServer(t, `{"kernel": {"usable": false, "reason": "the kernel's tls module isn't loaded: run modprobe tls as root"}}`)
		}},
		{"no_module", false, func(r *Report) {
			r.setKernel("6.12.95+deb13-amd64")
			r.withoutTLS(no("ENOENT", "setsockopt TCP_ULP: no such file or directory"))
			r.Sysctls[1].Value = "espintcp mptcp"
		}},
		{"modules_disabled", false, func(r *Report) {
			r.withoutTLS(no("ENOENT", "setsockopt TCP_ULP: no such file or directory"))
			r.Sysctls[1].Value, r.Sysctls[2].Value = "", "1"
		}},
		{"old_kernel", false, func(r *Report) {
			r.setKernel("4.9.337")
			r.withoutTLS(no("ENOPROTOOPT", "setsockopt TCP_ULP: protocol not available"))
			r.Sysctls[1] = Sysctl{Name: sysctlULP, Error: "open /proc/sys/net/ipv4/tcp_available_ulp: no such file or directory"}
			r.Interfaces.Error = "the kernel's ethtool doesn't speak netlink, as before Linux 5.6 or without CONFIG_ETHTOOL_NETLINK"
		}},
		{"partial", true, func(r *Report) {
			r.setKernel("5.4.176")
			r.Module = Module{State: ModuleLoadedNow}
			r.Kernel.ZerocopyRO = no("ENOPROTOOPT", "")
			r.Sysctls[0].Value = "16384"
			for _, v := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
				c := ktls.Combination{Version: v, Cipher: ktls.CHACHA20POLY1305}
				r.Kernel.TX[c], r.Kernel.RX[c] = no("EINVAL", "setsockopt TLS_TX: invalid argument"), no("EINVAL", "")
			}
			r.Kernel.RX[ktls.Combination{Version: tls.VersionTLS13, Cipher: ktls.AES256GCM}] = ktls.Answer{
				Errno: "ENOMEM", Detail: "setsockopt TLS_RX: cannot allocate memory"}
			r.Interfaces = Interfaces{List: []Interface{}, Error: "route ip+net: netlinkrib: operation not permitted"}
			r.Server = Server{Address: "10.0.0.1:2019", Status: ServerUnknown, Detail: "Get \"http://10.0.0.1:2019/ktls/\": context deadline exceeded"}
		}},
		{"no_chacha_module", true, func(r *Report) {
			c := ktls.Combination{Version: tls.VersionTLS13, Cipher: ktls.CHACHA20POLY1305}
			r.Kernel.TX[c], r.Kernel.RX[c] = no("ENOENT", "setsockopt TLS_TX: no such file or directory"), no("ENOENT", "")
		}},
		{"tls12_only", true, func(r *Report) {
			r.setKernel("4.18.0-553.el8.x86_64")
			for _, c := range ktls.Combinations() {
				if c.Version == tls.VersionTLS13 || c.Cipher != ktls.AES128GCM {
					r.Kernel.TX[c], r.Kernel.RX[c] = no("ENOTSUPP", ""), no("ENOTSUPP", "")
				}
			}
			r.Kernel.Rekey = no("", "the kernel takes no keys for sending")
		}},
		{"ccm_only", false, func(r *Report) {
			for _, c := range ktls.Combinations() {
				if c.Cipher != ktls.AES128CCM {
					r.Kernel.TX[c] = no("ENOENT", "")
				}
			}
		}},
		{"self_test_failed", false, func(r *Report) {
			r.Kernel.SelfTest = no("", "record 2 has other content than was sent")
		}},
		{"forbidden", false, func(r *Report) {
			r.withoutTLS(ktls.Answer{Errno: "EPERM", Detail: epermDetail})
			r.Release = Release{Error: "open /proc/sys/kernel/osrelease: permission denied"}
			for i := range r.Sysctls {
				r.Sysctls[i].Value, r.Sysctls[i].Error = "", "permission denied"
			}
			r.Interfaces.Error = "socket AF_NETLINK: operation not permitted"
		}},
		{"network_cards", true, func(r *Report) {
			r.setKernel("7.1.4")
			r.Module = Module{State: ModuleBuiltIn}
			r.Counters.Values["TlsTxDevice"], r.Counters.Values["TlsCurrTxDevice"], r.Counters.Values["TlsDecryptError"] = 4123, 12, 3
			r.Counters.Values["TlsRxSw"] = 1
			r.Interfaces.List = append(r.Interfaces.List,
				Interface{Name: "enp65s0f0np0", Driver: "mlx5_core", TX: OffloadOn, RX: OffloadOff, Record: OffloadNone},
				Interface{Name: "enp65s0f1np1", Driver: "mlx5_core", TX: OffloadOff, RX: OffloadOff, Record: OffloadNone},
				Interface{Name: "eth9", TX: OffloadUnknown, RX: OffloadUnknown, Record: OffloadUnknown, Error: "asking for its features: input/output error"})
			for _, name := range []string{"docker0", "veth1a2b3c4", "veth5d6e7f8"} {
				r.Interfaces.List = append(r.Interfaces.List, Interface{Name: name, TX: OffloadNone, RX: OffloadNone, Record: OffloadNone})
			}
		}},
		{"unknown_build", false, func(r *Report) {
			r.Build.Problem = "this module doesn't know the TLS listener of go1.99: build with the Go version of a release of this module"
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := readyReport()
			tc.change(r)
			r.conclude()
			if r.Ready != tc.ready {
				t.Errorf("ready is %v", r.Ready)
			}
			var plain, colour bytes.Buffer
			if err := r.Print(&plain, false); err != nil {
				t.Fatal(err)
			}
			if err := r.Print(&colour, true); err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(plain.String()) {
				line = strings.TrimSuffix(line, "\n")
				if n := utf8.RuneCountInString(line); n > width {
					t.Errorf("%d columns: %q", n, line)
				}
				if strings.TrimRight(line, " ") != line {
					t.Errorf("ends in a space: %q", line)
				}
			}
			if i := strings.IndexFunc(plain.String(), func(c rune) bool { return c < ' ' && c != '\n' }); i >= 0 {
				t.Errorf("a control character: %q", plain.String()[i:])
			}
			bare := colour.String()
			for _, sgr := range []string{bold, red, green, yellow, reset} {
				bare = strings.ReplaceAll(bare, sgr, "")
			}
			if bare != plain.String() {
				t.Errorf("with colour the text is another:\n%s", bare)
			}
			golden(t, tc.name+".txt", plain.Bytes())
			if tc.name == "partial" {
				golden(t, tc.name+".colour", colour.Bytes())
			}
		})
	}
}

// TestPrintElsewhere shows what is left where there is no Linux to ask.
func TestPrintElsewhere(t *testing.T) {
	r := readyReport()
	r = &Report{OS: "plan9", Kernel: &ktls.Features{Kernel: "plan9/arm", ULP: no("", "kernel TLS needs Linux")}, Server: r.Server}
	r.conclude()
	var b strings.Builder
	if err := r.Print(&b, false); err != nil {
		t.Fatal(err)
	}
	const want = `Kernel
  release             plan9/arm
  kernel TLS          no

Running server
  No running server with this module answers at localhost:2019.

Not ready: `
	if r.Ready || len(r.Notes) > 0 || !strings.HasPrefix(b.String(), want) {
		t.Errorf("%v %v\n%s", r.Ready, r.Notes, b.String())
	}
}

// golden compares got with a file.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	name = filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s:\n%s\nwant:\n%s", name, got, want)
	}
}

// TestJSON holds the names that programs rely on.
func TestJSON(t *testing.T) {
	r := readyReport()
	r.setKernel("6.1.27")
	r.Server = testServer(t, serverJSON)
	r.conclude()
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "report.json", append(b, '\n'))

	// Without anything to list, lists are empty, not null.
	r = readyReport()
	r.Interfaces = readInterfaces(os.DirFS("testdata/none"), noInterfaces, nil)
	r.conclude()
	b, err = json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{`"ready":true`, `"notes":[]`, `"list":[]`, `"status":"none"`} {
		if !strings.Contains(string(b), part) {
			t.Errorf("no %s in %s", part, b)
		}
	}
}

func TestWrap(t *testing.T) {
	for _, tc := range []struct {
		text string
		want []string
	}{
		{"", []string{""}},
		{"one", []string{"one"}},
		{"one two  three", []string{"one two", "three"}},
		{"äöü ßßß", []string{"äöü ßßß"}},
		{"1234567890 x", []string{"12345678", "90 x"}},
		{"x 1234567890", []string{"x", "12345678", "90"}},
		{"1234567812345678", []string{"12345678", "12345678"}},
	} {
		if got := wrap(tc.text, 8); strings.Join(got, "|") != strings.Join(tc.want, "|") {
			t.Errorf("%q: %q, want %q", tc.text, got, tc.want)
		}
	}
}
