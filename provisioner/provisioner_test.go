package provisioner_test

import (
	"bytes"
	"context"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/disk/disktest"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/node"
	"plinth.dev/plinth/backingimage/node/nodetest"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/provisioner"
	"plinth.dev/plinth/provisioner/backup/object"
	"plinth.dev/plinth/provisioner/engine"
	"plinth.dev/plinth/provisioner/engine/reflink"
)

// world is a machine with a provisioner: the real API, agent, engine and pool.
type world struct {
	*nodetest.Machine
	volumes provisioner.Controller
	node    provisioner.Node
	engine  engine.Engine
	secrets credential.Store
	claims  claims
}

func newWorld(t *testing.T) *world { return newWorldOn(t, 1) }

// newWorldOn is newWorld with several disks; the engine is the first one's.
func newWorldOn(t *testing.T, disks int) *world {
	t.Helper()
	disktest.NeedRoot(t)
	w := &world{claims: claims{}}
	byDisk := map[string]engine.Engine{}
	var pools []*disk.Disk
	for range disks {
		d := disktest.MustPool(t, nodetest.PoolBytes)
		pools = append(pools, d)
		byDisk[d.UUID()] = reflink.New(d.Layout(), reflink.Options{Capacity: d.Capacity})
	}
	w.engine = byDisk[pools[0].UUID()]
	secrets, err := credential.OpenDirectory(filepath.Join(t.TempDir(), "secrets"))
	if err != nil {
		t.Fatal(err)
	}
	w.secrets = secrets
	w.Machine = nodetest.MustStart(t, pools...)
	w.Stop()
	w.Credentials = secrets
	enginesOf := func(open *disk.Set) *provisioner.Engines {
		return provisioner.NewEngines(open, func(d *disk.Disk) engine.Engine { return byDisk[d.UUID()] })
	}
	w.Exporter = func(open *disk.Set) node.Exporter { return enginesOf(open) }
	var repositories *provisioner.Repositories
	w.Tune = func(o *node.Options) {
		o.Restorer = func(ctx context.Context, parameters map[string]string) (fetch.ImageBackup, error) {
			return repositories.Image(ctx, parameters)
		}
	}
	w.More = func(s *store.Store) []nodetest.Part {
		engines := enginesOf(w.Set)
		repositories = provisioner.NewRepositories(s, object.Openers{}, source.Options{}, secrets)
		w.volumes = provisioner.Idempotent{Controller: provisioner.New(s, provisioner.Options{SizeWait: 5 * time.Second, Credentials: secrets, Claims: w.claims, Repositories: repositories})}
		w.node = provisioner.NewAttacher(nodetest.NodeName, s, engines, clock.RealClock{}, nil)
		return []nodetest.Part{
			provisioner.NewVolumeLoop(s, engines, provisioner.VolumeSources{Offers: provisioner.NewOffers(nodetest.NodeName, engines, clock.RealClock{}), Repositories: repositories}), provisioner.NewSnapshotLoop(s, engines), provisioner.NewPoints(s),
			provisioner.NewBackupLoop(nodetest.NodeName, s, engines, repositories, clock.RealClock{}), provisioner.NewBackupController(s, repositories),
			provisioner.NewBackupTargets(s, repositories, clock.RealClock{}), provisioner.NewBackupPolicies(s, clock.RealClock{}),
		}
	}
	w.Start()
	return w
}

func (w *world) create(t *testing.T, r provisioner.CreateRequest) *v1alpha1.Volume {
	t.Helper()
	v, err := w.volumes.Create(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// attach attaches a volume, which waits until it is ready, and detaches it when the test ends.
func (w *world) attach(t *testing.T, id string) provisioner.Attached {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), nodetest.Wait)
	defer cancel()
	a, err := w.node.Attach(ctx, id)
	if err == nil {
		err = a.Recorded()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.node.Detach(context.Background(), id); err != nil {
			t.Error(err)
		}
	})
	return a
}

