// Command caddy is Caddy with the standard modules and this one: what
// `xcaddy build --with github.com/caddy-ktls/caddy-ktls` makes.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "github.com/caddy-ktls/caddy-ktls"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
)

func main() {
	caddycmd.Main()
}
