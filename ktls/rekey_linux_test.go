package ktls

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"
	"time"
)

// needRekey is needKTLS for kernels that can change a key.
func needRekey(t testing.TB) {
	t.Helper()
	needKTLS(t)
	if Probe().Rekey.Support != Yes {
		t.Skip("this kernel can't rekey")
	}
}

// noRekey is what a kernel before 6.14 can do.
func noRekey() *Features {
	f := *Probe()
	f.Rekey, f.RekeyRX = Answer{Support: No}, Answer{Support: No}
	return &f
}

// readAll has the server read until an error, which the channel gets.
func readAll(l *link) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, l.Conn)
		done <- err
	}()
	return done
}

// awaitWaiting waits until a record of crypto/tls's own waits for the sendfile under
// way, or has gone: the socket may have found room.
func (l *link) awaitWaiting(what string, gone func() bool) {
	l.t.Helper()
	waitFor(l.t, what, func() bool { return l.tap.waiting.Load() > 0 || gone() })
}

func TestKeyUpdateIsRefusedWhereTheKernelCantRekey(t *testing.T) {
	for _, s := range upgradable[:3] {
		t.Run(s.String(), func(t *testing.T) {
			needSuite(t, s)
			checkLeaks(t)
			l := setup{opts: Options{Features: noRekey()}}.connect(t)
			client := l.with13(s.id, clientOptions{})
			l.mustUpgrade()
			checkServes(t, l, client)
			read := readAll(l)
			if err := client.keyUpdate(true); err != nil {
				t.Fatal(err)
			}
			if _, err := client.Read(make([]byte, 1)); err != alertError(alertInternalError) {
				t.Errorf("the client sees %v", err)
			}
			if _, err := client.rawRecord(); err != io.EOF {
				t.Errorf("after the alert the client sees %v", err)
			}
			if err := <-read; !errors.Is(err, ErrKeyUpdate) {
				t.Errorf("Read: %v", err)
			}
			if _, err := l.Write([]byte("x")); !errors.Is(err, ErrKeyUpdate) {
				t.Errorf("Write: %v", err)
			}
			if r := l.rekeyed(); len(r) != 1 || r[0] != (rekeyEvent{true, ErrKeyUpdate}) {
				t.Errorf("OnRekey was told %+v", r)
			}
			within(t, time.Second, "Close", func() { l.Close() })
		})
	}
}

func TestKeyUpdateRefusedDuringSendFile(t *testing.T) {
	needKTLS(t)
	checkLeaks(t)
	l := setup{opts: Options{Features: noRekey()}}.connect(t)
	client := l.with13(tls.TLS_AES_128_GCM_SHA256, clientOptions{})
	l.mustUpgrade()
	content := randomBytes(4 * bigFile)
	sent, stalled := sendStalled(t, l, testFile(t, content), int64(len(content)))
	<-stalled
	read := readAll(l)
	if err := client.keyUpdate(true); err != nil {
		t.Fatal(err)
	}
	l.awaitWaiting("the answer", func() bool { return len(read) > 0 })
	got, err := io.ReadAll(client)
	if err != alertError(alertInternalError) {
		t.Errorf("the client sees %v", err)
	}
	if !bytes.HasPrefix(content, got) {
		t.Error("the client got other bytes than were sent")
	}
	if err := <-sent; !errors.Is(err, ErrKeyUpdate) {
		t.Errorf("SendFile: %v", err)
	}
	if err := <-read; !errors.Is(err, ErrKeyUpdate) {
		t.Errorf("Read: %v", err)
	}
}

// sendStalled sends n bytes of f. stalled gets a value when the peer's buffers
// are full for the first time.
func sendStalled(t testing.TB, l *link, f *os.File, n int64) (sent <-chan error, stalled <-chan struct{}) {
	done, full := make(chan error, 1), make(chan struct{}, 1)
	go func() {
		_, err := l.SendFile(f, 0, n, func(int64) {
			select {
			case full <- struct{}{}:
			default:
			}
		})
		done <- err
	}()
	return done, full
}

