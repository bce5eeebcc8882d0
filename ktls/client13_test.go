package ktls

import (
	"bufio"
	"bytes"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"testing"
)

// client13 is a TLS 1.3 client of the tests' own, for what crypto/tls's client
// can't be made to do: choose the cipher suite, ask for no session ticket, send
// a KeyUpdate, and see the records that the server sends. It doesn't verify the
// certificate.
type client13 struct {
	net.Conn
	suite   uint16
	in, out *half13
	r       *bufio.Reader

	tickets int      // NewSessionTickets received
	updates int      // KeyUpdates received
	lengths []int    // content lengths of the application data records
	ended   []uint64 // records under each key that a KeyUpdate ended
	rest    []byte   // application data not yet read
}

// half13 is one direction of a client13.
type half13 struct {
	suite  uint16
	secret []byte
	opener *Opener
	seq    uint64
}

func newHalf13(suite uint16, secret []byte) (*half13, error) {
	keys, err := TLS13Keys(suite, secret)
	if err != nil {
		return nil, err
	}
	o, err := NewOpener(keys)
	return &half13{suite: suite, secret: secret, opener: o}, err
}

// next moves to the keys that follow a KeyUpdate.
func (h *half13) next() error {
	secret, err := NextSecret(h.suite, h.secret)
	if err != nil {
		return err
	}
	n, err := newHalf13(h.suite, secret)
	if err == nil {
		*h = *n
	}
	return err
}

// alertError is an alert that a client13 received.
type alertError byte

func (a alertError) Error() string { return fmt.Sprintf("alert %d", byte(a)) }

// clientOptions say what a client13 offers.
type clientOptions struct {
	noTicket bool // no psk_key_exchange_modes: the server sends no session ticket

	// instead, if not nil, is run in the place of sending Finished.
	instead func(*client13) error
}

// dial13 runs a handshake on conn.
func dial13(conn net.Conn, suite uint16, o clientOptions) (*client13, error) {
	c := &client13{Conn: conn, suite: suite, r: bufio.NewReaderSize(conn, 32<<10)}
	if err := c.handshake(o); err != nil {
		return nil, fmt.Errorf("client13: %w", err)
	}
	return c, nil
}

func (c *client13) handshake(o clientOptions) error {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	h := suites[c.suite].hash
	transcript := h()

	hello := clientHello13(c.suite, key.PublicKey().Bytes(), o)
	transcript.Write(hello)
	record := append([]byte{RecordTypeHandshake, 3, 1, byte(len(hello) >> 8), byte(len(hello))}, hello...)
	if _, err := c.Conn.Write(record); err != nil {
		return err
	}
	record, err = c.rawRecord()
	if err != nil {
		return err
	}
	if record[0] != RecordTypeHandshake {
		return fmt.Errorf("record of type %d in place of ServerHello", record[0])
	}
	serverHello := record[RecordHeaderLen:]
	transcript.Write(serverHello)
	share, err := serverShare(serverHello)
	if err != nil {
		return err
	}
	peer, err := ecdh.X25519().NewPublicKey(share)
	if err != nil {
		return err
	}
	shared, err := key.ECDH(peer)
	if err != nil {
		return err
	}

	// RFC 8446 section 7.1.
	size := h().Size()
	zeros := make([]byte, size)
	empty := h().Sum(nil)
	early := extract13(h, zeros, nil)
	hs := extract13(h, shared, derive13(h, early, "derived", empty))
	clientHS := derive13(h, hs, "c hs traffic", transcript.Sum(nil))
	serverHS := derive13(h, hs, "s hs traffic", transcript.Sum(nil))
	master := extract13(h, zeros, derive13(h, hs, "derived", empty))
	if c.in, err = newHalf13(c.suite, serverHS); err != nil {
		return err
	}

	var flight []byte
	for finished := false; !finished; {
		typ, data, err := c.record()
		if err != nil {
			return err
		}
		if typ != RecordTypeHandshake {
			return fmt.Errorf("record of type %d, %x, during the handshake", typ, data)
		}
		flight = append(flight, data...)
		for len(flight) >= 4 {
			n := 4 + (int(flight[1])<<16 | int(flight[2])<<8 | int(flight[3]))
			if len(flight) < n {
				break
			}
			msg := flight[:n]
			flight = flight[n:]
			if msg[0] == msgFinished {
				if !hmac.Equal(msg[4:], finished13(h, serverHS, transcript.Sum(nil))) {
					return errors.New("the server's Finished is wrong")
				}
				finished = true
			}
			transcript.Write(msg)
		}
	}
	clientApp := derive13(h, master, "c ap traffic", transcript.Sum(nil))
	serverApp := derive13(h, master, "s ap traffic", transcript.Sum(nil))

	if c.out, err = newHalf13(c.suite, clientHS); err != nil {
		return err
	}
	if o.instead != nil {
		if c.in, err = newHalf13(c.suite, serverApp); err != nil {
			return err
		}
		return o.instead(c)
	}
	mac := finished13(h, clientHS, transcript.Sum(nil))
	if err := c.send(RecordTypeHandshake, append([]byte{msgFinished, 0, 0, byte(len(mac))}, mac...)); err != nil {
		return err
	}
	if c.out, err = newHalf13(c.suite, clientApp); err != nil {
		return err
	}
	c.in, err = newHalf13(c.suite, serverApp)
	return err
}

