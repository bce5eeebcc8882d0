// Package doctor examines what this machine can do for kernel TLS and says what
// to do about what it can't: the sub-command `caddy ktls`.
//
// No part of an examination depends on another having worked: what can't be
// found out is said to be unknown, with the reason.
package doctor

import (
	"context"
	"io/fs"
	"net"
	"os"
	"runtime"

	"github.com/caddy-ktls/caddy-ktls/ktls"
)

// Report is all that an examination found. Its JSON is made for programs: the
// names of its members and the values that are words stay what they are.
type Report struct {
	// Ready tells whether kernel TLS works on this machine, for at least one
	// protocol version and cipher.
	Ready bool `json:"ready"`
	// Verdict says so in one or two sentences, with the remedy.
	Verdict string `json:"verdict"`
	// Notes are what someone who runs a server should know besides.
	Notes []Note `json:"notes"`
	// OS is Go's name of the operating system, such as "linux".
	OS string `json:"os"`
	// Build is the program that examined.
	Build Build `json:"build"`
	// Kernel is what the kernel answered.
	Kernel *ktls.Features `json:"kernel"`
	// Release is the kernel's version, for the warnings: nothing else depends
	// on it.
	Release Release `json:"release"`
	// Module is the kernel's tls module.
	Module Module `json:"module"`
	// Sysctls are the kernel's settings that matter.
	Sysctls []Sysctl `json:"sysctls"`
	// Counters are those of /proc/net/tls_stat.
	Counters Counters `json:"counters"`
	// Interfaces are the network interfaces and whether they encrypt.
	Interfaces Interfaces `json:"interfaces"`
	// Server is what the running server's admin API told.
	Server Server `json:"server"`
}

// Build names the program and its parts.
type Build struct {
	Caddy  string `json:"caddy"`  // version of Caddy
	Module string `json:"module"` // version of this module
	Go     string `json:"go"`     // version of Go
	// Problem is empty, or says with its remedy why this build can't use
	// kernel TLS on any machine.
	Problem string `json:"problem,omitempty"`
}

// Note is something to know or to do.
type Note struct {
	Code  string `json:"code"`  // stable
	Level string `json:"level"` // LevelWarning or LevelInfo
	Text  string `json:"text"`  // whole sentences
}

// Values of Note.Level.
const (
	LevelWarning = "warning"
	LevelInfo    = "info"
)

// Options are what Examine can't know by itself.
type Options struct {
	// Address is the network address of the running server's admin API, in
	// Caddy's notation.
	Address string
	Build   Build
}

// Examine asks the kernel, the file system, the network interfaces and the
// running server. It takes some milliseconds, or some seconds if the server
// doesn't answer. Where the kernel loads its tls module for those who are
// allowed to have it loaded, it does so here too.
func Examine(ctx context.Context, o Options) *Report {
	r := &Report{OS: runtime.GOOS, Build: o.Build}
	if r.OS == "linux" {
		r.examineLinux(os.DirFS("/"))
	} else {
		r.Kernel = ktls.Probe()
	}
	r.Server = askServer(ctx, o.Address)
	r.conclude()
	return r
}

// examineLinux looks at a Linux machine whose file system is root.
func (r *Report) examineLinux(root fs.FS) {
	loaded := moduleLoaded(root)
	counters := readCounters(root)
	r.Kernel = ktls.Probe()
	r.Release = readRelease(root)
	r.Module = examineModule(root, loaded, r.Kernel)
	r.Sysctls = readSysctls(root)
	if counters.Error != "" {
		// There may be some now that the module is loaded; what they count is
		// the probe.
		counters = readCounters(root)
		for name := range counters.Values {
			counters.Values[name] = 0
		}
	}
	r.Counters = counters
	r.Interfaces = readInterfaces(root, net.Interfaces, openFeatures)
}
