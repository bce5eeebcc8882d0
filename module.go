// Package caddyktls hands the record encryption of Caddy's HTTPS connections
// to the Linux kernel (kTLS) after Caddy's own handshake, and lets file_server
// answer with sendfile, so that a file's bytes never pass through user space.
//
// It has two modules: the listener wrapper caddy.listeners.ktls
// ([ListenerWrapper]) and the handler http.handlers.ktls ([Handler]). Package
// ktls below it is the kernel TLS connection itself and knows nothing of Caddy.
package caddyktls

import (
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
)

func init() {
	caddy.RegisterModule(ListenerWrapper{})
	caddy.RegisterModule(Handler{})
	caddy.RegisterModule(adminAPI{})
	httpcaddyfile.RegisterHandlerDirective("ktls", parseHandler)
	httpcaddyfile.RegisterDirectiveOrder("ktls", httpcaddyfile.Before, "encode")
}
