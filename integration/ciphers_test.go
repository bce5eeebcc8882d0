//go:build linux

package integration

import "testing"

// TestCiphers: every version and cipher the kernel has carries files, and what
// it does not have leaves them to Caddy.
func TestCiphers(t *testing.T) {
	tests := []struct {
		host    string // of the site that takes this suite alone
		suite   string // Go's name of it
		version string // as in the log
		cipher  string
		args    []string // of curl
		tls     string   // further lines of the tls directive
	}{
		{"s13a.localhost", "", "TLS 1.3", "AES-128-GCM", []string{"--tls13-ciphers", "TLS_AES_128_GCM_SHA256"}, ""},
		{"s13b.localhost", "", "TLS 1.3", "AES-256-GCM", []string{"--tls13-ciphers", "TLS_AES_256_GCM_SHA384"}, ""},
		{"s13c.localhost", "", "TLS 1.3", "CHACHA20-POLY1305", []string{"--tls13-ciphers", "TLS_CHACHA20_POLY1305_SHA256"}, ""},
		{"s12a.localhost", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS 1.2", "AES-128-GCM", nil, ""},
		{"s12b.localhost", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "TLS 1.2", "AES-256-GCM", nil, ""},
		{"s12c.localhost", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "TLS 1.2", "CHACHA20-POLY1305", nil, ""},
		{"s12rsa.localhost", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS 1.2", "AES-128-GCM", nil, "key_type rsa2048"},
		{"s12cbc.localhost", "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA", "TLS 1.2", "", nil, ""},
	}
	var sites []site
	for _, test := range tests {
		config := "protocols tls1.3"
		if test.suite != "" {
			config = "protocols tls1.2 tls1.2\nciphers " + test.suite
		}
		sites = append(sites, site{host: test.host, body: files("tls {", config, test.tls, "}")})
	}
	c := start(t, listener{wrappers: "ktls", sites: sites})

	for j, test := range tests {
		t.Run(test.version+"/"+either(test.cipher, "CBC")+"/"+test.host, func(t *testing.T) {
			check := countUpgrades(t)
			uri, smallURI := "/"+medium.name+"?"+test.host, "/"+small.name+"?"+test.host
			urls := []string{c.urlOf(0, j, smallURI), c.urlOf(0, j, uri)}
			all := c.curl(t, 0, urls, append(test.args, "--http1.1")...)
			all[0].isFile(t, small)
			all[1].isFile(t, medium)
			switch {
			case test.cipher == "", kernel.ulp && !kernel.ciphers[[2]string{test.version, test.cipher}]:
				if required && test.cipher != "" {
					t.Errorf("this kernel has no %s with %s", test.cipher, test.version)
				}
				reason := "kernel"
				if test.cipher == "" {
					reason = "cipher"
				}
				c.tookPlain(t, smallURI, reason)
				c.tookPlain(t, uri, reason)
				check(t, 0)
			default:
				c.tookFile(t, smallURI, small.size)
				l := c.tookFile(t, uri, medium.size)
				check(t, 1)
				if kernel.ulp {
					if u := c.upgradeOf(t, l); u.Version != test.version || u.Cipher != test.cipher {
						t.Errorf("the log says %s, %s", u.Version, u.Cipher)
					}
				}
			}
		})
	}
}
