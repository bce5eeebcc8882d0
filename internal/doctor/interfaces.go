package doctor

import (
	"errors"
	"io/fs"
	"net"
)

// Interfaces are this machine's network interfaces.
type Interfaces struct {
	List  []Interface `json:"list"`
	Error string      `json:"error,omitempty"` // why there is no list, or why it tells nothing
}

// Interface is a network interface with what it can do for TLS.
type Interface struct {
	Name   string `json:"name"`
	Driver string `json:"driver,omitempty"`
	// TX and RX tell whether the card encrypts and decrypts records, Record
	// whether it does all of TLS (and of TCP) itself. Each is one of the Offload
	// constants.
	TX     string `json:"tx"`
	RX     string `json:"rx"`
	Record string `json:"record"`
	Error  string `json:"error,omitempty"` // why they are unknown
}

// Whether an interface does something.
const (
	OffloadOn      = "on"
	OffloadOff     = "off"  // it could: ethtool -K turns it on
	OffloadNone    = "none" // it can't
	OffloadUnknown = "unknown"
)

// Names of the kernel's features of network devices (net/ethtool/common.c,
// netdev_features_strings), as ethtool -k prints them.
const (
	featureTX     = "tls-hw-tx-offload"
	featureRX     = "tls-hw-rx-offload"
	featureRecord = "tls-hw-record"
)

// featureAsker tells the features of network interfaces.
type featureAsker interface {
	// Features returns those that the interface has, and whether they are on.
	Features(index int) (map[string]bool, error)
	Close() error
}

// errGone says that an interface, once listed, is no more.
var errGone = errors.New("the interface is gone")

// readInterfaces lists the interfaces, and asks each for its features.
func readInterfaces(root fs.FS, list func() ([]net.Interface, error), open func() (featureAsker, error)) Interfaces {
	ifs := Interfaces{List: []Interface{}}
	all, err := list()
	if err != nil {
		ifs.Error = err.Error()
		return ifs
	}
	asker, err := open()
	if err != nil {
		ifs.Error = err.Error()
	} else {
		defer asker.Close()
	}
	for _, ni := range all {
		i := Interface{
			Name:   ni.Name,
			Driver: driver(root, ni.Name),
			TX:     OffloadUnknown,
			RX:     OffloadUnknown,
			Record: OffloadUnknown,
		}
		if asker != nil {
			has, err := asker.Features(ni.Index)
			switch {
			case errors.Is(err, errGone):
				continue
			case err != nil:
				i.Error = err.Error()
			default:
				i.TX, i.RX, i.Record = offload(has, featureTX), offload(has, featureRX), offload(has, featureRecord)
			}
		}
		ifs.List = append(ifs.List, i)
	}
	return ifs
}

func offload(has map[string]bool, feature string) string {
	on, ok := has[feature]
	switch {
	case !ok:
		return OffloadNone
	case on:
		return OffloadOn
	}
	return OffloadOff
}

// capable reports whether the interface can do anything for TLS.
func (i Interface) capable() bool {
	for _, o := range []string{i.TX, i.RX, i.Record} {
		if o == OffloadOn || o == OffloadOff {
			return true
		}
	}
	return false
}
