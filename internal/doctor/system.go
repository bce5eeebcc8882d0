package doctor

import (
	"bufio"
	"bytes"
	"errors"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/caddy-ktls/caddy-ktls/ktls"
)

// Module is the kernel's tls module.
type Module struct {
	State string `json:"state"` // one of the Module constants
	// Boot is the file that has the module loaded at boot, empty if none was
	// found. Only looked for where the module is loaded.
	Boot string `json:"boot,omitempty"`
}

// Values of Module.State.
const (
	ModuleLoaded    = "loaded"
	ModuleLoadedNow = "loaded_now" // by asking for it
	ModuleBuiltIn   = "built_in"
	ModuleNotLoaded = "not_loaded"
	ModuleUnknown   = "unknown"
)

// moduleLoaded reports whether the tls module is among the loaded ones. A kernel
// without modules has no list.
func moduleLoaded(root fs.FS) bool {
	list, _ := fs.ReadFile(root, "proc/modules")
	for line := range strings.Lines(string(list)) {
		if strings.HasPrefix(line, "tls ") {
			return true
		}
	}
	return false
}

// examineModule tells how the kernel came by its TLS. before is whether the
// module was loaded when nobody had asked for it yet.
func examineModule(root fs.FS, before bool, f *ktls.Features) Module {
	var m Module
	switch {
	case before:
		m.State = ModuleLoaded
	case moduleLoaded(root):
		m.State = ModuleLoadedNow
	case f.ULP.Support == ktls.Yes:
		return Module{State: ModuleBuiltIn}
	case f.ULP.Support == ktls.No:
		return Module{State: ModuleNotLoaded}
	default:
		return Module{State: ModuleUnknown}
	}
	m.Boot = loadedAtBoot(root)
	return m
}

// loadedAtBoot returns the file that has the module loaded at boot
// (modules-load.d(5), modules(5)).
func loadedAtBoot(root fs.FS) string {
	files := []string{"etc/modules"}
	for _, dir := range []string{"etc", "run", "usr/local/lib", "usr/lib", "lib"} {
		found, _ := fs.Glob(root, dir+"/modules-load.d/*.conf")
		files = append(files, found...)
	}
	for _, name := range files {
		b, _ := fs.ReadFile(root, name)
		for line := range strings.Lines(string(b)) {
			if strings.TrimSpace(line) == "tls" {
				return "/" + name
			}
		}
	}
	return ""
}

// Sysctl is a setting of the kernel.
type Sysctl struct {
	Name  string `json:"name"`
	Value string `json:"value,omitempty"`
	Error string `json:"error,omitempty"`
}

// The settings that matter.
const (
	sysctlNotsentLowat = "net.ipv4.tcp_notsent_lowat"
	sysctlULP          = "net.ipv4.tcp_available_ulp"
	sysctlNoModules    = "kernel.modules_disabled"
)

func readSysctls(root fs.FS) []Sysctl {
	var all []Sysctl
	for _, name := range []string{sysctlNotsentLowat, sysctlULP, sysctlNoModules} {
		s := Sysctl{Name: name}
		var err error
		s.Value, err = readWord(root, "proc/sys/"+strings.ReplaceAll(name, ".", "/"))
		if err != nil {
			s.Error = err.Error()
		}
		all = append(all, s)
	}
	return all
}

// sysctl returns one of the settings.
func (r *Report) sysctl(name string) Sysctl {
	for _, s := range r.Sysctls {
		if s.Name == name {
			return s
		}
	}
	return Sysctl{Name: name, Error: "not asked"}
}

// minNotsentLowat is the least net.ipv4.tcp_notsent_lowat, in bytes, with which
// sendfile over kernel TLS doesn't stall. Package ktls raises lower ones on its
// own sockets.
const minNotsentLowat = 128 << 10

// low reports whether s, the setting tcp_notsent_lowat, is too low.
func (s Sysctl) low() bool {
	n, err := strconv.ParseUint(s.Value, 10, 64)
	return err == nil && n < minNotsentLowat
}

// Counters are those that the kernel keeps of TLS, for each network namespace.
// What Examine itself did isn't among them.
type Counters struct {
	Values map[string]uint64 `json:"values,omitempty"` // by the kernel's names, such as "TlsTxSw"
	Error  string            `json:"error,omitempty"`
}

// readCounters reads /proc/net/tls_stat, lines of a name and a number.
func readCounters(root fs.FS) Counters {
	const name = "proc/net/tls_stat"
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return Counters{Error: absolute(err).Error()}
	}
	c := Counters{Values: map[string]uint64{}}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) != 2 {
			continue
		}
		if n, err := strconv.ParseUint(f[1], 10, 64); err == nil {
			c.Values[f[0]] = n
		}
	}
	if len(c.Values) == 0 {
		return Counters{Error: "/" + name + " has no counters"}
	}
	return c
}

// driver returns the name of the driver of a network interface, empty for those
// that have none (virtual ones, mostly).
func driver(root fs.FS, ifname string) string {
	target, err := fs.ReadLink(root, "sys/class/net/"+ifname+"/device/driver")
	if err != nil {
		return ""
	}
	return path.Base(target)
}

// absolute gives an error of the file system its root back.
func absolute(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) && !strings.HasPrefix(p.Path, "/") {
		return &fs.PathError{Op: p.Op, Path: "/" + p.Path, Err: p.Err}
	}
	return err
}
