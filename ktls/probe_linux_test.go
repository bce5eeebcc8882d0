package ktls

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// kernelAtLeast reports whether the running kernel has this version or a newer.
// Only tests compare versions, to find what the probe should have found.
func kernelAtLeast(t testing.TB, major, minor int) bool {
	t.Helper()
	_, release := kernelName()
	var gotMajor, gotMinor int
	if _, err := fmt.Sscanf(release, "%d.%d", &gotMajor, &gotMinor); err != nil {
		t.Fatalf("kernel release %q: %v", release, err)
	}
	return gotMajor > major || gotMajor == major && gotMinor >= minor
}

// The probe must find on a kernel with TLS what this version of it has, as far
// as that is beyond doubt.
func TestProbeFindsWhatTheKernelHas(t *testing.T) {
	needKTLS(t)
	f := Probe()
	t.Logf("\n%s", f)
	if !f.Usable() || f.Reason() != "" {
		t.Fatalf("not usable: %s", f.Reason())
	}
	for _, c := range Combinations() {
		if !kernelAtLeast(t, 5, 11) {
			break // every cipher and version is there since
		}
		for dir, a := range map[string]Answer{"TX": f.TX[c], "RX": f.RX[c]} {
			// CHACHA20-POLY1305 may lack its module; everything else comes
			// with the tls module.
			if a.Support != Yes && (c.Cipher != CHACHA20POLY1305 || a.Errno != "ENOENT") {
				t.Errorf("%s %v: %v", dir, c, a)
			}
		}
	}
	for _, tc := range []struct {
		name         string
		answer       Answer
		major, minor int // the first version that has it
		errno        string
	}{
		{"rekey", f.Rekey, 6, 14, "EBUSY"},
		{"rekey of the receiving side", f.RekeyRX, 6, 14, "EBUSY"},
		{"zero-copy", f.ZerocopyRO, 5, 19, "ENOPROTOOPT"},
		{"record size", f.MaxPayloadLen, 7, 2, "ENOPROTOOPT"},
	} {
		want := Answer{Support: Yes}
		if !kernelAtLeast(t, tc.major, tc.minor) {
			want = Answer{Support: No, Errno: tc.errno}
		}
		if got := (Answer{Support: tc.answer.Support, Errno: tc.answer.Errno}); got != want {
			t.Errorf("%s: %v, want %v", tc.name, got, want)
		}
	}
}

// Without the module every answer is the same, and so is the remedy.
func TestProbeWithoutKernelTLS(t *testing.T) {
	f := Probe()
	if f.ULP.Support == Yes {
		t.Skip("this kernel has TLS")
	}
	if f.Usable() || f.Reason() == "" || f.CanTX(tls.VersionTLS13, AES128GCM) {
		t.Errorf("usable without TCP_ULP: %v", f)
	}
	for _, a := range []Answer{f.TX[Combinations()[0]], f.RX[Combinations()[7]], f.Rekey, f.RekeyRX, f.SelfTest, f.ZerocopyRO, f.MaxPayloadLen} {
		if a != f.ULP {
			t.Errorf("answer %v, TCP_ULP %v", a, f.ULP)
		}
	}
	if f.ULP.Errno == "ENOENT" && !strings.Contains(f.Reason(), "modprobe tls") {
		t.Errorf("no remedy in %q", f.Reason())
	}
}

func TestProbeIsCached(t *testing.T) {
	if first, second := Probe(), Probe(); first != second {
		t.Error("two calls give two results")
	}
}

func TestProbeLeavesNoDescriptors(t *testing.T) {
	count := func() int {
		t.Helper()
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	probe() // whatever is opened once and for all
	before := count()
	for range 3 {
		start := time.Now()
		probe()
		if took := time.Since(start); took > probeTimeout {
			t.Errorf("took %v", took)
		}
	}
	if after := count(); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// probeChild is set in the environment of the process that probes under adverse
// conditions.
const probeChild = "KTLS_TEST_PROBE_CHILD"

func init() {
	switch os.Getenv(probeChild) {
	case "":
		return
	case "descriptors":
		dialProbePair("127.0.0.1:0") // lets the runtime open what it needs
		unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 7, Max: 7})
	}
	f := probe()
	f.TX, f.RX = nil, nil
	if err := json.NewEncoder(os.Stdout).Encode(f); err != nil {
		panic(err)
	}
	os.Exit(0)
}

