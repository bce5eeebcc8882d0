//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A usage is memory in bytes: of each idle connection, or of all the clients that
// read slowly, at its highest.
type usage struct {
	Anonymous int64 `json:"anonymous"` // of the server's processes, all that isn't a file's
	Heap      int64 `json:"heap"`      // of this, in use on Go's heap, after a collection (Caddy)
	Stack     int64 `json:"stack"`     // and Go's stacks
	Slab      int64 `json:"slab"`      // the kernel's small objects, of both ends (0: not for who isn't root)
	Sockets   int64 `json:"sockets"`   // TCP's buffers, of both ends
}

// minus returns what is more than before.
func (u usage) minus(o usage) usage {
	return usage{u.Anonymous - o.Anonymous, u.Heap - o.Heap, u.Stack - o.Stack, u.Slab - o.Slab, u.Sockets - o.Sockets}
}

// over returns an n-th.
func (u usage) over(n int64) usage {
	return usage{u.Anonymous / n, u.Heap / n, u.Stack / n, u.Slab / n, u.Sockets / n}
}

// atLeast returns the greater of each.
func (u usage) atLeast(o usage) usage {
	return usage{max(u.Anonymous, o.Anonymous), max(u.Heap, o.Heap), max(u.Stack, o.Stack), max(u.Slab, o.Slab), max(u.Sockets, o.Sockets)}
}

// usage returns what the server, and the kernel, use now; with that of Go's heap and
// stacks only if a collection may change what comes after.
func (s *server) usage(collect bool) (u usage, err error) {
	if collect && s.admin != "" {
		for range 4 { // sync.Pool keeps what it has for two
			if u.Heap, u.Stack, err = goMemory(s.admin); err != nil {
				return u, err
			}
		}
	}
	pids, err := processes(s.cmd.Process.Pid)
	if err != nil {
		return u, err
	}
	for _, pid := range pids {
		n, err := fileCounter(fmt.Sprintf("/proc/%d/status", pid), "RssAnon")
		if err != nil {
			return u, err
		}
		u.Anonymous += n << 10 // kB
	}
	if u.Slab, err = slab(); err != nil {
		return u, err
	}
	text, err := os.ReadFile("/proc/net/sockstat")
	if err != nil {
		return u, err
	}
	pages, err := tcpPages(string(text))
	u.Sockets = pages * int64(os.Getpagesize())
	return u, err
}

// fileCounter finds a number in a file.
func fileCounter(file, name string) (int64, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return counter(string(text), name)
}

// slab returns the bytes of the kernel's small objects that are in use; 0 for who
// may not know.
func slab() (total int64, err error) {
	text, err := os.ReadFile("/proc/slabinfo")
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		var name string
		var active, all, size int64
		if _, err := fmt.Sscan(line, &name, &active, &all, &size); err == nil { // not the head
			total += active * size
		}
	}
	return total, nil
}

// tcpPages finds the pages of TCP's buffers in /proc/net/sockstat.
func tcpPages(sockstat string) (int64, error) {
	for line := range strings.Lines(sockstat) {
		if _, numbers, found := strings.Cut(line, "TCP: "); found {
			if _, mem, found := strings.Cut(numbers, " mem "); found {
				var n int64
				_, err := fmt.Sscan(mem, &n)
				return n, err
			}
		}
	}
	return 0, errors.New("no memory of TCP in /proc/net/sockstat")
}

// goMemory asks Caddy's admin endpoint, after a collection.
func goMemory(admin string) (heap, stack int64, err error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + admin + "/debug/pprof/heap?gc=1&debug=1")
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, 0, err
	}
	for name, value := range map[string]*int64{"HeapAlloc": &heap, "Stack": &stack} {
		_, rest, _ := strings.Cut(string(text), "\n# "+name+" = ")
		if _, err := fmt.Sscan(rest, value); err != nil {
			return 0, 0, fmt.Errorf("no %s in the heap profile: %w", name, err)
		}
	}
	return heap, stack, nil
}

