//go:build linux

package integration

import (
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"testing"
)

// TestWholeFiles fetches a file of every size with every client, from a
// connection that is upgraded when it is needed and from one that is at once.
func TestWholeFiles(t *testing.T) {
	for _, upgrade := range []string{"lazy", "handshake"} {
		t.Run(upgrade, func(t *testing.T) {
			c := start(t, listener{wrappers: "ktls {\n\tupgrade " + upgrade + "\n}"})

			for _, proto := range []string{"h1", "h2"} {
				t.Run("curl/"+proto, func(t *testing.T) {
					check := countUpgrades(t)
					flag := map[string]string{"h1": "--http1.1", "h2": "--http2"}[proto]
					var urls []string
					for _, f := range whole {
						urls = append(urls, c.url(0, "/"+f.name+"?curl-"+proto))
					}
					all := c.curl(t, 0, urls, flag)
					for n, f := range whole {
						all[n].isFile(t, f)
						if want := map[bool]int{true: 1}[n == 0]; all[n].NumConnects != want {
							t.Errorf("%s: %d connections made, want %d", f.name, all[n].NumConnects, want)
						}
						c.tookWhole(t, "/"+f.name+"?curl-"+proto, f, upgrade)
					}
					check(t, 1)
				})
				t.Run("go/"+proto, func(t *testing.T) {
					check := countUpgrades(t)
					client := c.goClient(t, 0, proto)
					for _, f := range whole {
						uri := "/" + f.name + "?go-" + proto
						client.get(t, c.url(0, uri)).isFile(t, f)
						c.tookWhole(t, uri, f, upgrade)
					}
					if n := client.conns.Load(); n != 1 {
						t.Errorf("%d connections", n)
					}
					check(t, 1)
				})
			}
			t.Run("gnutls-cli", func(t *testing.T) {
				// gnutls-cli writes every byte it gets by itself: no large ones.
				some := []file{empty, tiny, small, ofSize(16385), ofSize(65537)}
				upgraded := len(some)
				if upgrade == "lazy" {
					upgraded -= 2 // the first two don't need it
				}
				check := countUpgrades(t)
				for _, f := range some {
					uri := "/" + f.name + "?gnutls"
					c.gnutls(t, 0, lastRequest(uri)).isFile(t, f)
					c.tookWhole(t, uri, f, upgrade)
				}
				check(t, upgraded)
			})
		})
	}
}

// tookWhole checks the path of a whole file.
func (c *caddy) tookWhole(t *testing.T, uri string, f file, upgrade string) {
	t.Helper()
	if f.size == 0 {
		c.tookPlain(t, uri, "")
		return
	}
	l := c.tookFile(t, uri, f.size)
	// An HTTP/2 client may leave as soon as it has all bytes, before the
	// server has counted them; stock Caddy's log shows the same.
	if l.Request.Proto == "HTTP/1.1" && l.Size != f.size {
		t.Errorf("%s: the access log says %d bytes", uri, l.Size)
	}
	if l.KTLS != nil && l.KTLS.Path == "sendfile" {
		if u := c.upgradeOf(t, l); u.Upgrade != upgrade {
			t.Errorf("%s: the log says upgrade %q, want %q", uri, u.Upgrade, upgrade)
		}
	}
}

// TestMinSize: bodies below min_size go the plain way, others don't.
func TestMinSize(t *testing.T) {
	body := plainFiles(www, "ktls {", "min_size 16KiB", "}")
	c := start(t, listener{wrappers: "ktls", sites: []site{{body: body}}})
	client := c.goClient(t, 0, "h1")
	for _, f := range whole {
		uri := "/" + f.name
		if f.size > 65537 {
			break
		}
		client.get(t, c.url(0, uri)).isFile(t, f)
		if f.size < 16*kib {
			c.tookPlain(t, uri, "too_small")
		} else {
			c.tookFile(t, uri, f.size)
		}
	}
}

// TestDefaultMinSize: over HTTP/2 sendfile pays for smaller bodies.
func TestDefaultMinSize(t *testing.T) {
	root := t.TempDir()
	c := start(t, listener{wrappers: "ktls", sites: []site{{body: plainFiles(root, "ktls")}}})
	for _, proto := range []string{"h1", "h2"} {
		client := c.goClient(t, 0, proto)
		least := map[string]int64{"h1": 256 * kib, "h2": 128 * kib}[proto]
		for _, size := range []int64{least - 1, least} {
			f, err := makeFile(root, fmt.Sprintf("%d.bin", size), size)
			if err != nil {
				t.Fatal(err)
			}
			uri := "/" + f.name + "?" + proto
			client.get(t, c.url(0, uri)).isFile(t, f)
			if size < least {
				c.tookPlain(t, uri, "too_small")
			} else {
				c.tookFile(t, uri, size)
			}
		}
	}
}

// TestChunk: however much goes with one write, all of the file arrives.
func TestChunk(t *testing.T) {
	chunks := []string{"64KiB", "100000", "1MiB", "2MiB"}
	var sites []site
	for n, chunk := range chunks {
		sites = append(sites, site{host: fmt.Sprintf("c%d.localhost", n), body: plainFiles(www, "ktls {", "min_size 1", "chunk "+chunk, "}")})
	}
	c := start(t, listener{wrappers: "ktls", sites: sites})
	client := c.goClient(t, 0, "h1")
	for n, chunk := range chunks {
		t.Run(chunk, func(t *testing.T) {
			for _, f := range []file{small, ofSize(65535), ofSize(65536), ofSize(65537), ofSize(mib), medium, large} {
				uri := fmt.Sprintf("/%s?%s", f.name, chunk)
				client.get(t, c.urlOf(0, n, uri)).isFile(t, f)
				c.tookFile(t, uri, f.size)
			}
		})
	}
}

