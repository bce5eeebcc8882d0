//go:build linux

package main

import (
	"bytes"
	"debug/buildinfo"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A serverKind is how one server is configured.
type serverKind struct {
	program func(binary, config string) []string // the command
	config  func(site) string

	// Whether a scenario differs from what another kind does; nil: always.
	matters func(scenario) bool

	// The smallest body, in bytes, for which the kernel is to encrypt the
	// connection; 0: never.
	kernelFrom int64
}

// minSize is the default of ktls's min_size.
const minSize = 128 << 10

var serverKinds = map[string]serverKind{
	"caddy": {program: caddyProgram, config: func(s site) string { return s.caddyfile("", "") }},
	"caddy-ktls": {
		program:    caddyProgram,
		config:     func(s site) string { return s.caddyfile(ktlsWrapper, "ktls") },
		kernelFrom: minSize,
	},
	"caddy-ktls-1m": {
		program:    caddyProgram,
		config:     func(s site) string { return s.caddyfile(ktlsWrapper, "ktls {\n\t\thttp2_frame_size 1MiB\n\t}") },
		matters:    func(sc scenario) bool { return sc.Protocol == "h2" && sc.Body >= minSize },
		kernelFrom: minSize,
	},
	"nginx": {program: nginxProgram, config: func(s site) string { return s.nginxConf("") }},
	"nginx-ktls": {
		program:    nginxProgram,
		config:     func(s site) string { return s.nginxConf("ssl_conf_command Options KTLS;") },
		kernelFrom: 1,
	},
}

func caddyProgram(binary, config string) []string {
	return []string{binary, "run", "--adapter", "caddyfile", "--config", config}
}

func nginxProgram(binary, config string) []string {
	return []string{binary, "-p", filepath.Dir(config), "-e", "stderr", "-c", config}
}

// A site is what every server serves.
type site struct {
	addr      string
	root      string // the files
	cert, key string // PEM files
	dir       string // the server's own
}

const ktlsWrapper = `
		listener_wrappers {
			ktls
		}`

// caddyfile returns Caddy's configuration: the defaults, but nothing that has to
// do with certificate authorities and nothing that listens elsewhere.
func (s site) caddyfile(server, directive string) string {
	return fmt.Sprintf(`{
	admin off
	auto_https off
	persist_config off
	servers {
		protocols h1 h2%s
	}
}
https://%s {
	bind 127.0.0.1
	tls %s %s
	root * %s
	%s
	file_server
}
`, server, "localhost"+s.addr[strings.LastIndexByte(s.addr, ':'):], s.cert, s.key, s.root, directive)
}

// nginxConf returns nginx's configuration: Debian's, without its logs, and with
// connections that may last.
func (s site) nginxConf(tls string) string {
	return fmt.Sprintf(`user root;
daemon off;
worker_processes 1;
pid %[1]s/nginx.pid;
error_log stderr warn;
events { worker_connections 1024; }
http {
	access_log off;
	sendfile on;
	tcp_nopush on;
	keepalive_requests 1000000;
	default_type application/octet-stream;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	server {
		listen %[2]s ssl http2;
		ssl_certificate %[3]s;
		ssl_certificate_key %[4]s;
		ssl_protocols TLSv1.2 TLSv1.3;
		%[5]s
		root %[6]s;
	}
}
`, s.dir, s.addr, s.cert, s.key, tls, s.root)
}

// A server is a running one.
type server struct {
	kind    serverKind
	name    string
	version string
	addr    string
	group   string // its control group's folder
	cmd     *exec.Cmd
	log     string // a file
	ended   chan struct{}
}

// cgroups is where control groups are. Nothing else of a guest uses them.
const cgroups = "/sys/fs/cgroup"

// startServer starts a server in a control group of its own, and waits until it
// listens.
func startServer(name, binary string, s site) (*server, error) {
	kind, ok := serverKinds[name]
	if !ok {
		return nil, fmt.Errorf("no server %q", name)
	}
	version, err := versionOf(binary)
	if err != nil {
		return nil, err
	}
	srv := &server{kind: kind, name: name, version: version, addr: s.addr, ended: make(chan struct{})}
	srv.group = filepath.Join(cgroups, name)
	if err := os.Mkdir(srv.group, 0o755); err != nil {
		return nil, err
	}
	group, err := os.Open(srv.group)
	if err != nil {
		return nil, err
	}
	defer group.Close()
	config := filepath.Join(s.dir, "config")
	if err := os.WriteFile(config, []byte(kind.config(s)), 0o600); err != nil {
		return nil, err
	}
	srv.log = filepath.Join(s.dir, "log")
	log, err := os.Create(srv.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	args := kind.program(binary, config)
	srv.cmd = exec.Command(args[0], args[1:]...)
	srv.cmd.Stdout, srv.cmd.Stderr = log, log
	// A line for each cycle of the garbage collector; see block.
	srv.cmd.Env = append(os.Environ(), "GODEBUG=gctrace=1")
	srv.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	if err := srv.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		srv.cmd.Wait()
		close(srv.ended)
	}()
	if err := srv.wait(); err != nil {
		text, _ := os.ReadFile(srv.log)
		return nil, fmt.Errorf("%s: %w; its log:\n%s", name, err, text)
	}
	return srv, nil
}

// wait returns when the server listens.
func (s *server) wait() error {
	for range 1000 {
		conn, err := net.Dial("tcp", s.addr)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-s.ended:
			return errors.New("the server ended")
		case <-time.After(50 * time.Millisecond):
		}
	}
	return errors.New("the server doesn't listen")
}

// collections returns how many cycles of Go's garbage collector have ended; 0 if
// the server isn't Go.
func (s *server) collections() (int, error) {
	text, err := os.ReadFile(s.log)
	if err != nil {
		return 0, err
	}
	return bytes.Count(text, []byte("\ngc ")), nil
}

// stop ends the server with all its processes.
func (s *server) stop() error {
	if err := os.WriteFile(filepath.Join(s.group, "cgroup.kill"), []byte("1"), 0); err != nil {
		return err
	}
	<-s.ended
	return nil
}

// versionOf tells which program a binary is.
func versionOf(binary string) (string, error) {
	if info, err := buildinfo.ReadFile(binary); err == nil {
		for _, module := range info.Deps {
			if module.Path == "github.com/caddyserver/caddy/v2" {
				return "Caddy " + module.Version + ", " + info.GoVersion, nil
			}
		}
	}
	out, err := exec.Command(binary, "-v").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s -v: %w", binary, err)
	}
	_, version, _ := strings.Cut(strings.TrimSpace(string(out)), ": ")
	return version, nil
}
