package ktls

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Support is the answer to whether this machine's kernel can do something.
type Support uint8

const (
	Unknown Support = iota // could not tell: the question itself failed
	No                     // the kernel says that it can't
	Yes
)

// String returns the answer for people.
func (s Support) String() string {
	switch s {
	case No:
		return "not supported"
	case Yes:
		return "yes"
	}
	return "could not tell"
}

// MarshalText returns the answer for programs: "yes", "no" or "unknown".
func (s Support) MarshalText() ([]byte, error) {
	switch s {
	case No:
		return []byte("no"), nil
	case Yes:
		return []byte("yes"), nil
	}
	return []byte("unknown"), nil
}

// Answer is what asking the kernel for one thing gave.
type Answer struct {
	Support Support `json:"support"`
	Errno   string  `json:"errno,omitempty"`  // such as "ENOENT"; empty when yes, or when no system call failed
	Detail  string  `json:"detail,omitempty"` // what failed and how; empty when yes
}

// String returns the answer in a few characters: "yes", "no ENOENT",
// "unknown EPERM".
func (a Answer) String() string {
	b, _ := a.Support.MarshalText()
	return strings.TrimSuffix(string(b)+" "+a.Errno, " ")
}

// Combination is a protocol version with a cipher.
type Combination struct {
	Version uint16 // tls.VersionTLS12 or tls.VersionTLS13
	Cipher  Cipher
}

// String returns a name such as "TLS 1.3 AES-128-GCM".
func (c Combination) String() string { return tls.VersionName(c.Version) + " " + c.Cipher.String() }

// MarshalText returns what String does, for the keys of JSON objects.
func (c Combination) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Combinations returns every version and cipher that Probe asks for, the
// preferred ones first.
func Combinations() []Combination {
	var all []Combination
	for _, v := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		for _, c := range []Cipher{AES128GCM, AES256GCM, CHACHA20POLY1305, AES128CCM} {
			all = append(all, Combination{v, c})
		}
	}
	return all
}

// Features is what this machine's kernel can do. The one that Probe returns is
// shared: don't change it.
type Features struct {
	// Kernel names the operating system, its release and the architecture.
	Kernel string `json:"kernel"`
	// ULP tells whether a TCP socket takes the "tls" upper-layer protocol.
	ULP Answer `json:"ulp"`
	// TX and RX tell which keys the kernel takes for sending and receiving.
	TX map[Combination]Answer `json:"tx"`
	RX map[Combination]Answer `json:"rx"`
	// Rekey tells whether a TLS 1.3 sender can change its key (KeyUpdate).
	Rekey Answer `json:"rekey"`
	// RekeyRX tells whether a TLS 1.3 receiver can change its key. The same
	// kernels can as with Rekey, so that reports leave it out.
	RekeyRX Answer `json:"-"`
	// MaxPayloadLen tells whether the size of the records can be set.
	MaxPayloadLen Answer `json:"max_payload_len"`
	// ZerocopyRO tells whether TLS_TX_ZEROCOPY_RO can be set; only a network
	// card that encrypts makes anything of it.
	ZerocopyRO Answer `json:"zerocopy_ro"`
	// SelfTest tells whether a file sent by sendfile arrived in valid
	// records, byte for byte.
	SelfTest Answer `json:"self_test"`

	module moduleState
}

// moduleState is what the file system tells of the kernel's tls module, where
// the kernel only says that there is none.
type moduleState uint8

const (
	moduleUnknown   moduleState = iota // no module tree to look into, as in a container
	moduleInstalled                    // there to be loaded
	moduleMissing                      // this kernel's modules are there, tls isn't among them
	notLinux
)

// CanTX reports whether the kernel can encrypt with this version and cipher.
func (f *Features) CanTX(version uint16, c Cipher) bool {
	return f.TX[Combination{version, c}].Support == Yes
}

// CanRX reports whether the kernel can decrypt with this version and cipher.
func (f *Features) CanRX(version uint16, c Cipher) bool {
	return f.RX[Combination{version, c}].Support == Yes
}

// Usable reports whether kernel TLS is there, takes the keys of at least one
// version and cipher for sending, and passed the self-test.
func (f *Features) Usable() bool {
	return f.ULP.Support == Yes && f.canSend() && f.SelfTest.Support == Yes
}

func (f *Features) canSend() bool {
	for _, a := range f.TX {
		if a.Support == Yes {
			return true
		}
	}
	return false
}

