package doctor

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/caddy-ktls/caddy-ktls/ktls"
)

// Print writes the report for people, at most 80 columns wide, with colours if
// told so.
func (r *Report) Print(w io.Writer, colour bool) error {
	p := &printer{colour: colour}
	p.kernel(r)
	if r.Kernel.ULP.Support == ktls.Yes {
		p.ciphers(r.Kernel)
	}
	if r.OS == "linux" {
		p.system(r)
	}
	p.server(&r.Server)
	p.notes(r.Notes)
	p.verdict(r)
	_, err := io.WriteString(w, p.String())
	return err
}

// answer writes what the kernel answered, with words for yes and no.
func (p *printer) answer(label string, a ktls.Answer, yes, no string) {
	switch a.Support {
	case ktls.Yes:
		p.row(label, strings.TrimSuffix("yes, "+yes, ", "), "yes", green)
	case ktls.No:
		text := "no"
		if a.Errno != "" {
			text += " (" + a.Errno + ")"
		}
		p.row(label, strings.TrimSuffix(text+": "+no, ": "), "no", "")
	default:
		p.unknown(label, cmp.Or(a.Detail, a.Errno))
	}
}

func (p *printer) kernel(r *Report) {
	p.heading("Kernel")
	f := r.Kernel
	release := f.Kernel
	if v := r.Release.Version; v != "" && !strings.HasPrefix(r.Release.Name, v) {
		release += ", which is " + v
	}
	p.row("release", release, "", "")
	if r.OS == "linux" && r.Release.Error != "" {
		p.unknown("version", r.Release.Error)
	}
	if b := r.Build; b.Caddy != "" {
		p.row("this program", fmt.Sprintf("Caddy %s, caddy-ktls %s, %s", b.Caddy, b.Module, b.Go), "", "")
	}
	switch f.ULP.Support {
	case ktls.No:
		text := "no"
		if f.ULP.Errno != "" {
			text += " (" + f.ULP.Errno + ")"
		}
		p.row("kernel TLS", text, "no", red)
		return
	case ktls.Unknown:
		p.unknown("kernel TLS", cmp.Or(f.ULP.Detail, f.ULP.Errno))
		return
	}
	switch r.Module.State {
	case ModuleBuiltIn:
		p.row("kernel TLS", "yes, built in", "yes", green)
	case ModuleLoadedNow:
		p.row("kernel TLS", "yes, module loaded just now, by this check"+atBoot(r.Module), "yes", green)
	case ModuleLoaded:
		p.row("kernel TLS", "yes, module loaded"+atBoot(r.Module), "yes", green)
	default:
		p.row("kernel TLS", "yes", "yes", green)
	}
	switch t := f.SelfTest; t.Support {
	case ktls.Yes:
		p.row("self-test", "passed: a file sent by sendfile arrived byte for byte", "passed", green)
	case ktls.No:
		p.row("self-test", "failed: "+cmp.Or(t.Detail, t.Errno, "no reason given"), "failed", red)
	default:
		p.unknown("self-test", cmp.Or(t.Detail, t.Errno))
	}
	p.answer("rekey (KeyUpdate)", f.Rekey, "a TLS 1.3 sender can change its key",
		"needs Linux 6.14; browsers and curl don't ask")
	p.answer("record size", f.MaxPayloadLen, "can be set", "newer kernels let it be set")
	p.answer("zero-copy flag", f.ZerocopyRO, "for network cards that encrypt", "needs Linux 5.19; for network cards only")
}

func atBoot(m Module) string {
	if m.Boot == "" {
		return ""
	}
	return " (at boot: " + m.Boot + ")"
}

// ciphers writes the table of versions, ciphers and directions.
func (p *printer) ciphers(f *ktls.Features) {
	const pad = "%-*s%-*s%s"
	p.WriteByte('\n')
	p.WriteString(p.paint(bold, fmt.Sprintf(pad, textStart, "Ciphers", 2*cellWidth, "TLS 1.3", "TLS 1.2")) + "\n")
	line := fmt.Sprintf("%-*s", textStart, "")
	for range 2 {
		line += fmt.Sprintf("%-*s%-*s", cellWidth, "send", cellWidth, "receive")
	}
	p.WriteString(strings.TrimRight(line, " ") + "\n")
	unknown := ""
	for _, c := range []ktls.Cipher{ktls.AES128GCM, ktls.AES256GCM, ktls.CHACHA20POLY1305, ktls.AES128CCM} {
		fmt.Fprintf(p, "  %-*s", textStart-2, c)
		for i, v := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
			for j, answers := range []map[ktls.Combination]ktls.Answer{f.TX, f.RX} {
				a := answers[ktls.Combination{Version: v, Cipher: c}]
				text, sgr := cell(a)
				if a.Support == ktls.Unknown && unknown == "" {
					unknown = cmp.Or(a.Detail, a.Errno, "not asked")
				}
				gap := ""
				if i != 1 || j != 1 {
					gap = strings.Repeat(" ", max(0, cellWidth-len(text)))
				}
				p.WriteString(p.paint(sgr, text) + gap)
			}
		}
		p.WriteByte('\n')
	}
	if unknown != "" {
		p.unknown("?", unknown)
	}
}

