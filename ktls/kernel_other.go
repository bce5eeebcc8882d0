//go:build !linux

package ktls

import (
	"errors"
	"net"
	"os"
)

// kernelTX never exists here.
type kernelTX struct {
	tcp *net.TCPConn
}

var errNotLinux = errors.New("kernel TLS: " + errors.ErrUnsupported.Error())

func newKernelTX(*net.TCPConn, *Keys, uint64) (*kernelTX, error) { return nil, errNotLinux }

func peerGone(error) bool { return false }

func (*kernelTX) setKey(*Keys) error { return errNotLinux }

func (*kernelTX) tune(*Options) (int, bool) { return 0, false }

func (*kernelTX) settle(func()) error { return errNotLinux }

func (*kernelTX) cork(bool) error { return errNotLinux }

func (*kernelTX) sendPieces(int, int64, int64, int64, Framed, func(int64)) (int64, error) {
	return 0, errNotLinux
}

func (*kernelTX) write([]byte, bool) (int, error) { return 0, errNotLinux }

func (*kernelTX) control(byte, []byte) error { return errNotLinux }

func (*kernelTX) sendFile(*os.File, int64, int64, int64, func(int64), func() bool) (int64, error) {
	return 0, errNotLinux
}
