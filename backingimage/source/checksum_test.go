package source_test

import (
	"strings"
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/source"
)

func TestParseChecksum(t *testing.T) {
	short, long := strings.Repeat("0aF", 22)[:64], strings.Repeat("9bC", 43)[:128]
	for value, want := range map[string]string{
		"":                                 "",
		short:                              "sha256:" + strings.ToLower(short),
		long:                               "sha512:" + strings.ToLower(long),
		"sha256:" + short:                  "sha256:" + strings.ToLower(short),
		"SHA512:" + long:                   "sha512:" + strings.ToLower(long),
		"Sha256:" + strings.ToUpper(short): "sha256:" + strings.ToLower(short),
	} {
		got, err := source.ParseChecksum(value)
		if err != nil || got.String() != want {
			t.Errorf("%q: got %q, %v", value, got, err)
		}
		again, err := source.ParseChecksum(got.String())
		if err != nil || again != got {
			t.Errorf("%q: its normalised form is read as %q, %v", value, again, err)
		}
	}
	for _, value := range []string{"x", short + "0", "sha512:" + short, "sha256:" + long, "md5:" + short, "sha256:" + short[:63] + "g", ":" + short, " " + short} {
		if _, err := source.ParseChecksum(value); !backingimage.Is(err, backingimage.Invalid) || !strings.HasPrefix(err.Error(), "checksum: ") {
			t.Errorf("%q: got %v", value, err)
		}
	}
}
