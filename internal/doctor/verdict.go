package doctor

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/caddy-ktls/caddy-ktls/ktls"
)

// conclude draws the conclusions from what was found.
func (r *Report) conclude() {
	reason := r.notReady()
	r.Ready = reason == ""
	r.Notes = []Note{} // a list in JSON, even if there are none
	if r.OS == "linux" {
		r.Notes = append(r.Notes, slices.Concat(
			versionNotes(r.Release.version),
			r.moduleNotes(),
			r.cipherNotes(),
			r.sysctlNotes(),
			r.interfaceNotes())...)
	}
	r.Notes = append(r.Notes, r.serverNotes()...)
	// Warnings first; otherwise in the order of the report.
	slices.SortStableFunc(r.Notes, func(a, b Note) int { return strings.Compare(b.Level, a.Level) })
	if r.Ready {
		r.Verdict = r.readyVerdict()
	} else {
		r.Verdict = "Not ready: " + reason + ". Until then Caddy serves as without this module."
	}
}

// notReady returns "" if Caddy can use kernel TLS here, else what is missing and
// what to do about it.
func (r *Report) notReady() string {
	switch reason := r.Kernel.Reason(); {
	case reason != "":
		return reason
	case len(r.sends(tls.VersionTLS13))+len(r.sends(tls.VersionTLS12)) == 0:
		return "of the ciphers that Caddy negotiates, this kernel takes none for sending: load its AES-GCM (`modprobe gcm`), or run a newer kernel"
	}
	return r.Build.Problem
}

func (r *Report) moduleNotes() []Note {
	var notes []Note
	const remedy = `put the line "tls" into /etc/modules-load.d/tls.conf (of the host, if this is a container).`
	switch {
	case r.Module.State == ModuleLoadedNow && r.Module.Boot == "":
		notes = append(notes, Note{"module_at_boot", LevelWarning,
			"The tls module was loaded by this very check, and a server may not be allowed to load it: " + remedy})
	case r.Module.State == ModuleLoaded && r.Module.Boot == "":
		notes = append(notes, Note{"module_at_boot", LevelInfo,
			"The tls module is loaded, but nothing was found that loads it at boot: " + remedy})
	case r.Module.State == ModuleNotLoaded && r.sysctl(sysctlNoModules).Value == "1":
		notes = append(notes, Note{"modules_disabled", LevelWarning,
			"This kernel loads no more modules until it is booted again (kernel.modules_disabled is 1)."})
	}
	return notes
}

// negotiated are the ciphers that crypto/tls negotiates.
var negotiated = []ktls.Cipher{ktls.AES128GCM, ktls.AES256GCM, ktls.CHACHA20POLY1305}

// modules has the kernel module of each cipher, and since which Linux kernel TLS
// takes it with TLS 1.3.
var modules = map[ktls.Cipher]struct{ name, since string }{
	ktls.AES128GCM:        {"gcm", "5.1"},
	ktls.AES256GCM:        {"gcm", "5.1"},
	ktls.CHACHA20POLY1305: {"chacha20poly1305", "5.11"},
}

// cipherNotes are those on keys that the kernel doesn't take for sending.
func (r *Report) cipherNotes() []Note {
	if !r.Ready {
		return nil // the verdict has the reason
	}
	if len(r.sends(tls.VersionTLS13)) == 0 && !r.missingModule() {
		return []Note{{"tls13", LevelWarning,
			"Without TLS 1.3 in the kernel, nearly all connections of today stay in user space: Linux 5.1 and newer have it (better 6.6)."}}
	}
	var notes []Note
	for _, c := range negotiated {
		a := r.Kernel.TX[ktls.Combination{Version: tls.VersionTLS13, Cipher: c}]
		text := fmt.Sprintf("Connections with %s stay in user space: ", c)
		switch {
		case a.Support != ktls.No:
			continue
		case a.Errno == "ENOENT":
			text += fmt.Sprintf("run `modprobe %s` as root, and put the line %[1]q into /etc/modules-load.d/tls.conf.", modules[c].name)
		default:
			text += fmt.Sprintf("Linux %s and newer take its keys.", modules[c].since)
		}
		notes = append(notes, Note{"cipher", LevelInfo, text})
	}
	return notes
}