// What keeps the probe from asking is no answer.
func TestProbeThatCantAsk(t *testing.T) {
	// A network namespace begins with its loopback interface down.
	newNetwork := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Getuid() != 0 {
		newNetwork.Cloneflags |= syscall.CLONE_NEWUSER
	}
	for _, tc := range []struct {
		name  string
		attr  *syscall.SysProcAttr
		errno string
	}{
		{"descriptors", nil, "EMFILE"},
		{"loopback", newNetwork, "ENETUNREACH"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			exe, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(exe)
			cmd.Env = append(os.Environ(), probeChild+"="+tc.name)
			cmd.SysProcAttr = tc.attr
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			if err != nil {
				if tc.attr != nil && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EINVAL)) {
					t.Skipf("no network namespaces here: %v", err)
				}
				t.Fatal(err)
			}
			var f struct {
				ULP, Rekey struct{ Support, Errno, Detail string }
				SelfTest   struct{ Support, Errno, Detail string } `json:"self_test"`
				Usable     bool
				Reason     string
			}
			if err := json.Unmarshal(out, &f); err != nil {
				t.Fatalf("%v in %s", err, out)
			}
			if f.ULP.Support != "unknown" || f.ULP.Errno != tc.errno || f.Usable || !strings.Contains(f.Reason, "could not") {
				t.Errorf("want unknown %s, got %s", tc.errno, out)
			}
			if f.Rekey != f.ULP || f.SelfTest != f.ULP {
				t.Errorf("answers to what can't have been asked: %s", out)
			}
		})
	}
}

func TestAnswerOf(t *testing.T) {
	wrap := func(errno syscall.Errno) error {
		return fmt.Errorf("asking: %w", os.NewSyscallError("setsockopt", errno))
	}
	for _, tc := range []struct {
		err     error
		support Support
		errno   string
	}{
		{nil, Yes, ""},
		{wrap(unix.ENOENT), No, "ENOENT"},
		{wrap(unix.ENOPROTOOPT), No, "ENOPROTOOPT"},
		{wrap(unix.EINVAL), No, "EINVAL"},
		{wrap(unix.EOPNOTSUPP), No, unix.ErrnoName(unix.EOPNOTSUPP)},
		{wrap(524), No, "ENOTSUPP"},
		{unsupported{wrap(unix.EBUSY)}, No, "EBUSY"},
		{errNoSender, No, ""},
		{wrap(unix.EBUSY), Unknown, "EBUSY"},
		{wrap(unix.EPERM), Unknown, "EPERM"},
		{wrap(unix.EACCES), Unknown, "EACCES"},
		{wrap(unix.ENOMEM), Unknown, "ENOMEM"},
		{wrap(unix.EMFILE), Unknown, "EMFILE"},
		{wrap(9999), Unknown, "errno 9999"},
		{os.ErrDeadlineExceeded, Unknown, ""},
	} {
		a := answerOf(tc.err)
		if a.Support != tc.support || a.Errno != tc.errno || (a.Detail == "") != (tc.err == nil) {
			t.Errorf("%v: %+v, want %v %q", tc.err, a, tc.support, tc.errno)
		}
	}
}

