package reflink_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/disk/disktest"
	"plinth.dev/plinth/provisioner/engine"
	"plinth.dev/plinth/provisioner/engine/reflink"
)

func wantKind(t *testing.T, want backingimage.Kind, err error) {
	t.Helper()
	if !backingimage.Is(err, want) {
		t.Fatalf("got %v, want a %s error", err, want)
	}
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestCloneOnAFullDisk(t *testing.T) {
	ctx := context.Background()
	d := disktest.MustPool(t, disktest.PoolBytes)
	e := reflink.New(d.Layout(), reflink.Options{Capacity: d.Capacity})
	disktest.MustImage(t, d, "golden", func(f *os.File) { f.Write(content()) })
	total, _, err := d.Capacity()
	must(t, err)
	clone := func(id string) error {
		return e.Clone(ctx, engine.Volume{ID: id, Bytes: imageBytes}, engine.From{Image: "golden"})
	}
	t.Run("is Full, with the figures, and leaves nothing", func(t *testing.T) {
		refusals := 0
		reflink.ReplaceClone(t, func(real func(int, int) error, target, source int) error {
			if refusals++; refusals == 1 {
				return unix.ENOSPC
			}
			return real(target, source)
		})
		err := clone("v")
		wantKind(t, backingimage.Full, err)
		if !strings.Contains(err.Error(), fmt.Sprint(total)) {
			t.Errorf("the message does not tell the disk's size: %v", err)
		}
		if left, err := os.ReadDir(d.Layout().Staging()); err != nil || len(left) > 0 {
			t.Errorf("left in staging: %v (%v)", left, err)
		}
		must(t, clone("v"))
	})
	t.Run("really full, it is Full until there is room", func(t *testing.T) {
		filler := fill(t, d)
		var err error
		for i := 0; err == nil && i < 10_000; i++ { // the last blocks hold some more inodes
			err = clone(fmt.Sprintf("v%d", i))
		}
		wantKind(t, backingimage.Full, err)
		must(t, os.Remove(filler), clone("last"))
	})
}

// fill takes all of the disk's space.
func fill(t *testing.T, d *disk.Disk) string {
	t.Helper()
	path := filepath.Join(string(d.Layout()), "filler")
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	at := int64(0)
	for step := int64(64 << 20); step >= 4096; {
		if err := unix.Fallocate(int(f.Fd()), 0, at, step); errors.Is(err, unix.ENOSPC) {
			step /= 2
		} else {
			must(t, err)
			at += step
		}
	}
	return path
}

func TestADamagedCopyIsNotCloned(t *testing.T) {
	d := disktest.MustPool(t, disktest.PoolBytes)
	e := reflink.New(d.Layout(), reflink.Options{})
	disktest.MustImage(t, d, "golden", func(f *os.File) { f.Write(content()) })
	mark := filepath.Join(d.Layout().Image("golden"), disk.DamagedFile)
	clone := func() error {
		return e.Clone(context.Background(), engine.Volume{ID: "v", Bytes: imageBytes}, engine.From{Image: "golden"})
	}
	refused := func(t *testing.T) {
		t.Helper()
		wantKind(t, backingimage.NotReady, clone())
		for _, dir := range []string{d.Layout().Staging(), d.Layout().Volumes()} {
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("left in %s: %v (%v)", dir, left, err)
			}
		}
	}
	t.Run("when the damage is known", func(t *testing.T) {
		must(t, os.WriteFile(mark, nil, 0o600))
		refused(t)
		must(t, os.Remove(mark))
	})
	t.Run("when it is found while the clone is made", func(t *testing.T) {
		reflink.ReplaceClone(t, func(real func(int, int) error, target, source int) error {
			return errors.Join(real(target, source), os.WriteFile(mark, nil, 0o600))
		})
		refused(t)
	})
	must(t, os.Remove(mark), clone())
}

