//go:build linux

package integration

import (
	"crypto/tls"
	"debug/buildinfo"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	huntResponses = flag.Int("hunt.responses", 0, "hunt until there were so many responses (0: a short hunt)")
	huntTime      = flag.Duration("hunt.time", 0, "hunt for so long")
	huntSeed      = flag.Uint64("hunt.seed", 0, "what the hunt is made of (0: the time)")
	huntClients   = flag.Int("hunt.clients", 40, "connections at a time")
)

// hunt is a search for wrong bytes: clients of many kinds download files that
// change, from a Caddy that is configured anew again and again, over a network
// that isn't always good.
type hunt struct {
	*caddy
	t        *testing.T
	files    []*huntFile
	seed     uint64
	begun    time.Time
	tls      *tls.Config
	sessions tls.ClientSessionCache

	over      atomic.Bool
	configs   atomic.Int64 // loaded
	network   atomic.Value // string: what is wrong with it
	curl      sync.RWMutex // held by each that runs, and locked while send buffers are small
	reloading struct {
		sync.Mutex
		from, to time.Time // the last one
	}

	mu     sync.Mutex
	counts map[string]int64
	bytes  int64
	wrong  int
}

// huntKeyLimit is in a configuration where the kernel can rekey.
const huntKeyLimit = "\tkey_limit 1000\n"

// huntConfigs take turns on the three listeners: the wrapper, and options of the
// handler.
var huntConfigs = []struct{ wrapper, options string }{
	{"ktls", ""},
	{"ktls {\n\tupgrade handshake\n\trx on\n}", ""},
	{"ktls {\n\tupgrade handshake\n}", "chunk 64KiB\nhttp2_frame_size 16KiB\n"},
	{"ktls {\n\trecord_size 1024\n" + huntKeyLimit + "}", ""},
	{"ktls {\n\trx on\n}", "http2_frame_size 1MiB\n"},
	{"", ""},
}

const huntListeners = 3 // a divisor of their number: each listener has its own

// hasKeyLimit reports whether a listener sometimes has a key_limit.
func hasKeyLimit(t *testing.T, listener int) bool {
	for i := listener; i < len(huntConfigs); i += huntListeners {
		if strings.Contains(huntConfigs[i].wrapper, huntKeyLimit) {
			return canRekey(t)
		}
	}
	return false
}

// startHunt starts a Caddy with the first configuration.
func startHunt(t *testing.T) *hunt {
	h := &hunt{t: t, seed: *huntSeed, counts: map[string]int64{}, begun: time.Now()}
	if h.seed == 0 {
		h.seed = uint64(time.Now().UnixNano())
	}
	h.network.Store("good")
	root := t.TempDir()
	h.files = newHuntFiles(t, root, h.rng("files"))
	s := setup{global: "grace_period 5m"}
	for i := range huntListeners {
		s.listeners = append(s.listeners, h.listener(root, i, 0))
	}
	h.caddy = s.start(t)
	h.reload(root, 0) // without debug
	h.tls, h.sessions = tlsConfig(t), tls.NewLRUClientSessionCache(50)
	return h
}

// rng is a source of chance for one part of the hunt.
func (h *hunt) rng(part string) *rand.Rand {
	var seed [32]byte
	copy(seed[:], fmt.Sprintf("%d %s", h.seed, part))
	return rand.New(rand.NewChaCha8(seed))
}

// listener is listener i of the nth configuration.
func (h *hunt) listener(root string, i, n int) listener {
	config := huntConfigs[(n*huntListeners+i)%len(huntConfigs)]
	if !canRekey(h.t) {
		config.wrapper = strings.Replace(config.wrapper, huntKeyLimit, "", 1)
	}
	body := plainFiles(root, "header X-Config "+fmt.Sprint(n), "ktls {", "min_size 8KiB", config.options+"}")
	return listener{wrappers: config.wrapper, sites: []site{{body: strings.TrimPrefix(body, "log\n")}}} // too many lines
}

