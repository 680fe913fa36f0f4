package program

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"plinth.dev/plinth/backingimage"
)

func TestProgramsAreFoundBesideOrInPath(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	if _, err := FindBeside("plinth-other"); !backingimage.Is(err, backingimage.Unsupported) || !strings.Contains(err.Error(), "plinth-other is neither beside") || !strings.Contains(err.Error(), "install it") {
		t.Errorf("got %v", err)
	}
	path := filepath.Join(dir, "plinth-other")
	if err := os.WriteFile(path, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := FindBeside("plinth-other"); err != nil || got != path {
		t.Errorf("got %s, %v", got, err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := FindBeside(filepath.Base(self)); err != nil || got != self {
		t.Errorf("got %s, %v", got, err)
	}
}
