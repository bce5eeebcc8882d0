package caddyktls

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// Whoever reads the status needs no case for what hasn't happened yet: it comes
// first in this package.
func TestStatusListsAreNeverNull(t *testing.T) {
	s, err := currentStatus()
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(s)
	if err != nil || bytes.Contains(b, []byte(":null")) {
		t.Errorf("%s, %v", b, err)
	}
}

// FuzzAdmin: whatever request comes to the admin API, the endpoint answers with
// the status, or says that it has nothing else.
func FuzzAdmin(f *testing.F) {
	for _, s := range []string{
		"GET /ktls/ HTTP/1.1\r\nHost: localhost:2019\r\n\r\n",
		"GET /ktls/?a=b;c&%zz HTTP/1.1\r\nHost: localhost:2019\r\nAccept: text/html\r\n\r\n",
		"HEAD /ktls/ HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /ktls/ HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
		"DELETE /ktls/../ktls/ HTTP/1.0\r\n\r\n",
		"GET /ktls/%2e%2e/config/ HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET http://other/ktls/ HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: \xff\r\n\r\n",
		"GET /ktls/\"\\\x7f HTTP/1.1\r\nHost: x\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
		"CONNECT a:1 HTTP/1.1\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	routes := new(adminAPI).Routes()
	if len(routes) != 1 || routes[0].Pattern != "/ktls/" {
		f.Fatalf("routes: %+v", routes)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil {
			return
		}
		w := httptest.NewRecorder()
		err = routes[0].Handler.ServeHTTP(w, r)
		want := http.StatusOK
		switch {
		case r.URL.Path != "/ktls/":
			want = http.StatusNotFound
		case r.Method != http.MethodGet:
			want = http.StatusMethodNotAllowed
		}
		if want != http.StatusOK {
			var refusal caddy.APIError
			if !errors.As(err, &refusal) || refusal.HTTPStatus != want || refusal.Err == nil {
				t.Errorf("%q: %v, want %d", raw, err, want)
			}
			if w.Body.Len() > 0 {
				t.Errorf("wrote %q before it refused", w.Body)
			}
			return
		}
		var members map[string]json.RawMessage
		d := json.NewDecoder(w.Body)
		derr := d.Decode(&members)
		if err != nil || derr != nil || d.More() || w.Code != want || w.Header().Get("Content-Type") != "application/json" {
			t.Fatalf("%q: %v, %v, %d", raw, err, derr, w.Code)
		}
		for _, name := range []string{"kernel", "servers", "connections", "responses", "handshakes", "rekeys", "last"} {
			if len(members[name]) < 2 || string(members[name]) == "null" {
				t.Errorf("%q: %s is %s", raw, name, members[name])
			}
		}
	})
}
