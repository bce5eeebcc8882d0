package ktls

import "encoding/binary"

// CryptoInfo returns the kernel's description of the keys and of the next
// record's sequence number: a struct tls12_crypto_info_aes_gcm_128 or that of
// another cipher, as in include/uapi/linux/tls.h, which TLS_TX and TLS_RX take.
// It is as secret as the keys: clear it when done.
//
//	version, cipher_type   2 bytes each, in the machine's byte order
//	iv, key, salt, rec_seq bytes as TLS has them
//
// salt and iv are the first 4 and the last 8 bytes of a nonce, but
// CHACHA20-POLY1305 has all 12 in iv and no salt. In TLS 1.2 GCM and CCM, iv is
// the explicit nonce that the kernel puts into the next record and counts on
// from: here the sequence number, which is also what crypto/tls used for all
// records before, so that no nonce is ever used twice.
func (k *Keys) CryptoInfo(seq uint64) ([]byte, error) {
	if err := k.valid(); err != nil {
		return nil, err
	}
	key := k.Key[:k.Cipher.KeyLen()]
	// One allocation of the right size: growing would leave copies of the
	// key behind.
	b := make([]byte, 0, 2+2+len(k.IV)+len(key)+8)
	b = binary.NativeEndian.AppendUint16(b, k.Version)
	b = binary.NativeEndian.AppendUint16(b, uint16(k.Cipher))
	switch {
	case k.Cipher == CHACHA20POLY1305:
		b = append(b, k.IV[:]...)
		b = append(b, key...)
	case k.explicitNonce():
		b = binary.BigEndian.AppendUint64(b, seq)
		b = append(b, key...)
		b = append(b, k.IV[:4]...)
	default:
		b = append(b, k.IV[4:]...)
		b = append(b, key...)
		b = append(b, k.IV[:4]...)
	}
	return binary.BigEndian.AppendUint64(b, seq), nil
}