// rawRecord reads one record as it is on the wire. io.EOF means that the
// connection ended between two records.
func (c *client13) rawRecord() ([]byte, error) {
	header := make([]byte, RecordHeaderLen)
	if _, err := io.ReadFull(c.r, header); err != nil {
		return nil, err
	}
	record := append(header, make([]byte, binary.BigEndian.Uint16(header[3:]))...)
	if _, err := io.ReadFull(c.r, record[RecordHeaderLen:]); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	return record, nil
}

// record reads and opens one record. It returns io.EOF where the connection
// ends between records.
func (c *client13) record() (typ byte, data []byte, err error) {
	for {
		record, err := c.rawRecord()
		if err != nil {
			return 0, nil, err
		}
		if record[0] == RecordTypeChangeCipherSpec {
			continue // RFC 8446 appendix D.4
		}
		typ, data, err := c.in.opener.Open(nil, record, c.in.seq)
		if err != nil {
			return 0, nil, fmt.Errorf("record %d of %d bytes: %w", c.in.seq, len(record), err)
		}
		c.in.seq++
		return typ, data, nil
	}
}

// send seals and sends one record.
func (c *client13) send(typ byte, data []byte) error {
	_, err := c.Conn.Write(c.seal(typ, data))
	return err
}

func (c *client13) seal(typ byte, data []byte) []byte {
	record := c.out.opener.Seal(nil, typ, data, c.out.seq)
	c.out.seq++
	return record
}

// sealPadded is seal with n bytes of padding.
func (c *client13) sealPadded(typ byte, data []byte, n int) []byte {
	o := c.out.opener
	inner := append(append(bytes.Clone(data), typ), make([]byte, n)...)
	length := len(inner) + tagLen
	header := []byte{RecordTypeApplicationData, 3, 3, byte(length >> 8), byte(length)}
	o.setNonce(c.out.seq, nil)
	c.out.seq++
	return o.aead.Seal(header, o.nonce[:], inner, bytes.Clone(header))
}

// Read reads application data, as a tls.Conn does: io.EOF means close_notify,
// and an end without it is io.ErrUnexpectedEOF.
func (c *client13) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		typ, data, err := c.record()
		switch {
		case err == io.EOF:
			return 0, io.ErrUnexpectedEOF
		case err != nil:
			return 0, err
		case typ == RecordTypeApplicationData:
			c.lengths = append(c.lengths, len(data))
			c.rest = data
		case typ == RecordTypeAlert && len(data) == 2 && data[1] == alertCloseNotify:
			return 0, io.EOF
		case typ == RecordTypeAlert && len(data) == 2:
			return 0, alertError(data[1])
		case typ == RecordTypeHandshake && data[0] == msgNewSessionTicket:
			c.tickets++
		case typ == RecordTypeHandshake && isKeyUpdate(data):
			c.updates++
			c.ended = append(c.ended, c.in.seq)
			if err := c.in.next(); err != nil {
				return 0, err
			}
		default:
			return 0, fmt.Errorf("unexpected record of type %d: %x", typ, data)
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// Write sends application data.
func (c *client13) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		m := min(len(p), MaxPlaintext)
		if err = c.send(RecordTypeApplicationData, p[:m]); err == nil {
			n += m
		}
		p = p[m:]
	}
	return n, err
}

// keyUpdate sends a KeyUpdate and goes on with the next keys.
func (c *client13) keyUpdate(request bool) error {
	msg := []byte{msgKeyUpdate, 0, 0, 1, 0}
	if request {
		msg[4] = 1
	}
	if err := c.send(RecordTypeHandshake, msg); err != nil {
		return err
	}
	return c.out.next()
}

