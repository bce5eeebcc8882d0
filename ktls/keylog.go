package ktls

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
)

// Labels of the key log lines that crypto/tls writes (the SSLKEYLOGFILE format,
// RFC 9850; crypto/tls common.go).
const (
	LabelTLS12           = "CLIENT_RANDOM"
	LabelClientHandshake = "CLIENT_HANDSHAKE_TRAFFIC_SECRET"
	LabelServerHandshake = "SERVER_HANDSHAKE_TRAFFIC_SECRET"
	LabelClientTraffic   = "CLIENT_TRAFFIC_SECRET_0"
	LabelServerTraffic   = "SERVER_TRAFFIC_SECRET_0"
)

// maxKeyLogSecret bounds the secret in a key log line, in bytes: twice the
// largest that the known labels have, the master secret and the output of
// SHA-384 with 48 bytes each.
const maxKeyLogSecret = 96

// KeyLogLine is one line of a key log.
//
// It is secret: fmt prints a placeholder and encoding/json leaves Secret out.
type KeyLogLine struct {
	Label        string
	ClientRandom [32]byte
	Secret       []byte `json:"-"` // the caller's own copy: clear it when done
}

// Format keeps the secret out of whatever is printed, by any verb.
func (l KeyLogLine) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "[%s line]", l.Label) }

var (
	errKeyLogFields = errors.New("ktls: key log line: not of the form <label> <client random> <secret>")
	errKeyLogLabel  = errors.New("ktls: key log line: bad label")
	errKeyLogRandom = errors.New("ktls: key log line: the client random isn't 32 bytes in hexadecimal")
	errKeyLogSecret = errors.New("ktls: key log line: the secret isn't hexadecimal or has the wrong length")
)

// ParseKeyLogLine parses what crypto/tls writes to a Config.KeyLogWriter in one
// call: label, client random and secret, with single spaces between them and at
// most one line feed behind. A label other than the constants above is no
// error, so that a Go version that logs more doesn't break anything; it is up
// to the caller to leave such lines aside. No error contains any part of line.
func ParseKeyLogLine(line []byte) (KeyLogLine, error) {
	var l KeyLogLine
	line = bytes.TrimSuffix(line, []byte("\n"))
	label, rest, ok := bytes.Cut(line, []byte(" "))
	if !ok {
		return l, errKeyLogFields
	}
	random, secret, ok := bytes.Cut(rest, []byte(" "))
	if !ok {
		return l, errKeyLogFields
	}
	if !isKeyLogLabel(label) {
		return l, errKeyLogLabel
	}
	if len(random) != hex.EncodedLen(len(l.ClientRandom)) {
		return l, errKeyLogRandom
	}
	if _, err := hex.Decode(l.ClientRandom[:], random); err != nil {
		return KeyLogLine{}, errKeyLogRandom // err has a byte of the input
	}
	if n := len(secret); n%2 != 0 || !secretLenOK(string(label), n/2) {
		return KeyLogLine{}, errKeyLogSecret
	}
	l.Secret = make([]byte, len(secret)/2)
	if _, err := hex.Decode(l.Secret, secret); err != nil {
		clear(l.Secret)
		return KeyLogLine{}, errKeyLogSecret
	}
	l.Label = string(label)
	return l, nil
}

// secretLenOK reports whether a secret of n bytes can stand behind label.
func secretLenOK(label string, n int) bool {
	switch label {
	case LabelTLS12:
		return n == masterSecretLen
	case LabelClientHandshake, LabelServerHandshake, LabelClientTraffic, LabelServerTraffic:
		return n == 32 || n == 48 // SHA-256 or SHA-384
	}
	return n > 0 && n <= maxKeyLogSecret
}

func isKeyLogLabel(b []byte) bool {
	for _, c := range b {
		if (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return len(b) > 0 && len(b) <= 64
}
