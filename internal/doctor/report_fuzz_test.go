package doctor

import (
	"bytes"
	"encoding/json"
	"net"
	"strings"
	"testing"
	"testing/fstest"
	"unicode"
	"unicode/utf8"

	"github.com/caddy-ktls/caddy-ktls/ktls"
)

// FuzzReport: whatever a running server answers and the system's files say, there
// is a report, for people and for programs, and a terminal shows all of it and
// obeys none.
func FuzzReport(f *testing.F) {
	const stat = "TlsCurrTxSw                     \t17\nTlsTxSw                         \t81234\nTlsDecryptError                 \t1\n"
	f.Add([]byte(serverJSON), "6.12.48+deb13-amd64\n", "#1 SMP Debian 6.12.48-1\n", stat, "4294967295\n", "eth0")
	f.Add([]byte(`{}`), "5.15.0-91-generic", "Ubuntu 5.15.0-91.101-generic 5.15.131", "TlsTxSw 18446744073709551615\nx y\n", "1", "wlan0")
	f.Add([]byte(`{"handshakes": {"count": 1, "seconds": 1e308}, "current_connections": -9223372036854775808}`), "7.2.0-rc1", "", "TlsTxSw -1", "-1", "")
	f.Add([]byte(`{"responses": [{"path": "`+strings.Repeat("x", 300)+`", "count": 9223372036854775807, "bytes": 9223372036854775807}, {"count": 1}]}`), "99999999999999999999.1", "", "", "", "a\x1b[2Jb")
	f.Add([]byte(`{"last": [{"time": "0000-01-01T00:00:00Z", "what": "\u202e\u0085\u0007", "reason": "\ud800"}]}`), "\x1b[31m6.1\n6.2", "\xff", "\xff \xff", "\u00a0", "日本")
	f.Add([]byte(`[]`), "4.4", "", "A 1", "9", "lo")
	f.Fuzz(func(t *testing.T, answer []byte, release, version, stat, lowat, name string) {
		r := readyReport()
		root := fstest.MapFS{
			"proc/sys/kernel/osrelease": file(release), "proc/sys/kernel/version": file(version), "proc/version_signature": file(version),
			"proc/net/tls_stat": file(stat), "proc/modules": file(stat), "etc/modules": file(version),
			"proc/sys/net/ipv4/tcp_notsent_lowat": file(lowat), "proc/sys/net/ipv4/tcp_available_ulp": file(version),
		}
		r.Release, r.Sysctls, r.Counters = readRelease(root), readSysctls(root), readCounters(root)
		r.Module = examineModule(root, moduleLoaded(root), r.Kernel)
		r.Interfaces = readInterfaces(root, func() ([]net.Interface, error) { return []net.Interface{{Name: name}}, nil }, openNothing)
		r.Kernel.ULP = ktls.Answer{Support: ktls.Yes, Detail: version}
		r.Kernel.Kernel = release
		r.Server = Server{Address: name, Status: ServerAnswers, Report: json.RawMessage(answer)}
		if err := json.Unmarshal(answer, &r.Server.report); err != nil {
			r.Server = Server{Address: name, Status: ServerUnknown, Detail: err.Error() + string(answer)}
		}
		r.conclude()
		if r.Release.Error == "" && (r.Release.version.major < 0 || r.Release.version.patch < 0) {
			t.Errorf("release %+v", r.Release)
		}
		for _, colour := range []bool{false, true} {
			var out bytes.Buffer
			if err := r.Print(&out, colour); err != nil {
				t.Fatal(err)
			}
			text := out.String()
			for _, sgr := range []string{bold, red, green, yellow, reset} {
				if colour {
					text = strings.ReplaceAll(text, sgr, "")
				}
			}
			for line := range strings.Lines(text) {
				line = strings.TrimSuffix(line, "\n")
				if n := utf8.RuneCountInString(line); n > width || !utf8.ValidString(line) || strings.ContainsFunc(line, func(c rune) bool { return !unicode.IsPrint(c) }) {
					t.Errorf("%d columns: %q", n, line)
				}
			}
		}
		if _, err := json.Marshal(r); err != nil {
			t.Error(err)
		}
	})
}

// openNothing finds no kernel to ask for the features of a card.
func openNothing() (featureAsker, error) { return nothing{}, nil }

type nothing struct{}

func (nothing) Features(int) (map[string]bool, error) {
	return map[string]bool{featureTX: true, featureRX: false}, nil
}
func (nothing) Close() error { return nil }
