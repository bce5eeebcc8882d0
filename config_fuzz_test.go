package caddyktls

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// dispense returns the tokens of a segment of a Caddyfile, or nil if there are
// none. It stands, as Caddy has it, before the first of them.
func dispense(segment string) *caddyfile.Dispenser {
	tokens, err := caddyfile.Tokenize([]byte(segment), "Caddyfile")
	if err != nil || len(tokens) == 0 {
		return nil
	}
	return caddyfile.NewDispenser(tokens)
}

// reloaded returns what becomes of v through JSON, which must be all of it.
func reloaded[T any](t *testing.T, v T) T {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var again T
	if err := caddy.StrictUnmarshalJSON(b, &again); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	if !reflect.DeepEqual(again, v) {
		t.Fatalf("%+v has become %+v by %s", v, again, b)
	}
	return again
}

// sound checks that numbers are such as the documentation allows.
func (w *ListenerWrapper) sound(t *testing.T) {
	t.Helper()
	if w.HandshakeTimeout < 0 || w.MaxHandshakes < 0 ||
		w.RecordSize != 0 && (w.RecordSize < 64 || w.RecordSize > 16384) || w.KeyLimit != 0 && w.KeyLimit < 64 ||
		w.Upgrade != "" && w.Upgrade != "lazy" && w.Upgrade != "handshake" {
		t.Errorf("accepted: %+v", w)
	}
}

func (h *Handler) sound(t *testing.T) {
	t.Helper()
	if h.MinSize < 0 || h.Chunk != 0 && (h.Chunk < 64<<10 || h.Chunk > 2<<20) ||
		h.HTTP2FrameSize != 0 && (h.HTTP2FrameSize < 16<<10 || h.HTTP2FrameSize > 1<<20) {
		t.Errorf("accepted: %+v", h)
	}
	for _, name := range append(h.AllowFS, h.DenyFS...) {
		if !knownFileSystem(name) {
			t.Errorf("accepted: file system %q", name)
		}
	}
}

// onOff is the Caddyfile's word for a switch.
func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// caddyfile writes what w is as a Caddyfile has it.
func (w *ListenerWrapper) caddyfile() string {
	var b strings.Builder
	b.WriteString("ktls {\n")
	option := func(set bool, name string, value any) {
		if set {
			fmt.Fprintf(&b, "\t%s %v\n", name, value)
		}
	}
	option(w.Upgrade != "", "upgrade", w.Upgrade)
	option(w.HandshakeTimeout != 0, "handshake_timeout", time.Duration(w.HandshakeTimeout))
	option(w.MaxHandshakes != 0, "max_handshakes", w.MaxHandshakes)
	option(w.RecordSize != 0, "record_size", w.RecordSize)
	option(w.KeyLimit != 0, "key_limit", w.KeyLimit)
	option(true, "zerocopy_ro", onOff(w.ZerocopyRO))
	option(true, "rx", onOff(w.RX))
	option(w.Require, "require", "")
	return b.String() + "}\n"
}

func (h *Handler) caddyfile() string {
	var b strings.Builder
	b.WriteString("ktls")
	if h.Off {
		b.WriteString(" off")
	}
	b.WriteString(" {\n")
	option := func(set bool, name, value string) {
		if set {
			fmt.Fprintf(&b, "\t%s %s\n", name, value)
		}
	}
	option(h.MinSize != 0, "min_size", strconv.FormatInt(h.MinSize, 10))
	option(h.Chunk != 0, "chunk", strconv.FormatInt(h.Chunk, 10))
	option(h.HTTP2FrameSize != 0, "http2_frame_size", strconv.FormatInt(h.HTTP2FrameSize, 10))
	if h.HTTP2 != nil {
		option(true, "http2", onOff(*h.HTTP2))
	}
	option(len(h.AllowFS) > 0, "allow_fs", strings.Join(h.AllowFS, " "))
	option(len(h.DenyFS) > 0, "deny_fs", strings.Join(h.DenyFS, " "))
	return b.String() + "}\n"
}

// provisioned checks that Provision finds nothing wrong with the options of w: in
// this context, without a server, it then wants one.
func (w ListenerWrapper) provisioned(t *testing.T, ctx caddy.Context) bool {
	t.Helper()
	err := w.Provision(ctx)
	if err == nil {
		t.Fatal("provisioned without a server")
	}
	return strings.Contains(err.Error(), "in servers of the http app only")
}

