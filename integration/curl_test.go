//go:build linux

package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"testing"
)

// transfer is what curl says about one transfer, and the body it stored.
type transfer struct {
	URL         string `json:"url"`
	Status      int    `json:"http_code"`
	HTTP        string `json:"http_version"`
	NumConnects int    `json:"num_connects"`
	ExitCode    int    `json:"exitcode"`
	Error       string `json:"errormsg"`
	Stored      string `json:"filename_effective"`
}

// curl fetches URLs of listener i, one after the other and, where it can, over
// one connection. It returns the transfers in the order they ended.
func (c *caddy) curl(t *testing.T, i int, urls []string, args ...string) []transfer {
	t.Helper()
	dir := t.TempDir()
	args = append([]string{
		"--silent", "--show-error", "--cacert", rootFile(), "--write-out", "%{json}\n",
		"--max-time", fmt.Sprint(int(patience.Seconds())),
	}, args...)
	host, port, err := net.SplitHostPort(c.addr(i))
	if err != nil {
		t.Fatal(err)
	}
	args = append(args, "--connect-to", fmt.Sprintf("::[%s]:%s", host, port))
	for n, url := range urls {
		args = append(args, url, "--output", filepath.Join(dir, fmt.Sprint(n)))
	}
	cmd := exec.Command(command(t, "curl"), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Errorf("curl: %v: %s", err, stderr.String())
	}
	var all []transfer
	for d := json.NewDecoder(&stdout); d.More(); {
		var tr transfer
		if err := d.Decode(&tr); err != nil {
			t.Fatalf("curl's report: %v", err)
		}
		all = append(all, tr)
	}
	if len(all) != len(urls) {
		t.Fatalf("curl reports on %d transfers of %d", len(all), len(urls))
	}
	return all
}

// isFile checks that curl stored the whole of a file.
func (tr transfer) isFile(t *testing.T, f file) {
	t.Helper()
	if tr.Status != 200 || tr.ExitCode != 0 {
		t.Errorf("%s: status %d, curl exit code %d %s", tr.URL, tr.Status, tr.ExitCode, tr.Error)
	}
	size, sum, err := sumFile(tr.Stored)
	if err != nil && f.size > 0 { // curl makes no file for no body
		t.Error(err)
		return
	}
	if err == nil || f.size > 0 {
		checkBody(t, f.name, size, sum, f.size, f.sum)
	}
}
