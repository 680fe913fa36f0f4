package provisioner_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/node/nodetest"
	"plinth.dev/plinth/provisioner"
)

func (w *world) snapshot(t *testing.T, r provisioner.SnapshotRequest) provisioner.Snapshot {
	t.Helper()
	s, err := w.volumes.CreateSnapshot(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// write writes a mebibyte of a byte to a volume's device.
func (w *world) write(t *testing.T, id string, b byte) {
	t.Helper()
	f, err := os.OpenFile(w.attach(t, id).Device, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt(bytes.Repeat([]byte{b}, 1<<20), 0)
	must(t, err)
	must(t, f.Close()) // and no sync
}

// begins checks the first byte and the size of a volume.
func (w *world) begins(t *testing.T, id string, b byte, size int) {
	t.Helper()
	content, err := os.ReadFile(w.attach(t, id).Device)
	must(t, err)
	if len(content) != size || content[0] != b {
		t.Errorf("volume %s has %d bytes and begins with %d; want %d and %d", id, len(content), content[0], size, b)
	}
}

func wantKind(t *testing.T, err error, kind backingimage.Kind, says ...string) {
	t.Helper()
	if !backingimage.Is(err, kind) {
		t.Fatalf("got %v, want %v", err, kind)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("message %q does not say %q", err, s)
		}
	}
}

func TestSnapshots(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	v := w.create(t, provisioner.CreateRequest{Name: "db", RequiredBytes: 8 << 20})
	w.write(t, v.Name, 1)
	began := time.Now()
	request := provisioner.SnapshotRequest{Name: "before", Volume: v.Name}
	s := w.snapshot(t, request)
	w.write(t, v.Name, 2)
	t.Run("says what it is", func(t *testing.T) {
		if s.Handle != "snap://db/before" || s.Volume != "db" || s.Bytes != 8<<20 || !s.Ready || s.Created.Before(began) || s.Created.After(time.Now()) {
			t.Errorf("got %+v", s)
		}
		got, err := w.volumes.GetSnapshot(ctx, s.Handle)
		must(t, err)
		list, err := w.volumes.ListSnapshots(ctx)
		must(t, err)
		if got != s || len(list) != 1 || list[0] != s {
			t.Errorf("got %+v, listed %+v", got, list)
		}
	})
	t.Run("again is the same, and with another volume or type a Conflict", func(t *testing.T) {
		if again := w.snapshot(t, request); again != s {
			t.Errorf("got %+v", again)
		}
		other := w.create(t, provisioner.CreateRequest{Name: "other", RequiredBytes: 1 << 20})
		_, err := w.volumes.CreateSnapshot(ctx, provisioner.SnapshotRequest{Name: "before", Volume: other.Name})
		wantKind(t, err, backingimage.Conflict, `volume "db", not "other"`)
		_, err = w.volumes.CreateSnapshot(ctx, provisioner.SnapshotRequest{Name: "before", Volume: v.Name, Parameters: map[string]string{"type": "bi"}})
		wantKind(t, err, backingimage.Conflict, "type is snap, not bi")
	})
	t.Run("takes of the disk's room what it has of data, as long as it is there", func(t *testing.T) { takesRoom(t, w, v.Name) })
	t.Run("of no volume, and a backup to nowhere, are refused", func(t *testing.T) {
		_, err := w.volumes.CreateSnapshot(ctx, provisioner.SnapshotRequest{Name: "s", Volume: "none"})
		wantKind(t, err, backingimage.NotFound, "none")
		_, err = w.volumes.CreateSnapshot(ctx, provisioner.SnapshotRequest{Name: "s", Volume: v.Name, Parameters: map[string]string{"type": "bak"}})
		wantKind(t, err, backingimage.Precondition, "no backup target", "plinth target add")
	})
	t.Run("becomes a volume of its size, or of a larger one, and no smaller one", func(t *testing.T) {
		w.create(t, provisioner.CreateRequest{Name: "same", SourceHandle: s.Handle})
		w.begins(t, "same", 1, 8<<20)
		larger := provisioner.CreateRequest{Name: "larger", SourceHandle: s.Handle, RequiredBytes: 12 << 20}
		w.create(t, larger)
		w.begins(t, "larger", 1, 12<<20)
		w.create(t, larger)
		larger.SourceHandle = ""
		w.refused(t, larger, backingimage.Conflict, s.Handle)
		w.refused(t, provisioner.CreateRequest{Name: "small", SourceHandle: s.Handle, RequiredBytes: 4 << 20}, backingimage.OutOfRange, "snapshot before")
		for _, none := range []string{"snap://db/none", "snap://other/before", "snapshot-4711"} {
			w.refused(t, provisioner.CreateRequest{Name: "none", SourceHandle: none}, backingimage.NotFound)
		}
	})
	t.Run("stays when its volume goes", func(t *testing.T) {
		must(t, w.node.Detach(ctx, v.Name))
		must(t, w.volumes.Delete(ctx, v.Name))
		w.create(t, provisioner.CreateRequest{Name: "later", SourceHandle: s.Handle})
		w.begins(t, "later", 1, 8<<20)
	})
	t.Run("is found again after a restart, and taken only once", func(t *testing.T) {
		w.Stop()
		w.Start()
		w.untilSnapshot(t, "before", "ready", func(s *v1alpha1.Snapshot) bool { return s != nil && s.Status.State == v1alpha1.SnapshotReady })
	})
	t.Run("goes, and harms no volume that was made from it", func(t *testing.T) {
		must(t, w.volumes.DeleteSnapshot(ctx, s.Handle), w.volumes.DeleteSnapshot(ctx, s.Handle), w.volumes.DeleteSnapshot(ctx, "nonsense"))
		if _, err := os.Stat(w.Disks[0].Layout().Snapshot("before")); !os.IsNotExist(err) {
			t.Errorf("its file: %v", err)
		}
		_, err := w.volumes.GetSnapshot(ctx, s.Handle)
		wantKind(t, err, backingimage.NotFound)
		w.begins(t, "later", 1, 8<<20)
	})
}

func (w *world) untilSnapshot(t *testing.T, name, what string, is func(*v1alpha1.Snapshot) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), nodetest.Wait)
	defer cancel()
	var last *v1alpha1.Snapshot
	if err := w.Store.Snapshots.Wait(ctx, name, func(s *v1alpha1.Snapshot) (bool, error) { last = s; return is(s), nil }); err != nil {
		t.Fatalf("snapshot %s is not %s: %v; it is %+v", name, what, err, last)
	}
}

