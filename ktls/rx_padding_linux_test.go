package ktls

import (
	"bytes"
	"fmt"
	"testing"
)

// TestPaddedRecordsTogether: padded records and others come in one read.
func TestPaddedRecordsTogether(t *testing.T) {
	for _, s := range upgradable[:3] {
		for _, size := range []int{100, 1400, 8000, 16000} {
			t.Run(fmt.Sprintf("%v %d", s, size), func(t *testing.T) {
				l, client := receivingLink(t, s, Options{})
				content := randomBytes(7 * size)
				var stream []byte
				for i, part := range [][]byte{content[:size], content[size : 2*size], content[2*size : 3*size], content[3*size : 4*size], content[4*size : 5*size], content[5*size : 6*size], content[6*size:]} {
					stream = append(stream, client.c13.sealPadded(RecordTypeApplicationData, bytes.Clone(part), i%3*90)...)
				}
				client.raw(stream)
				l.mustRead(content)
			})
		}
	}
}
