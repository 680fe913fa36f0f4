package source

import (
	"encoding/hex"
	"strings"

	"plinth.dev/plinth/backingimage"
)

// Algorithm names a checksum's hash function, in lower case.
type Algorithm string

const (
	SHA256 Algorithm = "sha256"
	SHA512 Algorithm = "sha512"
)

// hexDigits of each algorithm's digest.
var hexDigits = map[Algorithm]int{SHA256: 64, SHA512: 128}

// Checksum is what a publisher says of a file. It is normalised, so that == compares two of them; the zero Checksum is
// none at all.
type Checksum struct {
	Algorithm Algorithm
	Hex       string // the digest, in lower case
}

// ParseChecksum reads SHA-512 or SHA-256 in hexadecimal, told apart by length or by a prefix "sha512:" or "sha256:",
// in any case. The empty string is the zero Checksum. Anything else is Invalid.
func ParseChecksum(s string) (Checksum, error) {
	if s == "" {
		return Checksum{}, nil
	}
	name, digits, found := strings.Cut(strings.ToLower(s), ":")
	if !found {
		name, digits = string(algorithmOf(len(name))), name
	}
	c := Checksum{Algorithm: Algorithm(name), Hex: digits}
	want, known := hexDigits[c.Algorithm]
	if !known {
		return Checksum{}, invalidChecksum(s, "is neither SHA-512 (128 digits) nor SHA-256 (64 digits)")
	}
	if len(c.Hex) != want {
		return Checksum{}, invalidChecksum(s, "does not have the length that its prefix asks for (sha512: 128 digits, sha256: 64)")
	}
	if _, err := hex.DecodeString(c.Hex); err != nil {
		return Checksum{}, invalidChecksum(s, "has a character that is not a hexadecimal digit")
	}
	return c, nil
}

func algorithmOf(digits int) Algorithm {
	for algorithm, want := range hexDigits {
		if digits == want {
			return algorithm
		}
	}
	return ""
}

func invalidChecksum(value, why string) error {
	return backingimage.Errorf(backingimage.Invalid,
		"checksum: %q %s; give the one that the image's publisher states, in hexadecimal", shortened(value), why)
}

// shortened bounds what a message repeats of a value.
func shortened(s string) string {
	const most = 160
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}

// IsZero reports whether there is no checksum.
func (c Checksum) IsZero() bool { return c == Checksum{} }

// String is the normalised form, "sha512:…" or "sha256:…", and "" for the zero Checksum.
func (c Checksum) String() string {
	if c.IsZero() {
		return ""
	}
	return string(c.Algorithm) + ":" + c.Hex
}
