package ktls

import "fmt"

// Why a connection stays with crypto/tls. The codes are stable: they appear in
// logs, metrics and tests.
const (
	// ReasonVersion: the protocol version is neither TLS 1.2 nor TLS 1.3.
	ReasonVersion = "tls_version"
	// ReasonCipher: the kernel has no such record protection (CBC and RC4
	// suites), whatever its version.
	ReasonCipher = "cipher"
	// ReasonKernel: this kernel can't, for this version and cipher or at all.
	ReasonKernel = "kernel"
	// ReasonNotTCP: no TCP socket was found under the connection, or, for
	// receiving, a wrapper between them may have read ahead.
	ReasonNotTCP = "not_tcp"
	// ReasonUnproven: key and sequence number didn't open the last record of
	// the handshake (for receiving: the client's last one of application data), or
	// what was written since isn't known to the last byte.
	ReasonUnproven = "unproven"
	// ReasonClosed: the connection was closed, by us or by the peer.
	ReasonClosed = "closed"
	// ReasonKeyLimit: the key's usage limit is near, and it can't be changed.
	ReasonKeyLimit = "key_limit"
	// ReasonHandshake: the handshake isn't complete. Not final: the only
	// reason after which an upgrade may be tried again.
	ReasonHandshake = "handshake"
)

// UpgradeError says why a connection, or the receiving side of an upgraded one
// (see [Options.OnReceive]), was not moved into the kernel. The
// connection goes on with crypto/tls as if nothing had been tried.
type UpgradeError struct {
	Reason string // one of the Reason constants
	Err    error  // what happened, never with a secret in it
}

func (e *UpgradeError) Error() string {
	return fmt.Sprintf("ktls: not upgraded (%s): %v", e.Reason, e.Err)
}

func (e *UpgradeError) Unwrap() error { return e.Err }

func refuse(reason, format string, args ...any) *UpgradeError {
	return &UpgradeError{Reason: reason, Err: fmt.Errorf(format, args...)}
}
