package doctor

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// server writes what the running server told.
func (p *printer) server(s *Server) {
	address := clean(s.Address)
	p.heading("Running server")
	switch s.Status {
	case ServerNone:
		p.block("  ", "No running server with this module answers at "+address+".", "", "")
		return
	case ServerUnknown:
		p.row("admin API", address, "", "")
		p.unknown("", s.Detail)
		return
	}
	p.row("admin API", address, "", "")
	r := &s.report

	upgraded, refused := tally{}, tally{}
	for _, c := range r.Connections {
		if c.Outcome == "upgraded" {
			upgraded.add(strings.TrimSpace(c.Version+" "+c.Cipher), c.Count, 0)
		} else {
			refused.add(cmp.Or(c.Reason, c.Outcome), c.Count, 0)
		}
	}
	p.row("connections", fmt.Sprintf("%s upgraded (now %s), %s refused",
		humanize.Comma(upgraded.total()), humanize.Comma(r.CurrentConnections), humanize.Comma(refused.total())), "", "")
	p.tally("  upgraded", upgraded)
	p.tally("  refused", refused)

	paths, plain := tally{}, tally{}
	for _, resp := range r.Responses {
		paths.add(resp.Path, resp.Count, resp.Bytes)
		if resp.Path != "sendfile" {
			plain.add(cmp.Or(resp.Reason, "no reason given"), resp.Count, 0)
		}
	}
	if len(paths) == 0 {
		p.row("responses", "none yet", "", "")
	} else {
		p.tally("responses", paths)
	}
	p.tally("  why plain", plain)

	h := r.Handshakes
	text := humanize.Comma(h.Count)
	if h.Count > 0 {
		text += fmt.Sprintf(", %s on average", roundDuration(h.Seconds/float64(h.Count)))
	}
	p.row("handshakes", fmt.Sprintf("%s, %s failed, %s in flight", text, humanize.Comma(h.Failed), humanize.Comma(h.InFlight)), "", "")

	last := slices.Clone(r.Last)
	slices.SortStableFunc(last, func(a, b lastReason) int { return b.Time.Compare(a.Time) })
	label := "last reasons"
	for _, l := range last[:min(len(last), 3)] {
		text := strings.TrimSpace(fmt.Sprintf("%s %s %s", l.Time.Format(time.DateTime), l.What, l.Reason))
		if l.Detail != "" {
			text += ": " + l.Detail
		}
		p.row(label, text, "", "")
		label = ""
	}
}

// roundDuration returns seconds with two digits or so.
func roundDuration(seconds float64) time.Duration {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d >= time.Second:
		return d.Round(10 * time.Millisecond)
	case d >= time.Millisecond:
		return d.Round(100 * time.Microsecond)
	}
	return d.Round(time.Microsecond)
}

// tally counts, and adds up bytes, by name.
type tally map[string]*sum

type sum struct{ count, bytes int64 }

func (t tally) add(name string, count, bytes int64) {
	if t[name] == nil {
		t[name] = new(sum)
	}
	t[name].count += count
	t[name].bytes += bytes
}

func (t tally) total() int64 {
	var n int64
	for _, s := range t {
		n += s.count
	}
	return n
}

// tally writes the names with most counts.
func (p *printer) tally(label string, t tally) {
	const most = 4
	if len(t) == 0 {
		return
	}
	names := slices.SortedFunc(maps.Keys(t), func(a, b string) int {
		return cmp.Or(cmp.Compare(t[b].count, t[a].count), cmp.Compare(a, b))
	})
	var parts []string
	var others int64
	for i, name := range names {
		if i >= most {
			others += t[name].count
			continue
		}
		part := name + " " + humanize.Comma(t[name].count)
		if n := t[name].bytes; n > 0 {
			part += " (" + humanize.IBytes(uint64(n)) + ")"
		}
		parts = append(parts, part)
	}
	if others > 0 {
		parts = append(parts, "others "+humanize.Comma(others))
	}
	p.row(label, strings.Join(parts, ", "), "", "")
}
