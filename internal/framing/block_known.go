//go:build ktls_standin

package framing

// KnownBlock is what stand-in bytes are in a build for tests, whose clients look
// for it: none may ever reach them.
const KnownBlock = "\x00STAND-IN\xffBYTES\n"

func block() [blockLen]byte { return [blockLen]byte([]byte(KnownBlock)) }
