package caddyktls

import (
	"net/http"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// writersBelow walks the chain of writers down to net/http's own. Stand-in
// bytes may pass only through types that are known to hand them on at once and
// as they are: a cache that stored them would serve them. It returns the lowest
// writer and those that keep the idle time-out, or the type that isn't known.
func writersBelow(w http.ResponseWriter) (lowest http.ResponseWriter, idle []idleWriter, unknown string) {
	for {
		switch v := w.(type) {
		case *caddyhttp.IdleTimeoutWriter:
			chunk := v.MaxChunk
			if chunk <= 0 {
				chunk = caddyhttp.DefaultMaxWriteChunk
			}
			idle = append(idle, idleWriter{v, int64(chunk)})
			w = v.Unwrap()
			continue
		case caddyhttp.ResponseRecorder:
			// Access log and metrics. Anyone may implement the interface, and a
			// recorder may buffer; only Caddy's own, not buffering, will do.
			if typeName(v) == "*"+caddyhttpPath+".responseRecorder" && !v.Buffered() {
				w = v.(interface{ Unwrap() http.ResponseWriter }).Unwrap()
				continue
			}
		}
		switch name := typeName(w); name {
		case "*net/http.response":
			return w, idle, ""
		case "*" + caddyhttpPath + ".readDeadlineWriter", "*" + caddyhttpPath + "/headers.responseWriterWrapper":
			w = w.(interface{ Unwrap() http.ResponseWriter }).Unwrap()
		default:
			if http2Servers()[name] != nil {
				return w, idle, ""
			}
			return nil, nil, name
		}
	}
}