func (w *world) refused(t *testing.T, r provisioner.CreateRequest, kind backingimage.Kind, says ...string) {
	t.Helper()
	_, err := w.volumes.Create(context.Background(), r)
	if !backingimage.Is(err, kind) {
		t.Fatalf("got %v, want %v", err, kind)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("message %q does not say %q", err, s)
		}
	}
}

func download(image, url, checksum string) map[string]string {
	return map[string]string{
		"backingImage": image, "backingImageDataSourceType": "download",
		"backingImageDataSourceParameters": `{"url": "` + url + `"}`, "backingImageChecksum": checksum,
	}
}

func TestProvisioner(t *testing.T) {
	w := newWorld(t)
	web := nodetest.NewWeb(t, 4<<20)
	class := download("golden", web.URL, web.SHA512())

	t.Run("a class makes its image on demand, and the volume starts with its bytes", func(t *testing.T) {
		v := w.create(t, provisioner.CreateRequest{Name: "pvc-1", RequiredBytes: 8 << 20, Parameters: class})
		if v.Spec.CapacityBytes != 8<<20 || v.Spec.Image.Name != "golden" || v.Spec.NodeName != nodetest.NodeName {
			t.Errorf("spec is %+v", v.Spec)
		}
		content, err := os.ReadFile(w.attach(t, "pvc-1").Device)
		if err != nil || !bytes.Equal(content, append(bytes.Clone(web.Content), make([]byte, 4<<20)...)) {
			t.Errorf("the device has %d bytes that are not the image's and then zeros (%v)", len(content), err)
		}
	})

	t.Run("no size asked for is the image's", func(t *testing.T) {
		if v := w.create(t, provisioner.CreateRequest{Name: "pvc-size", Parameters: class}); v.Spec.CapacityBytes != 4<<20 {
			t.Errorf("got %d bytes", v.Spec.CapacityBytes)
		}
	})

	t.Run("less than the image is out of range, with both figures", func(t *testing.T) {
		w.refused(t, provisioner.CreateRequest{Name: "pvc-small", RequiredBytes: 1 << 20, Parameters: class}, backingimage.OutOfRange, "1 MiB (1048576 bytes)", "golden has 4 MiB (4194304 bytes)")
	})

	t.Run("a limit below the image is out of range", func(t *testing.T) {
		w.refused(t, provisioner.CreateRequest{Name: "pvc-limit", LimitBytes: 1 << 20, Parameters: class}, backingimage.OutOfRange, "the limit is 1 MiB")
	})

	t.Run("an image that differs from the class is refused, each difference named", func(t *testing.T) {
		other := download("golden", web.URL+"/other", strings.Repeat("a", 128))
		w.refused(t, provisioner.CreateRequest{Name: "pvc-other", Parameters: other}, backingimage.Invalid, "backingImageDataSourceParameters.url", "/other", "backingImageChecksum", "aaaa")
	})

	t.Run("an image that does not exist and has no source is not found, by name", func(t *testing.T) {
		w.refused(t, provisioner.CreateRequest{Name: "pvc-none", Parameters: map[string]string{"backingImage": "nowhere"}}, backingimage.NotFound, `"nowhere"`, "backingImageDataSourceType")
	})

	t.Run("a failed image is refused at once, with the cause", func(t *testing.T) {
		bad := download("bad", web.URL, strings.Repeat("b", 128))
		_, _ = w.volumes.Create(context.Background(), provisioner.CreateRequest{Name: "pvc-bad-first", Parameters: bad})
		w.UntilState("bad", v1alpha1.CopyFailed)
		w.refused(t, provisioner.CreateRequest{Name: "pvc-bad", Parameters: bad}, backingimage.Precondition, "bad failed", "bbbb")
	})

	t.Run("what no disk can hold is full, with the figures of each disk", func(t *testing.T) {
		for bytes, says := range map[int64]string{1 << 40: "1 TiB", math.MaxInt64: "8 EiB", math.MaxInt64 - 5807: "8 EiB"} {
			w.refused(t, provisioner.CreateRequest{Name: "pvc-huge", RequiredBytes: bytes}, backingimage.Full, says, "200 %")
		}
	})

	t.Run("a node that is not here is full, and named", func(t *testing.T) {
		w.refused(t, provisioner.CreateRequest{Name: "pvc-far", Nodes: []string{"n9"}}, backingimage.Full, "n9")
	})

	t.Run("a tag that no disk has is full, and named", func(t *testing.T) {
		w.refused(t, provisioner.CreateRequest{Name: "pvc-tag", Parameters: map[string]string{"diskSelector": "nvme"}}, backingimage.Full, `["nvme"]`)
	})

	t.Run("the same request again returns the same volume", func(t *testing.T) {
		r := provisioner.CreateRequest{Name: "pvc-again", RequiredBytes: 8 << 20, Parameters: class}
		if a, b := w.create(t, r), w.create(t, r); a.UID != b.UID {
			t.Errorf("got volumes %s and %s", a.UID, b.UID)
		}
	})

	t.Run("another request of that name is a conflict, each difference named", func(t *testing.T) {
		w.refused(t, provisioner.CreateRequest{Name: "pvc-again", RequiredBytes: 16 << 20, Parameters: map[string]string{"backingImage": "other", "mkfsParams": "-x"}},
			backingimage.Conflict, "16 MiB", `backingImage was "golden", not "other"`, "backingImageChecksum", "mkfsParams")
	})

	t.Run("an image that is deleted is made again on demand", func(t *testing.T) {
		class := download("again", web.URL, "")
		w.create(t, provisioner.CreateRequest{Name: "pvc-a1", Parameters: class})
		w.attach(t, "pvc-a1")
		if err := w.Store.Images.Delete(context.Background(), "again"); err != nil {
			t.Fatal(err)
		}
		w.UntilGone("again")
		w.create(t, provisioner.CreateRequest{Name: "pvc-a2", Parameters: class})
		w.attach(t, "pvc-a2")
	})

	t.Run("two classes that make one image at once agree or are told", func(t *testing.T) {
		var wg sync.WaitGroup
		errs := make([]error, 8)
		for i := range errs {
			wg.Go(func() {
				_, errs[i] = w.volumes.Create(context.Background(), provisioner.CreateRequest{Name: "pvc-race-" + string(rune('a'+i)), Parameters: download("race", web.URL, "")})
			})
		}
		wg.Wait()
		for _, err := range errs {
			if err != nil {
				t.Error(err)
			}
		}
	})
}

