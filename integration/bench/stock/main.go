// Command stock is Caddy with its standard modules and no other, of the version
// that this module builds with: what the benchmark compares with.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "github.com/caddyserver/caddy/v2/modules/standard"
)

func main() {
	caddycmd.Main()
}
