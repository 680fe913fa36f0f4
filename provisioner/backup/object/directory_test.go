package object_test

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/provisioner/backup/object"
)

// TestWhatAGroupSharesItCanWriteTo looks at what is made in one user's directory, and in a group's, as a volume with an fsGroup is.
func TestWhatAGroupSharesItCanWriteTo(t *testing.T) {
	for name, c := range map[string]struct{ base, folder, file os.FileMode }{
		"one user's":                      {0o755, 0o700, 0o644},
		"a group's":                       {0o770 | os.ModeSetgid, 0o770 | os.ModeSetgid, 0o660},
		"a group's that may only read it": {0o750 | os.ModeSetgid, 0o700 | os.ModeSetgid, 0o644},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, os.Chmod(dir, c.base))
			l, err := object.ParseLocation("url", "file://"+dir)
			must(t, err)
			s, err := object.Openers{}.Open(context.Background(), l, source.Options{}, object.Options{})
			must(t, err)
			for _, object := range []string{"blocks/ab/cd", "blocks/ab/ef", "plain"} {
				must(t, s.Put(context.Background(), object, []byte("content")))
			}
			found := 0
			must(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
				if err != nil || path == dir {
					return err
				}
				info, err := e.Info()
				must(t, err)
				want := c.file
				if e.IsDir() {
					want = c.folder
				}
				if found++; info.Mode()&^os.ModeType|info.Mode()&os.ModeSetgid != want {
					t.Errorf("%s is %s, not %s", path, info.Mode(), want)
				}
				return nil
			}))
			if found != 5 {
				t.Errorf("%d things were made", found)
			}
		})
	}
}

// TestNothingIsDoneInAnotherDirectorysPlace takes a directory away, as when what is mounted there is unmounted.
func TestNothingIsDoneInAnotherDirectorysPlace(t *testing.T) {
	ctx, dir := context.Background(), filepath.Join(t.TempDir(), "place")
	must(t, os.Mkdir(dir, 0o700))
	l, err := object.ParseLocation("url", "file://"+dir)
	must(t, err)
	s, err := object.Openers{}.Open(ctx, l, source.Options{}, object.Options{})
	must(t, err)
	must(t, s.Put(ctx, "anchor", []byte("here")))
	must(t, s.Put(ctx, "object", []byte("content")))
	s.Anchor("anchor")
	calls := map[string]func() error{
		"write":  func() error { return s.Put(ctx, "blocks/another", []byte("content")) },
		"read":   func() error { _, err := s.Get(ctx, "object", 100); return err },
		"list":   func() error { return s.List(ctx, "", func(object.Object) error { return nil }) },
		"delete": func() error { return s.Delete(ctx, "object") },
	}
	mustRefuse := func() {
		t.Helper()
		for name, call := range calls {
			if err := call(); !backingimage.Is(err, backingimage.Precondition) || !strings.Contains(err.Error(), "mount what belongs there") {
				t.Errorf("%s: got %v", name, err)
			}
		}
	}
	must(t, os.Rename(dir, dir+".away"))
	mustRefuse()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory was made: %v", err)
	}
	must(t, os.Mkdir(dir, 0o700))
	mustRefuse()
	must(t, os.Remove(dir)) // it is empty
	must(t, os.Rename(dir+".away", dir))
	for _, name := range []string{"write", "read", "list"} {
		must(t, calls[name]())
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
