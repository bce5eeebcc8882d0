package caddyktls

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig"

	_ "github.com/caddyserver/caddy/v2/modules/standard"
)

// Each file in testdata/caddyfile is a Caddyfile, a line of dashes, and the JSON
// it must become.
func TestCaddyfileGoldens(t *testing.T) {
	files, err := filepath.Glob("testdata/caddyfile/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no goldens: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			input, want, ok := strings.Cut(string(data), "\n----------\n")
			if !ok {
				t.Fatal("no line of dashes")
			}
			got, warnings, err := adapt(input)
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range warnings {
				if !strings.Contains(w.Message, "not formatted") {
					t.Errorf("warning: %s", w)
				}
			}
			if indented(t, got) != indented(t, []byte(want)) {
				t.Errorf("got\n%s\nwant\n%s", indented(t, got), want)
			}
		})
	}
}

// A bad option fails the load with the line, the option and the value.
func TestCaddyfileErrors(t *testing.T) {
	wrapper := func(s string) string {
		return "{\n\tservers {\n\t\tlistener_wrappers {\n\t\t\tktls {\n\t\t\t\t" + s + "\n\t\t\t}\n\t\t}\n\t}\n}\n"
	}
	handler := func(s string) string { return "localhost {\n\t" + s + "\n}\n" }
	for name, test := range map[string]struct{ input, want string }{
		"wrapper, unknown option":         {wrapper("uprade lazy"), "unknown option 'uprade' of listener wrapper ktls, at Caddyfile:5"},
		"wrapper, upgrade":                {wrapper("upgrade soon"), "upgrade: 'soon' is neither 'lazy' nor 'handshake', at Caddyfile:5"},
		"wrapper, upgrade missing":        {wrapper("upgrade"), "wrong argument count or unexpected line ending after 'upgrade', at Caddyfile:5"},
		"wrapper, upgrade twice":          {wrapper("upgrade lazy lazy"), "unexpected line ending after 'lazy', at Caddyfile:5"},
		"wrapper, handshake_timeout":      {wrapper("handshake_timeout never"), "handshake_timeout: 'never' is no duration above zero, at Caddyfile:5"},
		"wrapper, handshake_timeout < 0":  {wrapper("handshake_timeout -1s"), "handshake_timeout: '-1s' is no duration above zero, at Caddyfile:5"},
		"wrapper, max_handshakes 0":       {wrapper("max_handshakes 0"), "max_handshakes: '0' is no number above zero, at Caddyfile:5"},
		"wrapper, max_handshakes word":    {wrapper("max_handshakes few"), "max_handshakes: 'few' is no number above zero, at Caddyfile:5"},
		"wrapper, max_handshakes missing": {wrapper("max_handshakes"), "wrong argument count or unexpected line ending after 'max_handshakes', at Caddyfile:5"},
		"wrapper, record_size low":        {wrapper("record_size 63"), "record_size: '63' is no number of bytes from 64 to 16384, at Caddyfile:5"},
		"wrapper, record_size high":       {wrapper("record_size 16385"), "record_size: '16385' is no number of bytes from 64 to 16384, at Caddyfile:5"},
		"wrapper, record_size unit":       {wrapper("record_size 4KiB"), "record_size: '4KiB' is no number of bytes from 64 to 16384, at Caddyfile:5"},
		"wrapper, key_limit low":          {wrapper("key_limit 63"), "key_limit: '63' is no number from 64 on, at Caddyfile:5"},
		"wrapper, key_limit word":         {wrapper("key_limit none"), "key_limit: 'none' is no number from 64 on, at Caddyfile:5"},
		"wrapper, key_limit missing":      {wrapper("key_limit"), "wrong argument count or unexpected line ending after 'key_limit', at Caddyfile:5"},
		"wrapper, zerocopy_ro":            {wrapper("zerocopy_ro yes"), "zerocopy_ro: 'yes' is neither 'on' nor 'off', at Caddyfile:5"},
		"wrapper, zerocopy_ro missing":    {wrapper("zerocopy_ro"), "wrong argument count or unexpected line ending after 'zerocopy_ro', at Caddyfile:5"},
		"wrapper, rx":                     {wrapper("rx true"), "rx: 'true' is neither 'on' nor 'off', at Caddyfile:5"},
		"wrapper, rx twice":               {wrapper("rx on on"), "unexpected line ending after 'on', at Caddyfile:5"},
		"wrapper, require":                {wrapper("require yes"), "unexpected line ending after 'yes', at Caddyfile:5"},
		"handler, unknown argument":       {handler("ktls on"), "unknown argument 'on' of ktls: only 'off' is known, at Caddyfile:2"},
		"handler, two arguments":          {handler("ktls off now"), "unexpected line ending after 'now', at Caddyfile:2"},
		"handler, unknown option":         {handler("ktls {\n\t\tminsize 1\n\t}"), "unknown option 'minsize' of ktls, at Caddyfile:3"},
		"handler, min_size":               {handler("ktls {\n\t\tmin_size much\n\t}"), "min_size: 'much' is no size above zero, at Caddyfile:3"},
		"handler, min_size 0":             {handler("ktls {\n\t\tmin_size 0\n\t}"), "min_size: '0' is no size above zero, at Caddyfile:3"},
		"handler, min_size twice":         {handler("ktls {\n\t\tmin_size 1 2\n\t}"), "unexpected line ending after '1', at Caddyfile:3"},
		"handler, allow_fs":               {handler("ktls {\n\t\tallow_fs nsf\n\t}"), "allow_fs: 'nsf' is no file system known here, at Caddyfile:3"},
		"handler, deny_fs without names":  {handler("ktls {\n\t\tdeny_fs\n\t}"), "unexpected line ending after 'deny_fs', at Caddyfile:3"},
		"handler, chunk":                  {handler("ktls {\n\t\tchunk some\n\t}"), "chunk: 'some' is no size from 64 KiB to 2.0 MiB, at Caddyfile:3"},
		"handler, chunk small":            {handler("ktls {\n\t\tchunk 65535\n\t}"), "chunk: '65535' is no size from 64 KiB to 2.0 MiB, at Caddyfile:3"},
		"handler, chunk large":            {handler("ktls {\n\t\tchunk 2049KiB\n\t}"), "chunk: '2049KiB' is no size from 64 KiB to 2.0 MiB, at Caddyfile:3"},
		"handler, chunk of nothing":       {handler("ktls {\n\t\tchunk\n\t}"), "unexpected line ending after 'chunk', at Caddyfile:3"},
		"handler, http2_frame_size":       {handler("ktls {\n\t\thttp2_frame_size some\n\t}"), "http2_frame_size: 'some' is no size from 16 KiB to 1.0 MiB, at Caddyfile:3"},
		"handler, http2_frame_size small": {handler("ktls {\n\t\thttp2_frame_size 16383\n\t}"), "http2_frame_size: '16383' is no size from 16 KiB to 1.0 MiB, at Caddyfile:3"},
		"handler, http2_frame_size large": {handler("ktls {\n\t\thttp2_frame_size 1025KiB\n\t}"), "http2_frame_size: '1025KiB' is no size from 16 KiB to 1.0 MiB, at Caddyfile:3"},
		"handler, http2_frame_size of no": {handler("ktls {\n\t\thttp2_frame_size\n\t}"), "unexpected line ending after 'http2_frame_size', at Caddyfile:3"},
		"handler, http2":                  {handler("ktls {\n\t\thttp2 no\n\t}"), "http2: 'no' is neither 'on' nor 'off', at Caddyfile:3"},
		"handler, http2 twice":            {handler("ktls {\n\t\thttp2 on off\n\t}"), "unexpected line ending after 'on', at Caddyfile:3"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := adapt(test.input)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func adapt(input string) ([]byte, []caddyconfig.Warning, error) {
	adapter := caddyconfig.GetAdapter("caddyfile")
	return adapter.Adapt([]byte(input), map[string]any{"filename": "Caddyfile"})
}

func indented(t *testing.T, data []byte) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.Indent(&b, bytes.TrimSpace(data), "", "\t"); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