// TestDefaults: without a word of configuration a large file goes by sendfile
// and a small one does not, on a connection that was not upgraded before.
func TestDefaults(t *testing.T) {
	c := start(t, listener{wrappers: "ktls", sites: []site{{body: plainFiles(www, "ktls")}}})
	client := c.goClient(t, 0, "h1")
	check := countUpgrades(t)
	client.get(t, c.url(0, "/"+tiny.name)).isFile(t, tiny)
	c.tookPlain(t, "/"+tiny.name, "too_small")
	check(t, 0)
	client.get(t, c.url(0, "/"+big.name)).isFile(t, big)
	l := c.tookFile(t, "/"+big.name, big.size)
	check(t, 1)
	if kernel.ulp {
		if u := c.upgradeOf(t, l); u.Upgrade != "lazy" {
			t.Errorf("upgrade %q by default", u.Upgrade)
		}
	}
}

// TestOff: `ktls off` leaves a site to stock Caddy, and a matcher part of it.
func TestOff(t *testing.T) {
	c := start(t, listener{wrappers: "ktls", sites: []site{
		{body: plainFiles(www, "ktls off")},
		{host: "some.localhost", body: plainFiles(www, "ktls /1*")},
	}})
	check := countUpgrades(t)
	off := c.goClient(t, 0, "h1")
	off.get(t, c.url(0, "/"+big.name)).isFile(t, big)
	c.tookPlain(t, "/"+big.name, "")
	some := c.goClient(t, 0, "h1", func(tr *http.Transport) { tr.TLSClientConfig.ServerName = "some.localhost" })
	some.get(t, c.urlOf(0, 1, "/"+medium.name+"?not-matched")).isFile(t, medium)
	c.tookPlain(t, "/"+medium.name+"?not-matched", "")
	check(t, 0)
	mibFile := ofSize(mib)
	some.get(t, c.urlOf(0, 1, "/"+mibFile.name)).isFile(t, mibFile)
	c.tookFile(t, "/"+mibFile.name, mibFile.size)
	check(t, 1)
}

// TestParallelDownloads: eight files at a time, over a connection each and,
// with HTTP/2, all over one.
func TestParallelDownloads(t *testing.T) {
	const n = 8
	root := t.TempDir()
	size := int64(4 * mib)
	if slow {
		size = mib
	}
	var all []file
	for i := range n {
		all = append(all, newFile(t, root, fmt.Sprintf("parallel%d.bin", i), size+int64(i)))
	}
	c := start(t, listener{wrappers: "ktls", sites: []site{{body: filesFrom(root)}}})

	t.Run("curl", func(t *testing.T) {
		check := countUpgrades(t)
		var urls []string
		for _, f := range all {
			urls = append(urls, c.url(0, "/"+f.name+"?curl"))
		}
		got := map[string]transfer{}
		for _, tr := range c.curl(t, 0, urls, "--http1.1", "--parallel", "--parallel-immediate") {
			got[tr.URL] = tr
		}
		for i, f := range all {
			got[urls[i]].isFile(t, f)
			c.tookFile(t, "/"+f.name+"?curl", f.size)
		}
		check(t, n)
	})
	for _, proto := range []string{"h1", "h2"} {
		t.Run("go/"+proto, func(t *testing.T) {
			check := countUpgrades(t)
			client := c.goClient(t, 0, proto)
			client.Transport.(*http.Transport).MaxIdleConnsPerHost = n
			if proto == "h2" { // so that all find the connection there
				client.get(t, c.url(0, "/"+all[0].name+"?first")).isFile(t, all[0])
			}
			answers, errs := make([]answer, n), make([]error, n)
			var wg sync.WaitGroup
			for i, f := range all {
				req := newRequest(t, "GET", c.url(0, "/"+f.name+"?go-"+proto))
				wg.Go(func() { answers[i], errs[i] = client.do(req) })
			}
			wg.Wait()
			ports := map[string]bool{} // fewer than were dialled, if one became free in time
			for i, f := range all {
				if errs[i] != nil {
					t.Errorf("%s: %v", f.name, errs[i])
					continue
				}
				answers[i].isFile(t, f)
				ports[c.tookFile(t, "/"+f.name+"?go-"+proto, f.size).Request.RemotePort] = true
			}
			if proto == "h2" && len(ports) != 1 {
				t.Errorf("%d connections for HTTP/2", len(ports))
			}
			check(t, len(ports))
		})
	}
}

// TestContentTypes: what a file is called decides on a header, not on its path.
func TestContentTypes(t *testing.T) {
	root := t.TempDir()
	c := start(t, listener{wrappers: "ktls", sites: []site{{body: filesFrom(root)}}})
	client := c.goClient(t, 0, "h1")
	for _, name := range []string{"page.html", "noextension", "unknown.extension", ".hidden", "a space & ümlaut.bin"} {
		f := newFile(t, root, name, 70001)
		uri := "/" + url.PathEscape(name)
		client.get(t, c.url(0, uri)).isFile(t, f)
		c.tookFile(t, uri, f.size)
	}
}

// TestOneProtocol: with a single protocol Caddy puts one wrapper more round
// the connection.
func TestOneProtocol(t *testing.T) {
	c := start(t,
		listener{wrappers: "ktls", protos: "h1"},
		listener{wrappers: "ktls", protos: "h2"},
	)
	for i, proto := range []string{"h1", "h2"} {
		t.Run(proto, func(t *testing.T) {
			check := countUpgrades(t)
			client := c.goClient(t, i, proto)
			for _, f := range []file{tiny, small, large} {
				uri := "/" + f.name + "?" + proto
				client.get(t, c.url(i, uri)).isFile(t, f)
				c.tookFile(t, uri, f.size)
			}
			check(t, 1)
		})
	}
}
