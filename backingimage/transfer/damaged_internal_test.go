package transfer

import (
	"os"
	"path/filepath"
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
)

func TestWhatIsDamagedIsNotGiven(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, disk.CopyFile), []byte(`{"version":1,"imageUID":"uid","virtualBytes":10485760}`), 0o600))
	held := func() holding {
		t.Helper()
		h, err := finished(dir)
		must(t, err)
		return h
	}
	if err := held().intact(""); err != nil {
		t.Errorf("without damage: %v", err)
	}
	must(t, fetch.MarkDamaged(dir, 2)) // bytes 4194304 to 6291455
	h := held()
	for header, given := range map[string]bool{
		"": false, "bytes=0-4194303": true, "bytes=0-4194304": false, "bytes=6291455-6291455": false, "bytes=6291456-10485759": true,
		"bytes=6291456-": false, "bytes=-5": false, "bytes=0-1,4194304-4194305": false, "bytes=9-1": false, "chunks=0-1": false, "bytes=99999999999999999999-1": false,
	} {
		if err := h.intact(header); (err == nil) != given || err != nil && !backingimage.Is(err, backingimage.Conflict) {
			t.Errorf("%q: %v", header, err)
		}
	}
	has := h.chunks()
	for i := range int64(5) {
		if has.Has(i) != (i != 2) {
			t.Errorf("chunk %d: it says %t", i, has.Has(i))
		}
	}
	must(t, os.WriteFile(filepath.Join(dir, disk.DamagedFile), nil, 0o600))
	if _, err := finished(dir); !backingimage.Is(err, backingimage.Corrupt) {
		t.Errorf("with a mark that cannot be read: %v", err)
	}
}