// A kernel that sends something else than it was given must fail the self-test.
func TestSelfTestNoticesWrongRecords(t *testing.T) {
	content := pattern(selfTestLen)
	k := randomTestKeys(t, tls.VersionTLS13, AES128GCM)
	o := mustOpener(t, k)
	records := func(content []byte, seq uint64) []byte {
		var b []byte
		for ; len(content) > 0; seq++ {
			n := min(len(content), MaxPlaintext)
			b = o.Seal(b, RecordTypeApplicationData, content[:n], seq)
			content = content[n:]
		}
		return o.Seal(b, RecordTypeAlert, selfTestAlert, seq)
	}
	good := slices.Clip(records(content, selfTestSeq))
	noAlert := slices.Clip(good[:len(good)-RecordHeaderLen-len(selfTestAlert)-1-tagLen])
	changed := func(i int, b []byte) []byte {
		b = append([]byte(nil), b...)
		b[i] ^= 1
		return b
	}
	for _, tc := range []struct {
		name   string
		stream []byte
		want   Support
	}{
		{"right", good, Yes},
		{"first sequence number 0", records(content, 0), No},
		{"a byte of the ciphertext", changed(20000, good), No},
		{"a byte of the file", records(changed(30000, content), selfTestSeq), No},
		{"a byte missing", records(content[:selfTestLen-1], selfTestSeq), No},
		{"a byte too many", records(append(content[:selfTestLen:selfTestLen], 0), selfTestSeq), No},
		{"plain text", content, No},
		{"another alert", o.Seal(noAlert, RecordTypeAlert, []byte{2, 80}, selfTestSeq+3), No},
		{"no alert", noAlert, Unknown},
		{"half a record", good[:1000], Unknown},
		{"nothing", nil, Unknown},
	} {
		a, b := tcpPair(t)
		go func() {
			a.Write(tc.stream)
			a.CloseWrite()
		}()
		got := answerOf(selfTestReceive(b, mustOpener(t, k), content))
		if got.Support != tc.want {
			t.Errorf("%s: %v (%s), want %v", tc.name, got, got.Detail, tc.want)
		}
	}
}

// A sender or receiver that fails must not leave the other one waiting.
func TestSelfTestEndsWhereOneSideFails(t *testing.T) {
	needKTLS(t)
	content := pattern(selfTestLen)
	for _, tc := range []struct {
		name    string
		inFile  []byte
		keysFor func(k *Keys) *Keys // that the receiver has
		detail  string
	}{
		{"file too short", content[:1000], func(k *Keys) *Keys { return k }, "file ended early"},
		{"other keys", content, func(k *Keys) *Keys { return randomTestKeys(t, k.Version, k.Cipher) }, "record 1"},
	} {
		p, err := newProbePair()
		if err != nil {
			t.Fatal(err)
		}
		defer p.close()
		file, err := selfTestFile(tc.inFile)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		k := randomTestKeys(t, tls.VersionTLS13, AES128GCM)
		upgrade(t, p.a, tlsTX, k, selfTestSeq)
		start := time.Now()
		a := answerOf(selfTestTransfer(p, mustOpener(t, tc.keysFor(k)), file, content))
		if a.Support != No || !strings.Contains(a.Detail, tc.detail) {
			t.Errorf("%s: %v (%s)", tc.name, a, a.Detail)
		}
		if took := time.Since(start); took > probeTimeout/2 {
			t.Errorf("%s: took %v", tc.name, took)
		}
	}
}

// The kernel itself counts who sends with its help (/proc/net/tls_stat).
func TestSelfTestIsTheKernels(t *testing.T) {
	needKTLS(t)
	before := tlsStat(t, "TlsTxSw")
	a := ask(func(p *probePair) error { return selfTest(p, Combinations()[0]) })
	if a.Support != Yes {
		t.Fatalf("%v: %s", a, a.Detail)
	}
	if after := tlsStat(t, "TlsTxSw"); after != before+1 {
		t.Errorf("TlsTxSw was %d, is %d", before, after)
	}
}

// tlsStat returns a counter of /proc/net/tls_stat.
func tlsStat(t testing.TB, name string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/net/tls_stat")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var n int
		if f := strings.Fields(line); len(f) == 2 && f[0] == name {
			if _, err := fmt.Sscan(f[1], &n); err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %s in %s", name, b)
	return 0
}

func BenchmarkProbe(b *testing.B) {
	for b.Loop() {
		probe()
	}
}