// missingModule reports whether a cipher is missing for want of its module.
func (r *Report) missingModule() bool {
	for _, c := range negotiated {
		if r.Kernel.TX[ktls.Combination{Version: tls.VersionTLS13, Cipher: c}].Errno == "ENOENT" {
			return true
		}
	}
	return false
}

func (r *Report) sysctlNotes() []Note {
	s := r.sysctl(sysctlNotsentLowat)
	if !s.low() {
		return nil
	}
	return []Note{{"notsent_lowat", LevelInfo, fmt.Sprintf(
		"%s is %s: below %d, sendfile over kernel TLS stalls. This module raises it on its own connections; other servers on this machine may not.",
		s.Name, s.Value, minNotsentLowat)}}
}

func (r *Report) interfaceNotes() []Note {
	var notes []Note
	var on, off []string
	for _, i := range r.Interfaces.List {
		switch {
		case i.TX == OffloadOn:
			on = append(on, i.Name)
		case i.TX == OffloadOff:
			off = append(off, i.Name)
		}
	}
	bug := r.Release.version != version{} && r.Release.version.overlongSendfile()
	if len(on) > 0 && bug {
		notes = append(notes, Note{"nic_sendfile", LevelWarning, fmt.Sprintf(
			"Before Linux 7.2-rc5, a network card that encrypts (%s) mishandles a sendfile that asks for more than the file has. "+
				"This module never asks for more; for other programs' sake, `ethtool -K %s %s off` leaves encryption to the CPU.",
			list(on), on[0], featureTX)})
	}
	if len(off) > 0 {
		text := fmt.Sprintf("The network card could encrypt itself (%s), but that is off: `ethtool -K %s %s on`, as root, turns it on.",
			list(off), off[0], featureTX)
		if bug {
			text += " Before Linux 7.2-rc5 better leave it off."
		}
		notes = append(notes, Note{"nic_off", LevelInfo, text})
	}
	return notes
}

func (r *Report) serverNotes() []Note {
	if r.Server.Status != ServerAnswers || r.Server.report.Kernel.Usable || !r.Ready {
		return nil
	}
	why := r.Server.report.Kernel.Reason
	if why == "" {
		why = "it gives no reason"
	}
	return []Note{{"server_differs", LevelWarning,
		"The running server found no usable kernel TLS when it was last asked, though this check does (" + clean(why) +
			"). It asks when it loads a configuration: reload it; if that doesn't help, see what its service manager forbids it."}}
}

// sends lists the negotiated ciphers that the kernel encrypts with in a version.
func (r *Report) sends(version uint16) []string {
	var names []string
	for _, c := range negotiated {
		if r.Kernel.CanTX(version, c) {
			names = append(names, c.String())
		}
	}
	return names
}

// readyVerdict says what works, and one thing more.
func (r *Report) readyVerdict() string {
	var what []string
	whole := true
	for _, v := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		switch names := r.sends(v); len(names) {
		case len(negotiated):
			what = append(what, tls.VersionName(v))
		case 0:
			whole = false
		default:
			whole = false
			what = append(what, tls.VersionName(v)+" with "+list(names))
		}
	}
	verdict := "Ready: this kernel encrypts " + list(what)
	if !whole {
		verdict = "Ready in part: this kernel encrypts " + strings.Join(what, "; ")
	}
	verdict += ", and a file sent through it arrived intact. "
	if r.warnings() > 0 {
		return verdict + "Mind the warnings among the notes."
	}
	address := clean(r.Server.Address)
	switch n := r.Server.upgraded(); {
	case n == 1:
		return verdict + fmt.Sprintf("The server at %s has moved one connection into the kernel.", address)
	case n > 1:
		return verdict + fmt.Sprintf("The server at %s has moved %s connections into the kernel.", address, humanize.Comma(n))
	case r.Server.Status == ServerAnswers:
		return verdict + fmt.Sprintf("The server at %s hasn't moved a connection into the kernel yet.", address)
	}
	return verdict + "To use it, put `ktls` into listener_wrappers and into the site."
}

func (r *Report) warnings() int {
	n := 0
	for _, note := range r.Notes {
		if note.Level == LevelWarning {
			n++
		}
	}
	return n
}

// list joins words: "a", "a and b", "a, b and c".
func list(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " and " + words[last]
}
