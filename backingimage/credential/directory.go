package credential

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/durable"
)

// Directory is a Store in a directory that only its owner may read: a file for each secret, <namespace>/<name>.json, whose
// values are in base64 as Kubernetes has them.
type Directory struct{ path string }

var _ Store = (*Directory)(nil)

// OpenDirectory makes the directory, or checks the one that is there: Precondition when others may look into it.
func OpenDirectory(path string) (*Directory, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("open secrets: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("open secrets: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, backingimage.Errorf(backingimage.Precondition, "the directory of secrets %s may be read by others (mode %04o): chmod 700 %s", path, info.Mode().Perm(), path)
	}
	return &Directory{path: path}, nil
}

const secretSuffix = ".json"

func (d *Directory) file(ref Ref) (string, error) {
	checked, err := NewRef(ref.Namespace, ref.Name)
	return filepath.Join(d.path, checked.Namespace, checked.Name+secretSuffix), err
}

// Get implements Reader.
func (d *Directory) Get(_ context.Context, ref Ref) (map[string][]byte, error) {
	path, err := d.file(ref)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, backingimage.Errorf(backingimage.NotFound, "there is no secret %s: make it with \"plinth secret create %s --namespace %s\"", ref, ref.Name, ref.Namespace)
	}
	if err != nil {
		return nil, fmt.Errorf("read secret %s: %w", ref, err)
	}
	var data map[string][]byte
	if json.Unmarshal(text, &data) != nil { // its error would quote the text
		return nil, backingimage.Errorf(backingimage.Corrupt, "secret %s cannot be read: its file %s is damaged; make it anew", ref, path)
	}
	return data, nil
}

// Put implements Store.
func (d *Directory) Put(_ context.Context, ref Ref, data map[string][]byte) error {
	path, err := d.file(ref)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write secret %s: %w", ref, err)
	}
	text, err := json.Marshal(data)
	if err != nil {
		return fmt.Errorf("encode secret %s: %w", ref, err)
	}
	return durable.WriteFile(path, text, 0o600)
}

// Delete implements Store.
func (d *Directory) Delete(_ context.Context, ref Ref) error {
	path, err := d.file(ref)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete secret %s: %w", ref, err)
	}
	return nil
}

// List implements Store.
func (d *Directory) List(context.Context) ([]Ref, error) {
	files, err := filepath.Glob(filepath.Join(d.path, "*", "*"+secretSuffix))
	if err != nil {
		return nil, fmt.Errorf("list secrets: %w", err)
	}
	var refs []Ref
	for _, file := range files {
		ref, err := NewRef(filepath.Base(filepath.Dir(file)), strings.TrimSuffix(filepath.Base(file), secretSuffix))
		if err == nil { // the rest is a write under way
			refs = append(refs, ref)
		}
	}
	slices.SortFunc(refs, func(a, b Ref) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return refs, nil
}