func TestDamagedVolumes(t *testing.T) {
	ctx := context.Background()
	d := disktest.MustPool(t, disktest.PoolBytes)
	e := reflink.New(d.Layout(), reflink.Options{})
	for _, test := range []struct {
		outcome string
		damage  func(dir string) error
		want    backingimage.Kind
	}{
		{"a record that is none is Corrupt", replaceRecord("{"), backingimage.Corrupt},
		{"an empty record is Corrupt", replaceRecord(""), backingimage.Corrupt},
		{"another volume's record is Corrupt", replaceRecord(`{"formatVersion": 1, "id": "other"}`), backingimage.Corrupt},
		{"a missing record is Corrupt", func(dir string) error { return os.Remove(filepath.Join(dir, disk.VolumeRecord)) }, backingimage.Corrupt},
		{"missing data is Corrupt", func(dir string) error { return os.Remove(filepath.Join(dir, disk.VolumeFile)) }, backingimage.Corrupt},
		{"a newer program's record is Unsupported", replaceRecord(`{"formatVersion": 2, "id": "v"}`), backingimage.Unsupported},
	} {
		t.Run(test.outcome, func(t *testing.T) {
			v := engine.Volume{ID: "v", Bytes: imageBytes}
			must(t, e.Create(ctx, v), test.damage(d.Layout().Volume("v")))
			_, stat := e.Stat(ctx, "v")
			_, attach := e.Attach(ctx, "v", engine.AttachOptions{})
			for _, err := range []error{stat, attach, e.Create(ctx, v), e.Resize(ctx, "v", 2*imageBytes)} {
				wantKind(t, test.want, err)
			}
			if list, err := e.List(ctx); err != nil || len(list) != 1 || list[0].ID != "v" {
				t.Errorf("it is listed as %v (%v)", list, err)
			}
			must(t, e.Delete(ctx, "v"))
		})
	}
}

func replaceRecord(text string) func(dir string) error {
	return func(dir string) error {
		return os.WriteFile(filepath.Join(dir, disk.VolumeRecord), []byte(text), 0o600)
	}
}

func TestResizeFinishesAKilledResize(t *testing.T) {
	ctx := context.Background()
	d := disktest.MustPool(t, disktest.PoolBytes)
	e := reflink.New(d.Layout(), reflink.Options{})
	must(t, e.Create(ctx, engine.Volume{ID: "v", Bytes: imageBytes}))
	device, err := e.Attach(ctx, "v", engine.AttachOptions{})
	must(t, err, os.Truncate(filepath.Join(d.Layout().Volume("v"), disk.VolumeFile), 2*imageBytes)) // and killed
	must(t, e.Resize(ctx, "v", 2*imageBytes))
	if content, err := os.ReadFile(device); err != nil || len(content) != 2*imageBytes {
		t.Errorf("the device has %d bytes (%v)", len(content), err)
	}
	record, err := os.ReadFile(filepath.Join(d.Layout().Volume("v"), disk.VolumeRecord))
	if err != nil || !strings.Contains(string(record), fmt.Sprintf(`"bytes": %d`, 2*imageBytes)) {
		t.Errorf("the record is\n%s(%v)", record, err)
	}
}

func TestCallsForOneVolumeWait(t *testing.T) {
	d := disktest.MustPool(t, disktest.PoolBytes)
	engines := map[string]engine.Engine{}
	engines["this engine"] = reflink.New(d.Layout(), reflink.Options{})
	engines["another engine"] = reflink.New(d.Layout(), reflink.Options{})
	disktest.MustImage(t, d, "golden", func(f *os.File) { f.Write(content()) })

	cloning, finish, cloned := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	reflink.ReplaceClone(t, func(real func(int, int) error, target, source int) error {
		close(cloning)
		<-finish
		return real(target, source)
	})
	go func() {
		cloned <- engines["this engine"].Clone(context.Background(), engine.Volume{ID: "v", Bytes: imageBytes}, engine.From{Image: "golden"})
	}()
	<-cloning
	for name, e := range engines {
		t.Run("in "+name+" until their context ends", func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
			defer cancel()
			if err := e.Delete(ctx, "v"); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
			must(t, e.Create(context.Background(), engine.Volume{ID: "other-than-v-in-" + strings.Fields(name)[0], Bytes: 512}))
		})
	}
	close(finish)
	must(t, <-cloned)
	must(t, engines["another engine"].Delete(context.Background(), "v"))
}
