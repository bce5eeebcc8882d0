//go:build linux

package integration

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"sync"

	"github.com/caddy-ktls/caddy-ktls/ktls"
)

// rekeyer stands between a crypto/tls client and its socket and changes the
// client's key when it is told to, which crypto/tls can't. From then on it opens
// each record that the client sends and seals it with the key that the server
// expects. What comes from the server crypto/tls can take by itself. In TLS 1.3
// alone.
type rekeyer struct {
	net.Conn

	mu     sync.Mutex
	log    bytes.Buffer // key log
	ready  bool         // the handshake is over: mine and server's keys are known
	mine   recordKey    // as crypto/tls has it
	theirs recordKey    // as the server has it, once the key was changed
	moved  bool
}

// recordKey is the key of one direction, and the number of its next record.
type recordKey struct {
	suite  uint16
	secret []byte
	opener *ktls.Opener
	seq    uint64
}

func newRecordKey(suite uint16, secret []byte) (recordKey, error) {
	keys, err := ktls.TLS13Keys(suite, secret)
	if err != nil {
		return recordKey{}, err
	}
	opener, err := ktls.NewOpener(keys)
	return recordKey{suite: suite, secret: secret, opener: opener}, err
}

// next is the key after k (RFC 8446, section 7.2).
func (k *recordKey) next() (recordKey, error) {
	secret, err := ktls.NextSecret(k.suite, k.secret)
	if err != nil {
		return recordKey{}, err
	}
	return newRecordKey(k.suite, secret)
}

func (k *recordKey) seal(typ byte, content []byte) []byte {
	k.seq++
	return k.opener.Seal(nil, typ, content, k.seq-1)
}

func (k *recordKey) open(record []byte) (typ byte, content []byte, err error) {
	k.seq++
	return k.opener.Open(nil, record, k.seq-1)
}

// client is the TLS client above.
func (r *rekeyer) client(config *tls.Config) (*tls.Conn, error) {
	config = config.Clone()
	config.KeyLogWriter = &r.log
	conn := tls.Client(r, config)
	if err := conn.Handshake(); err != nil {
		return conn, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for line := range strings.Lines(r.log.String()) {
		l, err := ktls.ParseKeyLogLine([]byte(line))
		if err != nil {
			return conn, err
		}
		if l.Label != ktls.LabelClientTraffic {
			continue
		}
		if r.mine, err = newRecordKey(conn.ConnectionState().CipherSuite, l.Secret); err != nil {
			return conn, err
		}
		r.ready = true
	}
	return conn, nil
}

// Write takes whole records, as crypto/tls writes them.
func (r *rekeyer) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ready {
		return r.Conn.Write(p)
	}
	var out []byte
	for rest := p; len(rest) > 0; {
		if len(rest) < 5 || len(rest) < 5+int(binary.BigEndian.Uint16(rest[3:])) {
			return 0, errors.New("crypto/tls writes a part of a record")
		}
		n := 5 + int(binary.BigEndian.Uint16(rest[3:]))
		if !r.moved {
			r.mine.seq++
			out = append(out, rest[:n]...)
		} else {
			typ, content, err := r.mine.open(rest[:n])
			if err != nil {
				return 0, err
			}
			out = append(out, r.theirs.seal(typ, content)...)
		}
		rest = rest[n:]
	}
	if _, err := r.Conn.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// update sends a KeyUpdate, and if request is set asks the server for one (RFC
// 8446, section 4.6.3). It reports whether it could.
func (r *rekeyer) update(request bool) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ready {
		return false, nil
	}
	if !r.moved {
		r.theirs, r.moved = r.mine, true
	}
	message := []byte{24, 0, 0, 1, 0}
	if request {
		message[4] = 1
	}
	record := r.theirs.seal(ktls.RecordTypeHandshake, message)
	var err error
	if r.theirs, err = r.theirs.next(); err != nil {
		return false, err
	}
	_, err = r.Conn.Write(record)
	return err == nil, err
}
