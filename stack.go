package caddyktls

// Go doubles the stack of a goroutine when it is full, and copies it then, frame by
// frame, each for hundreds of instructions. So it is cheaper to grow it while few
// calls are under way than where the last of them is. The functions here do that,
// for calls that will need the room in any case; where there is enough of it they
// cost a comparison. It adds up because goroutines are many: net/http starts one for
// each HTTP/1.1 request, that reads from the connection to see whether the client
// goes away; the HTTP/2 server one for each request, and one for most frames that it
// writes.

// reserveStack makes room for what a read or write through crypto/tls takes.
//
//go:noinline
func reserveStack(n int) byte {
	if n == 0 {
		return 0 // always; the room is taken before
	}
	var room [1536]byte
	room[n] = 1
	return room[n/2]
}

// reserveHandshakeStack makes room for what a handshake takes: most of 16 KiB, for
// certmagic's choice of a certificate.
//
//go:noinline
func reserveHandshakeStack(n int) byte {
	if n == 0 {
		return 0 // always
	}
	var room [12 << 10]byte
	room[n] = 1
	return room[n/2]
}

// reserveHandlerStack makes room for what file_server takes.
//
//go:noinline
func reserveHandlerStack(n int) byte {
	if n == 0 {
		return 0 // always
	}
	var room [5 << 10]byte
	room[n] = 1
	return room[n/2]
}
