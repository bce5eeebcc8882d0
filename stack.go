package caddyktls

// What calls take of the stack, in bytes: a read or write through crypto/tls; frames
// through the kernel; a handshake, which needs most of 16 KiB for certmagic's choice
// of a certificate; and file_server.
type (
	forRecords   [1536]byte
	forFrames    [4 << 10]byte
	forHandshake [12 << 10]byte
	forHandler   [5 << 10]byte
)

// reserve makes room on the stack for calls that will need it in any case. n is 0.
//
// Go doubles the stack of a goroutine when it is full, and copies it then, frame by
// frame, each for hundreds of instructions. So it is cheaper to grow it while few
// calls are under way than where the last of them is; where there is enough of it
// that costs a comparison. It adds up because goroutines are many: net/http starts
// one for each HTTP/1.1 request, that reads from the connection to see whether the
// client goes away; the HTTP/2 server one for each request, and one for most frames
// that it writes.
//
//go:noinline
func reserve[R forRecords | forFrames | forHandshake | forHandler](n int) byte {
	if n == 0 {
		return 0 // the room was taken before
	}
	var room R
	room[n] = 1
	return room[n/2]
}
