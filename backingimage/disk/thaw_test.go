package disk_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage/command"
	"plinth.dev/plinth/backingimage/disk/disktest"
)

// An agent that was killed with everything around it, while it held a volume's filesystem frozen, left a marker on the disk.
func TestOpenThawsWhatAnAgentLeftFrozen(t *testing.T) {
	dir := disktest.MustFilesystem(t, "xfs", 512<<20)
	volume := disktest.MustFilesystem(t, "ext4", 32<<20)
	d := disktest.MustOpen(t, filepath.Join(dir, "disk"), 0)
	marker := d.Layout().Frozen("volume-1")
	text, err := json.Marshal([]string{volume})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(marker, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := command.Run(t.Context(), "fsfreeze", "--freeze", volume); err != nil {
		t.Fatal(err)
	}
	disktest.MustOpen(t, filepath.Join(dir, "disk"), 0)
	written := make(chan error, 1)
	go func() { written <- os.WriteFile(filepath.Join(volume, "file"), nil, 0o600) }()
	select {
	case err := <-written:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		_, _ = command.Run(context.Background(), "fsfreeze", "--unfreeze", volume) // so that the test can end
		t.Error("the volume's filesystem is still frozen")
	}
	if _, err := os.Stat(marker); !os.IsNotExist(err) {
		t.Errorf("the marker is still there: %v", err)
	}
}
