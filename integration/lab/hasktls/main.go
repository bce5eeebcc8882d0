//go:build linux

// Command hasktls says whether this machine's kernel has TLS: exit status 0 if
// so, 1 if not, and one line with the reason.
package main

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

func main() {
	if err := probe(); err != nil {
		fmt.Println("this kernel has no TLS:", err)
		os.Exit(1)
	}
	fmt.Println("this kernel has TLS")
}

// probe attaches the kernel's TLS to a connected loopback socket, the only
// answer that counts: lists in /proc leave out what is loaded on demand.
func probe() error {
	listener, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		return err
	}
	defer conn.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	var attach error
	if err := raw.Control(func(fd uintptr) {
		attach = unix.SetsockoptString(int(fd), unix.SOL_TCP, unix.TCP_ULP, "tls")
	}); err != nil {
		return err
	}
	if errors.Is(attach, unix.ENOENT) {
		return errors.New("no tls module is built in, loaded or loadable (modprobe tls)")
	}
	return attach
}
