package caddyktls

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// fileSystem is a kind of file system, as statfs(2) tells it.
type fileSystem struct {
	magic uint32 // f_type (include/uapi/linux/magic.h and the file systems' own headers)
	name  string // as in mount(8)
	local bool   // sendfile is trusted
}

// fileSystems are those with a name. Local ones keep their pages in the page
// cache under the kernel's own control. The others change, block or fail by the
// will of another machine or process while the kernel encrypts.
var fileSystems = []fileSystem{
	{0xEF53, "ext4", true}, // ext2 and ext3 have the same number
	{0x58465342, "xfs", true},
	{0x9123683E, "btrfs", true},
	{0xF2F52010, "f2fs", true},
	{0x2FC12FC1, "zfs", true},
	{0xCA451A4E, "bcachefs", true},
	{0x01021994, "tmpfs", true},
	{0x858458F6, "ramfs", true},
	// What an overlay's layers lie on doesn't show. statfs and fstat answer for
	// the overlay; /proc/self/mountinfo has the layers' paths, but those that
	// mount(2) was given, in the mount namespace (and, if they are relative, the
	// working directory) of whoever mounted it: in a container they lead nowhere,
	// or somewhere else.
	{0x794C7630, "overlay", true},
	{0x73717368, "squashfs", true},
	{0xE0F5E1E2, "erofs", true},
	{0x9660, "iso9660", true},
	{0x15013346, "udf", true},
	{0x4D44, "vfat", true},
	{0x2011BAB0, "exfat", true},
	{0x7366746E, "ntfs3", true},
	{0x482B, "hfsplus", true},
	{0x3153464A, "jfs", true},
	{0x52654973, "reiserfs", true},
	{0x3434, "nilfs2", true},
	{0x00C0FFEE, "hostfs", true}, // User-Mode Linux

	{0x65735546, "fuse", false}, // virtiofs too
	{0x6969, "nfs", false},
	{0xFF534D42, "cifs", false},
	{0xFE534D42, "smb3", false},
	{0x517B, "smbfs", false},
	{0x786F4256, "vboxsf", false},
	{0xBACBACBC, "vmhgfs", false},
	{0x01021997, "9p", false},
	{0x5346414F, "afs", false},
	{0x6B414653, "kafs", false},
	{0x00C36400, "ceph", false},
	{0x0BD00BD0, "lustre", false},
	{0x01161970, "gfs2", false},
	{0x7461636F, "ocfs2", false},
	{0x20030528, "orangefs", false},
	{0x73757245, "coda", false},
	{0x47504653, "gpfs", false},
	{0xF15F, "ecryptfs", false},
}

// unknownFS names a file system that has no entry.
const unknownFS = "unknown"

// lookupFileSystem returns the entry for f_type.
func lookupFileSystem(magic uint32) fileSystem {
	i := slices.IndexFunc(fileSystems, func(f fileSystem) bool { return f.magic == magic })
	if i < 0 {
		return fileSystem{magic: magic, name: unknownFS}
	}
	return fileSystems[i]
}

// checkFileSystems makes sure that every name is known and none contradicts
// itself.
func checkFileSystems(allow, deny []string) error {
	for option, names := range map[string][]string{"allow_fs": allow, "deny_fs": deny} {
		for _, name := range names {
			if !knownFileSystem(name) {
				return fmt.Errorf("%s: '%s' is no file system known here: %s", option, name, strings.Join(fileSystemNames(), ", "))
			}
		}
	}
	for _, name := range allow {
		if slices.Contains(deny, name) {
			return fmt.Errorf("allow_fs: '%s' is denied as well", name)
		}
	}
	return nil
}

func knownFileSystem(name string) bool { return slices.Contains(fileSystemNames(), name) }

func fileSystemNames() []string {
	names := []string{unknownFS}
	for _, f := range fileSystems {
		names = append(names, f.name)
	}
	return names
}

// distrusted returns the name of the file system that f is on if nothing is to
// be sent from there, else "".
func (h *Handler) distrusted(f *os.File) string {
	magic, err := fileSystemOf(f)
	if err != nil {
		return h.distrust(fileSystem{name: unknownFS})
	}
	return h.distrust(lookupFileSystem(magic))
}

// distrust is distrusted for a file system.
func (h *Handler) distrust(fs fileSystem) string {
	trusted := fs.local || slices.Contains(h.AllowFS, fs.name)
	if trusted && !slices.Contains(h.DenyFS, fs.name) {
		return ""
	}
	return fs.name
}