// idlers opens connections, has each serve a file, and leaves them open. What the
// first few cost isn't counted.
func (b *bench) idlers(srv *server, r *result) error {
	var clients []*client
	defer func() {
		for _, c := range clients {
			c.close()
		}
	}()
	open := func(n int) error {
		for range n {
			c, err := dial(srv.addr, r.Protocol, r.TLS)
			if err != nil {
				return err
			}
			clients = append(clients, c)
			if err := c.request(fileName(r.Body), 1); err != nil {
				return err
			}
			if err := c.receive(b.files[r.Body], 1); err != nil {
				return err
			}
		}
		return nil
	}
	if err := open(5); err != nil {
		return err
	}
	before, err := srv.settled()
	if err != nil {
		return err
	}
	if err := open(r.Connections); err != nil {
		return err
	}
	after, err := srv.settled()
	if err != nil {
		return err
	}
	more := after.minus(before).over(int64(r.Connections))
	r.Memory = &more
	r.noteTLS(clients[0])
	r.Time = nil
	return nil
}

// settled returns what is used when the server has nothing to do.
func (s *server) settled() (usage, error) {
	if _, err := s.idle(); err != nil {
		return usage{}, err
	}
	return s.usage(true)
}

// What a slow client reads: so much at a time, in turn with all others, so often.
// Its kernel has room for no more than it reads.
const (
	slowRead   = 64 << 10 // bytes
	slowRounds = 8
)

// far has a connection be like one through the Internet: segments of 1,448 bytes, where
// the loopback's have 64 KiB, and a receive buffer of n bytes. Else the server's kernel
// would take 4 MiB and more for each, and with a thousand of them run out of memory.
func far(n int) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) (err error) {
		if failed := c.Control(func(fd uintptr) {
			err = os.NewSyscallError("setsockopt TCP_MAXSEG", unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, 1448))
			if err == nil {
				err = os.NewSyscallError("setsockopt SO_RCVBUF", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, n))
			}
		}); failed != nil {
			return failed
		}
		return err
	}
}

// slowReaders has clients ask for a large file, each on its connection, and read it
// slowly. What is sent stays encrypted. They end long before the file does: once all
// are under way, the server holds what it is going to hold.
func (b *bench) slowReaders(srv *server, r *result) error {
	if !b.here { // a guest has too little memory for what the kernel would take
		const wmem = "/proc/sys/net/ipv4/tcp_wmem"
		usual, err := os.ReadFile(wmem)
		if err != nil {
			return err
		}
		if err := os.WriteFile(wmem, []byte("4096 16384 131072"), 0); err != nil {
			return err
		}
		defer os.WriteFile(wmem, usual, 0)
	}
	var clients []*client
	defer func() {
		for _, c := range clients {
			c.wire.Close()
		}
	}()
	dialer := &net.Dialer{Control: far(slowRead)}
	before, err := srv.settled()
	if err != nil {
		return err
	}
	for range r.Connections {
		c, err := dialWith(dialer, srv.addr, r.Protocol, r.TLS)
		if err != nil {
			return err
		}
		clients = append(clients, c)
		if err := c.request(fileName(r.Body), 1); err != nil {
			return err
		}
	}
	r.noteTLS(clients[0])
	var most usage
	buf := make([]byte, slowRead)
	for range slowRounds {
		for i, c := range clients {
			c.wire.SetReadDeadline(time.Now().Add(patience))
			if _, err := io.ReadFull(c.wire.Conn, buf); err != nil {
				return fmt.Errorf("client %d: %w", i, err)
			}
			if i%64 == 0 {
				now, err := srv.usage(false)
				if err != nil {
					return err
				}
				most = most.atLeast(now.minus(before))
			}
		}
	}
	most.Heap, most.Stack = 0, 0 // without collections there are no figures
	r.Memory = &most
	r.Time = nil
	return nil
}
