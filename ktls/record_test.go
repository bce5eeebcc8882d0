package ktls

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
)

// Records of the trace in RFC 8448, section 3.
func TestOpenRecordsOfRFC8448(t *testing.T) {
	fifty := make([]byte, 50)
	for i := range fifty {
		fifty[i] = byte(i)
	}
	for _, tc := range []struct {
		name, secret, record string
		seq                  uint64
		typ                  byte
		content              []byte
	}{
		{"client Finished", rfc8448ClientHandshake, `17 03 03 00 35
			75 ec 4d c2 38 cc e6 0b 29 80 44 a7 1e 21 9c 56 cc 77 b0 51 7f e9 b9 3c 7a 4b fc 44 d8 7f
			38 f8 03 38 ac 98 fc 46 de b3 84 bd 1c ae ac ab 68 67 d7 26 c4 05 46`,
			0, RecordTypeHandshake, unhex(t, "14000020 a8ec436d677634ae525ac1fcebe11a039ec17694fac6e98527b642f2edd5ce61")},
		{"client data", rfc8448ClientTraffic, `17 03 03 00 43
			a2 3f 70 54 b6 2c 94 d0 af fa fe 82 28 ba 55 cb ef ac ea 42 f9 14 aa 66 bc ab 3f 2b 98 19
			a8 a5 b4 6b 39 5b d5 4a 9a 20 44 1e 2b 62 97 4e 1f 5a 62 92 a2 97 70 14 bd 1e 3d ea e6 3a
			ee bb 21 69 49 15 e4`,
			0, RecordTypeApplicationData, fifty},
		{"server data", rfc8448ServerTraffic, `17 03 03 00 43
			2e 93 7e 11 ef 4a c7 40 e5 38 ad 36 00 5f c4 a4 69 32 fc 32 25 d0 5f 82 aa 1b 36 e3 0e fa
			f9 7d 90 e6 df fc 60 2d cb 50 1a 59 a8 fc c4 9c 4b f2 e5 f0 a2 1c 00 47 c2 ab f3 32 54 0d
			d0 32 e1 67 c2 95 5d`,
			1, RecordTypeApplicationData, fifty},
		{"client close_notify", rfc8448ClientTraffic, `17 03 03 00 13
			c9 87 27 60 65 56 66 b7 4d 7f f1 15 3e fd 6d b6 d0 b0 e3`,
			1, RecordTypeAlert, []byte{1, 0}},
		{"server close_notify", rfc8448ServerTraffic, `17 03 03 00 13
			b5 8f d6 71 66 eb f5 99 d2 47 20 cf be 7e fa 7a 88 64 a9`,
			2, RecordTypeAlert, []byte{1, 0}},
	} {
		k, err := TLS13Keys(tls.TLS_AES_128_GCM_SHA256, unhex(t, tc.secret))
		if err != nil {
			t.Fatal(err)
		}
		o := mustOpener(t, k)
		record := unhex(t, tc.record)
		typ, content, err := o.Open(nil, record, tc.seq)
		if err != nil || typ != tc.typ || !bytes.Equal(content, tc.content) {
			t.Errorf("%s: type %d, content %x, error %v", tc.name, typ, content, err)
		}
		if got := o.Seal(nil, tc.typ, tc.content, tc.seq); !bytes.Equal(got, record) {
			t.Errorf("%s: Seal gives %x, want %x", tc.name, got, record)
		}
	}
}

