package reflink_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/disk/disktest"
	"plinth.dev/plinth/provisioner/engine"
	"plinth.dev/plinth/provisioner/engine/reflink"
)

const imageBytes = 1 << 20

// A power loss, as a filesystem sees it, is its device's content at one instant. Here the device is a file on XFS, so that instant
// can be had while an engine is at work: a reflink of the file. What recovers from it must have every volume whose making had
// returned, no volume whose deletion had returned, and nothing by halves.
func TestPowerLoss(t *testing.T) {
	for _, test := range []struct {
		name, kind, mount string
		ordered           bool
	}{
		{"xfs, by its ordered log", "xfs", "nouuid", true},
		{"xfs, each sync by itself", "xfs", "nouuid", false},
		{"btrfs", "btrfs", "", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			reflink.ReplaceOrderedLog(t, test.ordered)
			outer := disktest.MustFilesystem(t, "xfs", 4<<30)
			inner := disktest.MustFilesystemIn(t, outer, test.kind, 512<<20)
			d := disktest.MustOpen(t, filepath.Join(inner, "disk"), 0)
			disktest.MustImage(t, d, "golden", func(f *os.File) { f.Write(content()) })
			w := startWorker(t, d)
			for i := range 8 {
				snapshot := filepath.Join(outer, fmt.Sprintf("snapshot-%d.img", i))
				deleted, made := w.deleted.Load(), w.made.Load()
				cloneFile(t, inner+".img", snapshot)
				begun := w.begun.Load()
				t.Run("", func(t *testing.T) {
					layout := disk.Layout(filepath.Join(disktest.MustMount(t, snapshot, test.kind, test.mount), "disk"))
					checkRecovered(t, layout, deleted, made, begun)
				})
				w.wait(made + 3)
			}
		})
	}
}

// worker makes volumes v1, v2, … with a snapshot s1, s2, … of each, and deletes both when four more exist.
type worker struct {
	begun, made, deleted atomic.Int64
	turn                 chan struct{}
}

func startWorker(t *testing.T, d *disk.Disk) *worker {
	ctx, cancel := context.WithCancel(context.Background())
	w := &worker{turn: make(chan struct{}, 1)}
	ended := make(chan error)
	go func() { ended <- w.run(ctx, reflink.New(d.Layout(), reflink.Options{})) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	w.wait(5)
	return w
}

func (w *worker) run(ctx context.Context, e engine.Engine) error {
	for n := int64(1); ; n++ {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		w.begun.Store(n)
		if err := e.Clone(context.Background(), engine.Volume{ID: volumeID(n), Bytes: imageBytes}, engine.From{Image: "golden"}); err != nil {
			return err
		}
		if err := e.Snapshot(context.Background(), engine.Snapshot{ID: snapshotID(n), Volume: volumeID(n)}); err != nil {
			return err
		}
		w.made.Store(n)
		if old := n - 4; old > 0 {
			if err := e.Delete(context.Background(), volumeID(old)); err != nil {
				return err
			}
			if err := e.DeleteSnapshot(context.Background(), snapshotID(old)); err != nil {
				return err
			}
			w.deleted.Store(old)
		}
		select {
		case w.turn <- struct{}{}:
		default:
		}
	}
}

// wait returns when n volumes are made.
func (w *worker) wait(n int64) {
	for w.made.Load() < n {
		<-w.turn
	}
}

func volumeID(n int64) string { return fmt.Sprintf("v%d", n) }

func snapshotID(n int64) string { return fmt.Sprintf("s%d", n) }

func content() []byte { return bytes.Repeat([]byte("golden\n."), imageBytes/8) }

func cloneFile(t *testing.T, from, to string) {
	t.Helper()
	source, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	target, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	if err := unix.IoctlFileClone(int(target.Fd()), int(source.Fd())); err != nil {
		t.Fatal(err)
	}
}

// checkRecovered checks what a power loss left, given what had returned before and what had begun after it.
func checkRecovered(t *testing.T, layout disk.Layout, deleted, made, begun int64) {
	t.Helper()
	e := reflink.New(layout, reflink.Options{})
	list, err := e.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, info := range list {
		there[info.ID] = true
		if _, err := e.Stat(context.Background(), info.ID); err != nil {
			t.Errorf("a volume is there by halves: %v", err)
		}
		got, err := os.ReadFile(filepath.Join(layout.Volume(info.ID), disk.VolumeFile))
		if err != nil || !bytes.Equal(got, content()) {
			t.Errorf("volume %s does not have its image's content (%v)", info.ID, err)
		}
	}
	snapshots, err := e.ListSnapshots(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range snapshots {
		there[info.ID] = true
		got, err := os.ReadFile(filepath.Join(layout.Snapshot(info.ID), disk.SnapshotFile))
		if err != nil || info.Created.IsZero() || !bytes.Equal(got, content()) {
			t.Errorf("snapshot %+v does not have its volume's content (%v)", info, err)
		}
	}
	for n := int64(1); n <= begun; n++ {
		for _, id := range []string{volumeID(n), snapshotID(n)} {
			if n <= deleted && there[id] {
				t.Errorf("%s is back: its deletion had returned", id)
			}
			if n >= begun-3 && n <= made && !there[id] { // begun-4 is the newest that may be being deleted
				t.Errorf("%s is lost: it had been made", id)
			}
		}
	}
}
