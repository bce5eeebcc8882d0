//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTable(t *testing.T) {
	one := func(server string, instructions int64, sc scenario) result {
		return result{Kernel: "7.3", Server: server, Version: server + " 1", scenario: sc, Instructions: instructions, Cipher: "AES", Curve: "X25519"}
	}
	small := scenario{"h1", decrypting, 1 << 10, 1, 1, 10, "1.3"}
	fewer := small // the garbage collector decides how many are taken
	fewer.Requests = 5
	large := scenario{"h2", storing, 16 << 20, 1, 8, 4, "1.3"}
	fresh := scenario{"h1", handshaking, 1 << 10, 1, 1, 100, "1.3"}
	results := []result{
		one("caddy", 2_000_000, small), one("caddy", 250_000_000, fresh), one("caddy", 600_000_000, large),
		one("caddy-ktls", 1_010_000, fewer), one("caddy-ktls", 300_000_000, large),
	}
	got := tablesOf(t, results)
	const want = `### HTTP/1.1, Linux 7.3

| body | connections |  | caddy | caddy-ktls | ratio |
| --: | --: | --- | --: | --: | --: |
| 1 KiB | 1 | 10³/request | 200 | 202 | 1.01 |
| 1 KiB | new | 10³/request | 2500 | | |

### HTTP/2, Linux 7.3

| body | connections | streams |  | caddy | caddy-ktls | ratio |
| --: | --: | --: | --- | --: | --: | --: |
| 16 MiB | 1 | 8 | 10⁹/GiB | 9.60 | 4.80 | 0.50 |

- caddy: caddy 1; AES, X25519
- caddy-ktls: caddy-ktls 1; AES, X25519
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestTableTellsErrors(t *testing.T) {
	small := scenario{"h1", decrypting, 1 << 10, 1, 1, 10, "1.3"}
	one := func(server string, err float64) result {
		return result{Kernel: "7.3", Server: server, scenario: small, Instructions: 1000, Error: err}
	}
	for want, results := range map[string][]result{
		"\nThe standard error is at most 0.5 % for 2 of 2 figures.\n":                                   {one("caddy", 0.005), one("nginx", 0.001)},
		"\nThe standard error is at most 0.5 % for 1 of 2 figures, and at most 1.2 % for the others.\n": {one("caddy", 0.012), one("nginx", 0.001), one("lighttpd", 0)},
	} {
		if got := tablesOf(t, results); !strings.Contains(got, want) {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
	if got := tablesOf(t, []result{one("caddy", 0)}); strings.Contains(got, "error") {
		t.Errorf("an error of none:\n%s", got)
	}
}

func TestResultsMustBeMeasurements(t *testing.T) {
	name := filepath.Join(t.TempDir(), "results.jsonl")
	for _, text := range []string{"not JSON\n", "{}\n", `{"body":1024,"requests":10,"instructions":0}` + "\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readResults([]string{name}); err == nil {
			t.Errorf("%q is taken for a result", text)
		}
	}
}

func TestTablesOfTimeAndMemory(t *testing.T) {
	small := scenario{"h1", decrypting, 1 << 10, 1, 1, 1000, "1.3"}
	old, plain, idle := small, small, scenario{"h1", idling, 256 << 10, 1000, 1, 1000, "1.3"}
	old.TLS, plain.TLS = "1.2", "none"
	took := func(cpu int64) *times { return &times{CPU: cpu, Busy: 1e8, Median: 90_000, P99: 250_000} }
	const kernel = "7.3"
	results := []result{
		{Kernel: kernel, Server: "caddy", Version: "1", scenario: small, Time: took(5e7), Cipher: "AES", Curve: "X25519"},
		{Kernel: kernel, Server: "caddy", Version: "1", scenario: old, Time: took(6e7), Cipher: "AES", Curve: "X25519", KernelTLS: 1},
		{Kernel: kernel, Server: "caddy-clear", Version: "1", scenario: plain, Time: took(4e7)},
		{Kernel: kernel, Server: "caddy", Version: "1", scenario: idle, Memory: &usage{Anonymous: 30 << 10, Heap: 15 << 10, Sockets: 512}, Cipher: "AES", Curve: "X25519"},
	}
	got := tablesOf(t, results)
	const want = `### HTTP/1.1 in seconds, Linux 7.3

| body | connections | TLS |  | caddy | caddy-clear | ratio |
| --: | --: | --- | --- | --: | --: | --: |
| 1 KiB | 1 | 1.3 | µs/request | 50.0 | 40.0 | 0.80 |
| 1 KiB | 1 | 1.2 | µs/request | 60.0 | | |

MB/s; milliseconds from a request to its last byte: median, and what one in a hundred exceeds.

| body | connections | TLS | caddy: MB/s | median | p99 | caddy-clear: MB/s | median | p99 |
| --: | --: | --- | --: | --: | --: | --: | --: | --: |
| 1 KiB | 1 | 1.3 | 10.2 | 0.09 | 0.25 | 10.2 | 0.09 | 0.25 |
| 1 KiB | 1 | 1.2 | 10.2 | 0.09 | 0.25 | | | |

### Memory, Linux 7.3

Idle: KiB for each connection. Slow: MiB for all clients together, at the highest.

|  |  | connections | server's memory | Go heap | Go stacks | kernel's slab | TCP's buffers |
| --- | --- | --: | --: | --: | --: | --: | --: |
| idle, HTTP/1.1 | caddy | 1000 | 30.0 | 15.0 | | | 0.5 |

- caddy: 1; AES, X25519; kernel TLS
- caddy-clear: 1; no TLS
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// tablesOf are the tables of results that were written to a file and read again.
func tablesOf(t *testing.T, results []result) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "results.jsonl")
	var lines bytes.Buffer
	for _, r := range results {
		if err := json.NewEncoder(&lines).Encode(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(name, lines.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	read, err := readResults([]string{name})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := writeTables(&out, read); err != nil {
		t.Fatal(err)
	}
	return out.String()
}
