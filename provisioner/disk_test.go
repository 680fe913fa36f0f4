package provisioner_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/disk/disktest"
	"plinth.dev/plinth/backingimage/disk/loop"
	"plinth.dev/plinth/backingimage/node/nodetest"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/backingimage/store/embedded/embeddedtest"
	"plinth.dev/plinth/provisioner"
	"plinth.dev/plinth/provisioner/engine"
	"plinth.dev/plinth/provisioner/engine/reflink"
)

// newWorldIn is newWorld with the disk in a directory, which the agent opens itself.
func newWorldIn(t *testing.T, dir string) *world {
	t.Helper()
	w := &world{Machine: nodetest.New(t, embeddedtest.MustStart(t), nodetest.NodeName)}
	w.Paths = []string{dir}
	w.More = func(s *store.Store) []nodetest.Part {
		engines := provisioner.NewEngines(w.Set, func(d *disk.Disk) engine.Engine {
			return reflink.New(d.Layout(), reflink.Options{Capacity: d.Capacity})
		})
		w.volumes = provisioner.Idempotent{Controller: provisioner.New(s, provisioner.Options{AgentWait: 2 * time.Second})}
		w.node = provisioner.NewAttacher(nodetest.NodeName, s, engines, clock.RealClock{}, nil)
		return []nodetest.Part{provisioner.NewVolumeLoop(s, engines, provisioner.VolumeSources{})}
	}
	w.Start()
	return w
}

// untilVolume waits for a volume to be as wanted; is sees nil while there is none.
func (w *world) untilVolume(t *testing.T, id, what string, is func(*v1alpha1.Volume) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), nodetest.Wait)
	defer cancel()
	var last *v1alpha1.Volume
	if err := w.Store.Volumes.Wait(ctx, id, func(v *v1alpha1.Volume) (bool, error) { last = v; return is(v), nil }); err != nil {
		t.Fatalf("volume %s is not %s: %v; it is %+v", id, what, err, last)
	}
}

func (w *world) untilReady(t *testing.T, id string) {
	t.Helper()
	w.untilVolume(t, id, "ready", func(v *v1alpha1.Volume) bool {
		return v != nil && v.Status.State == v1alpha1.VolumeReady && v.Status.Message == ""
	})
}

func TestVolumesOfADiskInTrouble(t *testing.T) {
	disktest.NeedRoot(t)
	ctx := context.Background()
	mount := disktest.MustFilesystem(t, "xfs", 512<<20)
	dir := filepath.Join(mount, "disk")
	w := newWorldIn(t, dir)
	w.create(t, provisioner.CreateRequest{Name: "kept", RequiredBytes: 1 << 20})
	w.untilReady(t, "kept")
	w.create(t, provisioner.CreateRequest{Name: "doomed", RequiredBytes: 1 << 20})
	w.untilReady(t, "doomed")
	identity := filepath.Join(dir, disk.IdentityFile)
	good, err := os.ReadFile(identity)
	must(t, err)

	t.Run("without an identity nothing is made or removed, what is there is attached, and all goes on when it is back", func(t *testing.T) {
		must(t, os.Remove(identity))
		if err := w.volumes.Delete(ctx, "doomed"); !backingimage.Is(err, backingimage.NotReady) || !strings.Contains(err.Error(), identity) {
			t.Errorf("delete: %v", err)
		}
		if _, err := os.Stat(disk.Layout(dir).Volume("doomed")); err != nil {
			t.Errorf("the volume's file was touched: %v", err)
		}
		a, err := w.node.Attach(ctx, "kept")
		must(t, err)
		must(t, os.WriteFile(a.Device, []byte("content"), 0o600))
		must(t, w.node.Detach(ctx, "kept"))
		must(t, os.WriteFile(identity, good, 0o600))
		w.untilVolume(t, "doomed", "gone", func(v *v1alpha1.Volume) bool { return v == nil })
		w.untilReady(t, "kept")
	})

	t.Run("unmounted under an attached volume, the volume works on, and is the same when the disk is back", func(t *testing.T) {
		a := w.attach(t, "kept")
		kept, found, err := loop.Find(filepath.Join(w.Set.List()[0].Layout().Volume("kept"), disk.VolumeFile))
		if err != nil || !found {
			t.Fatalf("the volume's device is not found: %v", err)
		}
		t.Cleanup(func() { _ = kept.Detach(context.Background()) }) // nobody else can, when the test ends while the disk is away
		device, _, err := loop.Find(mount + ".img")
		must(t, err)
		must(t, unix.Unmount(mount, unix.MNT_DETACH))
		deadline := time.Now().Add(nodetest.Wait)
		for len(w.Set.List()) > 0 && time.Now().Before(deadline) {
			time.Sleep(20 * time.Millisecond)
		}
		got := make([]byte, 7)
		f, err := os.Open(a.Device)
		must(t, err)
		defer f.Close()
		if _, err := f.Read(got); err != nil || !bytes.Equal(got, []byte("content")) {
			t.Errorf("the device has %q (%v)", got, err)
		}
		must(t, f.Close())
		w.untilVolume(t, "kept", "known", func(v *v1alpha1.Volume) bool { return v != nil && v.Status.State == v1alpha1.VolumeReady })
		if _, err := w.node.Attach(ctx, "kept"); !backingimage.Is(err, backingimage.NotReady) || !strings.Contains(err.Error(), "not there") {
			t.Errorf("attach: %v", err)
		}
		must(t, unix.Mount(device.Path, mount, "xfs", unix.MS_NOATIME, ""))
		for len(w.Set.List()) == 0 && time.Now().Before(deadline) {
			time.Sleep(20 * time.Millisecond)
		}
		if again := w.attach(t, "kept"); again.Device != a.Device {
			t.Errorf("it is %s, it was %s", again.Device, a.Device)
		}
		w.untilReady(t, "kept")
	})
}

func must(tb testing.TB, errs ...error) {
	tb.Helper()
	if err := errors.Join(errs...); err != nil {
		tb.Fatal(err)
	}
}
