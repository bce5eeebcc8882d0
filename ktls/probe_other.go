//go:build !linux

package ktls

import "runtime"

// probe says that this isn't Linux.
func probe() *Features {
	none := Answer{Support: No, Detail: "kernel TLS needs Linux"}
	f := &Features{
		Kernel:        runtime.GOOS + "/" + runtime.GOARCH,
		ULP:           none,
		TX:            map[Combination]Answer{},
		RX:            map[Combination]Answer{},
		Rekey:         none,
		RekeyRX:       none,
		MaxPayloadLen: none,
		ZerocopyRO:    none,
		SelfTest:      none,
		module:        notLinux,
	}
	for _, c := range Combinations() {
		f.TX[c], f.RX[c] = none, none
	}
	return f
}