// takesRoom takes a snapshot and deletes it, and looks at the room that is left for volumes.
func takesRoom(t *testing.T, w *world, volume string) {
	ctx, before := context.Background(), int64(0)
	left := func(what string, want func() int64) {
		t.Helper()
		w.eventually(t, what, func() (string, bool) {
			available, _, err := w.volumes.Capacity(ctx, nil, "")
			must(t, err)
			return fmt.Sprintf("%d bytes are left, %d were at first", available, before), available == want()
		})
	}
	earlier, err := w.Store.Snapshots.LiveList(ctx)
	must(t, err)
	for _, e := range earlier {
		w.untilSnapshot(t, e.Name, "counted", func(s *v1alpha1.Snapshot) bool { return s != nil && s.Status.RealBytes == e.Status.RealBytes })
	}
	before, _, err = w.volumes.Capacity(ctx, nil, "")
	must(t, err)
	s := w.snapshot(t, provisioner.SnapshotRequest{Name: "roomy", Volume: volume})
	left("with the snapshot", func() int64 {
		is, err := w.Store.Snapshots.Live(ctx, "roomy")
		must(t, err)
		if is.Status.RealBytes < 1<<20 {
			t.Fatalf("it takes %d bytes", is.Status.RealBytes)
		}
		return before - is.Status.RealBytes
	})
	must(t, w.volumes.DeleteSnapshot(ctx, s.Handle))
	left("without it", func() int64 { return before })
}

// What a crash, or a lost disk, leaves.
func TestSnapshotsAndTheirFiles(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	w.create(t, provisioner.CreateRequest{Name: "v", RequiredBytes: 8 << 20})
	s := w.snapshot(t, provisioner.SnapshotRequest{Name: "s", Volume: "v"})
	t.Run("one whose file is gone fails, and is not taken anew", func(t *testing.T) {
		w.Stop()
		dir := w.Disks[0].Layout().Snapshot("s")
		must(t, os.Rename(dir, dir+"-away"))
		w.Start()
		w.untilSnapshot(t, "s", "failed", func(s *v1alpha1.Snapshot) bool {
			return s != nil && s.Status.State == v1alpha1.SnapshotFailed && strings.Contains(s.Status.Conditions[0].Message, "its file is gone")
		})
		got, err := w.volumes.GetSnapshot(ctx, s.Handle)
		if err != nil || got.Ready {
			t.Errorf("got %+v, %v", got, err)
		}
		w.refused(t, provisioner.CreateRequest{Name: "w", SourceHandle: s.Handle}, backingimage.Precondition, "its file is gone")
		must(t, w.volumes.DeleteSnapshot(ctx, s.Handle))
	})
	t.Run("files without an object are reported, and stay", func(t *testing.T) {
		left := w.Disks[0].Layout().Snapshot("s-away")
		w.untilDisk(t, func(d *v1alpha1.Disk) bool {
			return len(d.Status.Orphans) == 1 && d.Status.Orphans[0].Kind == v1alpha1.OrphanSnapshot && d.Status.Orphans[0].Path == left
		})
		if _, err := os.Stat(filepath.Join(left, disk.SnapshotFile)); err != nil {
			t.Error(err)
		}
	})
	t.Run("one that a killed call left failed is made anew", func(t *testing.T) {
		_, err := w.Store.Snapshots.Create(ctx, &v1alpha1.Snapshot{
			ObjectMeta: metav1.ObjectMeta{Name: "again", Finalizers: []string{v1alpha1.SnapshotFinalizer}},
			Spec:       v1alpha1.SnapshotSpec{Name: "again", Volume: "not-there", Type: v1alpha1.SnapshotSnap, DiskUUID: w.Disks[0].UUID(), NodeName: nodetest.NodeName},
		})
		must(t, err)
		w.untilSnapshot(t, "again", "failed", func(s *v1alpha1.Snapshot) bool { return s != nil && s.Status.State == v1alpha1.SnapshotFailed })
		if s := w.snapshot(t, provisioner.SnapshotRequest{Name: "again", Volume: "v"}); !s.Ready || s.Volume != "v" {
			t.Errorf("got %+v", s)
		}
	})
}

