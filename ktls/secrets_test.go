package ktls

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

// TestKeyLogLineIsWiped: nothing is left of a key-log line, which the user's own
// writer gets all the same.
func TestKeyLogLineIsWiped(t *testing.T) {
	const want = LabelServerTraffic
	text := fmt.Sprintf("%s %s %s\n", want, strings.Repeat("ab", 32), strings.Repeat("cd", 32))
	var user bytes.Buffer
	tap := new(tap)
	line := []byte(text)
	if n, err := (&keyLog{t: tap, user: &user}).Write(line); n != len(line) || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	if !bytes.Equal(line, make([]byte, len(line))) {
		t.Errorf("%q is left", line)
	}
	if user.String() != text {
		t.Errorf("the user's writer got %q", user.String())
	}
	if got := tap.secrets.traffic; !bytes.Equal(got, bytes.Repeat([]byte{0xcd}, 32)) {
		t.Errorf("secret %x", got)
	}
}
