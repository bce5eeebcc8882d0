//go:build linux

package integration

import (
	"net/http"
	"strings"
	"testing"
)

// TestReload: a new config while a file is being sent and another connection
// waits for its next request.
func TestReload(t *testing.T) {
	c := start(t, listener{wrappers: "ktls"})
	idle := c.goClient(t, 0, "h1")
	idle.get(t, c.url(0, "/"+medium.name+"?before")).isFile(t, medium)
	c.tookFile(t, "/"+medium.name+"?before", medium.size)
	d := c.stalled(t, 0, "/"+large.name+"?during")

	// `caddy reload` waits for the old server no longer than grace_period.
	config := strings.Replace(c.caddyfile(), "grace_period 2s", "grace_period 10m", 1)
	config = strings.Replace(config, "\tfile_server\n", "\theader X-Config new\n\tfile_server\n", 1)
	done := make(chan bool)
	go func() {
		defer close(done)
		c.admin(t, "POST", "/load", "text/caddyfile", config)
	}()
	probe := c.goClient(t, 0, "h1", func(tr *http.Transport) { tr.DisableKeepAlives = true })
	eventually(t, "new connections get the new config", func() bool {
		// A handshake under way in the old server ends with it, as it does
		// in stock Caddy: such a connection is tried again.
		a, err := probe.do(newRequest(t, "GET", c.url(0, "/"+tiny.name)))
		return err == nil && a.header.Get("X-Config") == "new"
	})
	n, got, err := sumReader(d.resp.Body)
	if err != nil {
		t.Error(err)
	}
	checkBody(t, "what was being sent", n, got, large.size, large.sum)
	c.tookFile(t, "/"+large.name+"?during", large.size)
	d.tcp.Close()
	<-done

	check := countUpgrades(t)
	client := c.goClient(t, 0, "h1")
	client.get(t, c.url(0, "/"+medium.name+"?after")).isFile(t, medium)
	c.tookFile(t, "/"+medium.name+"?after", medium.size)
	check(t, 1)
	idle.get(t, c.url(0, "/"+medium.name+"?idle")).isFile(t, medium)
	c.tookFile(t, "/"+medium.name+"?idle", medium.size)
}
