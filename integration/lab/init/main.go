//go:build linux

// Command init is PID 1 of the lab's guests. It loads the kernel modules of its
// initramfs, lays a writable overlay over the host's root folder, runs the
// script that the host left in /out/cmd, and powers the guest off.
//
// What it must know stands on the kernel's command line:
//
//	lab.root=9p|hostfs   how the host's root folder is reached
//	lab.out=TAG|PATH     the folder shared with the host: 9p's tag or hostfs's path
//	lab.disk=DEVICE      an ext4 file system, mounted at /ext4
//
// The shared folder holds cmd (the script), log (what it printed, live) and exit
// (its exit status, written last: without it, the guest has failed).
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: is PID 1 of a lab guest, and nothing else")
		os.Exit(2)
	}
	if err := run(); err != nil {
		fmt.Println("init:", err)
	}
	// A plain power-off: what the guest still has in its caches dies with it.
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Println("init: power off:", err)
	}
	select {} // PID 1 must not return while the kernel stops
}

func run() error {
	if err := mountAll("", kernelMounts); err != nil {
		return err
	}
	options, err := bootOptions()
	if err != nil {
		return err
	}
	if err := loadModules("/modules"); err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	if err := enterRoot(options); err != nil {
		return err
	}
	if err := tune(); err != nil {
		return err
	}
	return runCommand()
}

// A mountPoint is one line of a mount table.
type mountPoint struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

var kernelMounts = []mountPoint{
	{"proc", "/proc", "proc", 0, ""},
	{"sysfs", "/sys", "sysfs", 0, ""},
	{"devtmpfs", "/dev", "devtmpfs", 0, ""},
}

// guestMounts come on top of kernelMounts in the overlay. /tmp is not among
// them: go test leaves test binaries there, which the guest must find.
var guestMounts = []mountPoint{
	{"devpts", "/dev/pts", "devpts", 0, ""},
	{"tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777"},
	{"tmpfs", "/run", "tmpfs", 0, "mode=0755"},
}

func mountAll(root string, table []mountPoint) error {
	for _, m := range table {
		target := root + m.target
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, target, m.fstype, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s on %s (%s): %w", m.source, target, m.fstype, err)
		}
	}
	return nil
}

// bootOptions returns the lab.* options of the kernel's command line.
func bootOptions() (map[string]string, error) {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, err
	}
	options := make(map[string]string)
	for field := range strings.FieldsSeq(string(line)) {
		if name, value, ok := strings.Cut(strings.TrimPrefix(field, "lab."), "="); ok && strings.HasPrefix(field, "lab.") {
			options[name] = value
		}
	}
	return options, nil
}

// loadModules loads all modules of dir in the order of their names. One that
// the CPU doesn't support is no error (an AES driver, say): whether the guest
// has what it needs shows in checkTLS.
func loadModules(dir string) error {
	names, err := filepath.Glob(dir + "/*.ko")
	if err != nil {
		return err
	}
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			fmt.Printf("init: module %s: %v\n", filepath.Base(name), err)
		}
	}
	return nil
}

// loopbackUp brings up the one network interface there is; with it come
// 127.0.0.1 and ::1.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr); err != nil {
		return fmt.Errorf("flags of lo: %w", err)
	}
	ifr.SetUint16(ifr.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("lo up: %w", err)
	}
	return nil
}

// enterRoot makes the host's root folder, below a tmpfs that takes all changes,
// the root of everything that follows.
func enterRoot(options map[string]string) error {
	const p9 = "trans=virtio,version=9p2000.L,msize=524288"
	var host, out mountPoint
	switch options["root"] {
	case "9p":
		// The host's files don't change under a running test: cache them.
		host = mountPoint{"root", "/host", "9p", unix.MS_RDONLY, p9 + ",cache=loose"}
		out = mountPoint{options["out"], "/out", "9p", 0, p9}
	case "hostfs":
		host = mountPoint{"none", "/host", "hostfs", unix.MS_RDONLY, "/"}
		out = mountPoint{"none", "/out", "hostfs", 0, options["out"]}
	default:
		return fmt.Errorf("lab.root=%q: want 9p or hostfs", options["root"])
	}
	if err := mountAll("", []mountPoint{host, {"tmpfs", "/changes", "tmpfs", 0, "size=75%"}}); err != nil {
		return err
	}
	for _, dir := range []string{"/changes/upper", "/changes/work"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	table := []mountPoint{{"overlay", "", "overlay", 0, "lowerdir=/host,upperdir=/changes/upper,workdir=/changes/work"}}
	table = append(table, kernelMounts...)
	table = append(table, guestMounts...)
	table = append(table, out, mountPoint{options["disk"], "/ext4", "ext4", 0, ""})
	if err := mountAll("/root", table); err != nil {
		return err
	}
	if err := unix.Chroot("/root"); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return os.Chdir("/")
}

// tune gives the guest what a set-up machine has, and checks that it has what
// the lab is for.
func tune() error {
	for name, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "fd/0", "/dev/stdout": "fd/1", "/dev/stderr": "fd/2",
	} {
		if err := os.Symlink(target, name); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if err := unix.Sethostname([]byte("localhost")); err != nil {
		return fmt.Errorf("hostname: %w", err)
	}
	// Tests open connections by the thousand, and closed ones linger.
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("10000 64999"), 0); err != nil {
		return err
	}
	many := unix.Rlimit{Cur: 65536, Max: 65536}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &many); err != nil {
		return fmt.Errorf("open files: %w", err)
	}
	if _, err := os.Stat("/proc/net/tls_stat"); err != nil {
		return fmt.Errorf("this kernel has no TLS: %w", err)
	}
	return nil
}

func runCommand() error {
	const home, tmp = "/run/home", "/run/tmp"
	for _, dir := range []string{home, tmp} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	log, err := os.OpenFile("/out/log", os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	cmd := exec.Command("/bin/bash", "/out/cmd")
	cmd.Env = []string{
		"HOME=" + home, "XDG_DATA_HOME=" + home + "/data", "XDG_CONFIG_HOME=" + home + "/config",
		"TMPDIR=" + tmp, "LANG=C.UTF-8", "TERM=dumb", "USER=root",
	}
	cmd.Stdout = liveFile{log}
	cmd.Stderr = cmd.Stdout
	cmd.WaitDelay = 10 * time.Second // a server left behind must not keep us
	status := 0
	if err := cmd.Run(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		status = 255
		if x, ok := errors.AsType[*exec.ExitError](err); ok && x.Exited() {
			status = x.ExitCode()
		} else if ok {
			status = 128 + int(x.Sys().(interface{ Signal() unix.Signal }).Signal())
		} else {
			fmt.Println("init: /out/cmd:", err)
		}
	}
	if err := log.Close(); err != nil {
		return err
	}
	return writeExit(status)
}

// writeExit leaves the exit status to the host, in one piece.
func writeExit(status int) error {
	f, err := os.Create("/out/exit")
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(f, status); err != nil {
		return err
	}
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("syncfs /out: %w", err)
	}
	return f.Close()
}

// liveFile hands each write to the host at once: hostfs would keep it for as
// long as any file system keeps its dirty pages.
type liveFile struct{ *os.File }

func (f liveFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	if err == nil {
		const now = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
		err = unix.SyncFileRange(int(f.Fd()), 0, 0, now)
	}
	return n, err
}
