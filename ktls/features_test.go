package ktls

import (
	"crypto/tls"
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// testFeatures are those of a kernel that has everything.
func testFeatures() *Features {
	yes := Answer{Support: Yes}
	f := &Features{
		Kernel: "Linux 6.12.1 x86_64", ULP: yes, Rekey: yes, MaxPayloadLen: yes, ZerocopyRO: yes, SelfTest: yes,
		TX: map[Combination]Answer{}, RX: map[Combination]Answer{},
	}
	for _, c := range Combinations() {
		f.TX[c], f.RX[c] = yes, yes
	}
	return f
}

func TestFeaturesUsableAndReason(t *testing.T) {
	no := func(errno string) Answer { return Answer{Support: No, Errno: errno, Detail: "setsockopt: " + errno} }
	for _, tc := range []struct {
		name   string
		change func(f *Features)
		reason []string // nil: usable
	}{
		{"all", func(*Features) {}, nil},
		{"only one combination", func(f *Features) {
			clear(f.TX)
			f.TX[Combination{tls.VersionTLS12, AES256GCM}] = Answer{Support: Yes}
		}, nil},
		{"nothing that sending needs not", func(f *Features) {
			clear(f.RX)
			f.Rekey, f.MaxPayloadLen, f.ZerocopyRO = no("EBUSY"), no("ENOPROTOOPT"), no("ENOPROTOOPT")
		}, nil},
		{"no module loaded", func(f *Features) { f.ULP, f.module = no("ENOENT"), moduleInstalled },
			[]string{"`modprobe tls`", "/etc/modules-load.d/tls.conf"}},
		{"no module there", func(f *Features) { f.ULP, f.module = no("ENOENT"), moduleMissing },
			[]string{"CONFIG_TLS", "linux-modules-extra", "6.12.1"}},
		{"no module, modules unseen", func(f *Features) { f.ULP = no("ENOENT") },
			[]string{"`modprobe tls`", "/etc/modules-load.d/tls.conf", "CONFIG_TLS", "container"}},
		{"no upper-layer protocols", func(f *Features) { f.ULP = no("ENOPROTOOPT") },
			[]string{"ENOPROTOOPT", "CONFIG_TLS", "4.13"}},
		{"forbidden", func(f *Features) { f.ULP = Answer{Unknown, "EPERM", "setsockopt TCP_ULP: operation not permitted"} },
			[]string{"could not", "operation not permitted", "let this process"}},
		{"no keys", func(f *Features) {
			for c := range f.TX {
				f.TX[c] = no("ENOENT")
			}
		}, []string{"no keys", "ENOENT", "modprobe"}},
		{"self-test failed", func(f *Features) { f.SelfTest = Answer{No, "", "record 2 doesn't open"} },
			[]string{"self-test", "record 2 doesn't open", "6.6"}},
		{"self-test not run", func(f *Features) { f.SelfTest = Answer{Unknown, "ENOMEM", "memfd"} },
			[]string{"self-test", "memfd"}},
		{"not Linux", func(f *Features) { *f = Features{Kernel: "plan9/arm", ULP: no(""), module: notLinux} },
			[]string{"plan9/arm", "Linux"}},
		{"not probed", func(f *Features) { *f = Features{} }, []string{"could not"}},
	} {
		f := testFeatures()
		tc.change(f)
		reason := f.Reason()
		if f.Usable() != (tc.reason == nil) || (reason == "") != (tc.reason == nil) {
			t.Errorf("%s: usable %v, reason %q", tc.name, f.Usable(), reason)
		}
		for _, part := range tc.reason {
			if !strings.Contains(reason, part) {
				t.Errorf("%s: %q isn't in %q", tc.name, part, reason)
			}
		}
		if strings.Contains(reason, "\n") {
			t.Errorf("%s: more than a line: %q", tc.name, reason)
		}
	}
}

func TestCanTXAndCanRX(t *testing.T) {
	f := &Features{
		TX: map[Combination]Answer{{tls.VersionTLS13, AES128GCM}: {Support: Yes}, {tls.VersionTLS12, AES128GCM}: {Support: No}},
		RX: map[Combination]Answer{{tls.VersionTLS12, AES128GCM}: {Support: Yes}},
	}
	for _, tc := range []struct {
		version uint16
		cipher  Cipher
		tx, rx  bool
	}{
		{tls.VersionTLS13, AES128GCM, true, false},
		{tls.VersionTLS12, AES128GCM, false, true},
		{tls.VersionTLS13, AES256GCM, false, false},
		{tls.VersionTLS11, AES128GCM, false, false},
	} {
		if tx, rx := f.CanTX(tc.version, tc.cipher), f.CanRX(tc.version, tc.cipher); tx != tc.tx || rx != tc.rx {
			t.Errorf("%s %v: TX %v, RX %v", tls.VersionName(tc.version), tc.cipher, tx, rx)
		}
	}
}

// Programs read this: it must not change.
func TestFeaturesJSON(t *testing.T) {
	f := &Features{
		Kernel:   "Linux 6.12.1 x86_64",
		ULP:      Answer{Support: Yes},
		TX:       map[Combination]Answer{{tls.VersionTLS13, AES128GCM}: {Support: Yes}},
		RX:       map[Combination]Answer{{tls.VersionTLS12, CHACHA20POLY1305}: {No, "ENOENT", "setsockopt TLS_RX: no such file or directory"}},
		Rekey:    Answer{Support: No, Errno: "EBUSY"},
		SelfTest: Answer{Support: Unknown, Detail: "i/o timeout"},
	}
	got, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	want := `{
 "kernel": "Linux 6.12.1 x86_64",
 "ulp": {
  "support": "yes"
 },
 "tx": {
  "TLS 1.3 AES-128-GCM": {
   "support": "yes"
  }
 },
 "rx": {
  "TLS 1.2 CHACHA20-POLY1305": {
   "support": "no",
   "errno": "ENOENT",
   "detail": "setsockopt TLS_RX: no such file or directory"
  }
 },
 "rekey": {
  "support": "no",
  "errno": "EBUSY"
 },
 "max_payload_len": {
  "support": "unknown"
 },
 "zerocopy_ro": {
  "support": "unknown"
 },
 "self_test": {
  "support": "unknown",
  "detail": "i/o timeout"
 },
 "usable": false,
 "reason": "kernel TLS failed its self-test (i/o timeout): run another kernel, of version 6.6 or newer, and report this one"
}`
	if string(got) != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

func TestFeaturesTable(t *testing.T) {
	f := testFeatures()
	f.Rekey = Answer{No, "EBUSY", "setsockopt TLS_TX: device or resource busy"}
	f.RX[Combination{tls.VersionTLS12, AES128CCM}] = Answer{Unknown, "EPERM", ""}
	want := `kernel                    Linux 6.12.1 x86_64
kernel TLS                usable
TCP_ULP "tls"             yes
self-test (sendfile)      yes
rekey (TLS 1.3, TX)       no EBUSY
record size option        yes
zero-copy for NICs        yes

version and cipher        sending (TX)              receiving (RX)
TLS 1.3 AES-128-GCM       yes                       yes
TLS 1.3 AES-256-GCM       yes                       yes
TLS 1.3 CHACHA20-POLY1305 yes                       yes
TLS 1.3 AES-128-CCM       yes                       yes
TLS 1.2 AES-128-GCM       yes                       yes
TLS 1.2 AES-256-GCM       yes                       yes
TLS 1.2 CHACHA20-POLY1305 yes                       yes
TLS 1.2 AES-128-CCM       yes                       unknown EPERM
`
	if got := f.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestFeaturesTableIsNarrow(t *testing.T) {
	long := Answer{No, "EPROTONOSUPPORT", strings.Repeat("it failed and ", 30)}
	f := testFeatures()
	f.Kernel = "Linux 6.12.1-" + strings.Repeat("x", 150) + " x86_64"
	f.Rekey, f.SelfTest = long, long
	for c := range f.TX {
		f.TX[c], f.RX[c] = long, long
	}
	withULP := f.String()
	f.ULP = long
	for _, table := range []string{withULP, f.String()} {
		if !strings.Contains(table, "not usable: ") {
			t.Errorf("no reason in\n%s", table)
		}
		for line := range strings.Lines(table) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 {
				t.Errorf("%d columns: %s", n, line)
			}
		}
	}
}

// TestProbeAgain: the kernel's answer is kept, but one that says no only until
// someone asks again, as its module can be loaded.
func TestProbeAgain(t *testing.T) {
	real := Probe()
	t.Cleanup(func() { probed.answer.Store(real) })
	answer := func(f *Features, age time.Duration) {
		probed.mu.Lock()
		defer probed.mu.Unlock()
		probed.answer.Store(f)
		probed.at = time.Now().Add(-age)
	}
	no := &Features{Kernel: "before modprobe"}
	answer(no, time.Hour)
	if Probe() != no {
		t.Error("Probe asks twice")
	}
	answer(no, 0)
	if ProbeAgain() != no {
		t.Error("asked again at once")
	}
	answer(no, time.Hour)
	again := ProbeAgain()
	if again == no || again.Usable() != real.Usable() || again.Kernel != real.Kernel {
		t.Errorf("%s: not asked again", again.Kernel)
	}
	if Probe() != again {
		t.Error("the new answer isn't Probe's")
	}
	yes := &Features{
		ULP: Answer{Support: Yes}, SelfTest: Answer{Support: Yes},
		TX: map[Combination]Answer{Combinations()[0]: {Support: Yes}},
	}
	answer(yes, time.Hour)
	if ProbeAgain() != yes {
		t.Error("asked again though the kernel can")
	}
}