// reload loads the nth configuration.
func (h *hunt) reload(root string, n int) {
	next := &caddy{setup: setup{global: h.setup.global}, dir: h.dir, ports: h.ports}
	for i := range huntListeners {
		next.setup.listeners = append(next.setup.listeners, h.listener(root, i, n))
	}
	h.reloading.Lock()
	h.reloading.from, h.reloading.to = time.Now(), time.Time{}
	h.reloading.Unlock()
	h.admin(h.t, "POST", "/load", "text/caddyfile", strings.Replace(next.caddyfile(), "\tdebug\n", "", 1))
	h.configs.Add(1)
	h.reloading.Lock()
	h.reloading.to = time.Now()
	h.reloading.Unlock()
}

// reloadedSince reports whether configurations have changed since a time. Caddy
// ends the old one's servers, which takes a moment, when the new one runs.
func (h *hunt) reloadedSince(t time.Time) bool {
	h.reloading.Lock()
	defer h.reloading.Unlock()
	return !h.reloading.from.IsZero() && (h.reloading.to.IsZero() || h.reloading.to.Add(5*time.Second).After(t))
}

func (h *hunt) count(what string, n int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.counts[what] += n
}

// fails is for what must never happen.
func (h *hunt) fails(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.wrong++; h.wrong <= 20 {
		h.t.Errorf("after %v, network %s: %s", time.Since(h.begun).Round(time.Millisecond), h.network.Load(), fmt.Sprintf(format, args...))
	}
}

// networks are what a guest's loopback interface can be made to be: arguments of
// tc's netem, and the most that a socket may keep to send.
var networks = []struct{ name, netem, wmem string }{
	{"good", "", ""},
	{"with delay and jitter", "delay 2ms 2ms", ""},
	{"with loss", "loss 1%", ""},
	{"with reordering and duplicates", "delay 1ms reorder 25% 50% duplicate 2%", ""},
	{"of small buffers", "", "4096 4096 4096"},
	{"of small buffers, with loss", "loss 0.5%", "4096 8192 8192"},
}

// spoil makes the network what it is to be. In a guest only: that is nobody
// else's.
func (h *hunt) spoil(n int) error {
	to := networks[n]
	exec.Command("tc", "qdisc", "del", "dev", "lo", "root").Run() // fails if there is none
	if to.netem != "" {
		args := append(strings.Fields("qdisc add dev lo root netem limit 100000"), strings.Fields(to.netem)...)
		if out, err := exec.Command("tc", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("tc: %w: %s", err, out)
		}
	}
	wmem := to.wmem
	if wmem == "" {
		wmem = "4096 16384 4194304"
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/tcp_wmem", []byte(wmem), 0); err != nil {
		return err
	}
	h.network.Store(to.name)
	return nil
}

// knowsStandIn reports whether the Caddy under test has stand-in bytes that
// clients can look for.
func knowsStandIn(t *testing.T) bool {
	t.Helper()
	info, err := buildinfo.ReadFile(caddyBinary)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range info.Settings {
		if s.Key == "-tags" && slices.Contains(strings.Split(s.Value, ","), "ktls_standin") {
			return true
		}
	}
	return false
}

