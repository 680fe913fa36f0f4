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

// wanted is what the source file's checksums must be: as its publisher says, and as the source itself does. Either may be zero.
type wanted struct{ published, source source.Checksum }

// known reports whether the whole is going to be compared with something.
func (w wanted) known() bool { return !w.published.IsZero() || !w.source.IsZero() }

// hashes are over the source file, in its order. SHA-512 is what we record, of a file that has been published; SHA-256 is
// there when it is what somebody gave. Their states can be stored, so that a download goes on without reading again what it has.
type hashes map[source.Algorithm]hash.Hash

func newHashes(want wanted, record bool) hashes {
	h := hashes{}
	if record || want.published.Algorithm == source.SHA512 || want.source.Algorithm == source.SHA512 {
		h[source.SHA512] = sha512.New()
	}
	if want.published.Algorithm == source.SHA256 || want.source.Algorithm == source.SHA256 {
		h[source.SHA256] = sha256.New()
	}
	return h
}

// hex is a digest in hexadecimal, "" when it was not taken.
func (h hashes) hex(a source.Algorithm) string {
	if h[a] == nil {
		return ""
	}
	return hex.EncodeToString(h[a].Sum(nil))
}

// fits reports whether the file is the one that a checksum is of; every file is, of none.
func (h hashes) fits(want source.Checksum) bool {
	return want.IsZero() || h.hex(want.Algorithm) == want.Hex
}

// check compares with what the publisher and the source gave.
func (h hashes) check(want wanted, from source.Source) error {
	if c := want.source; !h.fits(c) {
		return backingimage.Errorf(backingimage.Corrupt,
			"checksum: %s serves bytes with %s:%s for what it names %s; what it holds is damaged: put the image there again", from, c.Algorithm, h.hex(c.Algorithm), c)
	}
	if c := want.published; !h.fits(c) {
		return backingimage.Errorf(backingimage.Corrupt,
			"checksum: %s serves a file with %s:%s, but the image asks for %s; correct the checksum or the URL", from, c.Algorithm, h.hex(c.Algorithm), c)
	}
	return nil
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
