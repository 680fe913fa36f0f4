package provisioner_test

import (
	"strings"
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/provisioner"
)

func TestImageNamesAreThoseOfObjects(t *testing.T) {
	for _, name := range []string{"fedora-42", "a", "debian.12", strings.Repeat("a", 253)} {
		if err := provisioner.ValidateName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{
		"", ".", "..", "../etc/passwd", "a/b", "/a", "a/../b", `a\b`, "-a", "a.", "Fedora", "a b", "a\x00b", "a\n", "ä", "фёдора", "a\u202eb", "%2e%2e",
		strings.Repeat("a", 254), strings.Repeat("a", 300),
	} {
		err := provisioner.ValidateName(name)
		if !backingimage.Is(err, backingimage.Invalid) || len(err.Error()) > 600 {
			t.Errorf("%q: %v", name, err)
		}
	}
}
