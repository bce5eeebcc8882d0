package main

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// behaviour is what is done to a response. What is nil is passed on.
type behaviour struct {
	serve    func(e *exchange, next caddyhttp.Handler) error // in place of all else
	begin    func(e *exchange)                               // before the next handler
	header   func(e *exchange, status int)
	write    func(e *exchange, p []byte) (int, error)
	readFrom func(e *exchange, r io.Reader) (int64, error) // nil: no io.ReaderFrom
	end      func(e *exchange)                             // after the next handler
	hidden   bool                                          // has no Unwrap
	unwrap   func(e *exchange) http.ResponseWriter
}

// exchange is one response under way.
type exchange struct {
	http.ResponseWriter
	behaviour
	request *http.Request
	buffer  bytes.Buffer
	held    []byte
	zip     *gzip.Writer
	wrote   int
}

func (e *exchange) WriteHeader(status int) {
	if e.header != nil {
		e.header(e, status)
		return
	}
	e.ResponseWriter.WriteHeader(status)
}

func (e *exchange) Write(p []byte) (int, error) {
	e.wrote += len(p)
	if e.write != nil {
		return e.write(e, p)
	}
	return e.ResponseWriter.Write(p)
}

// writer is e with the methods that the behaviour has.
func (e *exchange) writer() http.ResponseWriter {
	switch {
	case e.hidden && e.readFrom != nil:
		return struct {
			http.ResponseWriter
			io.ReaderFrom
		}{e, readerFrom{e}}
	case e.hidden:
		return e
	case e.readFrom != nil:
		return struct {
			unwrapper
			io.ReaderFrom
		}{unwrapper{e}, readerFrom{e}}
	}
	return unwrapper{e}
}

type unwrapper struct{ *exchange }

func (u unwrapper) Unwrap() http.ResponseWriter {
	if u.exchange.unwrap != nil {
		return u.exchange.unwrap(u.exchange)
	}
	return u.ResponseWriter
}

type readerFrom struct{ e *exchange }

func (r readerFrom) ReadFrom(src io.Reader) (int64, error) { return r.e.readFrom(r.e, src) }

// pass hands src on as io.Copy does.
func (e *exchange) pass(src io.Reader) (int64, error) { return io.Copy(e.ResponseWriter, src) }

// passTwice hands it on, and what it had of its file once more.
func (e *exchange) passTwice(src io.Reader) (int64, error) {
	f := fileOf(src)
	at, _ := f.Seek(0, io.SeekCurrent)
	n, err := e.pass(src)
	if err != nil {
		return n, err
	}
	f.Seek(at, io.SeekStart)
	e.pass(io.LimitReader(f, n))
	return n, nil
}

// changeLength adds n to Content-Length.
func (e *exchange) changeLength(n int) {
	if length, err := strconv.Atoi(e.Header().Get("Content-Length")); err == nil {
		e.Header().Set("Content-Length", strconv.Itoa(length+n))
	}
}

func (e *exchange) unknownLength(status int) {
	e.Header().Del("Content-Length")
	e.ResponseWriter.WriteHeader(status)
}

func (e *exchange) flush() { http.NewResponseController(e.ResponseWriter).Flush() }

// fileOf is the file at the bottom of what arrives at ReadFrom.
func fileOf(r io.Reader) *os.File {
	for {
		switch v := r.(type) {
		case *io.LimitedReader:
			r = v.R
		case *os.File:
			return v
		default:
			return nil
		}
	}
}

// half is where some stop, in bytes.
const half = 20000