// TestKeyUpdatesDuringSendFile: hundreds of KeyUpdates, each with a request, in
// one download, and some of the client's own.
func TestKeyUpdatesDuringSendFile(t *testing.T) {
	needRekey(t)
	for _, s := range upgradable[:3] {
		t.Run(s.String(), func(t *testing.T) {
			needSuite(t, s)
			checkLeaks(t)
			l := setup{}.connect(t)
			client := l.with13(s.id, clientOptions{})
			l.mustUpgrade()
			const updates = 300
			content := randomBytes(bigFile)
			f := testFile(t, content)
			read := readAll(l)
			asked := make(chan error, 1)
			sent := make(chan error, 1)
			go func() {
				for range updates {
					if err := client.keyUpdate(true); err != nil {
						asked <- err
						return
					}
					client.keyUpdate(false)
					if _, err := client.Write([]byte("x")); err != nil { // crypto/tls allows 16 in a row
						asked <- err
						return
					}
				}
				asked <- nil
			}()
			go func() {
				defer close(sent)
				for off := 0; off < len(content); {
					n := min(1<<20, len(content)-off)
					if _, err := l.SendFile(f, int64(off), int64(n), nil); err != nil {
						sent <- err
						return
					}
					off += n
				}
				if err := <-asked; err != nil {
					sent <- err
				}
				for len(l.rekeyed()) < updates {
					time.Sleep(time.Millisecond)
				}
				_, err := l.Write([]byte("the end"))
				sent <- err
				l.CloseWrite()
			}()
			got := <-receive(client)
			checkReceived(t, got, append(content, "the end"...))
			for err := range sent {
				if err != nil {
					t.Error(err)
				}
			}
			if client.updates != updates {
				t.Errorf("%d KeyUpdates answered, want %d", client.updates, updates)
			}
			for _, r := range l.rekeyed() {
				if r != (rekeyEvent{true, nil}) {
					t.Errorf("OnRekey was told %+v", r)
				}
			}
			l.Close()
			<-read
		})
	}
}

// TestKeyUpdateIsAnsweredWithinSendFile: the answer doesn't wait for the end of
// a file that is sent to a slow peer, and what comes after it is under the new
// key.
func TestKeyUpdateIsAnsweredWithinSendFile(t *testing.T) {
	needRekey(t)
	l, client := upgradedLink13(t)
	content := randomBytes(4 * bigFile)
	sent, stalled := sendStalled(t, l, testFile(t, content), int64(len(content)))
	<-stalled
	read := readAll(l)
	if err := client.keyUpdate(true); err != nil {
		t.Fatal(err)
	}
	l.awaitWaiting("the answer", func() bool { return len(l.rekeyed()) > 0 })
	got := make([]byte, len(content))
	most := len(got) / 4 * 3 // what the buffers held, and one system call more
	if _, err := io.ReadFull(client, got[:most]); err != nil {
		t.Fatal(err)
	}
	if client.updates != 1 {
		t.Errorf("%d KeyUpdates in %d bytes", client.updates, most)
	}
	if _, err := io.ReadFull(client, got[most:]); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, content) {
		t.Error("the client got other bytes than were sent")
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	l.Close()
	<-read
}

// TestKeyUpdateWithOpenRecord: what is held back for more (MSG_MORE) goes out
// under the old key.
func TestKeyUpdateWithOpenRecord(t *testing.T) {
	needRekey(t)
	l, client := upgradedLink13(t)
	read := readAll(l)
	if _, err := l.WriteMore([]byte("before")); err != nil {
		t.Fatal(err)
	}
	if err := client.keyUpdate(true); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 6)
	if _, err := io.ReadFull(client, got); err != nil || string(got) != "before" {
		t.Fatalf("%q, %v", got, err)
	}
	if client.updates != 0 {
		t.Error("under the new key")
	}
	for len(l.rekeyed()) == 0 {
		time.Sleep(time.Millisecond)
	}
	if _, err := l.Write([]byte("after.")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(client, got); err != nil || string(got) != "after." || client.updates != 1 {
		t.Fatalf("%q, %v, %d KeyUpdates", got, err, client.updates)
	}
	l.Close()
	<-read
}

