package caddyktls

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// http2Server is an HTTP/2 server that Caddy can end up with. The number of the
// stream that a ResponseWriter of its answers is the one thing without a public
// way to it.
type http2Server struct {
	writer string // type of its ResponseWriter
	path   []int  // of the fields from there to the number
	err    error  // why it can't be used
}

// streamID returns the number of the stream that w answers. w is of type
// s.writer, and its handler has not returned.
func (s *http2Server) streamID(w http.ResponseWriter) uint32 {
	v := reflect.ValueOf(w)
	for _, i := range s.path {
		v = v.Elem().Field(i)
	}
	return uint32(v.Uint())
}

// http2Servers are the HTTP/2 servers built in, by the type of their
// ResponseWriter: golang.org/x/net's, which Caddy configures, and net/http's
// own. Each is asked, once, whether the number that is found is the one that the
// client used.
var http2Servers = sync.OnceValue(func() map[string]*http2Server {
	servers := map[string]*http2Server{}
	for _, configure := range []func(*http.Server) error{
		//lint:ignore SA1019 Caddy does so.
		func(srv *http.Server) error { return http2.ConfigureServer(srv, new(http2.Server)) },
		func(*http.Server) error { return nil },
	} {
		s := examineHTTP2(configure)
		servers[s.writer] = s
	}
	return servers
})

// http2ServerOf returns the server that w, the lowest writer, belongs to, or nil
// if it isn't an HTTP/2 server's that can be used.
func http2ServerOf(w http.ResponseWriter) *http2Server {
	if s := http2Servers()[typeName(w)]; s != nil && s.err == nil {
		return s
	}
	return nil
}

// examineHTTP2 runs a server over a pipe and answers a few requests.
func examineHTTP2(configure func(*http.Server) error) *http2Server {
	s := new(http2Server)
	found := make(chan uint32, 1)
	srv := &http.Server{
		Protocols: new(http.Protocols),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if s.writer == "" {
				s.writer = typeName(w)
				s.path, s.err = pathToStreamID(reflect.TypeOf(w))
			}
			if s.err == nil {
				found <- s.streamID(w)
			} else {
				found <- 0
			}
		}),
	}
	srv.Protocols.SetUnencryptedHTTP2(true)
	if err := configure(srv); err != nil {
		return &http2Server{err: err}
	}
	client, server := net.Pipe()
	defer client.Close()
	go srv.Serve(&oneListener{conn: server, done: make(chan struct{})})
	defer srv.Close()
	client.SetDeadline(time.Now().Add(10 * time.Second))
	if err := askHTTP2(client, found); err != nil {
		s.err = errors.Join(s.err, err)
	}
	return s
}

// askHTTP2 asks on streams of its choice and compares what the handler found.
func askHTTP2(client net.Conn, found <-chan uint32) error {
	go io.Copy(io.Discard, client)
	if _, err := io.WriteString(client, http2.ClientPreface); err != nil {
		return err
	}
	framer := http2.NewFramer(client, nil)
	if err := framer.WriteSettings(); err != nil {
		return err
	}
	// :method GET, :scheme https, :path /, :authority x (RFC 7541, appendix A).
	request := []byte{0x82, 0x87, 0x84, 0x41, 1, 'x'}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, id := range []uint32{1, 3, 77} {
		err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: request, EndStream: true, EndHeaders: true})
		if err != nil {
			return err
		}
		select {
		case got := <-found:
			if got != id {
				return fmt.Errorf("the stream's number isn't where it was: found %d, want %d", got, id)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// pathToStreamID finds rws.stream.id in a ResponseWriter of a known HTTP/2 server.
func pathToStreamID(t reflect.Type) ([]int, error) {
	var path []int
	for _, name := range []string{"rws", "stream", "id"} {
		if t.Kind() != reflect.Pointer || t.Elem().Kind() != reflect.Struct {
			return nil, fmt.Errorf("%v has no field %s", t, name)
		}
		f, ok := t.Elem().FieldByName(name)
		if !ok || len(f.Index) != 1 {
			return nil, fmt.Errorf("%v has no field %s", t, name)
		}
		path, t = append(path, f.Index[0]), f.Type
	}
	if t.Kind() != reflect.Uint32 {
		return nil, fmt.Errorf("the stream's number is a %v", t)
	}
	return path, nil
}
