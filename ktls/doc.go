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
// No unexported field of crypto/tls is read. The traffic secrets come from
// tls.Config.KeyLogWriter, the sequence number is counted, and both are
// accepted only if they open the last record that the handshake wrote. Whatever
// fails before TLS_TX is set leaves a working crypto/tls connection and an
// [UpgradeError] with a stable reason code; after it nothing can fail.
//
// The package knows nothing of HTTP or Caddy. On systems other than Linux it
// builds, and every upgrade is refused with [ReasonKernel].
package ktls
