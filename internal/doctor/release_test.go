package doctor

import (
	"strings"
	"testing"
	"testing/fstest"
)

func TestVersionNotes(t *testing.T) {
	const bugs, patchLevel, old, rx = "known_bugs ", "patch_level ", "old_kernel ", "known_bugs_rx "
	for _, tc := range []struct {
		release  string
		version  string
		codes    string // of the notes
		update   string // what a note says to update to
		overlong bool   // network cards mishandle a sendfile that asks for too much
	}{
		{"4.9.337", "4.9.337", old, "", true},
		{"4.18.0-553.el8.x86_64", "4.18", old, "", true},
		{"5.3.18", "5.3.18", old, "", true},
		{"5.4.180", "5.4.180", bugs, "5.4.181", true},
		{"5.4.181", "5.4.181", old, "", true},
		{"5.4.302-1-lts", "5.4.302", old, "", true},
		{"5.10.101", "5.10.101", bugs, "5.10.102", true},
		{"5.10.102", "5.10.102", old, "", true},
		{"5.14.0-570.12.1.el9_6.x86_64", "5.14", old, "", true},
		{"5.14.0-427.el9", "5.14", old, "", true},
		{"5.15.24", "5.15.24", bugs, "5.15.203", true},
		{"5.15.25", "5.15.25", old, "", true},
		{"5.15.159", "5.15.159", old, "", true},
		{"5.15.160", "5.15.160", bugs, "5.15.203", true},
		{"5.15.203", "5.15.203", old, "", true},
		{"5.15.0-91-generic", "5.15", patchLevel, "5.15.203", true},
		{"5.15.167.4-microsoft-standard-WSL2", "5.15.167", bugs, "5.15.203", true},
		{"6.1", "6.1.0", bugs + rx, "6.1.169", true},
		{"6.1.27", "6.1.27", bugs + rx, "6.1.169", true},
		{"6.1.68", "6.1.68", bugs + rx, "6.1.169", true},
		{"6.1.83", "6.1.83", bugs + rx, "6.1.169", true},
		{"6.1.84", "6.1.84", bugs + rx, "6.1.169", true},
		{"6.1.168", "6.1.168", bugs + rx, "6.1.169", true},
		{"6.1.169", "6.1.169", old + rx, "6.1.185", true},
		{"6.1.0-50-amd64", "6.1", patchLevel + rx, "6.1.169", true}, // guests of the lab: by name alone,
		{"6.1.176", "6.1.176", old + rx, "6.1.185", true},           // and as Debian says
		{"6.1.185", "6.1.185", old, "", true},
		{"6.1.134-150.224.amzn2023.x86_64", "6.1.134", bugs + rx, "6.1.169", true},
		{"6.2.16", "6.2.16", patchLevel + rx, "", true},
		{"6.5.13", "6.5.13", patchLevel + rx, "", true},
		{"6.6.0", "6.6.0", bugs + rx, "6.6.135", true},
		{"6.6.134", "6.6.134", bugs, "6.6.135", true},
		{"6.6.135", "6.6.135", "", "", true},
		{"6.7.5", "6.7.5", bugs + rx, "6.7.6", true},
		{"6.8.0-51-generic", "6.8", patchLevel + rx, "", true},
		{"6.8.12", "6.8.12", patchLevel + rx, "", true},
		{"6.15.11", "6.15.11", patchLevel + rx, "", true}, // has one fix of two
		{"6.11.0-9-generic", "6.11", patchLevel + rx, "", true},
		{"6.12.48+deb13-amd64", "6.12.48", bugs + rx, "6.12.82", true},
		{"6.12.81", "6.12.81", bugs, "6.12.82", true},
		{"6.12.82", "6.12.82", "", "", true},
		{"6.12.95+deb12-amd64", "6.12.95", "", "", true}, // a guest
		{"6.14.0-37-generic", "6.14", patchLevel + rx, "", true},
		{"6.17.13", "6.17.13", patchLevel, "", true},
		{"6.18.22", "6.18.22", bugs, "6.18.23", true},
		{"6.18.44-fc-v657", "6.18.44", "", "", true},
		{"6.19.12", "6.19.12", bugs, "6.19.13", true},
		{"7.0.0", "7.0.0", "", "", true},
		{"7.1.8", "7.1.8", "", "", true},
		{"7.2.0-rc4-amd64", "7.2-rc4", "", "", true},
		{"7.2-rc4", "7.2-rc4", "", "", true},
		{"7.2~rc4-amd64", "7.2-rc4", "", "", true},
		{"7.2.0-rc5", "7.2-rc5", "", "", false},
		{"7.2.0", "7.2.0", "", "", false}, // a guest
		{"7.2.0-arch1-1", "7.2", "", "", false},
		{"7.3.1", "7.3.1", "", "", false},
		{"7.3.4+deb13-amd64", "7.3.4", "", "", false}, // a guest
		{"10.0.1", "10.0.1", "", "", false},
	} {
		v, ok := parseVersion(tc.release)
		if !ok || v.String() != tc.version {
			t.Errorf("%s: version %v, %v, want %s", tc.release, v, ok, tc.version)
		}
		codes, texts := "", ""
		for _, n := range versionNotes(v) {
			codes += n.Code + " "
			texts += n.Text
			if want := n.Code+" " == bugs; (n.Level == LevelWarning) != want {
				t.Errorf("%s: %s is a %s", tc.release, n.Code, n.Level)
			}
			if n.Code+" " != old && !strings.Contains(n.Text, "your distribution has backported") && !strings.Contains(n.Text, "whether it has backported") {
				t.Errorf("%s: says nothing of backports: %s", tc.release, n.Text)
			}
		}
		if codes != tc.codes {
			t.Errorf("%s: notes %q, want %q", tc.release, codes, tc.codes)
		}
		if !strings.Contains(texts, tc.update) || tc.update == "" && strings.Contains(texts, "pdate ") {
			t.Errorf("%s: should say %q: %s", tc.release, tc.update, texts)
		}
		if v.overlongSendfile() != tc.overlong {
			t.Errorf("%s: over-long sendfile %v", tc.release, !tc.overlong)
		}
	}
	if n := versionNotes(version{}); n != nil {
		t.Errorf("unknown version: %v", n)
	}
	for _, release := range []string{"", "six", "6", "99999999999999999999.1"} {
		if v, ok := parseVersion(release); ok {
			t.Errorf("%q is version %v", release, v)
		}
	}
}

