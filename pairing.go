package caddyktls

import (
	"context"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-ktls/caddy-ktls/internal/lockorder"
)

// pairs knows which of the servers that are configured have the listener wrapper
// and which the handler: either is of little use without the other. Caddy
// provisions a server's wrappers before its routes (error routes and named routes
// too), and starts listening after both.
var pairs = pairing{servers: map[*caddyhttp.Server]*pair{}}

type pairing struct {
	mu      lockorder.Mutex[lockorder.Leaf]
	servers map[*caddyhttp.Server]*pair
}

type pair struct{ wrapper, handler, said bool }

// of returns the entry of a server, which goes when its configuration does.
func (p *pairing) of(ctx caddy.Context, server *caddyhttp.Server) *pair {
	e := p.servers[server]
	if e == nil {
		e = new(pair)
		p.servers[server] = e
		context.AfterFunc(ctx, func() {
			p.mu.Lock()
			delete(p.servers, server)
			p.mu.Unlock()
		})
	}
	return e
}

// wrapper notes that a server has the listener wrapper.
func (p *pairing) wrapper(ctx caddy.Context, server *caddyhttp.Server) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.of(ctx, server).wrapper = true
}

// handler notes that a server has a handler that isn't off. It says so once if
// there is no wrapper for it. Where there is no TLS there is nothing to say.
func (p *pairing) handler(ctx caddy.Context, server *caddyhttp.Server, logger *zap.Logger) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.of(ctx, server)
	e.handler = true
	if !e.wrapper && !e.said && len(server.TLSConnPolicies) > 0 {
		e.said = true
		logger.Warn("ktls directive without the ktls listener wrapper: responses are served as without it",
			zap.String("server", server.Name()), zap.Strings("listen", server.Listen))
	}
}

// serving says, once for each server that begins to listen with the wrapper, if
// it has no handler.
func (p *pairing) serving(server *caddyhttp.Server, logger *zap.Logger) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.servers[server]
	if e == nil || e.handler || e.said {
		return
	}
	e.said = true
	logger.Info("ktls listener wrapper without the ktls directive: no response is sent by sendfile",
		zap.String("server", server.Name()), zap.Strings("listen", server.Listen))
}
