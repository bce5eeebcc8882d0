//go:build linux

package main

import (
	"slices"
	"testing"
)

func TestScenarios(t *testing.T) {
	p := &plan{protocols: []string{"h1", "h2"}, versions: []string{"1.3", "1.2"}, memory: 1000}
	for name, kind := range serverKinds {
		all := p.scenarios(kind)
		for i, sc := range all {
			if kind.clear != (sc.TLS == "none") || kind.clear && sc.Protocol != "h1" {
				t.Errorf("%s: %+v", name, sc)
			}
			if slices.Contains(all[:i], sc) {
				t.Errorf("%s: %+v twice", name, sc)
			}
			if (sc.Mode == storing) != (sc.Body >= storingFrom && !sc.ofMemory()) {
				t.Errorf("%s: %+v", name, sc)
			}
		}
	}
	full := p.scenarios(serverKinds["caddy"])
	for _, want := range []scenario{
		{"h1", decrypting, 4 << 10, 8, 1, 400, "1.3"},
		{"h2", decrypting, 32 << 10, 1, 8, 240, "1.3"},
		{"h1", storing, 16 << 20, 1, 1, 8, "1.2"},
		{"h2", handshaking, 1 << 10, 1, 1, 160, "1.2"},
		{"h2", idling, idleBody, 1000, 1, 1000, "1.3"},
		{"h1", slow, slowBody, 1000, 1, 1000, "1.3"},
	} {
		if !slices.Contains(full, want) {
			t.Errorf("no %+v", want)
		}
	}
	p.bodies = []int64{0, 4 << 10}
	for _, sc := range p.scenarios(serverKinds["caddy"]) {
		if !sc.ofMemory() && sc.Body != 4<<10 {
			t.Errorf("4 KiB only: %+v", sc)
		}
	}
	p.bodies = nil
	p.quick, p.here, p.memory = true, true, 0
	for _, sc := range p.scenarios(serverKinds["nginx"]) {
		if sc.Connections != 1 || sc.Streams != 1 || sc.ofMemory() {
			t.Errorf("quick: %+v", sc)
		}
		if sc.Body == 1<<10 && sc.Mode == decrypting && sc.Requests != 240*hereFactor {
			t.Errorf("here: %+v", sc)
		}
	}
}

// A measurement that is there isn't made again: how many requests the garbage
// collector made of it doesn't matter, but what clock it was does.
func TestKnown(t *testing.T) {
	sc := scenario{"h1", decrypting, 1 << 10, 1, 1, 480, "1.3"}
	taken := sc
	taken.Requests = 960
	p := &plan{known: []result{{Kernel: "7", Server: "caddy", Version: "1", scenario: taken, Instructions: 1}}}
	if !p.knows("7", "caddy", "1", sc) {
		t.Error("measured again")
	}
	if p.knows("7", "caddy", "2", sc) || p.knows("6", "caddy", "1", sc) || p.knows("7", "nginx", "1", sc) {
		t.Error("another's measurement is taken")
	}
	if p.here = true; p.knows("7", "caddy", "1", sc) {
		t.Error("instructions are taken for time")
	}
	idle := scenario{"h1", idling, idleBody, 1000, 1, 1000, "1.3"}
	p.known = []result{{Kernel: "7", Server: "caddy", Version: "1", scenario: idle, Memory: new(usage)}}
	if !p.knows("7", "caddy", "1", idle) {
		t.Error("memory is measured again")
	}
}
