package ktls

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/crypto/chacha20poly1305"
)

// Sizes in bytes (RFC 5246, section 6.2; RFC 8446, sections 5.1 and 5.2).
const (
	// RecordHeaderLen is the length of a record's header: type, legacy
	// version and length.
	RecordHeaderLen = 5
	// MaxPlaintext is the most that a record can carry.
	MaxPlaintext = 16384
	// MaxCiphertext12 and MaxCiphertext13 are the largest values of the
	// header's length field that a TLS 1.2 and a TLS 1.3 peer may send.
	MaxCiphertext12 = MaxPlaintext + 2048
	MaxCiphertext13 = MaxPlaintext + 256
)

// Record content types (RFC 8446, section 5.1).
const (
	RecordTypeChangeCipherSpec byte = 20
	RecordTypeAlert            byte = 21
	RecordTypeHandshake        byte = 22
	RecordTypeApplicationData  byte = 23
)

// explicitNonceLen is the length in bytes of the part of the nonce that a TLS
// 1.2 GCM record carries behind its header (RFC 5288, section 3).
const explicitNonceLen = 8

var (
	errRecordHeader = errors.New("ktls: bad record header")
	errRecordOpen   = errors.New("ktls: the record doesn't open under this key and sequence number")
	errRecordInner  = errors.New("ktls: the record has no content type or too much content")
)

// An Opener opens and seals the records of one direction of a connection under
// one key, at any sequence number.
//
// It keeps its buffers between calls, so that Open and Seal allocate nothing
// where dst has room; therefore it isn't safe for concurrent use.
type Opener struct {
	aead     cipher.AEAD
	version  uint16
	explicit bool // TLS 1.2 GCM: nonce = salt || explicit part
	iv       [12]byte
	nonce    [12]byte
	aad      [13]byte
}

// NewOpener returns an Opener with a copy of the keys k. It fails for
// AES-128-CCM, which Go's libraries don't have, and where Go's FIPS 140-only
// mode forbids the cipher.
func NewOpener(k *Keys) (*Opener, error) {
	if err := k.valid(); err != nil {
		return nil, err
	}
	o := &Opener{version: k.Version, explicit: k.explicitNonce(), iv: k.IV}
	var err error
	switch key := k.Key[:k.Cipher.KeyLen()]; k.Cipher {
	case AES128GCM, AES256GCM:
		var block cipher.Block
		if block, err = aes.NewCipher(key); err == nil {
			o.aead, err = cipher.NewGCM(block)
		}
	case CHACHA20POLY1305:
		o.aead, err = chacha20poly1305.New(key)
	default:
		return nil, errNoCCM
	}
	if err != nil {
		return nil, fmt.Errorf("ktls: %v: %w", k.Cipher, err)
	}
	return o, nil
}

// overhead returns the bytes between a record's header and its sealed content.
func (o *Opener) overhead() int {
	if o.explicit {
		return explicitNonceLen
	}
	return 0
}

// setNonce prepares the nonce of the record with sequence number seq (RFC
// 8446, section 5.3; RFC 7905, section 2) or explicit nonce explicit.
func (o *Opener) setNonce(seq uint64, explicit []byte) {
	o.nonce = o.iv
	if o.explicit {
		copy(o.nonce[4:], explicit)
		return
	}
	n := o.nonce[4:]
	binary.BigEndian.PutUint64(n, binary.BigEndian.Uint64(n)^seq)
}

// additionalData prepares what is authenticated besides the content: the header
// itself in TLS 1.3 (RFC 8446, section 5.2); in TLS 1.2 the sequence number and
// the header with the length of the content (RFC 5246, section 6.2.3.3).
func (o *Opener) additionalData(header []byte, seq uint64, contentLen int) []byte {
	if o.version == tls.VersionTLS13 {
		return append(o.aad[:0], header...)
	}
	b := binary.BigEndian.AppendUint64(o.aad[:0], seq)
	b = append(b, header[:3]...)
	return binary.BigEndian.AppendUint16(b, uint16(contentLen))
}

// Open authenticates and decrypts one record, header included and nothing
// behind it, as the record with sequence number seq. It appends the content to
// dst, returns the resulting slice, and the content's type; in TLS 1.3 that is
// the inner type, and type and padding are removed. The content takes
// len(record) bytes of room in dst at most. dst must not overlap record, which
// isn't modified.
//
// An error means that the record isn't what the key's other owner sent at seq,
// or breaks RFC 8446, section 5.2 or 5.4; there is nothing to tell more.
func (o *Opener) Open(dst, record []byte, seq uint64) (typ byte, plaintext []byte, err error) {
	if len(record) < RecordHeaderLen {
		return 0, nil, errRecordHeader
	}
	header, sealed := record[:RecordHeaderLen], record[RecordHeaderLen:]
	limit := MaxCiphertext12
	if o.version == tls.VersionTLS13 {
		limit = MaxCiphertext13
		if header[0] != RecordTypeApplicationData {
			return 0, nil, errRecordHeader
		}
	}
	if binary.BigEndian.Uint16(header[1:]) != tls.VersionTLS12 ||
		int(binary.BigEndian.Uint16(header[3:])) != len(sealed) ||
		len(sealed) > limit || len(sealed) < o.overhead()+tagLen {
		return 0, nil, errRecordHeader
	}
	explicit, sealed := sealed[:o.overhead()], sealed[o.overhead():]
	o.setNonce(seq, explicit)
	plaintext, err = o.aead.Open(dst, o.nonce[:], sealed, o.additionalData(header, seq, len(sealed)-tagLen))
	if err != nil {
		return 0, nil, errRecordOpen
	}
	typ = header[0]
	if o.version == tls.VersionTLS13 {
		end := len(plaintext)
		for end > len(dst) && plaintext[end-1] == 0 {
			end--
		}
		if end == len(dst) {
			return 0, nil, errRecordInner
		}
		typ, plaintext = plaintext[end-1], plaintext[:end-1]
	}
	if len(plaintext)-len(dst) > MaxPlaintext {
		clear(plaintext[len(dst):])
		return 0, nil, errRecordInner
	}
	return typ, plaintext, nil
}

// Seal appends one whole record to dst, with the content plaintext of type typ
// and the sequence number seq, and returns the resulting slice. The explicit
// nonce of TLS 1.2 GCM is the sequence number, as crypto/tls has it. TLS 1.3
// records get no padding. Two records must never be sealed with the same
// sequence number. dst's spare room must not overlap plaintext. Seal panics if
// plaintext is larger than MaxPlaintext.
func (o *Opener) Seal(dst []byte, typ byte, plaintext []byte, seq uint64) []byte {
	if len(plaintext) > MaxPlaintext {
		panic("ktls: plaintext too large for a record")
	}
	outer, inner := typ, 0
	if o.version == tls.VersionTLS13 {
		outer, inner = RecordTypeApplicationData, 1
	}
	length := o.overhead() + len(plaintext) + inner + tagLen
	start := len(dst)
	out := slices.Grow(dst, RecordHeaderLen+length)
	out = append(out, outer, 3, 3, byte(length>>8), byte(length)) // 3, 3: tls.VersionTLS12 (RFC 8446, section 5.1)
	if o.explicit {
		out = binary.BigEndian.AppendUint64(out, seq)
	}
	content := len(out)
	o.setNonce(seq, out[start+RecordHeaderLen:content])
	aad := o.additionalData(out[start:start+RecordHeaderLen], seq, len(plaintext))
	out = append(out, plaintext...)
	if inner == 1 {
		out = append(out, typ)
	}
	return o.aead.Seal(out[:content], o.nonce[:], out[content:], aad)
}
