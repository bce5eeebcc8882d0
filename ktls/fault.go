package ktls

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