func mustOpener(t testing.TB, k *Keys) *Opener {
	t.Helper()
	o, err := NewOpener(k)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// goCombinations are those that Go can open and seal.
func goCombinations() []Combination {
	var cs []Combination
	for _, c := range Combinations() {
		if c.Cipher != AES128CCM {
			cs = append(cs, c)
		}
	}
	return cs
}

// crypto/tls must read what Seal makes with the keys and the sequence number of
// its peer.
func TestSealedRecordsAreReadByCryptoTLS(t *testing.T) {
	for _, suite := range tls12Suites() {
		t.Run(tls.CipherSuiteName(suite), func(t *testing.T) {
			p := newTLS12Pair(t, suite)
			_, keys := p.keys(t, suite)
			_, seq := openTLS12(t, p.rec.written(), keys)
			sealToCryptoTLS(t, p.rec, p.client, mustOpener(t, keys), seq)
		})
	}
	t.Run("TLS 1.3", func(t *testing.T) {
		s, c := tcpPair(t)
		rec, log := &recorder{Conn: s}, &testKeyLog{t: t}
		server := tls.Server(rec, &tls.Config{
			Certificates: []tls.Certificate{testCertificate(t, false)},
			MinVersion:   tls.VersionTLS13,
			KeyLogWriter: log,
		})
		client := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
		handshakeBoth(t, server, client)
		stream := openTLS13(t, rec.written(), server.ConnectionState().CipherSuite, log.secret(LabelServerHandshake), log.secret(LabelServerTraffic))
		sealToCryptoTLS(t, rec, client, stream.opener, stream.seq)
	})
}

func sealToCryptoTLS(t *testing.T, raw io.Writer, client *tls.Conn, o *Opener, seq uint64) {
	t.Helper()
	data := pattern(2*MaxPlaintext + 1)
	var records []byte
	for p := data; len(p) > 0; seq++ {
		n := min(len(p), MaxPlaintext)
		records = o.Seal(records, RecordTypeApplicationData, p[:n], seq)
		p = p[n:]
	}
	records = o.Seal(records, RecordTypeAlert, []byte{1, 0}, seq)
	go raw.Write(records)
	got, err := io.ReadAll(client) // close_notify is an EOF, anything else an error
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("crypto/tls read %d bytes of %d, error %v", len(got), len(data), err)
	}
}

func TestSealOpenRoundTrip(t *testing.T) {
	for _, c := range goCombinations() {
		t.Run(c.String(), func(t *testing.T) {
			o := mustOpener(t, randomTestKeys(t, c.Version, c.Cipher))
			overhead := map[bool]int{true: RecordHeaderLen + explicitNonceLen + tagLen, false: RecordHeaderLen + tagLen}[o.explicit]
			if c.Version == tls.VersionTLS13 {
				overhead++
			}
			for _, n := range []int{0, 1, 15, 16, 17, 16383, 16384} {
				for _, seq := range []uint64{0, 1, 0x0102030405060708, 1<<64 - 1} {
					typ := RecordTypeApplicationData
					if n == 1 {
						typ = RecordTypeAlert
					}
					data := pattern(n)
					prefix := []byte("prefix")
					record := o.Seal(prefix, typ, data, seq)
					if !bytes.HasPrefix(record, prefix) || len(record) != len(prefix)+overhead+n {
						t.Fatalf("%d bytes: a record of %d bytes, want %d", n, len(record)-len(prefix), overhead+n)
					}
					record = record[len(prefix):]
					gotTyp, got, err := o.Open(prefix, record, seq)
					if err != nil || gotTyp != typ || !bytes.Equal(got, append([]byte("prefix"), data...)) {
						t.Fatalf("%d bytes, sequence number %d: type %d, %d bytes, error %v", n, seq, gotTyp, len(got), err)
					}
					if _, _, err := o.Open(nil, record, seq+1); err == nil {
						t.Errorf("%d bytes: opens with sequence number %d too", n, seq+1)
					}
				}
			}
			if other := mustOpener(t, randomTestKeys(t, c.Version, c.Cipher)); openSucceeds(other, o.Seal(nil, 23, []byte("x"), 0)) {
				t.Error("a record opens with other keys")
			}
		})
	}
}

func openSucceeds(o *Opener, record []byte) bool {
	_, _, err := o.Open(nil, record, 0)
	return err == nil
}

// Any bit of a record changed, or its length, must make it invalid.
func TestChangedRecordsDontOpen(t *testing.T) {
	for _, c := range goCombinations() {
		t.Run(c.String(), func(t *testing.T) {
			o := mustOpener(t, randomTestKeys(t, c.Version, c.Cipher))
			record := o.Seal(nil, RecordTypeApplicationData, []byte("some content"), 0)
			if !openSucceeds(o, record) {
				t.Fatal("the record doesn't open unchanged")
			}
			for i := range len(record) * 8 {
				changed := bytes.Clone(record)
				changed[i/8] ^= 1 << (i % 8)
				if openSucceeds(o, changed) {
					t.Errorf("opens with bit %d changed", i)
				}
			}
			for n := range len(record) {
				if openSucceeds(o, record[:n]) {
					t.Errorf("opens cut to %d bytes", n)
				}
				cut := bytes.Clone(record[:n])
				if n >= RecordHeaderLen {
					binary.BigEndian.PutUint16(cut[3:], uint16(n-RecordHeaderLen))
					if openSucceeds(o, cut) {
						t.Errorf("opens cut to %d bytes, length adapted", n)
					}
				}
			}
			if openSucceeds(o, append(bytes.Clone(record), 0)) {
				t.Error("opens with a byte behind it")
			}
		})
	}
}

