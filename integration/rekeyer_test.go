//go:build linux

package integration

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net"
	"strings"
	"sync"
)

// rekeyer stands between a crypto/tls client and its socket and changes the
// client's key when it is told to, which crypto/tls can't. From then on it opens
// each record that the client sends and seals it with the key that the server
// expects. What comes from the server crypto/tls can take by itself. For
// TLS_AES_128_GCM_SHA256 alone.
type rekeyer struct {
	net.Conn

	mu     sync.Mutex
	log    bytes.Buffer // key log
	ready  bool         // the handshake is over: mine and server's keys are known
	mine   recordKey    // as crypto/tls has it
	theirs recordKey    // as the server has it, once the key was changed
	moved  bool
}

// recordKey is one direction's key (RFC 8446, sections 5.3, 7.1 and 7.3).
type recordKey struct {
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
}

func newRecordKey(secret []byte) (recordKey, error) {
	expand := func(label string, n int) []byte {
		label = "tls13 " + label
		info := binary.BigEndian.AppendUint16(nil, uint16(n))
		info = append(append(append(info, byte(len(label))), label...), 0)
		out, err := hkdf.Expand(sha256.New, secret, string(info), n)
		if err != nil {
			panic(err) // n is too large
		}
		return out
	}
	block, err := aes.NewCipher(expand("key", 16))
	if err != nil {
		return recordKey{}, err
	}
	aead, err := cipher.NewGCM(block)
	return recordKey{secret: expand("traffic upd", 32), aead: aead, iv: expand("iv", 12)}, err
}

func (k *recordKey) nonce() []byte {
	nonce := bytes.Clone(k.iv)
	binary.BigEndian.PutUint64(nonce[4:], binary.BigEndian.Uint64(nonce[4:])^k.seq)
	k.seq++
	return nonce
}

func (k *recordKey) seal(content []byte, typ byte) []byte {
	n := len(content) + 1 + k.aead.Overhead()
	record := []byte{23, 3, 3, byte(n >> 8), byte(n)}
	return k.aead.Seal(record, k.nonce(), append(bytes.Clone(content), typ), record[:5:5])
}

// open returns content and type as they were sealed.
func (k *recordKey) open(record []byte) ([]byte, error) {
	return k.aead.Open(nil, k.nonce(), record[5:], record[:5])
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
	if state := conn.ConnectionState(); state.Version != tls.VersionTLS13 || state.CipherSuite != tls.TLS_AES_128_GCM_SHA256 {
		return conn, nil
	}
	for line := range strings.Lines(r.log.String()) {
		if f := strings.Fields(line); f[0] == "CLIENT_TRAFFIC_SECRET_0" {
			secret, err := hex.DecodeString(f[2])
			if err != nil {
				return conn, err
			}
			if r.mine, err = newRecordKey(secret); err != nil {
				return conn, err
			}
			r.ready = true
		}
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
			inner, err := r.mine.open(rest[:n])
			if err != nil {
				return 0, err
			}
			out = append(out, r.theirs.seal(inner[:len(inner)-1], inner[len(inner)-1])...)
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
	record := r.theirs.seal(message, 22)
	var err error
	if r.theirs, err = newRecordKey(r.theirs.secret); err != nil {
		return false, err
	}
	_, err = r.Conn.Write(record)
	return err == nil, err
}
