package main_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"plinth.dev/plinth/test/plinthtest"
)

// TestSnapshots uses the commands about snapshots, clones and exports as a person does.
func TestSnapshots(t *testing.T) {
	s := plinthtest.Start(t, plinthtest.Options{})
	u := &user{Standalone: s, staging: filepath.Join(s.Dir, "staging")}
	u.MustCLI("volume", "create", "db", "--size", "64Mi")
	u.mount(t, "db", u.path("db"))
	file := filepath.Join(u.path("db"), "file")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil { // and no sync
			t.Fatal(err)
		}
	}
	has := func(t *testing.T, volume, text string) {
		t.Helper()
		u.mount(t, volume, u.path(volume))
		if got, err := os.ReadFile(filepath.Join(u.path(volume), "file")); err != nil || string(got) != text {
			t.Errorf("volume %s has %q, %v", volume, got, err)
		}
		u.MustCLI("volume", "unmount", volume, "--staging-dir", u.staging)
	}
	write("before")
	out := u.MustCLI("snapshot", "create", "db", "s1", "-o", "json")
	var taken struct {
		SnapshotID string `json:"snapshotId"`
		ReadyToUse bool
		SizeBytes  int64
	}
	if err := json.Unmarshal([]byte(out), &taken); err != nil || taken.SnapshotID != "snap://db/s1" || !taken.ReadyToUse || taken.SizeBytes != 64<<20 {
		t.Errorf("%v: %s", err, out)
	}
	write("after")
	u.MustCLI("snapshot", "create", "db", "s1") // is there
	for _, words := range [][]string{{"ls"}, {"show", "s1"}} {
		if out := u.MustCLI(append([]string{"snapshot"}, words...)...); !strings.Contains(out, "s1") || !strings.Contains(out, "db") || !strings.Contains(out, "ready") {
			t.Errorf("%v: %s", words, out)
		}
	}
	t.Run("a snapshot is restored, by its name and its handle, and larger", func(t *testing.T) {
		u.MustCLI("snapshot", "restore", "s1", "old")
		has(t, "old", "before")
		u.MustCLI("snapshot", "restore", "snap://db/s1", "larger", "--size", "96Mi")
		has(t, "larger", "before")
	})
	t.Run("a volume that is mounted is cloned", func(t *testing.T) {
		u.MustCLI("volume", "clone", "db", "copy")
		has(t, "copy", "after")
		if out := u.MustCLI("volume", "show", "copy"); !strings.Contains(out, "volume db") {
			t.Errorf("got %s", out)
		}
	})
	t.Run("a volume is exported to a file, and nothing else is left", func(t *testing.T) {
		u.MustCLI("volume", "export", "db", "--file", u.path("db.qcow2"), "--format", "qcow2")
		if head, err := os.ReadFile(u.path("db.qcow2")); err != nil || !strings.HasPrefix(string(head), "QFI\xfb") {
			t.Errorf("got %d bytes, %v", len(head), err)
		}
		u.MustCLI("volume", "export", "db", "--name", "golden")
		if out := u.MustCLI("image", "ls", "-o", "name"); strings.Contains(out, "export-") || !strings.Contains(out, "golden") {
			t.Errorf("images: %s", out)
		}
	})
	t.Run("mistakes say what to do", func(t *testing.T) {
		u.refused(t, 3, []string{"plinth snapshot ls"}, "snapshot", "restore", "none", "x")
		u.refused(t, 2, []string{"no type"}, "snapshot", "create", "db", "s2", "--type", "tape")
		u.refused(t, 2, []string{"--name IMAGE"}, "volume", "export", "db")
	})
	t.Run("deleted, it is gone, and what was made from it is not", func(t *testing.T) {
		u.MustCLI("snapshot", "rm", "s1")
		if r := u.CLI("snapshot", "ls"); strings.Contains(r.Stdout, "s1") {
			t.Errorf("got %s", r.Stdout)
		}
		has(t, "old", "before")
	})
	u.MustCLI("volume", "unmount", "db", "--staging-dir", u.staging)
}