func (w *world) untilDisk(t *testing.T, is func(*v1alpha1.Disk) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), nodetest.Wait)
	defer cancel()
	var last *v1alpha1.Disk
	if err := w.Store.Disks.Wait(ctx, w.Disks[0].UUID(), func(d *v1alpha1.Disk) (bool, error) { last = d; return d != nil && is(d), nil }); err != nil {
		t.Fatalf("%v; the disk is %+v", err, last)
	}
}

func TestSnapshotsThatAreImages(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	v := w.create(t, provisioner.CreateRequest{Name: "vm", RequiredBytes: 8 << 20})
	w.write(t, v.Name, 1)
	request := provisioner.SnapshotRequest{Name: "golden", Volume: v.Name, Parameters: map[string]string{"type": "bi", "exportType": "qcow2"}}
	s := w.snapshot(t, request)
	w.write(t, v.Name, 2)
	if want := "bi://backing?backingImage=golden&backingImageDataSourceType=export-from-volume&export-type=qcow2&volume-name=vm"; s.Handle != want || s.Volume != "vm" {
		t.Errorf("got %+v", s)
	}
	w.UntilState("golden", v1alpha1.CopyReady)
	s, err := w.volumes.GetSnapshot(ctx, s.Handle)
	if must(t, err); !s.Ready || s.Bytes != 8<<20 {
		t.Errorf("got %+v", s)
	}
	t.Run("again is the same, and with another format a Conflict", func(t *testing.T) {
		if again := w.snapshot(t, request); again.Handle != s.Handle {
			t.Errorf("got %+v", again)
		}
		_, err := w.volumes.CreateSnapshot(ctx, provisioner.SnapshotRequest{Name: "golden", Volume: v.Name, Parameters: map[string]string{"type": "bi"}})
		wantKind(t, err, backingimage.Conflict, `exportType is "qcow2", not "raw"`)
	})
	t.Run("becomes a volume, and is not deleted under it", func(t *testing.T) {
		made := w.create(t, provisioner.CreateRequest{Name: "made", SourceHandle: s.Handle, Parameters: map[string]string{"backingImage": "another"}})
		w.begins(t, "made", 1, 8<<20)
		if made.Spec.Image.Name != "golden" || made.Spec.SourceHandle != s.Handle {
			t.Errorf("spec is %+v", made.Spec)
		}
		wantKind(t, w.volumes.DeleteSnapshot(ctx, s.Handle), backingimage.InUse, "volume made")
		must(t, w.node.Detach(ctx, "made"))
		must(t, w.volumes.Delete(ctx, "made"))
	})
	t.Run("is not another image of that name", func(t *testing.T) {
		other := strings.Replace(s.Handle, "volume-name=vm", "volume-name=other", 1)
		_, err := w.volumes.GetSnapshot(ctx, other)
		wantKind(t, err, backingimage.NotFound, "volume-name")
		w.refused(t, provisioner.CreateRequest{Name: "x", SourceHandle: other}, backingimage.Invalid, "volume-name")
		must(t, w.volumes.DeleteSnapshot(ctx, other))
		w.UntilState("golden", v1alpha1.CopyReady)
	})
	t.Run("goes when nothing uses it", func(t *testing.T) {
		must(t, w.volumes.DeleteSnapshot(ctx, s.Handle))
		w.UntilGone("golden")
	})
	t.Run("written by hand, its image is downloaded when a volume needs it", func(t *testing.T) {
		web := nodetest.NewWeb(t, 4<<20)
		h := provisioner.Handle{Type: provisioner.TypeImage, Image: map[string]string{
			"backingImage": "fetched", "backingImageDataSourceType": "download", "backingImageChecksum": web.SHA512(),
			"backingImageDataSourceParameters": `{"url": "` + web.URL + `"}`,
		}}.String()
		s, err := w.volumes.GetSnapshot(ctx, h)
		if must(t, err); !s.Ready {
			t.Errorf("got %+v", s)
		}
		w.create(t, provisioner.CreateRequest{Name: "f", SourceHandle: h})
		content, err := os.ReadFile(w.attach(t, "f").Device)
		if must(t, err); !bytes.Equal(content, web.Content) {
			t.Errorf("got %d other bytes", len(content))
		}
		_, err = w.volumes.GetSnapshot(ctx, "bi://backing?backingImage=none")
		wantKind(t, err, backingimage.NotFound)
	})
}
