// Command hostile is Caddy with this module and a handler that treats what passes
// it as no handler should: for the tests of what stands next to ours. It isn't
// for any other use.
//
// In the Caddyfile, `hostile <place>`. What it does to a response is what the
// query's parameter with the name of the place says: see behaviours.
package main

import (
	"net/http"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	_ "github.com/caddy-ktls/caddy-ktls"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
)

func main() {
	caddy.RegisterModule(handler{})
	caddy.RegisterModule(fileSystem{})
	httpcaddyfile.RegisterHandlerDirective("hostile", parse)
	caddycmd.Main()
}

// handler is the hostile one.
type handler struct {
	Place string `json:"place"`
}

func (handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.hostile", New: func() caddy.Module { return new(handler) }}
}

func parse(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	h.Next()
	if !h.NextArg() {
		return nil, h.ArgErr()
	}
	return &handler{Place: h.Val()}, nil
}

// ServeHTTP passes the request on with a writer that behaves as asked.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	name := r.URL.Query().Get(h.Place)
	if name == "" {
		return next.ServeHTTP(w, r)
	}
	b, ok := behaviours[name]
	if !ok {
		return caddyhttp.Error(http.StatusNotImplemented, nil)
	}
	e := &exchange{behaviour: b, ResponseWriter: w, request: r}
	if b.serve != nil {
		return b.serve(e, next)
	}
	if b.begin != nil {
		b.begin(e)
	}
	err := next.ServeHTTP(e.writer(), r)
	if b.end != nil {
		b.end(e)
	}
	return err
}

// raw are the writers that handlers in front have left for those behind, and what
// was kept of responses that are over.
var raw, kept sync.Map