// TestKeyUpdateFlood: a peer that asks for keys over and over is cut off, even
// with data in between.
func TestKeyUpdateFlood(t *testing.T) {
	needRekey(t)
	checkLeaks(t)
	l, client := upgradedLink13(t)
	ended := make(chan error, 1)
	go func() {
		err := <-readAll(l)
		l.Close() // else the client could not write on
		ended <- err
	}()
	stop := receive(client)
	for {
		if err := client.keyUpdate(true); err != nil {
			break
		}
		if _, err := client.Write([]byte("x")); err != nil {
			break
		}
	}
	if err := <-ended; !errors.Is(err, ErrKeyUpdateFlood) {
		t.Errorf("Read: %v", err)
	}
	got := <-stop
	if got.err == nil || got.n != 0 {
		t.Errorf("the client sees %d bytes, %v", got.n, got.err)
	}
	r := l.rekeyed()
	if n := len(r); n < maxKeyUpdates || r[n-1].err != ErrKeyUpdateFlood {
		t.Errorf("%d times, the last one: %v", n, r[n-1].err)
	}
}

func TestUpdateBudget(t *testing.T) {
	var b updateBudget
	now := time.Now()
	for i := range maxKeyUpdates {
		if !b.take(now) {
			t.Fatalf("refused after %d", i)
		}
	}
	if b.take(now.Add(time.Second/keyUpdatesPerSecond - 1)) {
		t.Error("one too many")
	}
	now = now.Add(time.Second)
	for i := range keyUpdatesPerSecond {
		if !b.take(now) {
			t.Fatalf("refused after %d in the next second", i)
		}
	}
	if b.take(now) {
		t.Error("one too many in the next second")
	}
	if now = now.Add(time.Hour); !b.take(now) || b.used != 1 {
		t.Errorf("%d are left over after an hour", b.used)
	}
}

