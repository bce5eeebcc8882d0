package doctor

import (
	"fmt"
	"io/fs"
	"regexp"
	"strconv"
	"strings"
)

// Release is the version of the running kernel.
type Release struct {
	Name    string `json:"name"`    // as uname -r prints it
	Version string `json:"version"` // upstream's, such as "6.1.176"; "6.1" where the rest isn't known
	Error   string `json:"error,omitempty"`

	version version
}

// version is a version of Linux.
type version struct {
	major, minor, patch int
	rc                  int  // release candidate, 0 for a release
	vendor              bool // patch isn't known: the vendor counts otherwise
}

func (v version) String() string {
	s := fmt.Sprintf("%d.%d", v.major, v.minor)
	if v.rc > 0 {
		return s + "-rc" + strconv.Itoa(v.rc)
	}
	if v.vendor {
		return s
	}
	return s + "." + strconv.Itoa(v.patch)
}

// before reports whether v is older than the first release of a series.
func (v version) before(major, minor int) bool {
	return v.major < major || v.major == major && v.minor < minor
}

var (
	releasePattern = regexp.MustCompile(`^(\d+)\.(\d+)(?:\.(\d+))?(?:[-~]rc(\d+))?(.*)`)
	// What distributions whose releases end in ".0-something" say elsewhere:
	// Debian in uname -v, "#1 SMP Debian 6.1.176-1 (2026-08-01)"; Ubuntu in a
	// file of its own, "Ubuntu 5.15.0-91.101-generic 5.15.131".
	debianPattern = regexp.MustCompile(`\bDebian (\d+\.\d+\.\d+)`)
	ubuntuPattern = regexp.MustCompile(`^Ubuntu \S+ (\d+\.\d+\.\d+)`)
)

// parseVersion reads the name of a kernel release, such as "6.1.0-50-amd64".
func parseVersion(name string) (v version, ok bool) {
	m := releasePattern.FindStringSubmatch(name)
	if m == nil {
		return version{}, false
	}
	for i, n := range []*int{&v.major, &v.minor, &v.patch, &v.rc} {
		if m[i+1] == "" {
			continue
		}
		var err error
		if *n, err = strconv.Atoi(m[i+1]); err != nil {
			return version{}, false
		}
	}
	v.vendor = v.patch == 0 && v.rc == 0 && m[5] != ""
	return v, true
}

// readRelease finds out which version of Linux this is.
func readRelease(root fs.FS) Release {
	name, err := readWord(root, "proc/sys/kernel/osrelease")
	if err != nil {
		return Release{Error: err.Error()}
	}
	r := Release{Name: name}
	v, ok := parseVersion(name)
	if !ok {
		r.Error = fmt.Sprintf("%q is no version of Linux", name)
		return r
	}
	if v.vendor {
		build, _ := readWord(root, "proc/sys/kernel/version")
		signature, _ := readWord(root, "proc/version_signature")
		for _, m := range [][]string{debianPattern.FindStringSubmatch(build), ubuntuPattern.FindStringSubmatch(signature)} {
			if m == nil {
				continue
			}
			if w, ok := parseVersion(m[1]); ok && w.major == v.major && w.minor == v.minor {
				v = w
			}
		}
	}
	r.version, r.Version = v, v.String()
	return r
}

// overlongSendfile reports whether a network card that encrypts mishandles, with
// this version, a sendfile that asks for more than the file has.
func (v version) overlongSendfile() bool {
	return v.before(7, 2) || v.major == 7 && v.minor == 2 && v.rc > 0 && v.rc < 5
}

// readWord returns the text of a small file, without the line's end.
func readWord(root fs.FS, name string) (string, error) {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return "", absolute(err)
	}
	return strings.TrimSpace(string(b)), nil
}
