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
	// connection; 0: never; whatever: as the build can.
	kernelFrom int64

	clear bool // without TLS, to see what is below it
}

// whatever stands for a server that has kernel TLS or not, as it was built.
const whatever = -1

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
	"caddy-clear": {program: caddyProgram, config: site.clearCaddyfile, clear: true},
	"nginx":       {program: nginxProgram, config: func(s site) string { return s.nginxConf("") }},
	"nginx-ktls": {
		program:    nginxProgram,
		config:     func(s site) string { return s.nginxConf("ssl_conf_command Options KTLS;") },
		kernelFrom: 1,
	},
	"nginx-clear": {program: nginxProgram, config: site.clearNginxConf, clear: true},
	"lighttpd":    {program: lighttpdProgram, config: site.lighttpdConf, kernelFrom: whatever},
}

func caddyProgram(binary, config string) []string {
	return []string{binary, "run", "--adapter", "caddyfile", "--config", config}
}

func nginxProgram(binary, config string) []string {
	return []string{binary, "-p", filepath.Dir(config), "-e", "stderr", "-c", config}
}

func lighttpdProgram(binary, config string) []string {
	modules := filepath.Join(filepath.Dir(binary), "..", "lib", "lighttpd") // of the package, wherever it is unpacked
	return []string{binary, "-D", "-m", modules, "-f", config}
}

// A site is what every server serves.
type site struct {
	addr      string
	root      string // the files
	cert, key string // PEM files
	dir       string // the server's own
	admin     string // the address of Caddy's admin endpoint; empty: none
}

const ktlsWrapper = `
		listener_wrappers {
			ktls
		}`

// caddyfile returns Caddy's configuration: the defaults, but nothing that has to
// do with certificate authorities and nothing that listens elsewhere.
func (s site) caddyfile(server, directive string) string {
	return s.caddyfileFor("https", "h1 h2"+server, fmt.Sprintf("tls %s %s", s.cert, s.key), directive)
}

// clearCaddyfile is the same without TLS.
func (s site) clearCaddyfile() string {
	return s.caddyfileFor("http", "h1", "", "")
}

func (s site) caddyfileFor(scheme, protocols, tls, directive string) string {
	admin := "off"
	if s.admin != "" {
		admin = s.admin
	}
	return fmt.Sprintf(`{
	admin %s
	auto_https off
	persist_config off
	servers {
		protocols %s
	}
}
%s://localhost%s {
	bind 127.0.0.1
	%s
	root * %s
	%s
	file_server
}
`, admin, protocols, scheme, s.addr[strings.LastIndexByte(s.addr, ':'):], tls, s.root, directive)
}

// nginxConf returns nginx's configuration: Debian's, without its logs, and with
// connections that may last and be many.
func (s site) nginxConf(tls string) string {
	return s.nginxConfFor("ssl http2", fmt.Sprintf(`ssl_certificate %s;
		ssl_certificate_key %s;
		ssl_protocols TLSv1.2 TLSv1.3;
		%s`, s.cert, s.key, tls))
}

// clearNginxConf is the same without TLS.
func (s site) clearNginxConf() string {
	return s.nginxConfFor("", "")
}

func (s site) nginxConfFor(listen, tls string) string {
	return fmt.Sprintf(`user root;
daemon off;
worker_processes 1;
worker_rlimit_nofile 8192;
pid %[1]s/nginx.pid;
error_log stderr warn;
events { worker_connections 4096; }
http {
	access_log off;
	sendfile on;
	tcp_nopush on;
	keepalive_requests 1000000;
	keepalive_timeout 1h;
	default_type application/octet-stream;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	server {
		listen %[2]s %[3]s;
		%[4]s
		root %[5]s;
	}
}
`, s.dir, s.addr, listen, tls, s.root)
}

// lighttpdConf returns lighttpd's configuration: its defaults, with connections that
// may last and be many, and with kernel TLS, which is used where the build has it.
func (s site) lighttpdConf() string {
	_, port, _ := strings.Cut(s.addr, ":")
	return fmt.Sprintf(`server.document-root = "%[1]s"
server.bind = "127.0.0.1"
server.port = %[2]s
server.errorlog = "%[3]s/error.log"
server.max-keep-alive-requests = 1000000
server.max-keep-alive-idle = 3600
server.max-connections = 4096
server.max-fds = 8192
mimetype.assign = ( "" => "application/octet-stream" )
server.modules += ( "mod_openssl" )
ssl.engine = "enable"
ssl.pemfile = "%[4]s"
ssl.privkey = "%[5]s"
ssl.openssl.ssl-conf-cmd = ( "MinProtocol" => "TLSv1.2", "Options" => "KTLS" )
`, s.root, port, s.dir, s.cert, s.key)
}

// A server is a running one.
type server struct {
	kind    serverKind
	name    string
	version string
	addr    string
	admin   string // as the site has it, if this is Caddy
	group   string // its control group's folder; empty: its processes are asked
	cmd     *exec.Cmd
	log     string // a file
	ended   chan struct{}
}

// cgroups is where control groups are. Nothing else of a guest uses them.
const cgroups = "/sys/fs/cgroup"

// startServer starts a server in a control group of its own, or, on a machine that
// others use too, in a process group; and waits until it listens.
func startServer(name, binary string, s site, here bool) (*server, error) {
	kind, ok := serverKinds[name]
	if !ok {
		return nil, fmt.Errorf("no server %q", name)
	}
	version, err := versionOf(binary)
	if err != nil {
		return nil, err
	}
	srv := &server{kind: kind, name: name, version: version, addr: s.addr, ended: make(chan struct{})}
	if strings.HasPrefix(version, "Caddy ") {
		srv.admin = s.admin
	}
	attributes := &syscall.SysProcAttr{Setpgid: true}
	if !here {
		srv.group = filepath.Join(cgroups, filepath.Base(s.dir))
		if err := os.Mkdir(srv.group, 0o755); err != nil {
			return nil, err
		}
		group, err := os.Open(srv.group)
		if err != nil {
			return nil, err
		}
		defer group.Close()
		attributes.UseCgroupFD, attributes.CgroupFD = true, int(group.Fd())
	}
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
	srv.cmd.SysProcAttr = attributes
	if err := srv.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		srv.cmd.Wait()
		close(srv.ended)
	}()
	if err := srv.wait(); err != nil {
		srv.stop()
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
	if err := syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
		return fmt.Errorf("kill %s: %w", s.name, err)
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
	version := strings.TrimSpace(string(out))
	if _, after, found := strings.Cut(version, ": "); found {
		version = after
	}
	version, _, _ = strings.Cut(version, " (")
	return version, nil
}