// TestHunt: no wrong byte, no answer that is cut without a reason, none whose
// client can't see that it was cut. integration/hunt runs it for long.
func TestHunt(t *testing.T) {
	limit, every := *huntResponses, 20*time.Second
	if limit == 0 && *huntTime == 0 {
		limit, every = 3000, time.Second
		switch {
		case slow:
			limit = 250
		case raceDetector:
			limit = 1000
		}
	}
	h := startHunt(t)
	h.t.Logf("seed %d, stand-in bytes known: %v", h.seed, knowsStandIn(t))
	root := filepath.Dir(h.files[0].path)

	var wg sync.WaitGroup
	background := func(part string, pause func(*rand.Rand) time.Duration, do func(n int, rng *rand.Rand) error) {
		rng := h.rng(part)
		wg.Go(func() {
			for n := 1; !h.over.Load(); n++ {
				if err := do(n, rng); err != nil {
					h.fails("%s: %v", part, err)
					return
				}
				for until := time.Now().Add(pause(rng)); !h.over.Load() && time.Now().Before(until); {
					time.Sleep(min(50*time.Millisecond, max(time.Until(until), time.Millisecond)))
				}
			}
		})
	}
	background("mutator", func(rng *rand.Rand) time.Duration { return time.Duration(rng.IntN(100)) * time.Millisecond },
		func(n int, rng *rand.Rand) error {
			f := h.files[rng.IntN(len(h.files))]
			for f.fate == steady {
				f = h.files[rng.IntN(len(h.files))]
			}
			h.count("changes of files: "+fates[f.fate], 1)
			return f.mutate(rng)
		})
	background("reloads", func(*rand.Rand) time.Duration { return every }, func(n int, _ *rand.Rand) error {
		h.reload(root, n)
		return nil
	})
	if os.Getenv("KTLS_KERNEL") != "" && os.Getuid() == 0 {
		defer h.spoil(0)
		small := false
		background("network", func(*rand.Rand) time.Duration { return every + every/2 }, func(n int, _ *rand.Rand) error {
			h.count("changes of the network", 1)
			to := 0 // mostly good
			if n%3 == 0 {
				to = 1 + n/3%(len(networks)-1)
			}
			if small {
				h.curl.Unlock()
			}
			if small = networks[to].wmem != ""; small {
				h.curl.Lock()
			}
			return h.spoil(to)
		})
	}
	for i := range *huntClients {
		wg.Go(func() {
			rng := h.rng(fmt.Sprint("client ", i))
			for !h.over.Load() {
				h.visit(rng)
				h.mu.Lock()
				responses := h.counts["responses"]
				bad := h.wrong
				h.mu.Unlock()
				if limit > 0 && responses >= int64(limit) || *huntTime > 0 && time.Since(h.begun) > *huntTime || bad > 20 {
					h.over.Store(true)
				}
			}
		})
	}
	if *huntTime > 0 || limit > 10000 {
		go h.progress()
	}
	wg.Wait()
	h.report()
}

func (h *hunt) progress() {
	for !h.over.Load() {
		time.Sleep(time.Minute)
		h.mu.Lock()
		fmt.Printf("hunt: %v: %d responses, %d cut, %d wrong\n", time.Since(h.begun).Round(time.Second), h.counts["responses"], h.counts["cut"], h.wrong)
		h.mu.Unlock()
	}
}

// report prints what was found, and checks that the hunt was one.
func (h *hunt) report() {
	t := h.t
	h.mu.Lock()
	defer h.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "kernel %s, %s, seed %d, stand-in bytes known: %v\n", os.Getenv("KTLS_KERNEL"), runtime.Version(), h.seed, knowsStandIn(t))
	fmt.Fprintf(&b, "%10d bytes of bodies, in %v, %d reloads\n", h.bytes, time.Since(h.begun).Round(time.Second), h.configs.Load())
	for _, name := range slices.Sorted(maps.Keys(h.counts)) {
		fmt.Fprintf(&b, "%10d %s\n", h.counts[name], name)
	}
	fmt.Fprintf(&b, "%10d wrong\n", h.wrong)
	var byFile, wrapped int64
	for _, r := range h.status(t).Responses {
		fmt.Fprintf(&b, "%10d server: path %s, reason %q, %d bytes\n", r.Count, r.Path, r.Reason, r.Bytes)
		if r.Reason == "" {
			byFile += r.Count
		}
		if r.Reason != "not_wrapped" { // as one of the configurations is, which chance may prefer
			wrapped += r.Count
		}
	}
	if kernel.ulp {
		stat, _ := os.ReadFile("/proc/net/tls_stat")
		b.Write(stat)
	}
	t.Log(b.String())
	if kernel.ulp && (byFile == 0 || byFile < wrapped/4) {
		t.Errorf("only %d responses of %d by sendfile", byFile, wrapped)
	}
}
