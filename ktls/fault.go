package ktls

import (
	"net"
	"os"
)

// The steps of an upgrade that can fail, in their order. Tests make each of
// them fail (testHookFault) and check that the connection goes on serving.
type upgradeStep string

const (
	stepProve   upgradeStep = "prove"
	stepOpen    upgradeStep = "crypto_info"
	stepRawConn upgradeStep = "raw_conn"
	stepLowat   upgradeStep = "TCP_NOTSENT_LOWAT"
	stepULP     upgradeStep = "TCP_ULP"
	stepTX      upgradeStep = "TLS_TX"

	// stepRekey comes after the upgrade.
	stepRekey upgradeStep = "rekey"

	// The steps of the receiving side, after the upgrade; the last one comes after
	// all others.
	stepProveRX upgradeStep = "prove_rx"
	stepInfoRX  upgradeStep = "crypto_info_rx"
	stepRX      upgradeStep = "TLS_RX"
	stepRekeyRX upgradeStep = "rekey_rx"
)

// testHookFault, if not nil, is asked before each step for an error to fail with.
var testHookFault func(upgradeStep) error

// step takes one step of an upgrade.
func step(s upgradeStep, do func() error) error {
	if testHookFault != nil {
		if err := testHookFault(s); err != nil {
			return err
		}
	}
	return do()
}

// testHookCall, if not nil, is asked before each system call on a connection's
// socket or pipe, with the number of bytes that it shall move, or 0. It returns
// how many it may move, or the errno for the call to fail with, which then isn't
// made.
var testHookCall func(name string, n int) (int, error)

// call asks the hook.
func call(name string, n int) (int, error) {
	if testHookCall == nil {
		return n, nil
	}
	return testHookCall(name, n)
}

// moved is conn's Read, where Go makes the system calls and deals with
// EINTR, EAGAIN and short counts. The hook may have it fail after some bytes.
func moved(name string, p []byte, do func([]byte) (int, error)) (n int, err error) {
	if testHookCall == nil {
		return do(p)
	}
	most, fault := testHookCall(name, len(p))
	if most > 0 || fault == nil {
		n, err = do(p[:most])
	}
	if err == nil && fault != nil {
		err = &net.OpError{Op: name, Net: "tcp", Err: os.NewSyscallError(name, fault)}
	}
	return n, err
}