// sealInner seals any TLS 1.3 inner plaintext, as Seal never does.
func sealInner(o *Opener, inner []byte, seq uint64) []byte {
	n := len(inner) + tagLen
	header := []byte{RecordTypeApplicationData, 3, 3, byte(n >> 8), byte(n)}
	o.setNonce(seq, nil)
	return o.aead.Seal(bytes.Clone(header), o.nonce[:], inner, header)
}

func TestOpenInnerPlaintext(t *testing.T) {
	o := mustOpener(t, randomTestKeys(t, tls.VersionTLS13, AES128GCM))
	for _, tc := range []struct {
		name    string
		inner   []byte
		typ     byte
		content []byte // nil: must not open
	}{
		{"padded", []byte("abc\x17\x00\x00\x00"), 23, []byte("abc")},
		{"zeros that aren't padding", []byte("ab\x00\x00\x17"), 23, []byte("ab\x00\x00")},
		{"empty, padded", append([]byte{21}, make([]byte, MaxPlaintext)...), 21, []byte{}},
		{"largest", append(pattern(MaxPlaintext), 23), 23, pattern(MaxPlaintext)},
		{"one byte too large", append(pattern(MaxPlaintext+1), 23), 0, nil},
		{"no type", make([]byte, 100), 0, nil},
		{"nothing", nil, 0, nil},
		{"record too large", append(pattern(100), append([]byte{23}, make([]byte, MaxCiphertext13)...)...), 0, nil},
	} {
		typ, got, err := o.Open([]byte{}, sealInner(o, tc.inner, 9), 9)
		if tc.content == nil {
			if err == nil {
				t.Errorf("%s: opens", tc.name)
			}
			continue
		}
		if err != nil || typ != tc.typ || !bytes.Equal(got, tc.content) {
			t.Errorf("%s: type %d, %d bytes, error %v", tc.name, typ, len(got), err)
		}
	}
	// Type and padding must not be looked for in what stood in dst before.
	for _, dst := range [][]byte{{23, 23}, {0, 0}} {
		if _, _, err := o.Open(dst, sealInner(o, make([]byte, 10), 9), 9); !errors.Is(err, errRecordInner) {
			t.Errorf("a record without type behind % x: %v", dst, err)
		}
	}
}

