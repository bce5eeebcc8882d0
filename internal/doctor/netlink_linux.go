package doctor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"iter"

	"golang.org/x/sys/unix"
)

// Netlink messages are in the machine's own byte order, headers and attributes
// padded to 4 bytes (include/uapi/linux/netlink.h, genetlink.h).
var native = binary.NativeEndian

const genlHeaderLen = 4 // command, version, 2 bytes reserved

// errTruncated is the error of a message that claims to be longer than it is.
var errTruncated = errors.New("netlink: truncated message")

func align(n int) int { return (n + 3) &^ 3 }

// encodeMessage returns a request of generic netlink.
func encodeMessage(family uint16, seq uint32, cmd uint8, attrs []byte) []byte {
	n := unix.SizeofNlMsghdr + genlHeaderLen + len(attrs)
	b := make([]byte, 0, n)
	b = native.AppendUint32(b, uint32(n))
	b = native.AppendUint16(b, family)
	b = native.AppendUint16(b, unix.NLM_F_REQUEST)
	b = native.AppendUint32(b, seq)
	b = native.AppendUint32(b, 0) // the kernel knows the sender
	b = append(b, cmd, 1, 0, 0)   // version 1 of either family
	return append(b, attrs...)
}

// appendAttr appends an attribute.
func appendAttr(b []byte, typ uint16, value []byte) []byte {
	n := unix.SizeofNlAttr + len(value)
	b = native.AppendUint16(b, uint16(n))
	b = native.AppendUint16(b, typ)
	b = append(b, value...)
	return append(b, make([]byte, align(n)-n)...)
}

// familyRequest asks for the number of a family of generic netlink.
func familyRequest(name string) []byte {
	return appendAttr(nil, unix.CTRL_ATTR_FAMILY_NAME, append([]byte(name), 0))
}

// featuresRequest asks for the features of a network interface. The answer
// names each bit, for no flag asks for compact bit sets.
func featuresRequest(index int) []byte {
	header := appendAttr(nil, unix.ETHTOOL_A_HEADER_DEV_INDEX, native.AppendUint32(nil, uint32(index)))
	return appendAttr(nil, unix.ETHTOOL_A_FEATURES_HEADER|unix.NLA_F_NESTED, header)
}

// decodeMessage splits the first message off b.
func decodeMessage(b []byte) (typ uint16, seq uint32, body, rest []byte, err error) {
	if len(b) < unix.SizeofNlMsghdr {
		return 0, 0, nil, nil, errTruncated
	}
	n := uint64(native.Uint32(b))
	if n < unix.SizeofNlMsghdr || n > uint64(len(b)) {
		return 0, 0, nil, nil, errTruncated
	}
	end := min(align(int(n)), len(b))
	return native.Uint16(b[4:]), native.Uint32(b[8:]), b[unix.SizeofNlMsghdr:n], b[end:], nil
}

// attrs walks over attributes, until the first that isn't whole.
func attrs(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			n := int(native.Uint16(b))
			if n < unix.SizeofNlAttr || n > len(b) {
				return
			}
			typ := native.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(typ, b[unix.SizeofNlAttr:n]) {
				return
			}
			b = b[min(align(n), len(b)):]
		}
	}
}

// decodeFamily returns the number of the family that was asked for.
func decodeFamily(b []byte) (uint16, error) {
	for typ, value := range attrs(b) {
		if typ == unix.CTRL_ATTR_FAMILY_ID && len(value) >= 2 {
			return native.Uint16(value), nil
		}
	}
	return 0, errors.New("netlink: an answer without the family's number")
}

// decodeFeatures returns the features that an interface has, and whether they
// are on.
func decodeFeatures(b []byte) (map[string]bool, error) {
	has := map[string]bool{}
	seen := false
	for typ, value := range attrs(b) {
		switch typ {
		case unix.ETHTOOL_A_FEATURES_HW: // can be turned on and off
			for _, name := range bitNames(value) {
				if !has[name] {
					has[name] = false
				}
			}
			seen = true
		case unix.ETHTOOL_A_FEATURES_ACTIVE:
			for _, name := range bitNames(value) {
				has[name] = true
			}
			seen = true
		}
	}
	if !seen {
		return nil, errors.New("netlink: an answer without features")
	}
	return has, nil
}

// bitNames returns the names of the bits that are set in a bit set. A set
// without mask lists those alone, one with a mask all, with their values.
func bitNames(set []byte) []string {
	var names []string
	nomask := false
	for typ := range attrs(set) {
		nomask = nomask || typ == unix.ETHTOOL_A_BITSET_NOMASK
	}
	for typ, bits := range attrs(set) {
		if typ != unix.ETHTOOL_A_BITSET_BITS {
			continue
		}
		for typ, bit := range attrs(bits) {
			if typ != unix.ETHTOOL_A_BITSET_BITS_BIT {
				continue
			}
			name, isSet := "", nomask
			for typ, value := range attrs(bit) {
				switch typ {
				case unix.ETHTOOL_A_BITSET_BIT_NAME:
					value, _, _ = bytes.Cut(value, []byte{0})
					name = string(value)
				case unix.ETHTOOL_A_BITSET_BIT_VALUE:
					isSet = true
				}
			}
			if isSet && name != "" {
				names = append(names, name)
			}
		}
	}
	return names
}
