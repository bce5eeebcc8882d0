package caddyktls

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

func TestFileSystemNamesAreUnique(t *testing.T) {
	names := fileSystemNames()
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			t.Errorf("%s is there twice", name)
		}
	}
	for i, f := range fileSystems {
		if slices.ContainsFunc(fileSystems[:i], func(g fileSystem) bool { return f.magic == g.magic }) {
			t.Errorf("%s has the number of another", f.name)
		}
	}
}

func TestFileSystemsTrustedByDefault(t *testing.T) {
	for magic, want := range map[uint32]string{
		0xEF53:     "", // ext4
		0x01021994: "", // tmpfs
		0x794C7630: "", // overlay
		0x6969:     "nfs",
		0x65735546: "fuse",
		0xFE534D42: "smb3",
		0x786F4256: "vboxsf",
		0x01021997: "9p",
		0x12345678: "unknown",
	} {
		if got := new(Handler).distrust(lookupFileSystem(magic)); got != want {
			t.Errorf("%#x: %q, want %q", magic, got, want)
		}
	}
}

func TestAllowAndDenyFileSystems(t *testing.T) {
	h := &Handler{AllowFS: []string{"nfs", "unknown"}, DenyFS: []string{"ext4"}}
	for magic, want := range map[uint32]string{
		0x6969:     "",
		0x12345678: "",
		0xEF53:     "ext4",
		0x58465342: "",
		0x65735546: "fuse",
	} {
		if got := h.distrust(lookupFileSystem(magic)); got != want {
			t.Errorf("%#x: %q, want %q", magic, got, want)
		}
	}
}

func TestCheckFileSystemsNamesOptionAndValue(t *testing.T) {
	for name, test := range map[string]struct {
		allow, deny []string
		want        string
	}{
		"known":        {[]string{"nfs"}, []string{"ext4"}, ""},
		"unknown":      {[]string{"unknown"}, nil, ""},
		"typo":         {[]string{"nsf"}, nil, "allow_fs: 'nsf' is no file system known here"},
		"typo in deny": {nil, []string{"ext5"}, "deny_fs: 'ext5' is no file system known here"},
		"both":         {[]string{"nfs"}, []string{"nfs"}, "allow_fs: 'nfs' is denied as well"},
	} {
		err := checkFileSystems(test.allow, test.deny)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// The file system of a real file has a name, and one whose file can't be asked
// isn't trusted.
func TestFileSystemOfAFile(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("Linux only")
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	magic, err := fileSystemOf(f)
	if err != nil {
		t.Fatal(err)
	}
	if fs := lookupFileSystem(magic); fs.name == unknownFS {
		t.Errorf("the file system of %s has number %#x, which has no name", f.Name(), magic)
	}
	f.Close()
	if name := new(Handler).distrusted(f); name != unknownFS {
		t.Errorf("a closed file is on %q", name)
	}
}