func TestVolumeLife(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()

	t.Run("an empty volume is attached, grown online and deleted", func(t *testing.T) {
		w.create(t, provisioner.CreateRequest{Name: "empty", RequiredBytes: 8 << 20})
		a := w.attach(t, "empty")
		if again := w.attach(t, "empty"); again.Device != a.Device {
			t.Errorf("a second attach gives %s, the first gave %s", again.Device, a.Device)
		}
		if err := w.volumes.Delete(ctx, "empty"); !backingimage.Is(err, backingimage.InUse) || !strings.Contains(err.Error(), a.Device) {
			t.Errorf("deleting an attached volume: %v", err)
		}
		if bytes, err := w.volumes.Expand(ctx, "empty", 16<<20, 0); err != nil || bytes != 16<<20 {
			t.Errorf("expanded to %d: %v", bytes, err)
		}
		if bytes, err := w.volumes.Expand(ctx, "empty", math.MaxInt64, 0); !backingimage.Is(err, backingimage.Full) {
			t.Errorf("expanded beyond all that can be counted, to %d: %v", bytes, err)
		}
		if content, err := os.ReadFile(a.Device); err != nil || len(content) != 16<<20 {
			t.Errorf("the device has %d bytes (%v)", len(content), err)
		}
		if err := w.node.Detach(ctx, "empty"); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := w.volumes.Delete(ctx, "empty"); err != nil {
				t.Error(err)
			}
		}
	})

	t.Run("a clone has the source's bytes and outlives it", func(t *testing.T) {
		w.create(t, provisioner.CreateRequest{Name: "src", RequiredBytes: 8 << 20})
		device := w.attach(t, "src").Device
		data := bytes.Repeat([]byte("plinth!\n"), 1<<17)
		if err := os.WriteFile(device, data, 0); err != nil {
			t.Fatal(err)
		}
		w.create(t, provisioner.CreateRequest{Name: "copy", RequiredBytes: 16 << 20, SourceVolume: "src"})
		if err := w.node.Detach(ctx, "src"); err != nil {
			t.Fatal(err)
		}
		if err := w.volumes.Delete(ctx, "src"); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(w.attach(t, "copy").Device)
		if err != nil || len(content) != 16<<20 || !bytes.HasPrefix(content, data) {
			t.Errorf("the clone has %d bytes, or other ones (%v)", len(content), err)
		}
		w.refused(t, provisioner.CreateRequest{Name: "less", RequiredBytes: 1 << 20, SourceVolume: "copy"}, backingimage.OutOfRange, "volume copy has 16 MiB")
	})

	t.Run("the gate's time ends with the progress, and a deleted image with its reason", func(t *testing.T) {
		web := nodetest.NewWeb(t, 8<<20)
		web.Hold = make(chan struct{})
		defer close(web.Hold)
		w.create(t, provisioner.CreateRequest{Name: "gated", Parameters: download("slow", web.URL, "")})
		w.UntilState("slow", v1alpha1.CopyInProgress)
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := w.node.Attach(short, "gated")
		if !backingimage.Is(err, backingimage.NotReady) || !strings.Contains(err.Error(), "backing image slow: fetching on n1") || !strings.Contains(err.Error(), "of 8 MiB") {
			t.Errorf("got %v", err)
		}
		if err := w.volumes.Delete(ctx, "gated"); err != nil { // while the image is still coming
			t.Error(err)
		}
	})

	t.Run("a volume whose file is gone fails and is not made anew", func(t *testing.T) {
		w.create(t, provisioner.CreateRequest{Name: "lost", RequiredBytes: 8 << 20})
		w.attach(t, "lost")
		if err := w.node.Detach(ctx, "lost"); err != nil {
			t.Fatal(err)
		}
		if err := w.engine.Delete(ctx, "lost"); err != nil {
			t.Fatal(err)
		}
		w.Stop()
		w.Start()
		var last *v1alpha1.Volume
		ctx, cancel := context.WithTimeout(ctx, nodetest.Wait)
		defer cancel()
		if err := w.Store.Volumes.Wait(ctx, "lost", func(v *v1alpha1.Volume) (bool, error) {
			last = v
			return v.Status.State == v1alpha1.VolumeFailed, nil
		}); err != nil || !strings.Contains(last.Status.Message, "its file is gone") {
			t.Errorf("%v; status is %+v", err, last.Status)
		}
		if abnormal, message := w.node.Condition(ctx, "lost"); !abnormal || !strings.Contains(message, "gone") {
			t.Errorf("condition: %t, %s", abnormal, message)
		}
	})

	t.Run("a file without an object is reported and kept", func(t *testing.T) {
		if err := w.engine.Create(ctx, engine.Volume{ID: "orphan", Bytes: 1 << 20, Name: "orphan"}); err != nil {
			t.Fatal(err)
		}
		w.Stop()
		w.Start()
		ctx, cancel := context.WithTimeout(ctx, nodetest.Wait)
		defer cancel()
		err := w.Store.Disks.Wait(ctx, w.Disks[0].UUID(), func(d *v1alpha1.Disk) (bool, error) {
			return len(d.Status.Orphans) == 1 && d.Status.Orphans[0].Name == "orphan", nil
		})
		if err != nil {
			t.Error(err)
		}
		if _, err := w.engine.Stat(ctx, "orphan"); err != nil {
			t.Error(err)
		}
	})
}
