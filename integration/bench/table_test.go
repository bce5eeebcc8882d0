//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

func TestTable(t *testing.T) {
	one := func(server string, instructions int64, sc scenario) result {
		return result{Kernel: "7.3", Server: server, Version: server + " 1", scenario: sc, Instructions: instructions, Cipher: "AES", Curve: "X25519"}
	}
	small := scenario{"h1", decrypting, 1 << 10, 1, 1, 10}
	fewer := small // the garbage collector decides how many are taken
	fewer.Requests = 5
	large := scenario{"h2", storing, 16 << 20, 1, 8, 4}
	fresh := scenario{"h1", handshaking, 1 << 10, 1, 1, 100}
	results := []result{
		one("caddy", 2_000_000, small), one("caddy", 250_000_000, fresh), one("caddy", 600_000_000, large),
		one("caddy-ktls", 1_010_000, fewer), one("caddy-ktls", 300_000_000, large),
	}
	name := filepath.Join(t.TempDir(), "results.jsonl")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		if err := json.NewEncoder(f).Encode(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
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
	const want = `### HTTP/1.1, Linux 7.3

| body | connections | | caddy | caddy-ktls | ratio |
| --: | --: | --- | --: | --: | --: |
| 1 KiB | 1 | 10³/request | 200 | 202 | 1.01 |
| 1 KiB | new | 10³/request | 2500 | | |

### HTTP/2, Linux 7.3

| body | connections | streams | | caddy | caddy-ktls | ratio |
| --: | --: | --: | --- | --: | --: | --: |
| 16 MiB | 1 | 8 | 10⁹/GiB | 9.60 | 4.80 | 0.50 |

- caddy: caddy 1; AES, X25519
- caddy-ktls: caddy-ktls 1; AES, X25519
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
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
