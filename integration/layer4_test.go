//go:build linux

package integration

import (
	"fmt"
	"net"
	"os"
	"testing"
)

// TestLayer4: caddy-l4 in front, as a proxy of its own that tells the client's
// address, and as a listener wrapper before TLS. The proxy's connections are TCP
// like others; through the wrapper's, files go Caddy's way.
//
// KTLS_CADDY_L4 is what `go build` makes of integration/layer4.
func TestLayer4(t *testing.T) {
	notEmulated(t)
	binary := os.Getenv("KTLS_CADDY_L4")
	if binary == "" {
		t.Skip("KTLS_CADDY_L4 isn't set")
	}
	defer func(own string) { caddyBinary = own }(caddyBinary)
	caddyBinary = binary
	sites := []site{{body: tellingTLS()}}

	t.Run("proxy", func(t *testing.T) {
		front := freePorts(t, 3)
		c := setup{
			listeners: threefold(allow+"tls\nWRAPPER", listener{sites: sites}),
			patch: func(config map[string]any) {
				servers := map[string]any{}
				for name, server := range config["apps"].(map[string]any)["http"].(map[string]any)["servers"].(map[string]any) {
					server := server.(map[string]any)
					servers[name] = map[string]any{
						"listen": []string{fmt.Sprintf("127.0.0.1:%d", front+role(server))},
						"routes": []any{map[string]any{
							"match": []any{map[string]any{"tls": map[string]any{"sni": []string{"localhost"}}}},
							"handle": []any{map[string]any{
								"handler": "proxy", "proxy_protocol": "v2",
								"upstreams": []any{map[string]any{"dial": server["listen"]}},
							}},
						}},
					}
				}
				config["apps"].(map[string]any)["layer4"] = map[string]any{"servers": servers}
			},
		}.start(t)
		for _, alpn := range []string{"http/1.1", "h2"} {
			c.compare(t, visit{
				name: alpn, alpn: alpn, want: []string{`"remote_ip":"127.0.0.1","remote_port":"CLIENT"`, " 200 "},
				dial: func(i int) (net.Conn, error) { return net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", front+i)) },
			})
		}
	})
	t.Run("wrapper", func(t *testing.T) {
		routes := "layer4 {\n\t@tls tls sni localhost\n\troute @tls {\n\t\tsubroute\n\t}\n}\n"
		c := start(t, threefold(routes+"tls\nWRAPPER", listener{sites: sites})...)
		for _, alpn := range []string{"http/1.1", "h2"} {
			c.compare(t, visit{name: alpn, alpn: alpn, plain: "not_tcp", want: []string{" 200 "}})
		}
	})
}
