package fetch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/durable"
)

// damageMark is what the file disk.DamagedFile says.
type damageMark struct {
	Chunks []int64 `json:"chunks"`
}

// Damage returns the chunks of the copy in a directory that are known to be damaged, sorted; none when it has no mark, or is not
// there. A mark that cannot be read is Corrupt: nothing in the copy can be trusted then.
func Damage(dir string) ([]int64, error) {
	text, err := os.ReadFile(filepath.Join(dir, disk.DamagedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for damage: %w", err)
	}
	var m damageMark
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, damaged(dir, "its mark %s cannot be read: %v", disk.DamagedFile, err)
	}
	if len(m.Chunks) == 0 || slices.Min(m.Chunks) < 0 {
		return nil, damaged(dir, "its mark %s names no chunks", disk.DamagedFile)
	}
	slices.Sort(m.Chunks)
	return m.Chunks, nil
}

// marking keeps changes of marks apart. They are few.
var marking sync.Mutex

// MarkDamaged adds chunks to those that are known to be damaged. When it returns, nobody clones the copy or gives those chunks
// to others, and that survives a power loss. Corrupt as of Damage.
func MarkDamaged(dir string, chunks ...int64) error {
	return remark(dir, func(known []int64) []int64 { return append(known, chunks...) })
}

// unmark takes a chunk off the mark.
func unmark(dir string, chunk int64) error {
	return remark(dir, func(known []int64) []int64 {
		return slices.DeleteFunc(known, func(i int64) bool { return i == chunk })
	})
}

func remark(dir string, change func([]int64) []int64) error {
	marking.Lock()
	defer marking.Unlock()
	known, err := Damage(dir)
	if err != nil {
		return err
	}
	return writeMark(dir, change(known))
}

// writeMark makes chunks, or no chunks, those that are damaged.
func writeMark(dir string, chunks []int64) error {
	path := filepath.Join(dir, disk.DamagedFile)
	if len(chunks) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the mark of a repaired copy: %w", err)
		}
		return durable.SyncDir(dir)
	}
	slices.Sort(chunks)
	text, err := json.Marshal(damageMark{slices.Compact(chunks)})
	if err != nil {
		return fmt.Errorf("mark damage: %w", err)
	}
	return durable.WriteFile(path, append(text, '\n'), 0o600)
}

// undamaged refuses a copy of which chunks are known to be damaged: NotReady, since they are going to be repaired.
func undamaged(dir string) error {
	bad, err := Damage(dir)
	if err == nil && len(bad) > 0 {
		err = &BadChunks{bad}
	}
	if err == nil {
		return nil
	}
	return backingimage.Errorf(backingimage.NotReady, "the copy in %s is being repaired: %w", dir, err)
}

// Check looks, without reading much, whether a finished copy is there, whole and without damage that is known. An error says
// that it has to be looked at: see Load and Damage.
func Check(dir string) error {
	record, err := ReadRecord(dir)
	if err != nil {
		return err
	}
	if err := checkContent(dir, record); err != nil {
		return err
	}
	info, err := os.Stat(filepath.Join(dir, disk.ManifestFile))
	if err != nil || !info.Mode().IsRegular() || info.Size() == 0 {
		return damaged(dir, "its manifest is gone")
	}
	return undamaged(dir)
}
