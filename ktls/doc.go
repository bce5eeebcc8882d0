// Package ktls is kernel TLS for Go: a server connection whose handshake is
// crypto/tls's own and whose records the Linux kernel encrypts.
//
//	net.TCPConn -> tap (records, sequence numbers, control records) -> crypto/tls -> Conn
//
// A [Conn] starts as an ordinary crypto/tls connection that counts records.
// [Conn.Upgrade] moves its sending side into the kernel (setsockopt
// TCP_ULP "tls", TLS_TX); from then on [Conn.Write] writes plain text to the
// socket and [Conn.SendFile] lets the kernel encrypt file pages straight out of
// the page cache. Receiving stays with crypto/tls, which also goes on sending
// what the protocol asks of it (alerts, close_notify): the tap opens those
// records and passes them on through the kernel as control records.
//
// With [Options.RX] receiving moves into the kernel too (TLS_RX), in [Conn.Read],
// between two records and not before the client's key and sequence number have
// opened one. What isn't application data is then answered as crypto/tls would:
//
//	close_notify                 io.EOF; writing goes on
//	other alerts                 an error "remote error"; warnings are ignored, 16 in a row
//	KeyUpdate                    answered, and followed if the kernel can: else internal_error
//	KeyUpdates over and over     unexpected_message
//	two in a record, or a part   unexpected_message
//	renegotiation (TLS 1.2)      no_renegotiation or unexpected_message
//	other types                  unexpected_message
//	a record that doesn't open   bad_record_mac
//	one that is too long         record_overflow
//	no header of TLS 1.2 or 1.3  protocol_version
//	the end without close_notify io.EOF between records, io.ErrUnexpectedEOF within one
//
// The alerts are fatal and end the connection both ways. Unlike crypto/tls's, Read
// gives bad_record_mac for a record without a type and for a ChangeCipherSpec in
// plain text: the kernel doesn't tell them apart.
//
// No unexported field of crypto/tls is read. The traffic secrets come from
// tls.Config.KeyLogWriter, the sequence number is counted, and both are
// accepted only if they open the last record that the handshake wrote. Whatever
// fails before TLS_TX is set leaves a working crypto/tls connection and an
// [UpgradeError] with a stable reason code; after it nothing can fail.
//
// The package knows nothing of HTTP or Caddy. On systems other than Linux it
// builds, and every upgrade is refused with [ReasonKernel].
package ktls
