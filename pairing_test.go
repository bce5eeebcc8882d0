package caddyktls

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// validate provisions a Caddyfile's configuration as a start of Caddy does, and
// returns what was logged.
func validate(t *testing.T, caddyfile string, change func(config map[string]any)) (log string, err error) {
	t.Helper()
	dir := t.TempDir()
	adapted, _, err := adapt(caddyfile)
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := json.Unmarshal(adapted, &config); err != nil {
		t.Fatal(err)
	}
	config["admin"] = map[string]any{"disabled": true}
	config["storage"] = map[string]any{"module": "file_system", "root": dir}
	config["logging"] = map[string]any{"logs": map[string]any{"default": map[string]any{
		"writer": map[string]any{"output": "file", "filename": filepath.Join(dir, "log")},
	}}}
	if change != nil {
		change(config)
	}
	if adapted, err = json.Marshal(config); err != nil {
		t.Fatal(err)
	}
	var c caddy.Config
	if err := json.Unmarshal(adapted, &c); err != nil {
		t.Fatal(err)
	}
	err = caddy.Validate(&c)
	text, readErr := os.ReadFile(filepath.Join(dir, "log"))
	if readErr != nil {
		t.Fatal(readErr)
	}
	return string(text), err
}

// A server with the handler and without the wrapper is named, once, wherever the
// handler is.
func TestHandlerWithoutWrapperIsSaidOnce(t *testing.T) {
	const caddyfile = `{
	local_certs
	skip_install_trust
	servers :8001 {
		listener_wrappers {
			ktls
		}
	}
}
&(named) {
	ktls
	file_server
}
https://a.localhost:8001 {
	ktls
}
https://a.localhost:8002, https://b.localhost:8002 {
	ktls
	handle /sub/* {
		ktls
	}
}
https://c.localhost:8002 {
	ktls
}
https://a.localhost:8003 {
	handle_path /sub/* {
		route {
			ktls
		}
	}
}
https://a.localhost:8004 {
	handle_errors {
		ktls
	}
}
https://a.localhost:8005 {
	invoke named
}
https://a.localhost:8006 {
	ktls off
}
https://a.localhost:8007 {
	respond hello
}
http://a.localhost:8008 {
	ktls
}
`
	for range 2 { // what a configuration has had is forgotten with it
		log, err := validate(t, caddyfile, nil)
		if err != nil {
			t.Fatal(err)
		}
		said := map[string]int{}
		for line := range strings.Lines(log) {
			var l struct {
				Level, Logger, Msg, Server string
				Listen                     []string
			}
			if err := json.Unmarshal([]byte(line), &l); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(l.Msg, "without the ktls") {
				continue
			}
			if l.Level != "warn" || l.Logger != "http.handlers.ktls" || !strings.HasPrefix(l.Server, "srv") || len(l.Listen) != 1 {
				t.Errorf("%s", line)
			}
			for _, address := range l.Listen {
				said[address]++
			}
		}
		want := map[string]int{":8002": 1, ":8003": 1, ":8004": 1, ":8005": 1}
		if !maps.Equal(said, want) {
			t.Errorf("said of %v, want %v:\n%s", said, want, log)
		}
	}
}

// What was configured isn't kept for longer than the configuration.
func TestPairsAreForgotten(t *testing.T) {
	if _, err := validate(t, "https://localhost:8001 {\n\tktls\n}\n", nil); err != nil {
		t.Fatal(err)
	}
	kept := func() int {
		pairs.mu.Lock()
		defer pairs.mu.Unlock()
		return len(pairs.servers)
	}
	for deadline := time.Now().Add(10 * time.Second); kept() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d servers are left", kept())
		}
	}
}

// A bad value in JSON fails the load with the option and the value.
func TestJSONErrors(t *testing.T) {
	for name, test := range map[string]struct {
		handler map[string]any
		want    []string
	}{
		"fine":             {map[string]any{"min_size": 1, "chunk": 65536, "http2": true}, nil},
		"chunk, small":     {map[string]any{"chunk": 65535}, []string{"http.handlers.ktls", "chunk: 65535 is not between 65536 and 2097152"}},
		"chunk, large":     {map[string]any{"chunk": 2097153}, []string{"chunk: 2097153 is not between 65536 and 2097152"}},
		"chunk, negative":  {map[string]any{"chunk": -65536}, []string{"chunk: -65536 is not between"}},
		"chunk, a text":    {map[string]any{"chunk": "1MiB"}, []string{"chunk", "string"}},
		"http2, a text":    {map[string]any{"http2": "off"}, []string{"http2", "string"}},
		"min_size":         {map[string]any{"min_size": -1}, []string{"min_size: -1 is negative"}},
		"allow_fs":         {map[string]any{"allow_fs": []string{"nsf"}}, []string{"allow_fs: 'nsf' is no file system"}},
		"unknown option":   {map[string]any{"chunks": 1}, []string{"chunks"}},
		"allowed & denied": {map[string]any{"allow_fs": []string{"nfs"}, "deny_fs": []string{"nfs"}}, []string{"allow_fs: 'nfs'"}},
	} {
		t.Run(name, func(t *testing.T) {
			test.handler["handler"] = "ktls"
			_, err := validate(t, "http://localhost:8001 {\n\trespond hello\n}\n", func(config map[string]any) {
				server := config["apps"].(map[string]any)["http"].(map[string]any)["servers"].(map[string]any)["srv0"].(map[string]any)
				server["routes"] = []any{map[string]any{"handle": []any{test.handler}}}
			})
			if (err == nil) != (test.want == nil) {
				t.Fatalf("%v", err)
			}
			missing := slices.DeleteFunc(test.want, func(want string) bool { return strings.Contains(err.Error(), want) })
			if len(missing) > 0 {
				t.Errorf("the error doesn't say %q: %v", missing, err)
			}
		})
	}
}