// TestKeyLimitChangesTheKey: no key encrypts more records than the limit says,
// and what the client asks for meanwhile is done as well.
func TestKeyLimitChangesTheKey(t *testing.T) {
	needRekey(t)
	const limit = 64
	for _, s := range upgradable[:3] {
		t.Run(s.String(), func(t *testing.T) {
			needSuite(t, s)
			l := setup{opts: Options{KeyLimit: limit}}.connect(t)
			client := l.with13(s.id, clientOptions{})
			l.mustUpgrade()
			if !l.Room(1<<40) || l.Expiring() {
				t.Error("the connection is to end")
			}
			content := randomBytes(bigFile)
			f := testFile(t, content)
			read := readAll(l)
			done := receive(client)
			send := func(b []byte) {
				if _, err := l.Write(b); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := l.SendFile(f, 0, bigFile, nil); err != nil {
				t.Fatal(err)
			}
			for len(content) < bigFile+500 {
				send([]byte("x"))
				content = append(content, 'x')
			}
			send(content[:3<<20])
			content = append(content, content[:3<<20]...)
			own := len(l.rekeyed())
			if err := client.keyUpdate(true); err != nil { // its answer comes under crypto/tls's own, older key
				t.Fatal(err)
			}
			for len(l.rekeyed()) == own {
				time.Sleep(time.Millisecond)
			}
			send(content[:2<<20])
			content = append(content, content[:2<<20]...)
			l.Close()
			<-read
			checkReceived(t, <-done, content)
			if records := (bigFile + 5<<20) / MaxPlaintext; client.updates < records/limit {
				t.Errorf("%d KeyUpdates for %d records", client.updates, records)
			}
			for i, n := range client.ended {
				if n > limit {
					t.Errorf("%d records under key %d", n, i)
				}
			}
			for i, r := range l.rekeyed() {
				if r.err != nil || r.byPeer != (i == own) {
					t.Errorf("change %d of the key: %+v", i, r)
				}
			}
		})
	}
}

// TestKeyLimitPassedBeforeUpgrade: crypto/tls knows no limit. Where the key can be
// changed, it is by the first write of the kernel's.
func TestKeyLimitPassedBeforeUpgrade(t *testing.T) {
	needRekey(t)
	l := setup{opts: Options{KeyLimit: minKeyLimit}}.connect(t)
	client := l.with13(tls.TLS_AES_128_GCM_SHA256, clientOptions{})
	done := receive(client)
	var content []byte
	send := func() {
		for range 2 * minKeyLimit {
			content = append(content, 'x')
			if _, err := l.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
	}
	send()
	l.mustUpgrade()
	send()
	l.Close()
	checkReceived(t, <-done, content)
	if client.ended[0] != 2*minKeyLimit+2 || client.updates < 2 { // with the session ticket and the KeyUpdate
		t.Errorf("keys changed after %d records", client.ended)
	}
	for i, n := range client.ended[1:] {
		if n > minKeyLimit {
			t.Errorf("%d records under key %d", n, i+1)
		}
	}
}

// TestKeyLimitEndsTheConnection: where the key can't be changed, its limit isn't
// passed, and the connection says so in time.
func TestKeyLimitEndsTheConnection(t *testing.T) {
	const limit = 200
	for _, s := range upgradable {
		t.Run(s.String(), func(t *testing.T) {
			needSuite(t, s)
			l := setup{opts: Options{Features: noRekey(), KeyLimit: limit}}.connect(t)
			client := l.with(s)
			if !l.Room(1<<20) || l.Room((limit+1)*MaxPlaintext) {
				t.Error("Room before the upgrade")
			}
			l.mustUpgrade()
			if !l.Room(1<<20) || l.Room(limit*MaxPlaintext) || l.Expiring() {
				t.Error("Room after the upgrade")
			}
			content := randomBytes(bigFile)
			f := testFile(t, content)
			if _, ok := client.(*client13); ok {
				defer func(read <-chan error) { l.Close(); <-read }(readAll(l))
			}
			first := make(chan error, 1)
			go func() {
				_, err := l.SendFile(f, 0, 180*MaxPlaintext, nil)
				first <- err
			}()
			if _, err := io.CopyN(io.Discard, client, 180*MaxPlaintext); err != nil {
				t.Fatal(err)
			}
			if err := <-first; err != nil {
				t.Fatal(err)
			}
			if !l.Expiring() || l.Room(1<<20) {
				t.Error("the connection isn't to end")
			}
			done := receive(client)
			n, err := l.SendFile(f, 0, bigFile, nil)
			if !errors.Is(err, ErrKeyLimit) {
				t.Errorf("SendFile: %v", err)
			}
			if _, err := l.Write([]byte("x")); !errors.Is(err, ErrKeyLimit) {
				t.Errorf("Write: %v", err)
			}
			got := <-done
			if got.err == nil || got.err == io.ErrUnexpectedEOF {
				t.Errorf("the client sees no alert: %v", got.err)
			}
			got.err = nil
			checkReceived(t, got, content[:n])
			switch c := client.(type) {
			case *client13:
				if c.in.seq > limit {
					t.Errorf("%d records", c.in.seq)
				}
			case *goClient:
				if n := len(c.records(t)); n > limit {
					t.Errorf("%d records", n)
				}
			}
		})
	}
}

// TestKeyLimitRefusesUpgrade: a connection whose key is half used up before stays
// with crypto/tls.
func TestKeyLimitRefusesUpgrade(t *testing.T) {
	needKTLS(t)
	l := setup{opts: Options{Features: noRekey(), KeyLimit: minKeyLimit}}.connect(t)
	client := l.with13(tls.TLS_AES_128_GCM_SHA256, clientOptions{})
	done := receive(client)
	for range minKeyLimit {
		if _, err := l.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	checkRefused(t, l.Upgrade(), ReasonKeyLimit)
	l.Write([]byte("y"))
	l.Close()
	checkReceived(t, <-done, append(bytes.Repeat([]byte("x"), minKeyLimit), 'y'))
}

// TestRekeyFault: a kernel that doesn't take the key that the peer awaits ends
// the connection at once.
func TestRekeyFault(t *testing.T) {
	needRekey(t)
	for _, byPeer := range []bool{true, false} {
		t.Run(fmt.Sprintf("by peer %t", byPeer), func(t *testing.T) {
			checkLeaks(t)
			l := setup{opts: Options{KeyLimit: 64}}.connect(t)
			client := l.with13(tls.TLS_AES_128_GCM_SHA256, clientOptions{})
			l.mustUpgrade()
			fault := errors.New("the test's own fault")
			failStep(t, stepRekey, fault)
			read := readAll(l)
			done := receive(client)
			content := randomBytes(bigFile)
			if byPeer {
				content = nil
				client.keyUpdate(true)
			} else {
				n, err := l.Write(content)
				if !errors.Is(err, fault) {
					t.Errorf("Write: %v", err)
				}
				content = content[:n]
			}
			if err := <-read; !errors.Is(err, fault) {
				t.Errorf("Read: %v", err)
			}
			got := <-done
			if got.err != io.ErrUnexpectedEOF {
				t.Errorf("the client sees %v", got.err)
			}
			got.err = nil
			checkReceived(t, got, content)
			if r := l.rekeyed(); len(r) != 1 || r[0] != (rekeyEvent{byPeer, fault}) {
				t.Errorf("OnRekey was told %+v", r)
			}
			l.Close()
		})
	}
}

// TestCloseWipesTheSecretsOfRekeying: they stay as long as they may be needed.
func TestCloseWipesTheSecretsOfRekeying(t *testing.T) {
	needRekey(t)
	l, _ := upgradedLink13(t)
	kept := [][]byte{l.tap.key.secret, l.tap.send.secret}
	for i, b := range kept {
		if len(bytes.Trim(b, "\x00")) == 0 {
			t.Errorf("secret %d isn't there", i)
		}
	}
	l.Close()
	for i, b := range kept {
		if len(bytes.Trim(b, "\x00")) != 0 {
			t.Errorf("secret %d was not overwritten", i)
		}
	}
}

func TestRecordSize(t *testing.T) {
	needKTLS(t)
	const size = 1400
	l := setup{opts: Options{RecordSize: size}}.connect(t)
	client := l.with13(tls.TLS_AES_128_GCM_SHA256, clientOptions{})
	l.mustUpgrade()
	want := size
	if Probe().MaxPayloadLen.Support != Yes {
		want = MaxPlaintext
	}
	if got := l.Info().RecordSize; got != want {
		t.Errorf("record size %d, want %d", got, want)
	}
	content := randomBytes(300_000)
	done := receive(client)
	if _, err := l.SendFile(testFile(t, content), 0, int64(len(content)), nil); err != nil {
		t.Fatal(err)
	}
	l.Close()
	checkReceived(t, <-done, content)
	for i, n := range client.lengths {
		if n > want {
			t.Errorf("record %d carries %d bytes", i, n)
		}
	}
	if len(client.lengths) < len(content)/want {
		t.Errorf("%d records", len(client.lengths))
	}
}

func TestZerocopyROIsReadBack(t *testing.T) {
	needKTLS(t)
	for _, on := range []bool{false, true} {
		l := setup{opts: Options{ZerocopyRO: on}}.connect(t)
		client := l.with13(tls.TLS_AES_128_GCM_SHA256, clientOptions{})
		l.mustUpgrade()
		if got, want := l.Info().ZerocopyRO, on && Probe().ZerocopyRO.Support == Yes; got != want {
			t.Errorf("zero-copy %t, asked for %t", got, on)
		}
		checkServes(t, l, client)
	}
}

// TestRoomIsKept: what there was room for before an upgrade can be sent after it,
// whatever was sent before and however small the records are; and as long as a
// connection doesn't expire, half of the limit can.
func TestRoomIsKept(t *testing.T) {
	const limit = 1000
	for _, test := range []struct {
		name   string
		opts   Options
		before int // records
		n      int64
		room   bool
	}{
		{"small records", Options{RecordSize: 1024}, 0, 4 << 20, false},
		{"small records, a short file", Options{RecordSize: 1024}, 0, 400 << 10, true},
		{"records before", Options{}, 450, 10 << 20, false},
		{"records before, a short file", Options{}, 450, 7 << 20, true},
	} {
		for _, s := range []suite{upgradable[0], upgradable[3]} {
			t.Run(test.name+"/"+s.String(), func(t *testing.T) {
				needSuite(t, s)
				test.opts.KeyLimit, test.opts.Features = limit, noRekey()
				l := setup{opts: test.opts}.connect(t)
				go io.Copy(io.Discard, l.with(s))
				for range test.before {
					l.Write([]byte("x"))
				}
				if l.Room(test.n) != test.room {
					t.Fatalf("room for %d bytes: %t", test.n, !test.room)
				}
				if !test.room {
					return
				}
				l.mustUpgrade()
				if sent, err := l.SendFile(testFile(t, make([]byte, test.n)), 0, test.n, nil); err != nil {
					t.Errorf("%d of %d bytes sent, %v", sent, test.n, err)
				}
			})
		}
	}
	t.Run("file after file", func(t *testing.T) {
		needSuite(t, upgradable[0])
		l := setup{opts: Options{Features: noRekey(), KeyLimit: limit}}.connect(t)
		go io.Copy(io.Discard, l.with(upgradable[0]))
		l.mustUpgrade()
		const n = (limit/2 - 20) * MaxPlaintext
		f := testFile(t, make([]byte, n))
		for range 10 {
			if l.Expiring() {
				return
			}
			if sent, err := l.SendFile(f, 0, n, nil); err != nil {
				t.Fatalf("%d of %d bytes sent, %v", sent, n, err)
			}
		}
		t.Error("the connection doesn't expire")
	})
}

// TestPiecesCountAsTheirRecords: sendfile ends a record with each piece, however
// short.
func TestPiecesCountAsTheirRecords(t *testing.T) {
	needSuite(t, upgradable[0])
	const limit, pieces, header = 200, 150, 9
	for _, size := range []int{100, MaxPlaintext - header, MaxPlaintext} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			l := setup{opts: Options{Features: noRekey(), KeyLimit: limit}}.connect(t)
			client := l.with13(upgradable[0].id, clientOptions{})
			l.mustUpgrade()
			before := l.tap.key.used.Load()
			done := receive(client)
			f := testFile(t, make([]byte, pieces*size))
			err := l.Batch(func(b *Batch) error {
				_, err := b.SendFramed(f, 0, int64(pieces*size), Framed{Size: size, Len: header, Headers: make([]byte, pieces*header)}, nil)
				return err
			})
			twice := size == MaxPlaintext // a header and so much don't fit a record
			if twice != errors.Is(err, ErrKeyLimit) || !twice && err != nil {
				t.Error(err)
			}
			counted := l.tap.key.used.Load()
			l.Close()
			<-done
			if sent := client.in.seq; counted < before+pieces || sent > limit || sent > counted+2 {
				t.Errorf("%d records under a key for %d; counted %d", sent, limit, counted)
			}
		})
	}
}
