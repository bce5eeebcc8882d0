//go:build linux

package integration

import (
	"bufio"
	"bytes"
	"encoding/xml"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// TestH2spec: h2spec finds exactly what it finds with stock Caddy, where nothing
// is sent by sendfile, where the connection is upgraded first of all, and where
// every answer is a file, after which the server writes large frames.
func TestH2spec(t *testing.T) {
	notEmulated(t)
	program := os.Getenv("KTLS_H2SPEC")
	if program == "" {
		t.Skip("KTLS_H2SPEC names no h2spec: integration/run builds one")
	}
	hello := `respond /hello "hello"`
	// A Caddy each: they run side by side, as h2spec mostly waits.
	caddies := [3]*caddy{
		start(t, listener{sites: []site{{body: plainFiles(www, hello)}}}),
		start(t, listener{wrappers: "ktls", sites: []site{{body: files(hello)}}}),
		start(t, listener{wrappers: "ktls {\n\tupgrade handshake\n}", sites: []site{{body: files(hello)}}}),
	}
	upgrades := func(i int) int { return caddies[i].log.count(func(l *line) bool { return l.isUpgrade() }) }
	for _, path := range []string{"/hello", "/" + small.name} {
		t.Run(path[1:], func(t *testing.T) {
			var results [3]map[string]string
			var all sync.WaitGroup
			for i, c := range caddies {
				all.Go(func() {
					before := upgrades(i)
					results[i] = h2spec(t, program, c.addr(0), path)
					n := upgrades(i) - before
					if i == 0 || i == 1 && path == "/hello" || !kernel.ulp {
						if n != 0 {
							t.Errorf("caddy %d: %d connections were upgraded", i, n)
						}
					} else if n < 20 {
						t.Errorf("caddy %d: only %d connections were upgraded", i, n)
					}
				})
			}
			all.Wait()
			failed := 0
			for name, want := range results[0] {
				if want != "passed" {
					failed++
				}
				for i := 1; i < len(results); i++ {
					got := results[i][name]
					// How some cases end is a race between the tool and the
					// server, stock Caddy or not.
					for try := 0; got != want && try < 20; try++ {
						spec, _, _ := strings.Cut(name, ": ")
						for _, want = range h2spec(t, program, caddies[0].addr(0), path, spec) {
						}
						for _, got = range h2spec(t, program, caddies[i].addr(0), path, spec) {
						}
						t.Logf("caddy %d, again: %s: %s; with stock Caddy %s", i, name, got, want)
					}
					if got != want {
						t.Errorf("caddy %d: %s: %s; with stock Caddy %s", i, name, got, want)
					}
				}
			}
			t.Logf("%d cases, %d of which stock Caddy doesn't pass", len(results[0]), failed)
			if len(results[0]) < 90 {
				t.Errorf("only %d cases", len(results[0]))
			}
		})
	}
}

// h2spec returns how each case went: passed, failed or skipped; nothing if the
// program does no more than fail.
func h2spec(t *testing.T, program, addr, path string, specs ...string) map[string]string {
	t.Helper()
	report := filepath.Join(t.TempDir(), "report.xml")
	_, port, _ := net.SplitHostPort(addr)
	args := []string{"-t", "-k", "-h", "localhost", "-p", port, "-P", path, "-j", report}
	var out, b []byte
	var err, rerr error
	for range 5 { // it gives up altogether where a handshake takes it 2 seconds
		out, err = exec.Command(program, append(specs, args...)...).CombinedOutput() // fails if a case does
		if b, rerr = os.ReadFile(report); rerr == nil {
			break
		}
	}
	if rerr != nil {
		t.Errorf("h2spec: %v: %s", err, out)
		return nil
	}
	var suites struct {
		Suites []struct {
			Package string `xml:"package,attr"`
			Cases   []struct {
				Name    string    `xml:"classname,attr"`
				Failure *struct{} `xml:"failure"`
				Error   *struct{} `xml:"error"`
				Skipped *struct{} `xml:"skipped"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(b, &suites); err != nil {
		t.Error(err)
	}
	results := map[string]string{}
	for _, s := range suites.Suites {
		for n, each := range s.Cases {
			result := "passed"
			switch {
			case each.Failure != nil || each.Error != nil:
				result = "failed"
			case each.Skipped != nil:
				result = "skipped"
			}
			results[fmt.Sprintf("%s/%d: %s", s.Package, n+1, each.Name)] = result
		}
	}
	return results
}

// TestCurlParallel: many transfers of curl's at once, over one connection.
func TestCurlParallel(t *testing.T) {
	c := start(t, listener{wrappers: "ktls"})
	check := countUpgrades(t)
	var urls []string
	var of []file
	for n := range 50 {
		f := whole[(n*7)%(len(whole)-1)]
		of = append(of, f)
		urls = append(urls, c.url(0, fmt.Sprintf("/%s?%d", f.name, n)))
	}
	connections := 0
	byURL := map[string]transfer{}
	for _, tr := range c.curl(t, 0, urls, "--http2", "--parallel", "--parallel-max", "50", "--no-progress-meter") {
		byURL[tr.URL] = tr
		connections += tr.NumConnects
		if tr.HTTP != "2" {
			t.Errorf("%s: HTTP/%s", tr.URL, tr.HTTP)
		}
	}
	for n, f := range of {
		byURL[urls[n]].isFile(t, f)
		if uri := fmt.Sprintf("/%s?%d", f.name, n); f.size > 0 {
			c.tookFile(t, uri, f.size)
		}
	}
	if connections != 1 {
		t.Errorf("%d connections", connections)
	}
	check(t, 1)
}

// TestNghttp: nghttp with windows small and large.
func TestNghttp(t *testing.T) {
	c := start(t, listener{wrappers: "ktls"})
	for _, windows := range [][]string{{}, {"-w10", "-W10"}, {"-w14", "-W16"}, {"-w30", "-W30"}, {"-w16", "-W24", "--no-dep"}} {
		of := []file{small, ofSize(65537), ofSize(mib), medium, large}
		if len(windows) > 0 && windows[0] == "-w10" {
			of = of[:3] // a KiB at a time
		} else if slow {
			of = of[:4]
		}
		check := countUpgrades(t)
		for _, f := range of {
			uri := "/" + f.name + "?nghttp" + strings.Join(windows, "")
			var stderr bytes.Buffer
			cmd := exec.Command(command(t, "nghttp"), append(windows, "--no-verify-peer", c.url(0, uri))...)
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil {
				t.Errorf("nghttp %v: %v: %s", windows, err, stderr.String())
			}
			checkBody(t, uri, int64(len(out)), sum(out), f.size, f.sum)
			c.tookFile(t, uri, f.size)
		}
		check(t, len(of))
	}
}

var (
	h2loadDone  = regexp.MustCompile(`requests: (\d+) total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored`)
	h2loadBytes = regexp.MustCompile(`\((\d+)\) data`)
)

// TestH2load: many streams on a few connections, as a load generator makes them.
func TestH2load(t *testing.T) {
	c := start(t, listener{wrappers: "ktls"})
	some := []file{ofSize(mib), ofSize(65537), medium, small}
	const requests, connections = 80, 4
	check := countUpgrades(t)
	var want int64
	list := filepath.Join(t.TempDir(), "urls")
	f, err := os.Create(list)
	if err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriter(f)
	for _, each := range some {
		fmt.Fprintln(w, c.url(0, "/"+each.name+"?h2load"))
		want += requests / int64(len(some)) * each.size
	}
	if err := firstError(w.Flush(), f.Close()); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(command(t, "h2load"), "-n", strconv.Itoa(requests), "-c", strconv.Itoa(connections), "-m", "20", "-i", list)
	out, err := cmd.CombinedOutput()
	done, data := h2loadDone.FindSubmatch(out), h2loadBytes.FindSubmatch(out)
	if err != nil || done == nil || data == nil || string(done[3]) != strconv.Itoa(requests) {
		t.Fatalf("h2load: %v: %s", err, out)
	}
	if string(data[1]) != strconv.FormatInt(want, 10) {
		t.Errorf("%s bytes of data, want %d", data[1], want)
	}
	for _, each := range some {
		for range requests / len(some) {
			c.tookFile(t, "/"+each.name+"?h2load", each.size)
		}
	}
	check(t, connections)
}
