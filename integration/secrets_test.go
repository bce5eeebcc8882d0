//go:build linux

package integration

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/caddy-ktls/caddy-ktls/ktls"
)

// needle is a secret as it may lie in memory. Some prefix is enough: in the
// schedule of an AES key the key's first half stands alone.
type needle struct {
	bytes []byte // at least 8
	count int    // as last counted
}

// countIn counts the needles in all that a process can write to.
func countIn(t *testing.T, pid int, needles []*needle) {
	t.Helper()
	index := map[uint64][]*needle{}
	var first [1 << 16]bool
	for _, n := range needles {
		n.count = 0
		word := binary.LittleEndian.Uint64(n.bytes)
		index[word] = append(index[word], n)
		first[word&0xffff] = true
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	var buf []byte
	for _, m := range writable(t, pid) {
		buf = slices.Grow(buf[:0], int(m.to-m.from))[:m.to-m.from]
		n, err := mem.ReadAt(buf, m.from)
		if n == 0 {
			t.Fatalf("%x-%x: %v", m.from, m.to, err)
		}
		for at := 0; ; at++ {
			if at = nextCandidate(buf[:n], at, &first); at < 0 {
				break
			}
			for _, candidate := range index[binary.LittleEndian.Uint64(buf[at:])] {
				if bytes.HasPrefix(buf[at:n], candidate.bytes) {
					candidate.count++
				}
			}
		}
	}
}

// stretch is a part of a process's memory.
type stretch struct{ from, to int64 }

// writable are the parts of a process's memory that it can write to and that have
// pages (proc(5), and the kernel's Documentation/admin-guide/mm/pagemap.rst).
func writable(t *testing.T, pid int) (all []stretch) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		t.Fatal(err)
	}
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer pagemap.Close()
	const maxMapping = 1 << 32 // larger ones are the race detector's
	page := int64(os.Getpagesize())
	var from, to int64
	write := false
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line)
		if a, b, ok := strings.Cut(f[0], "-"); ok && len(f) > 4 { // from-to rw-p offset device inode
			from, _ = strconv.ParseInt(a, 16, 64)
			to, _ = strconv.ParseInt(b, 16, 64)
			write = strings.HasPrefix(f[1], "rw")
			continue
		}
		if f[0] != "Rss:" || f[1] == "0" || !write || to-from > maxMapping {
			continue
		}
		entries := make([]byte, (to-from)/page*8)
		if _, err := pagemap.ReadAt(entries, from/page*8); err != nil {
			t.Fatal(err)
		}
		for n := range (to - from) / page {
			const present, swapped = 1 << 63, 1 << 62
			at := from + n*page
			switch last := len(all) - 1; {
			case binary.NativeEndian.Uint64(entries[n*8:])&(present|swapped) == 0:
			case last >= 0 && all[last].to == at:
				all[last].to += page
			default:
				all = append(all, stretch{at, at + page})
			}
		}
	}
	return all
}

// nextCandidate returns where, from at on, there is the begin of a needle, or -1.
// It looks at every byte of a process, which takes ten times as long if the race
// detector looks on.
//
//go:norace
func nextCandidate(b []byte, at int, first *[1 << 16]bool) int {
	for ; at+8 <= len(b); at++ {
		if first[uint16(b[at])|uint16(b[at+1])<<8] {
			return at
		}
	}
	return -1
}

// secretsOf are the needles of one connection.
type secretsOf struct {
	name    string
	version uint16
	conn    io.Closer
	fetch   func(file) // over the connection
	needles map[part]*needle
}

// part says what a needle is.
type part struct {
	label      string // of the key log
	generation int    // how often the key was changed
	what       string // "secret", "hex" or "HEX" (as in a key log), "key", "iv", or "info" (crypto_info)
}

// Labels of keys in TLS 1.2, which are made of one secret.
const serverKey12, clientKey12 = "server's", "client's"

// generations are how many changes of a key are looked for.
const generations = 20

func (s *secretsOf) add(label string, generation int, what string, b []byte) {
	s.needles[part{label, generation, what}] = &needle{bytes: b}
}

