package doctor

import (
	"fmt"
	"strings"
)

// kernelBug is a known bug of the kernel's TLS, and the releases that have it.
type kernelBug struct {
	what string
	// fixed has, for series that were kept up, the first patch level without the
	// bug, and begun the first with it, if that isn't 0.
	fixed, begun map[series]int
	// Of other series, all releases from since on and before mainline have it.
	since, mainline series
	receive         bool // concerns `rx on` alone
}

// series is a series of Linux releases, such as {6, 12}.
type series [2]int

func (s series) before(o series) bool { return s[0] < o[0] || s[0] == o[0] && s[1] < o[1] }

func (s series) String() string { return fmt.Sprintf("%d.%d", s[0], s[1]) }

// kernelBugs are those that a server with this module can meet, as far as releases
// with the fix are known; SECURITY.md has the sources, and the others. What isn't
// known isn't guessed: no warning is better than a wrong one.
var kernelBugs = []kernelBug{
	{
		what:  "several of early kernel TLS",
		fixed: map[series]int{{5, 4}: 181, {5, 10}: 102, {5, 15}: 25, {6, 1}: 28},
	},
	{
		what:  "sendfile may overwrite pages of files (CVE-2024-0646)",
		fixed: map[series]int{{6, 1}: 69}, since: series{6, 2}, mainline: series{6, 6},
	},
	{
		what:  "sendfile may crash the kernel (CVE-2023-52767)",
		fixed: map[series]int{{6, 6}: 4}, since: series{6, 5}, mainline: series{6, 7},
	},
	{
		what:  "sendfile may overfill a record (CVE-2024-35841)",
		fixed: map[series]int{{6, 6}: 14, {6, 7}: 2}, since: series{6, 5}, mainline: series{6, 8},
	},
	{
		what:  "use after free where ciphers work in the background (CVE-2024-26583, CVE-2024-26584, CVE-2024-26585)",
		fixed: map[series]int{{6, 1}: 84, {6, 6}: 18, {6, 7}: 6}, since: series{6, 2}, mainline: series{6, 8},
	},
	{
		what:  "use after free where ciphers work in the background (CVE-2026-31533)",
		fixed: map[series]int{{5, 15}: 203, {6, 1}: 169, {6, 6}: 135, {6, 12}: 82, {6, 18}: 23, {6, 19}: 13},
		begun: map[series]int{{5, 15}: 160, {6, 1}: 84, {6, 6}: 18}, since: series{6, 8}, mainline: series{7, 0},
	},
	{
		// Older series have it too. Where no release has the fix, there is nothing
		// to update to.
		what:  "use after free when connections are closed (CVE-2026-23240)",
		fixed: map[series]int{{6, 12}: 75, {6, 18}: 16, {6, 19}: 6}, since: series{6, 8}, mainline: series{7, 0},
	},
	{
		what: "a client may overflow a buffer (CVE-2025-39946)", receive: true,
		fixed: map[series]int{{6, 1}: 154, {6, 6}: 108, {6, 12}: 49, {6, 16}: 9}, since: series{6, 0}, mainline: series{6, 17},
	},
	{
		what: "reads out of bounds when data is taken from under it (CVE-2025-38616)", receive: true,
		fixed: map[series]int{{6, 1}: 185, {6, 6}: 103, {6, 12}: 43, {6, 15}: 11, {6, 16}: 2}, since: series{6, 0}, mainline: series{6, 17},
	},
}

// bugsOf lists the bugs of a version, and the first patch level of its series
// without any: 0 if there is none. Where the vendor counts patch levels otherwise,
// they are those of the series.
func bugsOf(v version, receive bool) (what []string, fixed int) {
	s := series{v.major, v.minor}
	ended := false
	for _, b := range kernelBugs {
		if b.receive != receive {
			continue
		}
		patch, kept := b.fixed[s]
		fixed = max(fixed, patch)
		switch {
		case kept && !v.vendor && (v.patch < b.begun[s] || v.patch >= patch):
			continue
		case !kept && (s.before(b.since) || !s.before(b.mainline)):
			continue
		}
		ended = ended || !kept
		what = append(what, b.what)
	}
	if ended {
		fixed = 0
	}
	return what, fixed
}

// versionNotes warns of what is known of a version. What a kernel can do is
// never concluded from its version; these are bugs, which can't be probed for. A
// distribution may have fixed them without another version.
func versionNotes(v version) []Note {
	if v == (version{}) {
		return nil
	}
	better := ""
	if v.before(6, 6) {
		better = " Linux 6.6 or newer is recommended, for the years of fixes in its kernel TLS."
	}
	const backported = ", unless your distribution has backported the fixes."
	s := series{v.major, v.minor}
	var notes []Note
	switch what, fixed := bugsOf(v, false); {
	case len(what) > 0 && fixed == 0:
		notes = append(notes, Note{"patch_level", LevelInfo, fmt.Sprintf(
			"Linux %s is no longer kept up at kernel.org, and has known bugs in kernel TLS: %s. Ask your distribution whether it has backported the fixes.%s",
			s, strings.Join(what, "; "), better)})
	case len(what) > 0 && v.vendor:
		notes = append(notes, Note{"patch_level", LevelInfo, fmt.Sprintf(
			"Stable releases below %s.%d have known bugs in kernel TLS, and this kernel's name doesn't tell which it is: ask your distribution whether it has backported the fixes.%s",
			s, fixed, better)})
	case len(what) > 0:
		notes = append(notes, Note{"known_bugs", LevelWarning, fmt.Sprintf(
			"This kernel, %s, has known bugs in kernel TLS: %s. Update it to %s.%d or newer%s%s",
			v, strings.Join(what, "; "), s, fixed, backported, better)})
	case better != "":
		notes = append(notes, Note{"old_kernel", LevelInfo, better[1:]})
	}
	if what, fixed := bugsOf(v, true); len(what) > 0 {
		remedy := ""
		if fixed > 0 {
			remedy = fmt.Sprintf(" update to %s.%d or newer, or", s, fixed)
		}
		notes = append(notes, Note{"known_bugs_rx", LevelInfo, fmt.Sprintf(
			"With `rx on`, which is off by default, this kernel's version has further known bugs: %s. To be safe,%s leave it off%s",
			strings.Join(what, "; "), remedy, backported)})
	}
	return notes
}