// FuzzWrapperCaddyfile: whatever tokens the listener wrapper gets, it fails or
// becomes something that is allowed, is the same in JSON, and is the same again
// from a Caddyfile.
func FuzzWrapperCaddyfile(f *testing.F) {
	for _, s := range []string{
		"ktls", "ktls {\n}\n", "ktls {\n\tupgrade lazy\n\trequire\n}", "ktls {\n upgrade handshake\n handshake_timeout 1.5h\n}",
		"ktls {\nhandshake_timeout 106752d\n}", "ktls {\nhandshake_timeout 1ns\nmax_handshakes 9223372036854775807\n}", "ktls {\nhandshake_timeout -1d\n}",
		"ktls {\nmax_handshakes 9223372036854775808\n}", "ktls {\nrecord_size 64\nkey_limit 18446744073709551615\n}", "ktls {\nkey_limit 64\n}",
		"ktls {\nzerocopy_ro on\nrx off\n}", "ktls {\nrequire {\n}\n}", "ktls {\n}\n}\n", "ktls {\nrx on {\n}\n}", "ktls {\n\"\"\n}", "ktls {", "ktls ktls",
		"ktls {\nrecord_size +0x40\n}", "ktls {\nrecord_size `64`\n}", "{\n}\n", "\"\" {\nupgrade \"lazy\"\n}",
	} {
		f.Add(s)
	}
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	defer cancel()
	f.Fuzz(func(t *testing.T, segment string) {
		d := dispense(segment)
		if d == nil {
			return
		}
		var w ListenerWrapper
		if err := w.UnmarshalCaddyfile(d); err != nil {
			return
		}
		w.sound(t)
		w = reloaded(t, w)
		if !w.provisioned(t, ctx) {
			t.Errorf("the Caddyfile allows what the load doesn't: %+v", w)
		}
		var again ListenerWrapper
		if err := again.UnmarshalCaddyfile(dispense(w.caddyfile())); err != nil || !reflect.DeepEqual(again, w) {
			t.Errorf("%+v, %v, want %+v, by\n%s", again, err, w, w.caddyfile())
		}
	})
}

// FuzzHandlerCaddyfile: the same for the handler.
func FuzzHandlerCaddyfile(f *testing.F) {
	for _, s := range []string{
		"ktls", "ktls off", "ktls off off", "ktls {\n\tmin_size 8KiB\n\tchunk 64KiB\n}", "ktls off {\nmin_size 1\n}", "ktls {\nmin_size 4EiB\n}", "ktls {\nmin_size 4611686018427387905\n}",
		"ktls {\nmin_size 16EiB\n}", "ktls {\nmin_size 18446744073709551615\n}", "ktls {\nmin_size -1\n}", "ktls {\nmin_size 0.1\n}", "ktls {\nmin_size \" 1,000 kB \"\n}", "ktls {\nmin_size 1e3\n}",
		"ktls {\nchunk 65536.9\nchunk 2MiB\n}", "ktls {\nchunk 99999999999999999999EB\n}", "ktls {\nhttp2 on\nhttp2_frame_size 16KiB\n}", "ktls {\nhttp2 off\n}", "ktls {\nhttp2_frame_size 1MiB\n}",
		"ktls {\nallow_fs nfs fuse unknown\ndeny_fs overlay\n}", "ktls {\nallow_fs nfs\nallow_fs nfs\n}", "ktls {\nallow_fs \"\"\n}", "ktls {\nallow_fs nfs {\n}\n}", "ktls {\noff\n}",
	} {
		f.Add(s)
	}
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	defer cancel()
	f.Fuzz(func(t *testing.T, segment string) {
		d := dispense(segment)
		if d == nil {
			return
		}
		var h Handler
		if err := h.UnmarshalCaddyfile(d); err != nil {
			return
		}
		h.sound(t)
		h = reloaded(t, h)
		var again Handler
		if err := again.UnmarshalCaddyfile(dispense(h.caddyfile())); err != nil || !reflect.DeepEqual(again, h) {
			t.Errorf("%+v, %v, want %+v, by\n%s", again, err, h, h.caddyfile())
		}
		if err := h.Provision(ctx); err != nil {
			t.Errorf("the Caddyfile allows what the load doesn't: %v", err)
		}
	})
}

// FuzzConfigJSON: JSON gets past the Caddyfile's checks, but not past those of the
// load.
func FuzzConfigJSON(f *testing.F) {
	for _, s := range []string{
		`{}`, `null`, `{"upgrade": "lazy", "require": true, "rx": true}`, `{"handshake_timeout": "1d"}`, `{"handshake_timeout": -1}`, `{"handshake_timeout": 9223372036854775807}`,
		`{"handshake_timeout": "99999999999d"}`, `{"max_handshakes": -1}`, `{"max_handshakes": 1e3}`, `{"record_size": 63}`, `{"record_size": 16384}`, `{"key_limit": 63}`, `{"key_limit": 18446744073709551615}`,
		`{"key_limit": -1}`, `{"min_size": -1}`, `{"min_size": 9223372036854775807}`, `{"chunk": 65535}`, `{"chunk": 65536, "http2": false}`, `{"http2_frame_size": 1048577}`, `{"http2_frame_size": 4294983680}`,
		`{"allow_fs": ["nfs"], "deny_fs": ["overlay"]}`, `{"allow_fs": [""]}`, `{"off": true}`,
	} {
		f.Add([]byte(s))
	}
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	defer cancel()
	f.Fuzz(func(t *testing.T, b []byte) {
		var w ListenerWrapper
		if caddy.StrictUnmarshalJSON(b, &w) == nil && w.provisioned(t, ctx) {
			w.sound(t)
			reloaded(t, w)
		}
		var h Handler
		if caddy.StrictUnmarshalJSON(b, &h) == nil && h.Provision(ctx) == nil {
			h.sound(t)
		}
	})
}