// derive makes the needles from the key log of the client, and with TLS 1.2 the
// server's random bytes.
func (s *secretsOf) derive(t *testing.T, keyLog []byte, suite uint16, serverRandom [32]byte) {
	t.Helper()
	s.needles = map[part]*needle{}
	const keyPart = 16
	for text := range bytes.Lines(keyLog) {
		l, err := ktls.ParseKeyLogLine(text)
		if err != nil || strings.HasPrefix(l.Label, "EXPORTER") || strings.HasSuffix(l.Label, "_N") { // OpenSSL
			continue
		}
		s.add(l.Label, 0, "hex", []byte(hex.EncodeToString(l.Secret)))
		s.add(l.Label, 0, "HEX", []byte(strings.ToUpper(hex.EncodeToString(l.Secret))))
		s.add(l.Label, 0, "secret", l.Secret)
		if s.version == tls.VersionTLS12 {
			client, server, err := ktls.TLS12Keys(suite, l.Secret, l.ClientRandom, serverRandom)
			if err != nil {
				t.Fatal(err)
			}
			s.add(clientKey12, 0, "key", client.Key[:keyPart])
			s.add(serverKey12, 0, "key", server.Key[:keyPart])
			s.add(clientKey12, 0, "info", infoPart(t, client))
			s.add(serverKey12, 0, "info", infoPart(t, server))
			continue
		}
		for n, secret := 0, l.Secret; ; n++ {
			keys, err := ktls.TLS13Keys(suite, secret)
			if err != nil {
				t.Fatal(err)
			}
			s.add(l.Label, n, "secret", secret)
			s.add(l.Label, n, "key", keys.Key[:keyPart])
			s.add(l.Label, n, "iv", keys.IV[:])
			s.add(l.Label, n, "info", infoPart(t, keys))
			if n == generations || !strings.HasSuffix(l.Label, "_0") {
				break
			}
			if secret, err = ktls.NextSecret(suite, secret); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(s.needles) == 0 {
		t.Fatalf("%s: nothing in the key log", s.name)
	}
}

// infoPart is what the kernel is given of keys, without the sequence number.
func infoPart(t *testing.T, keys *ktls.Keys) []byte {
	t.Helper()
	info, err := keys.CryptoInfo(0)
	if err != nil {
		t.Fatal(err)
	}
	begin := 4 // version and cipher
	if keys.Version == tls.VersionTLS12 && keys.Cipher != ktls.CHACHA20POLY1305 {
		begin += 8 // the explicit nonce is the sequence number
	}
	return info[begin : len(info)-8]
}

// serverHello keeps the begin of what the server sends.
type serverHello struct {
	net.Conn
	begin []byte
}

func (c *serverHello) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.begin = append(c.begin, p[:n]...)[:min(len(c.begin)+n, 64)]
	return n, err
}

// secretConn makes a connection, fetches a file over it some times, and knows its
// secrets.
func (c *caddy) secretConn(t *testing.T, name string, i int, version uint16, f file, times int) *secretsOf {
	t.Helper()
	tcp, err := net.Dial("tcp", c.addr(i))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tcp.Close() })
	hello := &serverHello{Conn: tcp}
	var keyLog bytes.Buffer
	conn := handshake(t, hello, tlsConfig(t, func(config *tls.Config) {
		config.MaxVersion = version
		config.KeyLogWriter = &keyLog
	}))
	r := bufio.NewReader(conn)
	fetch := func(f file) {
		t.Helper()
		fmt.Fprintf(conn, "GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n", f.name)
		a, err := readAnswer(r)
		if err != nil {
			t.Fatal(err)
		}
		a.isFile(t, f)
	}
	for range times {
		fetch(f)
	}
	s := &secretsOf{name: name, version: version, conn: conn, fetch: fetch}
	// record header, message type and length, version; then the random bytes
	s.derive(t, keyLog.Bytes(), conn.ConnectionState().CipherSuite, [32]byte(hello.begin[5+4+2:]))
	return s
}

