// Package integration holds the end-to-end tests of caddy-ktls: they start the
// real cmd/caddy as a process of its own, on loopback, on the kernel they run
// on, and drive it with curl, gnutls-cli, openssl, nghttp2's clients, h2spec and
// Go's own client.
//
// Every body is compared by SHA-256 with the file it should be, and for every
// response the path it took (sendfile, or plain and why) is read from Caddy's
// access log. /proc/net/tls_stat says whether the kernel took part.
//
// On a kernel without kernel TLS the same tests run and expect the plain path
// everywhere; the few that have nothing to say there skip.
//
// Environment:
//
//	KTLS_H2SPEC    an h2spec to test with; TestH2spec is skipped if unset
//	KTLS_CADDY_L4  what go build makes of integration/layer4; TestLayer4 is
//	               skipped if unset
//	KTLS_PEBBLE, KTLS_CHALLTESTSRV
//	               Pebble, an ACME CA, and its DNS server; the tests that get
//	               certificates from it are skipped if unset
//	KTLS_CADDY     a caddy binary to test; built from ../cmd/caddy if unset
//	KTLS_REQUIRED  fail instead of skipping where the kernel has no kernel TLS
//	KTLS_SLOW      the machine is emulated: smaller files, more patience
//	KTLS_MANY      TestManyConnections in full size; see there
//	KTLS_KERNEL    name of the kernel, for messages
package integration
