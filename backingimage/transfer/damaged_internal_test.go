package transfer

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
)

func TestWhatIsDamagedIsNotGiven(t *testing.T) {
	dir := t.TempDir()
	asked := func(header string) error {
		return intact(&http.Request{Header: http.Header{"Range": {header}}}, dir, 10<<20)
	}
	if err := asked(""); err != nil {
		t.Errorf("without damage: %v", err)
	}
	if err := fetch.MarkDamaged(dir, 2); err != nil { // bytes 4194304 to 6291455
		t.Fatal(err)
	}
	for header, given := range map[string]bool{
		"": false, "bytes=0-4194303": true, "bytes=0-4194304": false, "bytes=6291455-6291455": false, "bytes=6291456-10485759": true,
		"bytes=6291456-": false, "bytes=-5": false, "bytes=0-1,4194304-4194305": false, "bytes=9-1": false, "chunks=0-1": false, "bytes=99999999999999999999-1": false,
	} {
		if err := asked(header); (err == nil) != given || err != nil && !backingimage.Is(err, backingimage.Conflict) {
			t.Errorf("%q: %v", header, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, disk.DamagedFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := asked("bytes=0-1"); !backingimage.Is(err, backingimage.Corrupt) {
		t.Errorf("with a mark that cannot be read: %v", err)
	}
}