// A header that breaks the protocol doesn't open, even where the peer vouches
// for it.
func TestOpenRejectsHeaders(t *testing.T) {
	for _, tc := range []struct {
		name           string
		version        uint16
		typ, maj, mino byte
		n              int
		ok             bool
	}{
		{"TLS 1.3", tls.VersionTLS13, 23, 3, 3, 100, true},
		{"TLS 1.3, outer type handshake", tls.VersionTLS13, 22, 3, 3, 100, false},
		{"TLS 1.3, version of TLS 1.0", tls.VersionTLS13, 23, 3, 1, 100, false},
		{"TLS 1.3, version of TLS 1.3", tls.VersionTLS13, 23, 3, 4, 100, false},
		{"TLS 1.2", tls.VersionTLS12, 23, 3, 3, 100, true},
		{"TLS 1.2, version of TLS 1.1", tls.VersionTLS12, 23, 3, 2, 100, false},
		{"TLS 1.2, largest", tls.VersionTLS12, 23, 3, 3, MaxPlaintext, true},
		{"TLS 1.2, too much content", tls.VersionTLS12, 23, 3, 3, MaxPlaintext + 1, false},
		{"TLS 1.2, too large", tls.VersionTLS12, 23, 3, 3, MaxCiphertext12, false},
	} {
		o := mustOpener(t, randomTestKeys(t, tc.version, CHACHA20POLY1305))
		content := pattern(tc.n)
		content[tc.n-1] = 23 // the inner type of TLS 1.3
		length := tc.n + tagLen
		header := []byte{tc.typ, tc.maj, tc.mino, byte(length >> 8), byte(length)}
		o.setNonce(4, nil)
		record := o.aead.Seal(bytes.Clone(header), o.nonce[:], content, bytes.Clone(o.additionalData(header, 4, tc.n)))
		if _, _, err := o.Open(nil, record, 4); (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestOpenerRejectsKeys(t *testing.T) {
	for _, k := range []Keys{
		{Version: tls.VersionTLS13, Cipher: AES128CCM},
		{Version: tls.VersionTLS12, Cipher: AES128CCM},
		{Version: tls.VersionTLS11, Cipher: AES128GCM},
		{Version: tls.VersionTLS13, Cipher: 99},
		{},
	} {
		if _, err := NewOpener(&k); err == nil {
			t.Errorf("NewOpener(%v) succeeds", &k)
		}
	}
}

// An Opener keeps working when its keys are wiped.
func TestOpenerCopiesKeys(t *testing.T) {
	for _, c := range goCombinations() {
		k := randomTestKeys(t, c.Version, c.Cipher)
		same := *k
		o := mustOpener(t, k)
		k.Wipe()
		if !openSucceeds(o, mustOpener(t, &same).Seal(nil, 23, []byte("x"), 0)) {
			t.Errorf("%v: doesn't open after Wipe", c)
		}
	}
}

func TestSealPanicsOnTooMuch(t *testing.T) {
	o := mustOpener(t, randomTestKeys(t, tls.VersionTLS13, AES128GCM))
	defer func() {
		if recover() == nil {
			t.Error("Seal takes more than a record can carry")
		}
	}()
	o.Seal(nil, 23, make([]byte, MaxPlaintext+1), 0)
}

func TestOpenAndSealDontAllocate(t *testing.T) {
	for _, c := range goCombinations() {
		o := mustOpener(t, randomTestKeys(t, c.Version, c.Cipher))
		data := pattern(1000)
		record, content := make([]byte, 0, 2000), make([]byte, 0, 2000)
		seq := uint64(0)
		n := testing.AllocsPerRun(10, func() {
			record = o.Seal(record[:0], 23, data, seq)
			var err error
			if _, content, err = o.Open(content[:0], record, seq); err != nil {
				t.Fatal(err)
			}
			seq++
		})
		if n != 0 {
			t.Errorf("%v: %v allocations", c, n)
		}
	}
}

// Whatever opens, Seal made: no other input gives content.
func FuzzOpen(f *testing.F) {
	var openers []*Opener
	var sealed [][]byte
	for i, c := range goCombinations() {
		rnd := rand.NewChaCha8([32]byte{byte(i)}) // the same in each process that fuzzes
		k := &Keys{Version: c.Version, Cipher: c.Cipher}
		rnd.Read(k.Key[:c.Cipher.KeyLen()])
		rnd.Read(k.IV[:4])
		o := mustOpener(f, k)
		record := o.Seal(nil, RecordTypeApplicationData, []byte("seed"), 7)
		openers, sealed = append(openers, o), append(sealed, record)
		f.Add(byte(i), record, uint64(7))
		f.Add(byte(i), record[:RecordHeaderLen], uint64(7))
		f.Add(byte(i), append(bytes.Clone(record), 0), uint64(8))
		f.Add(byte(i), []byte{23, 3, 3, 0, 0}, uint64(0))
	}
	f.Fuzz(func(t *testing.T, which byte, record []byte, seq uint64) {
		i := int(which) % len(openers)
		before := bytes.Clone(record)
		_, content, err := openers[i].Open([]byte("dst"), record, seq)
		if !bytes.Equal(record, before) {
			t.Error("Open modified the record")
		}
		if ok := bytes.Equal(record, sealed[i]) && seq == 7; ok != (err == nil) {
			t.Errorf("error %v, content %q", err, content)
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	for _, c := range goCombinations() {
		b.Run(c.String(), func(b *testing.B) {
			o := mustOpener(b, randomTestKeys(b, c.Version, c.Cipher))
			record := o.Seal(nil, RecordTypeApplicationData, make([]byte, MaxPlaintext), 0)
			dst := make([]byte, 0, len(record))
			b.SetBytes(MaxPlaintext)
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := o.Open(dst, record, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func ExampleOpener() {
	k := &Keys{Version: tls.VersionTLS13, Cipher: AES128GCM} // a key of zeros
	o, err := NewOpener(k)
	if err != nil {
		fmt.Println(err)
		return
	}
	record := o.Seal(nil, RecordTypeAlert, []byte{1, 0}, 5)
	typ, content, err := o.Open(nil, record, 5)
	fmt.Println(len(record), typ, content, err)
	// Output: 24 21 [1 0] <nil>
}