// Reason returns "" if f is usable, else one sentence on what is missing and
// what to do about it.
func (f *Features) Reason() string {
	switch {
	case f.Usable():
		return ""
	case f.module == notLinux:
		return "kernel TLS needs Linux, this is " + f.Kernel + ": run on Linux to have it"
	case f.ULP.Support == No && f.ULP.Errno == "ENOENT":
		switch f.module {
		case moduleInstalled:
			return "the kernel's tls module isn't loaded: run `modprobe tls` as root, and put the line \"tls\" into /etc/modules-load.d/tls.conf to have it after each boot"
		case moduleMissing:
			return "the kernel " + f.Kernel + " comes without the tls module: install the package that has it, if your distribution splits the kernel (linux-modules-extra or the like), or run a kernel built with CONFIG_TLS, then `modprobe tls`"
		}
		return "the kernel's tls module isn't loaded: run `modprobe tls` as root (on the host, if this is a container) and put the line \"tls\" into /etc/modules-load.d/tls.conf; if there is no such module, run a kernel built with CONFIG_TLS"
	case f.ULP.Support == No:
		return "the kernel " + f.Kernel + " has no TLS for TCP sockets (" + f.ULP.Errno + "): run a kernel of version 4.13 or newer (better 6.6) built with CONFIG_TLS"
	case f.ULP.Support == Unknown:
		return "could not find out whether the kernel has TLS (" + f.ULP.why() + "): let this process open TCP connections to itself and set the socket option TCP_ULP"
	case !f.canSend():
		return "the kernel has TLS but takes no keys for sending (" + f.TX[Combinations()[0]].why() + "): load its AES-GCM (`modprobe gcm`) and ChaCha20-Poly1305 (`modprobe chacha20poly1305`) modules, or run a newer kernel"
	}
	return "kernel TLS failed its self-test (" + f.SelfTest.why() + "): run another kernel, of version 6.6 or newer, and report this one"
}

// why returns all that is known of a failure, in parentheses' style.
func (a Answer) why() string {
	if a.Detail != "" {
		return a.Detail
	}
	return a.String()
}

// MarshalJSON adds the members "usable" and "reason" to the exported fields.
func (f *Features) MarshalJSON() ([]byte, error) {
	type fields Features // without this method
	return json.Marshal(struct {
		*fields
		Usable bool   `json:"usable"`
		Reason string `json:"reason,omitempty"`
	}{(*fields)(f), f.Usable(), f.Reason()})
}

// tableWidth is the most columns that a line of Features.String has.
const tableWidth = 80

// String returns a table for people, at most 80 columns wide.
func (f *Features) String() string {
	var b strings.Builder
	row := func(label, text string) {
		const indent = 26
		for i, line := range wrap(text, tableWidth-indent) {
			if i > 0 {
				label = ""
			}
			fmt.Fprintf(&b, "%-*s%s\n", indent, label, line)
		}
	}
	row("kernel", f.Kernel)
	if f.Usable() {
		row("kernel TLS", "usable")
	} else {
		row("kernel TLS", "not usable: "+f.Reason())
	}
	row("TCP_ULP \"tls\"", f.ULP.String())
	if f.ULP.Support != Yes {
		return b.String() // all other answers are the same
	}
	row("self-test (sendfile)", f.SelfTest.String())
	row("rekey (TLS 1.3, TX)", f.Rekey.String())
	row("record size option", f.MaxPayloadLen.String())
	row("zero-copy for NICs", f.ZerocopyRO.String())
	fmt.Fprintf(&b, "\n%-26s%-26s%s\n", "version and cipher", "sending (TX)", "receiving (RX)")
	for _, c := range Combinations() {
		fmt.Fprintf(&b, "%-26s%-26s%s\n", c, f.TX[c], f.RX[c])
	}
	return b.String()
}

// wrap breaks text into lines of at most width characters, words longer than
// that included.
func wrap(text string, width int) []string {
	lines := []string{""}
	for _, word := range strings.Fields(text) {
		last := &lines[len(lines)-1]
		switch {
		case *last == "":
			*last = word
		case len(*last)+1+len(word) <= width:
			*last += " " + word
		default:
			lines = append(lines, word)
		}
		for last := lines[len(lines)-1]; len(last) > width; last = lines[len(lines)-1] {
			lines[len(lines)-1] = last[:width]
			lines = append(lines, last[width:])
		}
	}
	return lines
}

// Probe asks the kernel what it can do, on connections of this process with
// itself over the loopback interface, and has it send a file as a self-test. It
// asks once per process, in some milliseconds, and never fails: what it could
// not find out is Unknown in its result.
func Probe() *Features {
	if f := probed.answer.Load(); f != nil {
		return f
	}
	return probed.ask(func(f *Features) bool { return f == nil })
}

// ProbeAgain is Probe, but asks anew if the kernel was not [Features.Usable]: its
// module may have been loaded since. An answer of the last second is new enough.
func ProbeAgain() *Features {
	return probed.ask(func(f *Features) bool {
		return f == nil || !f.Usable() && time.Since(probed.at) > time.Second
	})
}

// probed is the kernel's last answer.
var probed probing

type probing struct {
	answer atomic.Pointer[Features]

	mu sync.Mutex // one asks; guards what follows
	at time.Time
}

// ask asks the kernel if the last answer, or nil, is outdated.
func (p *probing) ask(outdated func(*Features) bool) *Features {
	p.mu.Lock()
	defer p.mu.Unlock()
	if outdated(p.answer.Load()) {
		p.answer.Store(probe())
		p.at = time.Now()
	}
	return p.answer.Load()
}
