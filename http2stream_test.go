package caddyktls

import (
	"reflect"
	"testing"
)

// TestHTTP2Servers fails when a new golang.org/x/net or net/http keeps the
// stream's number elsewhere: what HTTP/2 sends would be copied from then on.
func TestHTTP2Servers(t *testing.T) {
	servers := http2Servers()
	for _, writer := range []string{"*golang.org/x/net/http2.responseWriter", "*net/http.http2responseWriter"} {
		s := servers[writer]
		if s == nil {
			t.Errorf("%s is nobody's ResponseWriter", writer)
		} else if s.err != nil {
			t.Errorf("%s: %v", writer, s.err)
		}
	}
	if len(servers) != 2 {
		t.Errorf("servers: %v", servers)
	}
}

func TestPathToStreamID(t *testing.T) {
	type right struct {
		rws *struct{ stream *struct{ id uint32 } }
	}
	r := &right{}
	_ = r.rws
	if path, err := pathToStreamID(reflect.TypeOf(r)); err != nil || len(path) != 3 {
		t.Errorf("%v, %v", path, err)
	}
	for _, v := range []any{
		right{}, new(int), &struct{ r *int }{},
		&struct{ rws struct{ stream int } }{},
		&struct {
			rws *struct{ stream *struct{ id int } }
		}{},
	} {
		if path, err := pathToStreamID(reflect.TypeOf(v)); err == nil {
			t.Errorf("%T: %v", v, path)
		}
	}
}
