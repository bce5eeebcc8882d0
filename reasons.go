package caddyktls

// Paths of a response body.
const (
	pathSendfile = "sendfile"
	pathPlain    = "plain"
)

// Why a response takes the plain path. The codes are stable: they appear in
// access logs and tests. A connection that could not be upgraded gives its own
// reason instead (package ktls).
const (
	reasonDisabled     = "disabled"        // `ktls off`
	reasonNotWrapped   = "not_wrapped"     // not a connection of the listener wrapper
	reasonHTTP2        = "http2_off"       // HTTP/2 with `http2 off`
	reasonHTTP3        = "http3"           // HTTP/3: its records are QUIC's
	reasonMethod       = "method"          // not GET
	reasonNoBody       = "no_body"         // nothing was written, as with status 304
	reasonChunked      = "chunked"         // no Content-Length
	reasonLength       = "length"          // Content-Length isn't what was written and the file part together
	reasonNoType       = "no_content_type" // net/http would look at the body to find one
	reasonMultiRange   = "multi_range"     // multipart/byteranges: pieces of a file with lines between them
	reasonTransformed  = "transformed"     // no file, and the header has another Content-Length than it had once, or none
	reasonNotFile      = "not_a_file"      // not an *os.File (a body that is generated or was copied), or not a regular one, or O_DIRECT
	reasonTooSmall     = "too_small"       // below min_size
	reasonShortFile    = "short_file"      // the file is shorter than promised
	reasonCut          = "cut"             // path sendfile, but the connection ended within the body
	reasonFS           = "filesystem:"     // followed by its name
	reasonUnknown      = "unknown_writer:" // followed by the type of the writer
	reasonUnknownHTTP1 = "http1_unknown_server"
	reasonUnknownHTTP2 = "http2_unknown_server" // the stream's number isn't where it was
)
