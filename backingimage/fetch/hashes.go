package fetch

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding"
	"encoding/hex"
	"fmt"
	"hash"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/source"
)

// hashes are over the source file, in its order. SHA-512 is what we record; SHA-256 is there when it is what the
// publisher gave. Their states can be stored, so that a download goes on without reading again what it has.
type hashes map[source.Algorithm]hash.Hash

func newHashes(want source.Checksum) hashes {
	h := hashes{source.SHA512: sha512.New()}
	if want.Algorithm == source.SHA256 {
		h[source.SHA256] = sha256.New()
	}
	return h
}

func (h hashes) hex(a source.Algorithm) string { return hex.EncodeToString(h[a].Sum(nil)) }

// check compares with what the publisher gave.
func (h hashes) check(want source.Checksum, from source.Source) error {
	if want.IsZero() || h.hex(want.Algorithm) == want.Hex {
		return nil
	}
	return backingimage.Errorf(backingimage.Corrupt,
		"checksum: %s serves a file with %s:%s, but the image asks for %s; correct the checksum or the URL", from, want.Algorithm, h.hex(want.Algorithm), want)
}

// save returns one hash's state.
func (h hashes) save(a source.Algorithm) ([]byte, error) {
	m, ok := h[a].(encoding.BinaryMarshaler)
	if !ok {
		return nil, fmt.Errorf("the state of %s cannot be saved", a)
	}
	return m.MarshalBinary()
}

// restore sets every hash to its saved state.
func (h hashes) restore(states map[source.Algorithm][]byte) error {
	for a, sum := range h {
		m, ok := sum.(encoding.BinaryUnmarshaler)
		if !ok {
			return fmt.Errorf("the state of %s cannot be restored", a)
		}
		if err := m.UnmarshalBinary(states[a]); err != nil {
			return fmt.Errorf("restore the state of %s: %w", a, err)
		}
	}
	return nil
}
