package ktls

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
)

// secrets are the lines of interest that crypto/tls logs for one connection.
type secrets struct {
	random    [32]byte // client random that the lines are labelled with
	handshake []byte   // SERVER_HANDSHAKE_TRAFFIC_SECRET
	traffic   []byte   // SERVER_TRAFFIC_SECRET_0
	master    []byte   // CLIENT_RANDOM (TLS 1.2)
	session   []byte   // master secret of the session that the client offered (TLS 1.2)
	mixed     bool     // lines of more than one client random
}

func (s *secrets) wipe() {
	clear(s.handshake)
	clear(s.traffic)
	clear(s.master)
	clear(s.session)
	s.handshake, s.traffic, s.master, s.session = nil, nil, nil, nil
}

// keyLog is the KeyLogWriter of one connection.
type keyLog struct {
	t    *tap
	user io.Writer // the writer the user configured, or nil
}

// Write keeps the line's secret and wipes the line. A Writer mustn't, but
// crypto/tls makes each line for this one call (common.go, writeKeyLog), and would
// leave it to the garbage collector, which overwrites nothing.
func (k *keyLog) Write(line []byte) (n int, err error) {
	k.t.logged(line)
	n = len(line)
	if k.user != nil {
		n, err = k.user.Write(line)
	}
	clear(line)
	// crypto/tls has made the line with fmt, whose printer keeps what it printed
	// last. The next one on this processor is the same.
	fmt.Fprintf(io.Discard, "%s", line)
	return n, err
}

// logged keeps a key-log line. A line it can't read is left out, and the proof
// will fail.
func (t *tap) logged(line []byte) {
	switch label, _, _ := bytes.Cut(line, []byte(" ")); string(label) {
	case LabelClientHandshake:
		return // not needed: nor is parsing it
	case LabelClientTraffic:
		if t.rxState.Load() == rxOff {
			return
		}
	}
	l, err := ParseKeyLogLine(line)
	if err != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &t.secrets
	var dst *[]byte
	switch l.Label {
	case LabelServerHandshake:
		dst = &s.handshake
	case LabelServerTraffic:
		dst = &s.traffic
	case LabelTLS12:
		dst = &s.master
	case LabelClientTraffic:
		dst = &t.rx.secret
	}
	if dst == nil {
		clear(l.Secret)
		return
	}
	if s.handshake == nil && s.traffic == nil && s.master == nil {
		s.random = l.ClientRandom
	} else if s.random != l.ClientRandom {
		s.mixed = true
	}
	clear(*dst)
	*dst = l.Secret
}

// offered keeps the master secret of a TLS 1.2 session that the client offers to
// resume: crypto/tls logs it in full handshakes only. If the session isn't
// resumed after all, the secret won't prove anything.
func (t *tap) offered(session *tls.SessionState) {
	state, err := session.Bytes()
	if err != nil {
		return
	}
	defer clear(state)
	// version, type, cipher suite, time, secret (crypto/tls ticket.go). The
	// format may change: then the proof fails, and the test of it.
	const secretAt = 2 + 1 + 2 + 8 + 1
	if len(state) < secretAt+masterSecretLen || state[0] != 3 || state[1] != 3 || state[secretAt-1] != masterSecretLen {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.secrets.session)
	t.secrets.session = append([]byte(nil), state[secretAt:][:masterSecretLen]...)
}
