package ktls

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"os"
	"testing"
	"time"
)

// mixedStream is content in records of many sizes, with all that may come in
// between, and close_notify.
func mixedStream(t testing.TB, client *sender, content []byte) []byte {
	t.Helper()
	return mixedStreamOf(t, client, content, func(i int) int { return 1 + i*i*13%MaxPlaintext })
}

// mixedStreamOf is mixedStream with the size of each record.
func mixedStreamOf(t testing.TB, client *sender, content []byte, size func(i int) int) (stream []byte) {
	t.Helper()
	rekey := client.version == tls.VersionTLS13 && Probe().RekeyRX.Support == Yes
	for i := 0; len(content) > 0; i++ {
		n := min(len(content), size(i))
		stream = append(stream, client.seal(RecordTypeApplicationData, content[:n])...)
		content = content[n:]
		switch {
		case i%7 == 3:
			stream = append(stream, client.seal(RecordTypeAlert, []byte{1, alertUserCanceled})...)
		case i%7 == 4:
			stream = append(stream, client.seal(RecordTypeApplicationData, nil)...)
		case i%7 == 5 && rekey:
			stream = append(stream, client.seal(RecordTypeHandshake, []byte{msgKeyUpdate, 0, 0, 1, byte(i % 2)})...)
			if err := client.c13.out.next(); err != nil {
				t.Fatal(err)
			}
		}
	}
	return append(stream, client.seal(RecordTypeAlert, []byte{1, alertCloseNotify})...)
}

// TestSpliceTo: all passes through the pipe but what isn't application data.
func TestSpliceTo(t *testing.T) {
	eachRXSuite(t, func(t *testing.T, s suite) {
		checkLeaks(t)
		l, client := receivingLink(t, s, Options{})
		dst, far := tcpPair(t)
		content := randomBytes(3 << 20)
		stream := mixedStream(t, client, content)
		go client.l.peer.Write(stream)
		got := receive(far)
		n, err := l.spliceTo(dst)
		if n != int64(len(content)) || err != io.EOF {
			t.Errorf("%d bytes of %d, %v", n, len(content), err)
		}
		dst.Close()
		checkReceived(t, <-got, content)
	})
}

// TestWriteTo: from any state, to any writer.
func TestWriteTo(t *testing.T) {
	eachRXSuite(t, func(t *testing.T, s suite) {
		for _, state := range []int32{rxOff, rxCount, rxSingle, rxKernel} {
			for _, tcp := range []bool{true, false} {
				l := setup{opts: Options{RX: state != rxOff}}.connect(t)
				client := l.sender(s)
				if state != rxCount {
					l.mustUpgrade()
				}
				if state == rxKernel {
					l.mustTakeOver(client)
				}
				content := randomBytes(300_000)
				var stream []byte
				if state == rxKernel {
					stream = mixedStream(t, client, content)
				} else {
					for rest := content; len(rest) > 0; {
						n := min(len(rest), 9000)
						stream = append(stream, client.seal(RecordTypeApplicationData, rest[:n])...)
						rest = rest[n:]
					}
					stream = append(stream, client.seal(RecordTypeAlert, []byte{1, alertCloseNotify})...)
				}
				go client.l.peer.Write(stream)
				if !tcp {
					var got bytes.Buffer
					n, err := l.WriteTo(&got)
					if n != int64(len(content)) || err != nil || !bytes.Equal(got.Bytes(), content) {
						t.Errorf("state %d: %d bytes, %v", state, n, err)
					}
					continue
				}
				dst, far := tcpPair(t)
				got := receive(far)
				n, err := io.Copy(dst, l.Conn)
				if n != int64(len(content)) || err != nil {
					t.Errorf("state %d to TCP: %d bytes, %v", state, n, err)
				}
				dst.Close()
				checkReceived(t, <-got, content)
				if l.Info().Receiving != (state >= rxSingle) {
					t.Errorf("state %d: %v", state, l.takenOver())
				}
			}
		}
	})
}

