package ktls

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

var (
	logRandom   = strings.Repeat("a1", 32)
	logSecret32 = strings.Repeat("5e", 32)
	logSecret48 = strings.Repeat("5e", 48)
)

func TestParseKeyLogLine(t *testing.T) {
	for _, tc := range []struct{ label, secret string }{
		{LabelTLS12, logSecret48},
		{LabelClientHandshake, logSecret32},
		{LabelServerHandshake, logSecret48},
		{LabelClientTraffic, logSecret32},
		{LabelServerTraffic, logSecret48},
		{"SOME_LATER_LABEL_7", "00"},
	} {
		for _, end := range []string{"", "\n"} {
			line := tc.label + " " + logRandom + " " + tc.secret + end
			l, err := ParseKeyLogLine([]byte(line))
			if err != nil {
				t.Errorf("%q: %v", line, err)
				continue
			}
			if l.Label != tc.label || hex.EncodeToString(l.ClientRandom[:]) != logRandom || hex.EncodeToString(l.Secret) != tc.secret {
				t.Errorf("%q: got %s %x %x", line, l.Label, l.ClientRandom, l.Secret)
			}
		}
	}
}

func TestParseKeyLogLineRejects(t *testing.T) {
	good := LabelServerTraffic + " " + logRandom + " " + logSecret32
	for name, line := range map[string]string{
		"empty":                     "",
		"a label alone":             LabelServerTraffic,
		"no secret":                 LabelServerTraffic + " " + logRandom,
		"empty secret":              LabelServerTraffic + " " + logRandom + " ",
		"empty label":               " " + logRandom + " " + logSecret32,
		"lower-case label":          strings.ToLower(LabelServerTraffic) + " " + logRandom + " " + logSecret32,
		"label too long":            strings.Repeat("A", 65) + " " + logRandom + " " + logSecret32,
		"comment":                   "# " + logRandom + " " + logSecret32,
		"two spaces":                LabelServerTraffic + "  " + logRandom + " " + logSecret32,
		"tab":                       LabelServerTraffic + "\t" + logRandom + " " + logSecret32,
		"space in front":            " " + good,
		"space behind":              good + " ",
		"carriage return":           good + "\r\n",
		"two line feeds":            good + "\n\n",
		"two lines":                 good + "\n" + good,
		"fourth field":              good + " 00",
		"client random short":       LabelServerTraffic + " " + logRandom[2:] + " " + logSecret32,
		"client random long":        LabelServerTraffic + " " + logRandom + "00 " + logSecret32,
		"client random no hex":      LabelServerTraffic + " " + logRandom[1:] + "g " + logSecret32,
		"secret no hex":             good[:len(good)-1] + "g",
		"secret odd":                good + "0",
		"secret 31 bytes":           good[:len(good)-2],
		"secret 33 bytes":           good + "00",
		"master secret 32 bytes":    LabelTLS12 + " " + logRandom + " " + logSecret32,
		"unknown label, no secret":  "OTHER " + logRandom + " ",
		"unknown label, huge value": "OTHER " + logRandom + " " + strings.Repeat("00", maxKeyLogSecret+1),
	} {
		l, err := ParseKeyLogLine([]byte(line))
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		if l.Label != "" || l.Secret != nil || l.ClientRandom != [32]byte{} {
			t.Errorf("%s: a value comes with the error", name)
		}
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	secret := bytes.Repeat([]byte{0x5e}, 48)
	l := KeyLogLine{Label: LabelTLS12, Secret: secret}
	k := Keys{Version: 0x0304, Cipher: AES128GCM, Key: [32]byte(secret), IV: [12]byte(secret)}
	for _, v := range []any{l, &l, k, &k, []any{k}, struct{ K *Keys }{&k}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
			out := strings.ToLower(fmt.Sprintf(verb, v))
			for _, leak := range []string{"5e5e", "5e 5e", "94 94", "94, 94", "0x5e", "^^"} {
				if strings.Contains(out, leak) {
					t.Errorf("%s of %T prints the secret: %s", verb, v, out)
				}
			}
		}
		out, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		for _, leak := range []string{"94,94", "Xl5e"} { // numbers, base64
			if strings.Contains(string(out), leak) {
				t.Errorf("JSON of %T has the secret: %s", v, out)
			}
		}
	}
}

func FuzzParseKeyLogLine(f *testing.F) {
	f.Add([]byte(LabelTLS12 + " " + logRandom + " " + logSecret48 + "\n"))
	f.Add([]byte(LabelServerTraffic + " " + logRandom + " " + logSecret32))
	f.Add([]byte("A " + logRandom + " 0"))
	f.Add([]byte("  \n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		l, err := ParseKeyLogLine(line)
		if err != nil {
			// Errors are constants, so that nothing of the line can be in them.
			switch err {
			case errKeyLogFields, errKeyLogLabel, errKeyLogRandom, errKeyLogSecret:
			default:
				t.Errorf("unknown error %v", err)
			}
			return
		}
		again := fmt.Sprintf("%s %x %x", l.Label, l.ClientRandom, l.Secret)
		if got := strings.TrimSuffix(string(line), "\n"); !strings.EqualFold(got, again) {
			t.Errorf("%q parsed as %q", got, again)
		}
	})
}
