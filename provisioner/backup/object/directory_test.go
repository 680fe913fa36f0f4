package object_test

import (
	"os"
	"path/filepath"
	"testing"

	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/provisioner/backup/object"
)

// A directory's objects are for whom the directory is.
func TestObjectsAreSharedAsTheirDirectoryIs(t *testing.T) {
	for name, tc := range map[string]struct{ directory, folder, file os.FileMode }{
		"its owner's to write": {0o755, 0o700, 0o600},
		"a group's":            {os.ModeSetgid | 0o770, os.ModeSetgid | 0o770, 0o660},
		"everybody's":          {0o777, 0o777, 0o666},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Chmod(dir, tc.directory); err != nil {
				t.Fatal(err)
			}
			location, err := object.ParseLocation("url", "file://"+dir)
			if err != nil {
				t.Fatal(err)
			}
			s, err := object.Openers{}.Open(t.Context(), location, source.Options{}, object.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			for range 2 { // the second finds the folders
				if err := s.PutSynced(t.Context(), "blocks/ab/cd", []byte("data")); err != nil {
					t.Fatal(err)
				}
			}
			for path, want := range map[string]os.FileMode{"blocks": tc.folder | os.ModeDir, "blocks/ab": tc.folder | os.ModeDir, "blocks/ab/cd": tc.file} {
				if info, err := os.Stat(filepath.Join(dir, path)); err != nil || info.Mode() != want {
					t.Errorf("%s is %v, want %v (%v)", path, info.Mode(), want, err)
				}
			}
		})
	}
}