// TestSpliceErrors: as in Read, and what came before arrives.
func TestSpliceErrors(t *testing.T) {
	for _, test := range []struct {
		name string
		raw  []byte
		desc byte
	}{
		{"forged", garbage, alertBadRecordMAC},
		{"too long", append([]byte{RecordTypeApplicationData, 3, 3, 255, 255}, make([]byte, 100)...), alertRecordOverflow},
		{"other version", append([]byte{RecordTypeApplicationData, 3, 1, 0, 100}, make([]byte, 100)...), alertProtocolVersion},
	} {
		t.Run(test.name, func(t *testing.T) {
			checkLeaks(t)
			l, client := receivingLink(t, upgradable[0], Options{})
			dst, far := tcpPair(t)
			client.Write([]byte("before"))
			client.raw(test.raw)
			n, err := l.WriteTo(dst)
			if n != 6 {
				t.Errorf("%d bytes", n)
			}
			checkEnded(t, l, err, test.desc)
			checkAlert(t, client, test.desc)
			dst.Close()
			checkReceived(t, <-receive(far), []byte("before"))
		})
	}
}

func TestSpliceEndOfStream(t *testing.T) {
	for _, cut := range []int{0, 3, 100} {
		l, client := receivingLink(t, upgradable[0], Options{})
		dst, _ := tcpPair(t)
		client.Write([]byte("before"))
		client.raw(client.seal(RecordTypeApplicationData, randomBytes(200))[:cut])
		l.peer.CloseWrite()
		var want error
		if cut > 0 {
			want = io.ErrUnexpectedEOF
		}
		if n, err := l.WriteTo(dst); n != 6 || err != want {
			t.Errorf("cut at %d: %d bytes, %v", cut, n, err)
		}
	}
}

// TestSpliceDeadline: nothing is lost when it passes.
func TestSpliceDeadline(t *testing.T) {
	checkLeaks(t)
	l, client := receivingLink(t, upgradable[0], Options{})
	dst, far := tcpPair(t)
	for range 2 {
		client.Write([]byte("some"))
		l.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if n, err := l.WriteTo(dst); n != 4 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%d bytes, %v", n, err)
		}
	}
	l.SetReadDeadline(time.Time{})
	client.Write([]byte("more"))
	client.send(RecordTypeAlert, []byte{1, alertCloseNotify})
	if n, err := l.WriteTo(dst); n != 4 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	dst.Close()
	checkReceived(t, <-receive(far), []byte("somesomemore"))
}

// TestSpliceToPeerThatDoesNotRead: the other side's deadline holds, and closing
// either end wakes.
func TestSpliceToPeerThatDoesNotRead(t *testing.T) {
	own := errors.New("the test's own reason")
	for name, end := range map[string]struct {
		end  func(l *link, dst io.Closer)
		want error
	}{
		"its deadline": {func(_ *link, dst io.Closer) {
			dst.(interface{ SetWriteDeadline(time.Time) error }).SetWriteDeadline(time.Unix(1, 0))
		}, os.ErrDeadlineExceeded},
		"its end": {func(_ *link, dst io.Closer) { dst.Close() }, os.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			l, client := receivingLink(t, upgradable[0], Options{})
			dst, _ := tcpPair(t)
			dst.SetWriteBuffer(64 << 10)
			wrote := make(chan struct{})
			go func() {
				client.Write(randomBytes(4 * bigFile))
				close(wrote)
			}()
			done := make(chan error, 1)
			go func() {
				_, err := l.WriteTo(dst)
				done <- err
			}()
			select {
			case err := <-done:
				t.Fatalf("WriteTo: %v", err)
			case <-wrote:
				t.Fatal("all was written")
			case <-time.After(300 * time.Millisecond): // it is blocked, or soon will be
			}
			end.end(l, dst)
			if err := <-done; !errors.Is(err, end.want) && !(end.want == os.ErrClosed && err != nil) {
				t.Errorf("WriteTo: %v", err)
			}
			l.Abort(own)
			<-wrote
		})
	}
}

func TestAbortEndsSplice(t *testing.T) {
	checkLeaks(t)
	own := errors.New("the test's own reason")
	l, _ := receivingLink(t, upgradable[0], Options{})
	dst, _ := tcpPair(t)
	done := make(chan error, 1)
	go func() {
		_, err := l.WriteTo(dst)
		done <- err
	}()
	l.Abort(own)
	if err := <-done; !errors.Is(err, own) {
		t.Errorf("WriteTo: %v", err)
	}
}
