package caddyktls

import (
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/dustin/go-humanize"
)

// UnmarshalCaddyfile sets up the listener wrapper from Caddyfile tokens. Syntax:
//
//	ktls {
//	    upgrade           lazy|handshake
//	    handshake_timeout <duration>
//	    max_handshakes    <n>
//	    zerocopy_ro       on|off
//	    record_size       <bytes>
//	    key_limit         <records>
//	    rx                on|off
//	    require
//	}
func (w *ListenerWrapper) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume wrapper name
	if d.NextArg() {
		return d.ArgErr()
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		switch option := d.Val(); option {
		case "upgrade":
			if !d.AllArgs(&w.Upgrade) {
				return d.ArgErr()
			}
			if w.Upgrade != upgradeLazy && w.Upgrade != upgradeHandshake {
				return d.Errf("upgrade: '%s' is neither '%s' nor '%s'", w.Upgrade, upgradeLazy, upgradeHandshake)
			}
		case "handshake_timeout":
			var value string
			if !d.AllArgs(&value) {
				return d.ArgErr()
			}
			timeout, err := caddy.ParseDuration(value)
			if err != nil || timeout <= 0 {
				return d.Errf("handshake_timeout: '%s' is no duration above zero", value)
			}
			w.HandshakeTimeout = caddy.Duration(timeout)
		case "max_handshakes":
			n, err := parseNumber(d)
			if err != nil {
				return err
			}
			if n < 1 {
				return d.Errf("max_handshakes: '%s' is no number above zero", d.Val())
			}
			w.MaxHandshakes = n
		case "key_limit":
			n, err := parseNumber(d)
			if err != nil {
				return err
			}
			if n < minKeyLimit {
				return d.Errf("key_limit: '%s' is no number from %d on", d.Val(), minKeyLimit)
			}
			w.KeyLimit = uint64(n)
		case "record_size":
			n, err := parseNumber(d)
			if err != nil {
				return err
			}
			if n < minRecordSize || n > maxRecordSize {
				return d.Errf("record_size: '%s' is no number of bytes from %d to %d", d.Val(), minRecordSize, maxRecordSize)
			}
			w.RecordSize = n
		case "zerocopy_ro":
			if err := parseSwitch(d, &w.ZerocopyRO); err != nil {
				return err
			}
		case "rx":
			if err := parseSwitch(d, &w.RX); err != nil {
				return err
			}
		case "require":
			if d.NextArg() {
				return d.ArgErr()
			}
			w.Require = true
		default:
			return d.Errf("unknown option '%s' of listener wrapper ktls", option)
		}
	}
	return nil
}

// parseSwitch parses the one argument, on or off, of an option.
func parseSwitch(d *caddyfile.Dispenser, to *bool) error {
	option := d.Val()
	var value string
	if !d.AllArgs(&value) {
		return d.ArgErr()
	}
	switch value {
	case "on":
		*to = true
	case "off":
		*to = false
	default:
		return d.Errf("%s: '%s' is neither 'on' nor 'off'", option, value)
	}
	return nil
}

// parseNumber parses the one argument of an option. What is no number is -1.
func parseNumber(d *caddyfile.Dispenser) (int, error) {
	var value string
	if !d.AllArgs(&value) {
		return 0, d.ArgErr()
	}
	n, err := strconv.Atoi(value)
	if err != nil {
		return -1, nil
	}
	return n, nil
}

// parseHandler parses the ktls directive; see UnmarshalCaddyfile.
func parseHandler(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	handler := new(Handler)
	if err := handler.UnmarshalCaddyfile(h.Dispenser); err != nil {
		return nil, err
	}
	return handler, nil
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	ktls [<matcher>] [off] {
//	    min_size         <size>
//	    chunk            <size>
//	    http2            on|off
//	    http2_frame_size <size>
//	    allow_fs         <names...>
//	    deny_fs          <names...>
//	}
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume directive name
	if d.NextArg() {
		if d.Val() != "off" {
			return d.Errf("unknown argument '%s' of ktls: only 'off' is known", d.Val())
		}
		h.Off = true
		if d.NextArg() {
			return d.ArgErr()
		}
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		switch option := d.Val(); option {
		case "min_size":
			var value string
			if !d.AllArgs(&value) {
				return d.ArgErr()
			}
			size, err := humanize.ParseBytes(strings.TrimSpace(value))
			if err != nil || size == 0 || size > 1<<62 {
				return d.Errf("min_size: '%s' is no size above zero", value)
			}
			h.MinSize = int64(size)
		case "chunk":
			var value string
			if !d.AllArgs(&value) {
				return d.ArgErr()
			}
			size, err := humanize.ParseBytes(value)
			if err != nil || size < minChunk || size > maxChunk {
				return d.Errf("chunk: '%s' is no size from %s to %s", value, humanize.IBytes(minChunk), humanize.IBytes(maxChunk))
			}
			h.Chunk = int64(size)
		case "http2_frame_size":
			var value string
			if !d.AllArgs(&value) {
				return d.ArgErr()
			}
			size, err := humanize.ParseBytes(value)
			if err != nil || size < minFrameSize || size > maxFrameSize {
				return d.Errf("http2_frame_size: '%s' is no size from %s to %s", value, humanize.IBytes(minFrameSize), humanize.IBytes(maxFrameSize))
			}
			h.HTTP2FrameSize = int64(size)
		case "http2":
			var value string
			if !d.AllArgs(&value) {
				return d.ArgErr()
			}
			if value != "on" && value != "off" {
				return d.Errf("http2: '%s' is neither 'on' nor 'off'", value)
			}
			on := value == "on"
			h.HTTP2 = &on
		case "allow_fs", "deny_fs":
			names := d.RemainingArgs()
			if len(names) == 0 {
				return d.ArgErr()
			}
			for _, name := range names {
				if !knownFileSystem(name) {
					return d.Errf("%s: '%s' is no file system known here", option, name)
				}
			}
			if option == "allow_fs" {
				h.AllowFS = append(h.AllowFS, names...)
			} else {
				h.DenyFS = append(h.DenyFS, names...)
			}
		default:
			return d.Errf("unknown option '%s' of ktls", option)
		}
	}
	return nil
}
