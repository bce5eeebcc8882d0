package ktls

import (
	"crypto/rand"
	"crypto/tls"
)

// ServerConfig returns a copy of config for [Server]. The copy does all that
// config does, client by client configuration included, and lets each
// connection learn its own traffic secrets through KeyLogWriter; a KeyLogWriter
// that config has, or that its GetConfigForClient returns, still gets its lines.
// Session ticket keys are those of config (or of the config chosen for the
// client): sessions resume across connections as before.
func ServerConfig(config *tls.Config) *tls.Config {
	base := config.Clone()
	choose := config.GetConfigForClient
	base.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		chosen := config
		if choose != nil {
			c, err := choose(hello)
			if err != nil {
				return nil, err
			}
			if c != nil {
				chosen = c
			}
		}
		t, ok := hello.Conn.(*tap)
		if !ok {
			return chosen, nil
		}
		chosen = chosen.Clone()
		chosen.KeyLogWriter = &keyLog{t: t, user: chosen.KeyLogWriter}
		chosen.UnwrapSession = unwrapSession(t, chosen, base)
		return chosen, nil
	}
	return base
}

// unwrapSession returns a function that does what crypto/tls does where there is
// none, or what chosen's own does, and shows t the session that it found.
func unwrapSession(t *tap, chosen, base *tls.Config) func([]byte, tls.ConnectionState) (*tls.SessionState, error) {
	unwrap := chosen.UnwrapSession
	if unwrap == nil {
		unwrap = func(identity []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
			return decryptTicket(chosen, base, identity, cs)
		}
	}
	return func(identity []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		s, err := unwrap(identity, cs)
		if s != nil && err == nil && cs.Version == tls.VersionTLS12 {
			t.offered(s)
		}
		return s, err
	}
}

// decryptTicket opens a session ticket as crypto/tls does: with the keys that
// were set on the config chosen for the client, or, if none were, with those
// that the listener's config, base, makes for itself. Which is the case shows
// in that a config without keys wants random bytes to make some. If that should
// change, sessions under keys of base's own are no longer resumed, which is safe.
func decryptTicket(chosen, base *tls.Config, identity []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
	keys := chosen.Clone()
	made := new(noticedReader)
	keys.Rand = made
	s, err := keys.DecryptTicket(identity, cs)
	if made.used {
		return base.DecryptTicket(identity, cs)
	}
	return s, err
}

// noticedReader reads random bytes and knows whether anybody wanted some.
type noticedReader struct{ used bool }

func (r *noticedReader) Read(p []byte) (int, error) {
	r.used = true
	return rand.Read(p)
}