// updatedConn is a connection of openssl s_client whose client asks for new keys,
// twice.
func (c *caddy) updatedConn(t *testing.T, f file) *secretsOf {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keylog")
	s := c.sclient(t, "h1", "-keylogfile", path, "-ciphersuites", "TLS_AES_128_GCM_SHA256")
	roundTrip := s.roundTripper(t, "h1")
	fetch := func(f file) {
		t.Helper()
		resp, err := roundTrip(newRequest(t, "GET", c.url(0, "/"+f.name)))
		if err != nil {
			t.Fatal(err)
		}
		size, sum, err := sumReader(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		checkBody(t, f.name, size, sum, f.size, f.sum)
	}
	fetch(f)
	for range 2 {
		if err := s.keyUpdate(true); err != nil {
			t.Fatal(err)
		}
		fetch(f)
	}
	keyLog, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	so := &secretsOf{name: "updated", version: tls.VersionTLS13, conn: s, fetch: fetch}
	so.derive(t, keyLog, tls.TLS_AES_128_GCM_SHA256, [32]byte{})
	return so
}

// held is how often a part may be in memory: as often as crypto/tls has it, which
// is as often as in the connection that is stock Caddy's, and where this module
// needs it:
//
//   - before the move into the kernel, the secrets that the move will take;
//   - after it, the AEAD that opens what crypto/tls writes, made of the server's key
//     and IV;
//   - where the kernel can change keys, the server's traffic secret: the one that
//     crypto/tls uses, and the kernel's; with rx, the client's too.
func (s *secretsOf) held(stock *secretsOf, p part, rekey bool) int {
	const server, client = ktls.LabelServerTraffic, ktls.LabelClientTraffic
	if p.what == "hex" || p.what == "HEX" || p.what == "info" {
		return 0
	}
	inUse := 0 // generation of crypto/tls
	if s.name == "updated" && (p.label == server || p.label == client) {
		inUse = 2
	}
	if p.generation != inUse {
		return 0
	}
	n := stock.needles[part{p.label, 0, p.what}].count
	switch {
	case s.name == "fresh":
		if p.what == "secret" && (p.label == server || p.label == ktls.LabelServerHandshake || p.label == ktls.LabelTLS12) {
			n++
		}
	case p.what == "key" && (p.label == server || p.label == serverKey12):
		n *= 2 // crypto/tls has such an AEAD too
	case p.what == "iv" && p.label == server:
		n++
	case !rekey || p.what != "secret":
	case p.label == server && s.name == "limit":
		n++ // the kernel's is of a later generation
	case p.label == server:
		n += 2
	case p.label == client && s.name == "rx":
		n++
	}
	return n
}

// TestSecretsInMemory looks for the secrets of connections in the memory of a
// running Caddy: see held. What goes beyond must not be there when it isn't
// needed any more, whether or not the garbage collector runs; of a connection that
// is closed nothing may be left.
func TestSecretsInMemory(t *testing.T) {
	needKTLS(t)
	// The collector runs when the test says so, and overwrites what nobody refers
	// to any more: Go's own garbage. crypto/hkdf and crypto/tls leave keys in it.
	t.Setenv("GOGC", "off")
	t.Setenv("GODEBUG", "clobberfree=1")
	c := start(t,
		listener{wrappers: "ktls"},
		listener{wrappers: "ktls {\n\tupgrade handshake\n}"},
		listener{wrappers: "ktls {\n\trx on\n}"},
		listener{wrappers: "ktls {\n\tkey_limit 64\n}"},
		listener{},
	)
	rekey := canRekey(t)
	stock := map[uint16]*secretsOf{}
	var all []*secretsOf
	f := ofSize(65537)
	for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		stock[version] = c.secretConn(t, "stock", 4, version, f, 2)
		all = append(all, stock[version],
			c.secretConn(t, "fresh", 0, version, tiny, 1),
			c.secretConn(t, "lazy", 0, version, f, 2),
			c.secretConn(t, "handshake", 1, version, f, 2),
			c.secretConn(t, "rx", 2, version, f, 3))
		before := c.settled(t)
		for _, served := range []file{tiny, f} { // before the move and after it
			closed := c.secretConn(t, "closed", 0, version, served, 1)
			closed.conn.Close()
			all = append(all, closed)
		}
		c.awaitFootprint(t, before)
		if version == tls.VersionTLS13 && rekey {
			all = append(all, c.secretConn(t, "limit", 3, version, medium, 2), c.updatedConn(t, f))
		}
	}
	var needles []*needle
	for _, s := range all {
		for _, n := range s.needles {
			needles = append(needles, n)
		}
	}
	var complaints []string
	complain := func(s *secretsOf, p part, most int) {
		if n := s.needles[p]; n.count > most {
			complaints = append(complaints, fmt.Sprintf("%s, %s: %s %s of generation %d is there %d times, not %d",
				tls.VersionName(s.version), s.name, p.label, p.what, p.generation, n.count, most))
		}
	}

	// Garbage and all. Of keys, and of secrets that are derived from others, Go's
	// own leaves more the more often they are computed. With the race detector
	// sync.Pool, and so fmt, drops some of its buffers.
	countIn(t, c.cmd.Process.Pid, needles)
	for _, s := range all {
		for p := range s.needles {
			switch {
			case p.what == "info":
				complain(s, p, 0)
			case p.what == "key", p.what == "iv", p.generation > 0, p.what == "hex" && raceDetector:
			case s.name == "closed" && p.what == "secret":
				complain(s, p, stock[s.version].needles[p].count)
			case s.name != "updated" || p.label != ktls.LabelServerTraffic && p.label != ktls.LabelClientTraffic:
				complain(s, p, s.held(stock[s.version], p, rekey))
			}
		}
	}
	for _, complaint := range complaints {
		t.Error("garbage included: ", complaint)
	}

	// What is held. A goroutine's stack isn't the collector's: what Go has computed
	// with lies there until other calls have gone as deep.
	for range 8 {
		complaints = nil
		c.heapProfile(t)
		countIn(t, c.cmd.Process.Pid, needles)
		for _, s := range all {
			later := 0 // secrets of the kernel's
			for p, n := range s.needles {
				switch {
				case s.name == "closed":
					complain(s, p, 0)
				case s.name == "limit" && p.label == ktls.LabelServerTraffic && p.generation > 0 && p.what == "secret":
					later += n.count
				default:
					complain(s, p, s.held(stock[s.version], p, rekey))
				}
			}
			if s.name == "limit" && later != 1 {
				complaints = append(complaints, fmt.Sprintf("%d secrets of later generations, want the kernel's", later))
			}
		}
		if len(complaints) == 0 {
			break
		}
		for _, s := range all {
			if s.name != "closed" {
				s.fetch(tiny)
			}
		}
	}
	for _, complaint := range complaints {
		t.Error(complaint)
	}
	for version, s := range stock {
		label := map[uint16]string{tls.VersionTLS13: ktls.LabelServerTraffic, tls.VersionTLS12: ktls.LabelTLS12}[version]
		if s.needles[part{label, 0, "secret"}].count == 0 {
			t.Errorf("%s: crypto/tls's own secret isn't found", tls.VersionName(version))
		}
	}
}