// closeNotify sends a close_notify alert.
func (c *client13) closeNotify() error {
	return c.send(RecordTypeAlert, []byte{1, alertCloseNotify})
}

func clientHello13(suite uint16, share []byte, o clientOptions) []byte {
	var ext []byte
	add := func(typ uint16, body []byte) {
		ext = binary.BigEndian.AppendUint16(ext, typ)
		ext = binary.BigEndian.AppendUint16(ext, uint16(len(body)))
		ext = append(ext, body...)
	}
	const x25519 = 29
	add(10, []byte{0, 2, 0, x25519})  // supported_groups
	add(13, []byte{0, 4, 4, 3, 8, 4}) // signature_algorithms: ECDSA P-256, RSA-PSS, both SHA-256
	add(43, []byte{2, 3, 4})          // supported_versions: TLS 1.3
	entry := []byte{0, x25519, 0, 32} // key_share
	entry = append(entry, share...)
	add(51, append([]byte{0, byte(len(entry))}, entry...))
	if !o.noTicket {
		add(45, []byte{1, 1}) // psk_key_exchange_modes: psk_dhe_ke
	}

	body := []byte{3, 3}
	random := make([]byte, 32+32)
	rand.Read(random)
	body = append(body, random[:32]...)
	body = append(body, 32)
	body = append(body, random[32:]...) // legacy_session_id
	body = append(body, 0, 2, byte(suite>>8), byte(suite))
	body = append(body, 1, 0) // no compression
	body = binary.BigEndian.AppendUint16(body, uint16(len(ext)))
	body = append(body, ext...)
	return append([]byte{1, 0, byte(len(body) >> 8), byte(len(body))}, body...)
}

// serverShare returns the key share in a ServerHello.
func serverShare(msg []byte) ([]byte, error) {
	bad := errors.New("not the ServerHello that was expected")
	const fixed = 4 + 2 + 32 + 1 + 32 + 2 + 1 + 2
	if len(msg) < fixed || msg[0] != 2 {
		return nil, bad
	}
	for ext := msg[fixed:]; len(ext) >= 4; {
		n := 4 + int(binary.BigEndian.Uint16(ext[2:]))
		if len(ext) < n {
			break
		}
		if binary.BigEndian.Uint16(ext) == 51 && n == 4+4+32 {
			return bytes.Clone(ext[8:n]), nil
		}
		ext = ext[n:]
	}
	return nil, bad
}

func extract13(h func() hash.Hash, secret, salt []byte) []byte {
	prk, err := hkdf.Extract(h, secret, salt)
	if err != nil {
		panic(err)
	}
	return prk
}

// derive13 is HKDF-Expand-Label with a context, to the length of the hash.
func derive13(h func() hash.Hash, secret []byte, label string, context []byte) []byte {
	label = "tls13 " + label
	info := binary.BigEndian.AppendUint16(nil, uint16(h().Size()))
	info = append(info, byte(len(label)))
	info = append(info, label...)
	info = append(info, byte(len(context)))
	info = append(info, context...)
	out, err := hkdf.Expand(h, secret, string(info), h().Size())
	if err != nil {
		panic(err)
	}
	return out
}

func finished13(h func() hash.Hash, secret, transcript []byte) []byte {
	mac := hmac.New(h, derive13(h, secret, "finished", nil))
	mac.Write(transcript)
	return mac.Sum(nil)
}

func TestClient13AgainstCryptoTLS(t *testing.T) {
	for _, suite := range []uint16{tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384, tls.TLS_CHACHA20_POLY1305_SHA256} {
		t.Run(tls.CipherSuiteName(suite), func(t *testing.T) {
			a, b := tcpPair(t)
			server := tls.Server(a, testServerConfig(t))
			echoed := make(chan error, 1)
			go func() {
				defer server.Close()
				_, err := io.Copy(server, server)
				echoed <- err
			}()
			c, err := dial13(b, suite, clientOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				want := pattern(40000)
				go c.Write(want)
				got := make([]byte, len(want))
				if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("echo: %v", err)
				}
				if err := c.keyUpdate(true); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.closeNotify(); err != nil {
				t.Fatal(err)
			}
			if err := <-echoed; err != nil {
				t.Error(err)
			}
			if _, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("Read after close_notify: %v", err)
			}
			if got := server.ConnectionState().CipherSuite; got != suite || c.tickets != 1 || c.updates != 2 {
				t.Errorf("suite %#x, %d tickets, %d key updates", got, c.tickets, c.updates)
			}
		})
	}
}