var behaviours = map[string]behaviour{
	"nothing": {},
	"hidden":  {hidden: true},
	"buffers": {
		write: func(e *exchange, p []byte) (int, error) { return e.buffer.Write(p) },
		end:   func(e *exchange) { e.ResponseWriter.Write(e.buffer.Bytes()) },
	},
	"buffers the file": {
		readFrom: func(e *exchange, r io.Reader) (int64, error) {
			b, err := io.ReadAll(r)
			if err != nil {
				return 0, err
			}
			n, err := e.ResponseWriter.Write(b)
			return int64(n), err
		},
	},
	"splits": {
		write: func(e *exchange, p []byte) (int, error) {
			for done := 0; done < len(p); {
				n, err := e.ResponseWriter.Write(p[done:min(done+999, len(p))])
				done += n
				if err != nil {
					return done, err
				}
			}
			return len(p), nil
		},
	},
	"splits the file": {
		readFrom: func(e *exchange, r io.Reader) (n int64, err error) {
			for {
				m, err := e.pass(io.LimitReader(r, half))
				n += m
				if m == 0 || err != nil {
					return n, err
				}
			}
		},
	},
	"duplicates": {
		header: (*exchange).unknownLength,
		write: func(e *exchange, p []byte) (int, error) {
			e.ResponseWriter.Write(p)
			return e.ResponseWriter.Write(p)
		},
	},
	"duplicates and says so": {
		header: func(e *exchange, status int) {
			n, _ := strconv.Atoi(e.Header().Get("Content-Length"))
			e.changeLength(n)
			e.ResponseWriter.WriteHeader(status)
		},
		write: func(e *exchange, p []byte) (int, error) {
			e.ResponseWriter.Write(p)
			return e.ResponseWriter.Write(p)
		},
	},
	"duplicates the file": {
		readFrom: (*exchange).passTwice,
	},
	"duplicates the file and says so": {
		header: func(e *exchange, status int) {
			n, _ := strconv.Atoi(e.Header().Get("Content-Length"))
			e.changeLength(n)
			e.ResponseWriter.WriteHeader(status)
		},
		readFrom: (*exchange).passTwice,
	},
	"reorders": {
		write: func(e *exchange, p []byte) (int, error) {
			if e.held == nil {
				e.held = bytes.Clone(p)
				return len(p), nil
			}
			n, err := e.ResponseWriter.Write(p)
			e.ResponseWriter.Write(e.held)
			e.held = nil
			return n, err
		},
		end: func(e *exchange) { e.ResponseWriter.Write(e.held) },
	},
	"reorders the file": {
		readFrom: func(e *exchange, r io.Reader) (int64, error) {
			f := fileOf(r)
			at, _ := f.Seek(half, io.SeekCurrent)
			size, _ := f.Seek(0, io.SeekEnd)
			f.Seek(at, io.SeekStart)
			e.pass(io.LimitReader(f, size-at))
			f.Seek(at-half, io.SeekStart)
			e.pass(io.LimitReader(f, half))
			return size - at + half, nil
		},
	},
	"compresses": {
		header: func(e *exchange, status int) {
			e.Header().Set("Content-Encoding", "gzip")
			e.unknownLength(status)
		},
		write: func(e *exchange, p []byte) (int, error) {
			if e.zip == nil {
				e.zip = gzip.NewWriter(e.ResponseWriter)
			}
			return e.zip.Write(p)
		},
		end: func(e *exchange) { e.zip.Close() },
	},
	"inverts": {
		write: func(e *exchange, p []byte) (int, error) {
			b := bytes.Clone(p)
			for i := range b {
				b[i] ^= 0xff
			}
			return e.ResponseWriter.Write(b)
		},
	},
	"inverts in place": { // which a Writer mustn't
		write: func(e *exchange, p []byte) (int, error) {
			for i := range p {
				p[i] ^= 0xff
			}
			return e.ResponseWriter.Write(p)
		},
	},
	"lengthens": {
		header: func(e *exchange, status int) {
			e.changeLength(5)
			e.ResponseWriter.WriteHeader(status)
		},
		end: func(e *exchange) { io.WriteString(e.ResponseWriter, "after") },
	},
	"promises more": {
		header: func(e *exchange, status int) {
			e.changeLength(5)
			e.ResponseWriter.WriteHeader(status)
		},
	},
	"promises less": {
		header: func(e *exchange, status int) {
			e.changeLength(-5)
			e.ResponseWriter.WriteHeader(status)
		},
	},
	"hides the length": {header: (*exchange).unknownLength},
	"hides the type": {
		header: func(e *exchange, status int) {
			e.Header().Del("Content-Type")
			e.ResponseWriter.WriteHeader(status)
		},
	},
	"writes before": {
		header: func(e *exchange, status int) {
			e.changeLength(6)
			e.ResponseWriter.WriteHeader(status)
			io.WriteString(e.ResponseWriter, "before")
		},
	},
	"writes before unsaid": {
		header: func(e *exchange, status int) {
			e.ResponseWriter.WriteHeader(status)
			io.WriteString(e.ResponseWriter, "before")
		},
	},
	"writes after": {end: func(e *exchange) { io.WriteString(e.ResponseWriter, "after") }},
	"writes between": {
		header: func(e *exchange, status int) {
			e.changeLength(7)
			e.ResponseWriter.WriteHeader(status)
		},
		readFrom: func(e *exchange, r io.Reader) (int64, error) {
			n, err := e.pass(io.LimitReader(r, half))
			if err != nil {
				return n, err
			}
			io.WriteString(e.ResponseWriter, "between")
			m, err := e.pass(r)
			return n + m, err
		},
	},
	"swallows": {
		write: func(e *exchange, p []byte) (int, error) { return len(p), nil },
	},
	"swallows some": {
		write: func(e *exchange, p []byte) (int, error) {
			n, err := e.ResponseWriter.Write(p[:len(p)/2])
			return n + len(p) - len(p)/2, err
		},
	},
	"swallows the file": {
		readFrom: func(_ *exchange, r io.Reader) (int64, error) { return io.Copy(io.Discard, r) },
	},
	"lies about the count": {
		write: func(e *exchange, p []byte) (int, error) {
			_, err := e.ResponseWriter.Write(p)
			return len(p) - 1, err
		},
	},
	"lies about the file's count": {
		readFrom: func(e *exchange, r io.Reader) (int64, error) {
			n, err := e.pass(r)
			return n / 2, err
		},
	},
	"flushes": {
		write: func(e *exchange, p []byte) (int, error) {
			n, err := e.ResponseWriter.Write(p)
			e.flush()
			return n, err
		},
	},
	"flushes the header": {
		header: func(e *exchange, status int) {
			e.ResponseWriter.WriteHeader(status)
			e.flush()
		},
	},
	"header twice": {
		header: func(e *exchange, status int) {
			e.ResponseWriter.WriteHeader(status)
			e.Header().Set("Content-Length", "1")
			e.ResponseWriter.WriteHeader(status)
		},
	},
	"aborts": {begin: func(*exchange) { panic(http.ErrAbortHandler) }},
	"aborts half-way": {
		write: func(e *exchange, p []byte) (int, error) {
			if e.wrote > half {
				panic(http.ErrAbortHandler)
			}
			return e.ResponseWriter.Write(p)
		},
	},
	"aborts half-way in the file": {
		readFrom: func(e *exchange, r io.Reader) (int64, error) {
			e.pass(io.LimitReader(r, half))
			panic(http.ErrAbortHandler)
		},
	},
	"aborts at the end": {end: func(*exchange) { panic(http.ErrAbortHandler) }},
	"fails half-way": {
		write: func(e *exchange, p []byte) (int, error) {
			if e.wrote > half {
				return 0, io.ErrClosedPipe
			}
			return e.ResponseWriter.Write(p)
		},
	},
	"stops half-way in the file": {
		readFrom: func(e *exchange, r io.Reader) (int64, error) { return e.pass(io.LimitReader(r, half)) },
	},
	"hijacks": { // HTTP/1.1
		header: func(e *exchange, status int) {
			conn, _, err := http.NewResponseController(e.ResponseWriter).Hijack()
			if err != nil {
				e.ResponseWriter.WriteHeader(status)
				return
			}
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 8\r\n\r\nhijacked")
			conn.Close()
		},
	},
	"hijacks half-way": {
		readFrom: func(e *exchange, r io.Reader) (int64, error) {
			n, err := e.pass(io.LimitReader(r, half))
			conn, buf, herr := http.NewResponseController(e.ResponseWriter).Hijack()
			if herr == nil {
				buf.Flush()
				conn.Close()
			}
			return n, err
		},
	},
	"another goroutine": {
		write: func(e *exchange, p []byte) (n int, err error) {
			done := make(chan struct{})
			go func() {
				defer close(done)
				n, err = e.ResponseWriter.Write(p)
			}()
			<-done
			return n, err
		},
	},
	"another goroutine for the file": {
		readFrom: func(e *exchange, r io.Reader) (n int64, err error) {
			done := make(chan struct{})
			go func() {
				defer close(done)
				n, err = e.pass(r)
			}()
			<-done
			return n, err
		},
	},
	"unwraps to nothing": {unwrap: func(*exchange) http.ResponseWriter { return nil }},
	"unwraps to another": {
		unwrap: func(e *exchange) http.ResponseWriter {
			return caddyhttp.NewResponseRecorder(e.ResponseWriter, nil, nil)
		},
		write: func(e *exchange, p []byte) (int, error) { return e.buffer.Write(p) },
		end:   func(e *exchange) { e.ResponseWriter.Write(e.buffer.Bytes()) },
	},
	"recorder": { // Caddy's own, as templates has it
		serve: func(e *exchange, next caddyhttp.Handler) error {
			rec := caddyhttp.NewResponseRecorder(e.ResponseWriter, &e.buffer, func(int, http.Header) bool { return true })
			if err := next.ServeHTTP(rec, e.request); err != nil {
				return err
			}
			for b := e.buffer.Bytes(); len(b) > 0; b = b[1:] {
				b[0] ^= 0xff
			}
			return rec.WriteResponse()
		},
	},
	"recorder that doesn't record": {
		serve: func(e *exchange, next caddyhttp.Handler) error {
			return next.ServeHTTP(caddyhttp.NewResponseRecorder(e.ResponseWriter, nil, nil), e.request)
		},
	},
	"recorder on a buffer": {
		serve: func(e *exchange, next caddyhttp.Handler) error {
			e.behaviour = behaviour{write: func(e *exchange, p []byte) (int, error) { return e.buffer.Write(p) }}
			err := next.ServeHTTP(caddyhttp.NewResponseRecorder(e.writer(), nil, nil), e.request)
			e.ResponseWriter.Write(e.buffer.Bytes())
			return err
		},
	},
	"idle time-out on a buffer": {
		serve: func(e *exchange, next caddyhttp.Handler) error {
			e.behaviour = behaviour{write: func(e *exchange, p []byte) (int, error) { return e.buffer.Write(p) }}
			err := next.ServeHTTP(&caddyhttp.IdleTimeoutWriter{
				ResponseWriterWrapper: &caddyhttp.ResponseWriterWrapper{ResponseWriter: e.writer()},
				Ctrl:                  http.NewResponseController(e.ResponseWriter),
				Deadline:              caddyhttp.IdleDeadline{Timeout: time.Minute},
			}, e.request)
			e.ResponseWriter.Write(e.buffer.Bytes())
			return err
		},
	},
	"twice": { // the next handlers, for one response
		serve: func(e *exchange, next caddyhttp.Handler) error {
			w := e.writer()
			if err := next.ServeHTTP(w, e.request); err != nil {
				return err
			}
			return next.ServeHTTP(w, e.request)
		},
	},
	"twice, unwrapped": { // likewise, without a writer in between
		serve: func(e *exchange, next caddyhttp.Handler) error {
			if err := next.ServeHTTP(e.ResponseWriter, e.request); err != nil {
				return err
			}
			return next.ServeHTTP(e.ResponseWriter, e.request)
		},
	},
	// Two that belong together: the one in front leaves its writer for the one
	// behind, which goes round those in between.
	"leaves its writer": {
		serve: func(e *exchange, next caddyhttp.Handler) error {
			id := e.request.URL.Query().Get("id")
			raw.Store(id, e.ResponseWriter)
			defer raw.Delete(id)
			return next.ServeHTTP(e.ResponseWriter, e.request)
		},
	},
	"goes round before": {
		readFrom: func(e *exchange, r io.Reader) (int64, error) {
			e.around().Write([]byte("round"))
			return e.pass(r)
		},
	},
	"goes round large": {
		readFrom: func(e *exchange, r io.Reader) (int64, error) {
			e.around().Write(bytes.Repeat([]byte("round"), 4000))
			return e.pass(r)
		},
	},
	"goes round between": {
		readFrom: func(e *exchange, r io.Reader) (int64, error) {
			n, err := e.pass(io.LimitReader(r, half))
			if err != nil {
				return n, err
			}
			e.around().Write([]byte("round"))
			m, err := e.pass(r)
			return n + m, err
		},
	},
	"goes round after": {
		readFrom: func(e *exchange, r io.Reader) (int64, error) {
			n, err := e.pass(r)
			e.around().Write([]byte("round"))
			return n, err
		},
	},
	"goes round with the file": {
		readFrom: func(e *exchange, r io.Reader) (int64, error) { return io.Copy(e.around(), r) },
	},
	// Two more: one answers in part and keeps its writer, another request writes the
	// rest to that when it has begun to write its own.
	"keeps": {
		begin: func(e *exchange) { kept.Store(e.request.URL.Query().Get("id"), e.ResponseWriter) },
		readFrom: func(e *exchange, r io.Reader) (int64, error) {
			return e.pass(io.LimitReader(r, half))
		},
	},
	"uses what was kept": {
		readFrom: func(e *exchange, r io.Reader) (int64, error) {
			io.WriteString(e.ResponseWriter, "begin")
			e.late(fileOf(r).Name())
			return 0, io.ErrClosedPipe
		},
	},
}

// late writes the second part of a file to what "keeps" has kept. net/http may
// panic.
func (e *exchange) late(name string) {
	w, ok := kept.LoadAndDelete(e.request.URL.Query().Get("id"))
	if !ok {
		return
	}
	defer func() { recover() }()
	f, err := os.Open(name)
	if err != nil {
		return
	}
	defer f.Close()
	size, _ := f.Seek(0, io.SeekEnd)
	f.Seek(half, io.SeekStart)
	io.CopyN(w.(http.ResponseWriter), f, size-half)
}

// around is the writer that a handler in front has left.
func (e *exchange) around() http.ResponseWriter {
	w, ok := raw.Load(e.request.URL.Query().Get("id"))
	if !ok {
		return e.ResponseWriter
	}
	return w.(http.ResponseWriter)
}
