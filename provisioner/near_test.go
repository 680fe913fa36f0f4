package provisioner_test

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/node/nodetest"
	"plinth.dev/plinth/provisioner"
)

// image creates an image; parameters are keys and values, and change may be nil.
func (w *world) image(t *testing.T, name string, from v1alpha1.SourceType, change func(*v1alpha1.BackingImageSpec), parameters ...string) *v1alpha1.BackingImage {
	t.Helper()
	spec := v1alpha1.BackingImageSpec{SourceType: from, MinNumberOfCopies: 1, SourceParameters: map[string]v1alpha1.SourceParameter{}}
	for i := 0; i+1 < len(parameters); i += 2 {
		spec.SourceParameters[parameters[i]] = v1alpha1.SourceParameter(parameters[i+1])
	}
	if change != nil {
		change(&spec)
	}
	i, err := w.Store.Images.Create(context.Background(), &v1alpha1.BackingImage{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func checksum(sum string) func(*v1alpha1.BackingImageSpec) {
	return func(s *v1alpha1.BackingImageSpec) { s.Checksum = sum }
}

// failsForGood waits for an image to fail, and checks that it says why and will not be tried again.
func (w *world) failsForGood(t *testing.T, image string, kind backingimage.Kind, says ...string) {
	t.Helper()
	i := w.UntilState(image, v1alpha1.CopyFailed)
	if c := i.Status.Conditions; len(c) == 0 || c[0].Reason != kind.String() {
		t.Errorf("conditions are %+v, want %s", c, kind)
	}
	for _, s := range append(says, "") {
		if !strings.Contains(i.Status.Message, s) || strings.Contains(i.Status.Message, "next try") {
			t.Errorf("message is %q, want %q and no next try", i.Status.Message, s)
		}
	}
	w.UntilNoFiles(i)
}

// waits waits for an image to say that it waits.
func (w *world) waits(t *testing.T, image, what string) {
	t.Helper()
	w.UntilImage(image, "waiting: "+what, func(i *v1alpha1.BackingImage) bool {
		return i != nil && i.Status.State == v1alpha1.CopyPending && strings.Contains(i.Status.Message, what)
	})
}

// content is that of an image's copy, on whatever disk.
func (w *world) content(t *testing.T, i *v1alpha1.BackingImage) []byte {
	t.Helper()
	for d := range w.Disks {
		if content, err := os.ReadFile(w.Path(d, i)); err == nil {
			return content
		}
	}
	t.Fatalf("no disk has a copy of image %s", i.Name)
	return nil
}

func TestExport(t *testing.T) {
	w := newWorldOn(t, 2)
	ctx := context.Background()
	v := w.create(t, provisioner.CreateRequest{Name: "VM disk", RequiredBytes: 8 << 20})
	device := w.attach(t, v.Name).Device
	data := append(bytes.Repeat([]byte("plinth!\n"), 1<<17), make([]byte, 7<<20)...)
	if err := os.WriteFile(device, data[:1<<20], 0); err != nil {
		t.Fatal(err)
	}

	t.Run("a volume's content is the image's, by its ID and by its name, without a pass for a checksum", func(t *testing.T) {
		digests := map[string]bool{}
		for image, volume := range map[string]string{"by-id": v.Name, "by-name": "VM disk"} {
			w.image(t, image, v1alpha1.SourceExport, nil, "volume-name", volume, "export-type", "qcow2")
			i := w.UntilReady(image, "1/1")
			if !bytes.Equal(w.content(t, i), data) || i.Status.Checksum != "" || i.Status.Size != 8<<20 || i.Status.VirtualSize != 8<<20 || i.Status.RealSize > 2<<20 {
				t.Errorf("image %s: status %+v", image, i.Status)
			}
			if i.Status.DiskFileStatusMap[v.Spec.DiskUUID].State != v1alpha1.CopyReady {
				t.Errorf("image %s is not on the volume's disk: %+v", image, i.Status.DiskFileStatusMap)
			}
			digests[i.Status.ContentDigest] = true
		}
		if len(digests) != 1 {
			t.Errorf("one content has several digests: %v", digests)
		}
	})

	t.Run("a volume of the image has the volume's bytes", func(t *testing.T) {
		w.create(t, provisioner.CreateRequest{Name: "round", Parameters: map[string]string{"backingImage": "by-id"}})
		if got, err := os.ReadFile(w.attach(t, "round").Device); err != nil || !bytes.Equal(got, data) {
			t.Errorf("the device has %d bytes, or other ones (%v)", len(got), err)
		}
	})

	t.Run("a class makes one on demand", func(t *testing.T) {
		class := map[string]string{"backingImage": "demanded", "backingImageDataSourceType": "export-from-volume", "backingImageDataSourceParameters": `{"volume-name": "VM disk", "export-type": "raw"}`}
		w.create(t, provisioner.CreateRequest{Name: "demands", Parameters: class})
		class["backingImageDataSourceParameters"] = `{"volume-name": "VM disk"}`
		w.create(t, provisioner.CreateRequest{Name: "demands-too", Parameters: class})
	})

	t.Run("two copies are made, the second from the first", func(t *testing.T) {
		w.image(t, "two", v1alpha1.SourceExport, func(s *v1alpha1.BackingImageSpec) { s.MinNumberOfCopies = 2 }, "volume-name", v.Name)
		w.UntilReady("two", "2/2")
	})

	t.Run("checksums are computed when they are asked for", func(t *testing.T) {
		sum := nodetest.NewWebOf(t, data).SHA512()
		w.image(t, "summed", v1alpha1.SourceExport, checksum(sum), "volume-name", v.Name)
		if i := w.UntilReady("summed", "1/1"); i.Status.Checksum != sum {
			t.Errorf("checksum is %q", i.Status.Checksum)
		}
		w.image(t, "wrong", v1alpha1.SourceExport, checksum(strings.Repeat("0", 64)), "volume-name", v.Name)
		w.failsForGood(t, "wrong", backingimage.Corrupt, strings.Repeat("0", 64))
	})

	t.Run("a volume that is not there fails for good, and is named", func(t *testing.T) {
		w.image(t, "none", v1alpha1.SourceExport, nil, "volume-name", "nowhere")
		w.failsForGood(t, "none", backingimage.NotFound, `"nowhere"`)
		w.create(t, provisioner.CreateRequest{Name: "nowhere", RequiredBytes: 1 << 20})
		if i, _ := w.Store.Images.Get("none"); i.Status.State != v1alpha1.CopyFailed {
			t.Errorf("a volume of that name, made later, was exported")
		}
	})

	t.Run("a volume that is pending is waited for; deleted before it was made, it fails", func(t *testing.T) {
		web := nodetest.NewWeb(t, 8<<20)
		web.Hold = make(chan struct{})
		w.create(t, provisioner.CreateRequest{Name: "late", Parameters: download("slow", web.URL, "")})
		w.create(t, provisioner.CreateRequest{Name: "never", Parameters: download("slow", web.URL, "")})
		w.image(t, "of-late", v1alpha1.SourceExport, nil, "volume-name", "late")
		w.image(t, "of-never", v1alpha1.SourceExport, nil, "volume-name", "never")
		w.waits(t, "of-late", "waits for volume late")
		w.waits(t, "of-never", "waits for volume never")
		if err := w.volumes.Delete(ctx, "never"); err != nil {
			t.Fatal(err)
		}
		w.failsForGood(t, "of-never", backingimage.NotFound, `never`)
		close(web.Hold)
		if i := w.UntilReady("of-late", "1/1"); !bytes.Equal(w.content(t, i), web.Content) {
			t.Error("the export differs")
		}
	})
}

func TestClone(t *testing.T) {
	w := newWorldOn(t, 2)
	ctx := context.Background()
	web := nodetest.NewWeb(t, 8<<20)
	w.CreateImage("golden", web.URL, "", 1)
	golden := w.UntilReady("golden", "1/1")

	t.Run("a clone is what its source is, and reads no byte of it", func(t *testing.T) {
		served := web.Served.Load()
		w.image(t, "clone", v1alpha1.SourceClone, checksum(web.SHA512()), "backing-image", "golden", "encryption", "ignore", "secret", "")
		i := w.UntilReady("clone", "1/1")
		is, of := i.Status, golden.Status
		if is.ContentDigest != of.ContentDigest || is.Checksum != of.Checksum || is.Format != of.Format || is.Size != of.Size || is.VirtualSize != of.VirtualSize {
			t.Errorf("status %+v, its source's %+v", is, of)
		}
		if !strings.Contains(is.ResolvedSource, string(golden.UID)) {
			t.Errorf("resolved to %q", is.ResolvedSource)
		}
		for disk := range of.DiskFileStatusMap {
			if is.DiskFileStatusMap[disk].State != v1alpha1.CopyReady {
				t.Errorf("the clone is on %v, its source on %s", is.DiskFileStatusMap, disk)
			}
		}
		if !bytes.Equal(w.content(t, i), web.Content) || web.Served.Load() != served {
			t.Error("the content differs, or was fetched again")
		}
	})

	t.Run("a clone whose tags ask for another disk is copied there", func(t *testing.T) {
		other := ""
		for _, d := range w.Disks {
			if _, has := golden.Status.DiskFileStatusMap[d.UUID()]; !has {
				other = d.UUID()
			}
		}
		if _, err := w.Store.Disks.Modify(ctx, other, func(d *v1alpha1.Disk) { d.Spec.Tags = []string{"fast"} }); err != nil {
			t.Fatal(err)
		}
		w.image(t, "fast", v1alpha1.SourceClone, func(s *v1alpha1.BackingImageSpec) { s.DiskSelector = []string{"fast"} }, "backing-image", "golden")
		i := w.UntilReady("fast", "1/1")
		if i.Status.DiskFileStatusMap[other].State != v1alpha1.CopyReady || i.Status.ContentDigest != golden.Status.ContentDigest {
			t.Errorf("status is %+v", i.Status)
		}
	})

	t.Run("a class makes one on demand", func(t *testing.T) {
		w.create(t, provisioner.CreateRequest{Name: "demands", Parameters: map[string]string{
			"backingImage": "demanded", "backingImageDataSourceType": "clone", "backingImageDataSourceParameters": `{"backing-image": "golden"}`}})
		if got, err := os.ReadFile(w.attach(t, "demands").Device); err != nil || !bytes.Equal(got, web.Content) {
			t.Errorf("the device has %d bytes, or other ones (%v)", len(got), err)
		}
	})

	t.Run("a source that is not ready is waited for, whichever came first", func(t *testing.T) {
		slow := nodetest.NewWeb(t, 8<<20)
		slow.Hold = make(chan struct{})
		w.CreateImage("slow", slow.URL, "", 1)
		w.image(t, "clone-of-slow", v1alpha1.SourceClone, nil, "backing-image", "slow")
		w.image(t, "clone-of-clone", v1alpha1.SourceClone, nil, "backing-image", "clone-of-slow")
		w.waits(t, "clone-of-slow", "waits for image slow, which is in-progress")
		w.waits(t, "clone-of-clone", "waits for image clone-of-slow, which is pending: waits for image slow")
		close(slow.Hold)
		if i := w.UntilReady("clone-of-clone", "1/1"); !bytes.Equal(w.content(t, i), slow.Content) {
			t.Error("the clone's clone differs")
		}
	})

	t.Run("its source may go once it is made", func(t *testing.T) {
		w.image(t, "passing", v1alpha1.SourceClone, nil, "backing-image", "golden")
		w.UntilReady("passing", "1/1")
		w.image(t, "staying", v1alpha1.SourceClone, nil, "backing-image", "passing")
		i := w.UntilReady("staying", "1/1")
		if err := w.Store.Images.Delete(ctx, "passing"); err != nil {
			t.Fatal(err)
		}
		w.UntilGone("passing")
		if !bytes.Equal(w.content(t, i), web.Content) {
			t.Error("the clone differs")
		}
	})

	missing := nodetest.NewWeb(t, 1)
	missing.Config.Handler = http.NotFoundHandler()
	w.CreateImage("missing", missing.URL, "", 1)
	for name, tc := range map[string]struct {
		of, checksum string
		kind         backingimage.Kind
		says         string
	}{
		"of-none":    {of: "nowhere", kind: backingimage.NotFound, says: "there is no image nowhere"},
		"of-itself":  {of: "of-itself", kind: backingimage.Invalid, says: "itself"},
		"of-failed":  {of: "missing", kind: backingimage.Precondition, says: "404"},
		"with-wrong": {of: "golden", checksum: strings.Repeat("0", 128), kind: backingimage.Corrupt, says: web.SHA512()},
	} {
		t.Run("fails for good: "+name, func(t *testing.T) {
			w.image(t, name, v1alpha1.SourceClone, checksum(tc.checksum), "backing-image", tc.of)
			w.failsForGood(t, name, tc.kind, tc.says)
		})
	}

	t.Run("a source deleted meanwhile is the reason", func(t *testing.T) {
		held := nodetest.NewWeb(t, 8<<20)
		held.Hold = make(chan struct{})
		defer close(held.Hold)
		w.CreateImage("going", held.URL, "", 1)
		w.image(t, "of-going", v1alpha1.SourceClone, nil, "backing-image", "going")
		w.waits(t, "of-going", "waits for image going")
		if err := w.Store.Images.Delete(ctx, "going"); err != nil {
			t.Fatal(err)
		}
		w.UntilState("of-going", v1alpha1.CopyFailed)
	})
}
