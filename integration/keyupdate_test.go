//go:build linux

package integration

import (
	"bufio"
	"fmt"
	"io"
	"testing"
)

// TestKeyUpdate: a client that changes its own key is served on, by the kernel
// as before. One that asks for a new key of the server's too gets it as long as
// crypto/tls has the key; afterwards it may be sent away, but gets no wrong byte.
func TestKeyUpdate(t *testing.T) {
	c := start(t, listener{wrappers: "ktls"})
	const local, both = "^rekey1^\n", "^rekey^\n"
	f := small // gnutls-cli writes every byte by itself
	for _, test := range []struct {
		name    string
		updates [3]string // before each of three requests
		refused int       // the first answer that may not come
	}{
		{"client's before the upgrade", [3]string{local, "", ""}, 3},
		{"client's after the upgrade", [3]string{"", local, local}, 3},
		{"both before the upgrade", [3]string{both, "", ""}, 3},
		{"both after the upgrade", [3]string{"", both, both}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			client, notes := c.gnutlsCommand(t, 0, "--inline-commands", "--priority=NORMAL:-VERS-ALL:+VERS-TLS1.3")
			stdin, err := client.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := client.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := client.Start(); err != nil {
				t.Fatal(err)
			}
			defer client.Wait()
			defer stdin.Close()
			r := bufio.NewReader(stdout)
			for n, update := range test.updates {
				uri := fmt.Sprintf("/%s?%x-%d", f.name, test.name, n)
				_, err := io.WriteString(stdin, update+"GET "+uri+" HTTP/1.1\r\nHost: localhost\r\n\r\n")
				if err != nil && n < test.refused {
					t.Fatal(err)
				}
				a, err := readAnswer(r)
				if err != nil {
					if n < test.refused || a.size > 0 {
						t.Errorf("answer %d: %v\n%s", n, err, notes())
					}
					t.Logf("answer %d: %v", n, err)
					break
				}
				a.isFile(t, f)
				c.tookFile(t, uri, f.size)
			}
		})
	}
	c.stillServes(t)
	if kernel.ulp {
		eventually(t, "the refused KeyUpdate is counted", func() bool {
			return c.scrape(t)[`caddy_ktls_rekeys_total{by="client",result="refused"`] == 1
		})
	}
}
