package ktls

import (
	"crypto/tls"
	"testing"
)

// TestReason gives each reason that no client of a Caddy on any kernel can
// bring about; folder integration has the others.
func TestReason(t *testing.T) {
	t.Run("tls_version", func(t *testing.T) {
		config := testServerConfig(t)
		config.MinVersion = tls.VersionTLS10
		l := setup{config: config, opts: Options{Features: canEverything()}}.connect(t)
		client := l.withGo(&tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
		checkRefused(t, l.Upgrade(), "tls_version")
		checkServes(t, l, client)
	})
	t.Run("kernel", func(t *testing.T) {
		l := setup{opts: Options{Features: new(Features)}}.connect(t)
		client := l.withGo(nil)
		checkRefused(t, l.Upgrade(), "kernel")
		checkServes(t, l, client)
	})
	t.Run("unproven", func(t *testing.T) {
		l := setup{opts: Options{Features: canEverything()}}.connect(t)
		client := l.withGo(nil)
		l.tap.last[10] ^= 1 // of the record that the key must open
		checkRefused(t, l.Upgrade(), "unproven")
		checkServes(t, l, client)
	})
	t.Run("closed", func(t *testing.T) {
		l := setup{opts: Options{Features: canEverything()}}.connect(t)
		l.withGo(nil)
		if err := l.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		checkRefused(t, l.Upgrade(), "closed")
	})
	t.Run("key_limit", func(t *testing.T) {
		l := setup{opts: Options{Features: canEverything(), KeyLimit: minKeyLimit}}.connect(t)
		client := l.withGo(nil)
		for range minKeyLimit {
			checkServes(t, l, client)
		}
		checkRefused(t, l.Upgrade(), "key_limit")
		checkServes(t, l, client)
	})
	t.Run("handshake", func(t *testing.T) {
		l := setup{opts: Options{Features: canEverything()}}.connect(t)
		checkRefused(t, l.Upgrade(), "handshake")
	})
}