func TestReadRelease(t *testing.T) {
	for _, tc := range []struct {
		name      string
		osrelease string
		build     string // uname -v
		signature string
		want      string
	}{
		{"Debian", "6.1.0-56-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-1 (2026-10-01)", "", "6.1.192"},
		{"Debian, new style", "6.12.48+deb13-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.12.48-1 (2025-09-20)", "", "6.12.48"},
		{"Debian, of another kernel", "6.1.0-56-amd64", "#1 SMP Debian 5.10.1-1", "", "6.1"},
		{"Ubuntu", "5.15.0-91-generic", "#101-Ubuntu SMP Tue Nov 14 13:30:08 UTC 2023", "Ubuntu 5.15.0-91.101-generic 5.15.131", "5.15.131"},
		{"Red Hat", "5.14.0-570.12.1.el9_6.x86_64", "#1 SMP PREEMPT_DYNAMIC Tue Apr 8 2025", "", "5.14"},
		{"own", "6.18.44-fc-v657", "#1 SMP", "", "6.18.44"},
		{"none", "strange", "", "", ""},
	} {
		root := fstest.MapFS{
			"proc/sys/kernel/osrelease": {Data: []byte(tc.osrelease + "\n")},
			"proc/sys/kernel/version":   {Data: []byte(tc.build + "\n")},
		}
		if tc.signature != "" {
			root["proc/version_signature"] = &fstest.MapFile{Data: []byte(tc.signature + "\n")}
		}
		r := readRelease(root)
		if r.Version != tc.want || r.Name != tc.osrelease || (r.Error != "") != (tc.want == "") {
			t.Errorf("%s: %+v, want %s", tc.name, r, tc.want)
		}
	}
	const want = "open /proc/sys/kernel/osrelease: file does not exist"
	if r := readRelease(fstest.MapFS{}); r.Error != want {
		t.Errorf("no /proc: %q, want %q", r.Error, want)
	}
}
