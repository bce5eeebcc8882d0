package main

import (
	"io/fs"
	"os"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// fileSystem is the machine's, with files whose content is inverted.
type fileSystem struct{}

func (fileSystem) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.fs.hostile", New: func() caddy.Module { return new(fileSystem) }}
}

func (*fileSystem) UnmarshalCaddyfile(*caddyfile.Dispenser) error { return nil }

func (fileSystem) Open(name string) (fs.File, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	return inverted{f}, nil
}

// inverted has all methods of a file of the kernel's, and other content.
type inverted struct{ *os.File }

func (f inverted) Read(p []byte) (int, error) {
	n, err := f.File.Read(p)
	for i := range p[:n] {
		p[i] ^= 0xff
	}
	return n, err
}
