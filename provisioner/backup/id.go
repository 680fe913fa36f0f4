package backup

import (
	"encoding/binary"
	"encoding/hex"

	"plinth.dev/plinth/backingimage"
)

// BlockBytes is the size of a block, in bytes. It is that of an image's chunks, whose digests are therefore blocks' names where nothing
// is encrypted.
const BlockBytes = 2 << 20

// ID names a block or a page by its content. The zero ID is a block of zeros, which is not stored, or a page without entries.
type ID [32]byte

// IsZero reports whether it names zeros.
func (id ID) IsZero() bool { return id == ID{} }

// String is the ID in lower-case hexadecimal.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText and UnmarshalText are for manifests; the zero ID is the empty text.
func (id ID) MarshalText() ([]byte, error) {
	if id.IsZero() {
		return nil, nil
	}
	return []byte(id.String()), nil
}

// UnmarshalText reads what MarshalText wrote. Corrupt.
func (id *ID) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*id = ID{}
		return nil
	}
	parsed, ok := parseID(string(text))
	if !ok {
		return backingimage.Errorf(backingimage.Corrupt, "a digest in it is none")
	}
	*id = parsed
	return nil
}

// parseID reads 64 lower-case hexadecimal digits.
func parseID(text string) (ID, bool) {
	var id ID
	n, err := hex.Decode(id[:], []byte(text))
	return id, err == nil && n == len(id) && len(text) == 2*len(id) && id.String() == text
}

// short is the first 8 bytes, for sets that may be wrong now and then.
func (id ID) short() uint64 { return binary.LittleEndian.Uint64(id[:]) }