// cell is an answer in less than cellWidth columns.
func cell(a ktls.Answer) (text, sgr string) {
	switch a.Support {
	case ktls.Yes:
		return "yes", green
	case ktls.No:
		text = "no"
	default:
		text, sgr = "?", yellow
	}
	if full := text + " " + a.Errno; a.Errno != "" && len(full) < cellWidth {
		text = full
	}
	return text, sgr
}

func (p *printer) system(r *Report) {
	p.heading("System")
	const prefix = "net.ipv4."
	label := strings.TrimPrefix(sysctlNotsentLowat, prefix)
	switch s := r.sysctl(sysctlNotsentLowat); {
	case s.Error != "":
		p.unknown(label, s.Error)
	case s.low():
		p.row(label, s.Value+": too low, but this module raises it where it matters", s.Value, yellow)
	case s.Value == "4294967295":
		p.row(label, "no limit", "", "")
	default:
		p.row(label, s.Value, "", "")
	}
	label = strings.TrimPrefix(sysctlULP, prefix)
	switch s := r.sysctl(sysctlULP); {
	case s.Error != "":
		p.unknown(label, s.Error)
	case slices.Contains(strings.Fields(s.Value), "tls"):
		p.row(label, s.Value, "", "")
	case s.Value == "":
		p.row(label, "none, so no tls", "", "")
	default:
		p.row(label, s.Value+", no tls", "", "")
	}
	switch {
	case r.Counters.Error == "":
		p.row("connections", counterText(r.Counters.Values, "Tx", "sending"), "", "")
		if r.Counters.Values["TlsRxSw"]+r.Counters.Values["TlsRxDevice"] > 0 {
			p.row("", counterText(r.Counters.Values, "Rx", "receiving"), "", "")
		}
		if n := r.Counters.Values["TlsDecryptError"]; n > 0 {
			p.row("", humanize.Comma(int64(n))+" records that didn't decrypt", "", "")
		}
	case r.Kernel.ULP.Support == ktls.Yes:
		p.unknown("connections", r.Counters.Error)
	}
	p.interfaces(r.Interfaces)
}

// counterText says how many connections had one direction in the kernel.
func counterText(n map[string]uint64, dir, verb string) string {
	count := func(by string) string {
		return fmt.Sprintf("%s by %s (%s now)", humanize.Comma(int64(n["Tls"+dir+by])), processors[by], humanize.Comma(int64(n["TlsCurr"+dir+by])))
	}
	return verb + ": " + count("Sw") + ", " + count("Device")
}

// processors has who does the work, by the kernel's names for it.
var processors = map[string]string{"Sw": "CPU", "Device": "card"}

// interfaces writes the network interfaces that have to do with TLS; of the
// others only how many there are.
func (p *printer) interfaces(ifs Interfaces) {
	label := "network cards"
	if ifs.Error != "" {
		p.unknown(label, ifs.Error)
		return
	}
	var plain []string
	failed := map[string][]string{} // the error's text and the interfaces' names
	for _, i := range ifs.List {
		switch {
		case i.Error != "":
			failed[i.Error] = append(failed[i.Error], i.Name)
			continue
		case !i.capable():
			plain = append(plain, i.Name)
			continue
		}
		name := i.Name
		if i.Driver != "" {
			name += " (" + i.Driver + ")"
		}
		var does []string
		for _, o := range []struct{ what, state string }{{"encryption", i.TX}, {"decryption", i.RX}, {"all of TLS", i.Record}} {
			if o.state != OffloadNone {
				does = append(does, o.what+" "+o.state)
			}
		}
		p.row(label, name+": "+list(does), "", "")
		label = ""
	}
	if len(plain) > 0 {
		const most = 4
		names := plain
		if len(names) > most {
			names = append(slices.Clone(names[:most-1]), fmt.Sprintf("%d others", len(plain)-most+1))
		}
		text := "none of " + list(names) + " encrypts: the CPU does"
		if len(plain) == 1 {
			text = names[0] + " doesn't encrypt: the CPU does"
		}
		p.row(label, text, "", "")
		label = ""
	}
	for _, why := range slices.Sorted(maps.Keys(failed)) {
		p.unknown(label, list(failed[why])+": "+why)
		label = ""
	}
	if label != "" {
		p.row(label, "none", "", "")
	}
}

func (p *printer) notes(notes []Note) {
	if len(notes) == 0 {
		return
	}
	p.heading("Notes")
	for _, n := range notes {
		mark, sgr := "-", ""
		if n.Level == LevelWarning {
			mark, sgr = "!", yellow
		}
		for i, line := range wrap(clean(n.Text), width-4) {
			if i > 0 {
				mark, sgr = " ", ""
			}
			p.WriteString("  " + p.paint(sgr, mark) + " " + line + "\n")
		}
	}
}

func (p *printer) verdict(r *Report) {
	p.WriteByte('\n')
	mark, sgr := "Ready", bold+green
	if !r.Ready {
		mark, sgr = "Not ready", bold+red
	}
	p.block("", clean(r.Verdict), mark, sgr)
}
