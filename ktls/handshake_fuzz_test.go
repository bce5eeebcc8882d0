package ktls

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"slices"
	"testing"
)

// firstFlights returns what clients of all kinds send first, one that resumes a
// session among them.
func firstFlights(t testing.TB, config *tls.Config) (all [][]byte) {
	t.Helper()
	for _, s := range upgradable {
		l := setup{config: config, recorded: true}.connect(t)
		l.with(s)
		all = append(all, l.record.read())
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		cache := tls.NewLRUClientSessionCache(1)
		for i := range 2 {
			l := setup{config: config, recorded: true}.connect(t)
			client := l.withGo(&tls.Config{MaxVersion: version, ServerName: "localhost", InsecureSkipVerify: true, ClientSessionCache: cache})
			checkServes(t, l, client)
			if resumed := l.ConnectionState().DidResume; resumed != (i == 1) {
				t.Fatalf("connection %d with %s was resumed: %t", i, tls.VersionName(version), resumed)
			}
			all = append(all, l.record.read())
		}
	}
	return all
}

// FuzzHandshake: to whatever a client begins with, our server says what crypto/tls
// says, and fails as it does.
func FuzzHandshake(f *testing.F) {
	config := testServerConfig(f)
	config.SetSessionTicketKeys([][32]byte{{1}})
	for _, b := range firstFlights(f, config) {
		f.Add(b)
		records := splitRecords(f, b)
		f.Add(records[0])
		f.Add(bytes.Join(records[:2], nil))
		f.Add(b[:len(records[0])/2])
		changed := bytes.Clone(records[0])
		changed[len(changed)-60] ^= 1
		f.Add(changed)
	}
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add([]byte{0x80, 0x2e, 1, 3, 1, 0, 21, 0, 0, 0, 16}) // SSL 2
	f.Add([]byte{RecordTypeAlert, 3, 1, 0, 2, alertLevelFatal, alertInternalError})
	f.Add([]byte{RecordTypeHandshake, 3, 1, 0xff, 0xff, 1, 0})
	f.Fuzz(func(t *testing.T, sent []byte) {
		run := func(far *pipeEnd, server func() server) (got []string, err error) {
			far.Write(sent)
			far.CloseWrite()
			s := server()
			err = s.Handshake()
			s.Close()
			stream, _ := far.take(1 << 30)
			records, rest := split(stream)
			for _, r := range records {
				what := fmt.Sprintf("type %d", r[0])
				if r[0] == RecordTypeAlert {
					what += fmt.Sprintf(" %x", r[RecordHeaderLen:]) // TLS 1.2 may have sealed it
					if len(r) > RecordHeaderLen+2 {
						what = fmt.Sprintf("type %d, %d bytes", r[0], len(r))
					}
				}
				got = append(got, what)
			}
			return append(got, fmt.Sprintf("%d bytes", len(rest))), err
		}
		const room = 1 << 30
		a, far := memoryPipe(room, room)
		oursSent, ours := run(far, func() server { return ourServer(a, config) })
		b, far := memoryPipe(room, room)
		theirsSent, theirs := run(far, func() server { return stockServer(b, config) })
		if fmt.Sprint(ours) != fmt.Sprint(theirs) || !slices.Equal(oursSent, theirsSent) {
			t.Errorf("%v, sent %q\nwith crypto/tls: %v, sent %q", ours, oursSent, theirs, theirsSent)
		}
	})
}
