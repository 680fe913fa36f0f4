package credential_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/credential"
)

// mustBePrivate checks that nobody but the owner may read what is in dir.
func mustBePrivate(tb testing.TB, dir string) {
	tb.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			tb.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		tb.Error(err)
	}
}

func TestNamesLeadNowhereElse(t *testing.T) {
	d, err := credential.OpenDirectory(t.TempDir() + "/secrets")
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []credential.Ref{{Namespace: "..", Name: "a"}, {Namespace: "a", Name: "../../a"}, {Namespace: "a/b", Name: "c"}, {Namespace: "a", Name: ""}, {Namespace: "a", Name: strings.Repeat("x", 300)}, {Namespace: "a", Name: "ä"}} {
		if _, err := d.Get(t.Context(), ref); !backingimage.Is(err, backingimage.Invalid) {
			t.Errorf("%+v: %v", ref, err)
		}
		if err := d.Put(t.Context(), ref, nil); !backingimage.Is(err, backingimage.Invalid) {
			t.Errorf("%+v: %v", ref, err)
		}
	}
}

func TestADirectoryThatOthersReadIsRefused(t *testing.T) {
	dir := t.TempDir() + "/secrets"
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := credential.OpenDirectory(dir); !backingimage.Is(err, backingimage.Precondition) || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("got %v", err)
	}
}

func TestADamagedSecretIsNotQuoted(t *testing.T) {
	dir := t.TempDir() + "/secrets"
	d, err := credential.OpenDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	ref := credential.Ref{Namespace: "default", Name: "a"}
	if err := d.Put(t.Context(), ref, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "default", "a.json"), []byte(`{"token": s3cr3t`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Get(t.Context(), ref); !backingimage.Is(err, backingimage.Corrupt) || strings.Contains(err.Error(), "s3cr3t") {
		t.Errorf("got %v", err)
	}
}
