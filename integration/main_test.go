//go:build linux

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"testing"
	"time"
)

var (
	caddyBinary string // the caddy under test
	scratch     string // removed at the end
	storage     string // Caddy's storage; shared, so that each certificate is issued once
	www         string // the files served

	required = os.Getenv("KTLS_REQUIRED") != ""
	slow     = os.Getenv("KTLS_SLOW") != ""

	raceDetector bool // is built in

	// patience is how long to wait for what must happen. It is no
	// measure of speed: only a test that fails ever waits that long.
	patience = 60 * time.Second
)

func TestMain(m *testing.M) {
	if slow {
		patience = 4 * time.Minute
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if scratch, err = os.MkdirTemp("", "e2e"); err != nil {
		return complain(err)
	}
	defer os.RemoveAll(scratch)
	storage, www = filepath.Join(scratch, "storage"), filepath.Join(scratch, "www")

	if caddyBinary = os.Getenv("KTLS_CADDY"); caddyBinary == "" {
		caddyBinary = filepath.Join(scratch, "caddy")
		if err := buildCaddy(caddyBinary); err != nil {
			return complain(err)
		}
	}
	if err := makeFixtures(); err != nil {
		return complain(err)
	}
	kernel = probeKernel()
	if required && !kernel.ulp {
		return complain(fmt.Errorf("KTLS_REQUIRED is set, but this kernel (%s) has no kernel TLS", os.Getenv("KTLS_KERNEL")))
	}
	return m.Run()
}

func complain(err error) int {
	fmt.Fprintln(os.Stderr, "integration:", err)
	return 1
}

// buildCaddy builds ../cmd/caddy, with the race detector if the tests have it.
func buildCaddy(to string) error {
	args := []string{"build", "-o", to}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "-race" && s.Value == "true" {
				args = append(args, "-race")
			}
		}
	}
	cmd := exec.Command("go", append(args, "../cmd/caddy")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building caddy: %w\n%s", err, out)
	}
	return nil
}

// eventually waits until done says so.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: still not so after %v", what, patience)
		}
	}
}

// command finds the program a test drives Caddy with.
func command(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v: the end-to-end tests need chromium, curl, fonts-dejavu-core, gnutls-bin, libnss3-tools, nghttp2-client and openssl installed", err)
	}
	return path
}
