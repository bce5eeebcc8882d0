package ktls

import (
	"crypto/tls"
	"errors"
	"fmt"
)

// maxHandshakeRecords bounds the sequence numbers that are tried on the last
// record of a handshake. crypto/tls writes one session ticket, and a server's
// flight under the handshake key is a handful of records, more only where
// certificate chains exceed 16 KiB.
const maxHandshakeRecords = 32

// Handshake message types (RFC 8446 section 4).
const (
	msgClientHello      = 1
	msgServerHello      = 2
	msgNewSessionTicket = 4
	msgFinished         = 20
	msgKeyUpdate        = 24
)

// prove derives the keys that crypto/tls sends with and the sequence number of
// the first record after the handshake, and accepts them only if they open the
// last record of the handshake. The result is in t.send. wmu is held.
func (t *tap) prove() error {
	if t.lost != nil {
		return t.lost // also after a proof
	}
	if t.send != nil {
		return nil
	}
	if t.written != nil {
		return t.written
	}
	if !t.done || len(t.last) == 0 {
		return errors.New("no complete handshake was seen")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.secrets.mixed {
		return errors.New("secrets of more than one handshake were logged")
	}
	var s *sendState
	var err error
	switch t.version {
	case tls.VersionTLS13:
		s, err = t.prove13()
	case tls.VersionTLS12:
		s, err = t.prove12()
	default:
		err = fmt.Errorf("no proof for protocol version %#04x", t.version)
	}
	if err != nil {
		return err
	}
	t.send = s
	t.secrets.wipe()
	clear(t.last)
	t.last = nil
	return nil
}

// prove13: the server's last handshake record is either the last
// NewSessionTicket, under the application key, or (no tickets) Finished, under
// the handshake key. In the second case nothing was written under the
// application key, whose secret the same handshake logged.
func (t *tap) prove13() (*sendState, error) {
	if t.secrets.traffic == nil || t.secrets.handshake == nil {
		return nil, errors.New("crypto/tls logged no traffic secrets")
	}
	app, err := newSendState(t.suite, t.secrets.traffic)
	if err != nil {
		return nil, err
	}
	if seq, ok := t.opens(app.opener, msgNewSessionTicket); ok {
		app.next = seq + 1
		return app, nil
	}
	hs, err := newSendState(t.suite, t.secrets.handshake)
	if err != nil {
		app.wipe()
		return nil, err
	}
	_, ok := t.opens(hs.opener, msgFinished)
	hs.wipe()
	if ok {
		return app, nil
	}
	app.wipe()
	return nil, errors.New("the logged keys don't open the last record of the handshake")
}

// prove12: the server's last handshake record is Finished, the first record
// under its write key, also when a session is resumed (RFC 5246 section 7.3).
// The master secret is the one logged, or that of the session the client
// offered.
func (t *tap) prove12() (*sendState, error) {
	master, random := t.secrets.master, t.secrets.random
	if master == nil {
		master = t.secrets.session
		random, _ = helloRandom(t.hello[:t.nin], msgClientHello)
	}
	if master == nil {
		return nil, errors.New("crypto/tls logged no master secret, and no session was resumed")
	}
	client, server, err := TLS12Keys(t.suite, master, random, t.random)
	if err != nil {
		return nil, err
	}
	if t.rxState.Load() != rxOff {
		t.rx.keys = client
	} else {
		client.Wipe()
	}
	opener, err := NewOpener(server)
	if err != nil {
		server.Wipe()
		return nil, err
	}
	s := &sendState{keys: server, opener: opener}
	seq, ok := t.opens(opener, msgFinished)
	if !ok {
		s.wipe()
		return nil, errors.New("the master secret doesn't open the last record of the handshake")
	}
	s.next = seq + 1
	return s, nil
}

// opens looks for the sequence number under which o opens the last record of
// the handshake, as a handshake message of type msg.
func (t *tap) opens(o *Opener, msg byte) (seq uint64, ok bool) {
	for seq := range uint64(maxHandshakeRecords) {
		typ, data, err := o.Open(nil, t.last, seq)
		if err == nil {
			return seq, typ == RecordTypeHandshake && len(data) > 0 && data[0] == msg
		}
	}
	return 0, false
}

// newSendState is the state of TLS 1.3 at the start of the generation of secret.
func newSendState(suite uint16, secret []byte) (*sendState, error) {
	keys, err := TLS13Keys(suite, secret)
	if err != nil {
		return nil, err
	}
	opener, err := NewOpener(keys)
	if err != nil {
		keys.Wipe()
		return nil, err
	}
	return &sendState{keys: keys, opener: opener, secret: append([]byte(nil), secret...)}, nil
}

// nextSendState is the state after a KeyUpdate (RFC 8446 section 7.2).
func nextSendState(suite uint16, s *sendState) (*sendState, error) {
	secret, err := NextSecret(suite, s.secret)
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	return newSendState(suite, secret)
}
