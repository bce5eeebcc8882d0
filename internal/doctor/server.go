package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// Server is what the admin API of a running Caddy told.
type Server struct {
	Address string `json:"address"`          // where it was asked, in Caddy's notation
	Status  string `json:"status"`           // one of the Server constants
	Detail  string `json:"detail,omitempty"` // why it doesn't answer
	// Report is the answer of GET /ktls/ as it came.
	Report json.RawMessage `json:"report,omitempty"`

	report serverReport
}

// Values of Server.Status.
const (
	ServerAnswers = "answers"
	ServerNone    = "none"    // nothing listens there, or a Caddy without this module
	ServerUnknown = "unknown" // could not tell
)

// serverReport is what is used of the answer of GET /ktls/.
type serverReport struct {
	Kernel struct {
		Usable bool   `json:"usable"`
		Reason string `json:"reason"`
	} `json:"kernel"`
	Connections []struct {
		Outcome string `json:"outcome"` // "upgraded" or "refused"
		Reason  string `json:"reason"`
		Version string `json:"version"`
		Cipher  string `json:"cipher"`
		Count   int64  `json:"count"`
	} `json:"connections"`
	CurrentConnections int64 `json:"current_connections"`
	Responses          []struct {
		Path   string `json:"path"` // "sendfile" or "plain"
		Reason string `json:"reason"`
		Count  int64  `json:"count"`
		Bytes  int64  `json:"bytes"`
	} `json:"responses"`
	Handshakes struct {
		InFlight int64   `json:"in_flight"`
		Count    int64   `json:"count"`
		Failed   int64   `json:"failed"`
		Seconds  float64 `json:"seconds"`
	} `json:"handshakes"`
	Last []lastReason `json:"last"`
}

// lastReason is one of the last times that something wasn't done by the kernel.
type lastReason struct {
	Time   time.Time `json:"time"`
	What   string    `json:"what"` // "connection" or "response"
	Reason string    `json:"reason"`
	Detail string    `json:"detail"`
}

const (
	serverTimeout   = 3 * time.Second
	maxServerAnswer = 4 << 20 // bytes
)

// askServer asks the admin API at address, the way Caddy's own commands do
// (caddycmd.AdminAPIRequest), but with a time limit and with the status told
// apart from other failures.
func askServer(ctx context.Context, address string) Server {
	s := Server{Address: address}
	ctx, cancel := context.WithTimeout(ctx, serverTimeout)
	defer cancel()
	body, err := getReport(ctx, address)
	if err == nil {
		err = json.Unmarshal(body, &s.report)
		if err == nil {
			s.Status, s.Report = ServerAnswers, body
			return s
		}
		s.report = serverReport{}
		err = fmt.Errorf("its answer can't be read: %w", err)
	}
	s.Detail = err.Error()
	var status statusError
	switch {
	case errors.As(err, &status) && status.code == http.StatusNotFound,
		errors.Is(err, syscall.ECONNREFUSED),
		errors.Is(err, fs.ErrNotExist): // a unix socket
		s.Status = ServerNone
	default:
		s.Status = ServerUnknown
	}
	return s
}

// statusError is an answer other than 200.
type statusError struct {
	code int
	body string
}

func (e statusError) Error() string {
	return strings.TrimSpace(fmt.Sprintf("HTTP %d %s", e.code, e.body))
}

func getReport(ctx context.Context, address string) ([]byte, error) {
	if address == "" {
		return nil, errors.New("its address is empty")
	}
	addr, err := caddy.ParseNetworkAddress(address)
	if err != nil {
		return nil, err
	}
	if addr.PortRangeSize() > 1 {
		return nil, errors.New("more than one port")
	}
	origin := "http://" + addr.JoinHostPort(0)
	if addr.IsUnixNetwork() {
		origin = "http://127.0.0.1"                   // what the API expects over a socket that has no host
		addr.Host, _, _ = strings.Cut(addr.Host, "|") // the permissions are for who listens
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, origin+"/ktls/", nil)
	if err != nil {
		return nil, err
	}
	if !addr.IsUnixNetwork() {
		req.Header.Set("Origin", origin)
	}
	var d net.Dialer
	client := http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return d.DialContext(ctx, addr.Network, addr.JoinHostPort(0))
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxServerAnswer))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, statusError{resp.StatusCode, errorMessage(body)}
	}
	return body, nil
}

// errorMessage returns what the admin API says of an error, if it does.
func errorMessage(body []byte) string {
	var m struct {
		Error string `json:"error"`
	}
	json.Unmarshal(body, &m)
	return m.Error
}

// upgraded returns how many connections the server has moved into the kernel.
func (s Server) upgraded() int64 {
	var n int64
	for _, c := range s.report.Connections {
		if c.Outcome == "upgraded" {
			n += c.Count
		}
	}
	return n
}
