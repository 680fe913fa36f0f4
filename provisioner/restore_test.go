package provisioner_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/node/nodetest"
	"plinth.dev/plinth/provisioner"
)

// forget removes a volume and its image, so that both have to come back.
func (w *world) forget(t *testing.T, volume, image string) {
	t.Helper()
	ctx := context.Background()
	_ = w.node.Detach(ctx, volume) // it may never have been ready
	must(t, w.volumes.Delete(ctx, volume))
	must(t, w.Store.Images.Delete(ctx, image))
	w.eventually(t, "image "+image, func() (string, bool) {
		i, err := w.Store.Images.Live(ctx, image)
		if err == nil {
			return i.Status.Message, false
		}
		return err.Error(), backingimage.Is(err, backingimage.NotFound)
	})
}

// imageFails waits until an image has failed for good and returns why.
func (w *world) imageFails(t *testing.T, image string) (why string) {
	t.Helper()
	w.eventually(t, "image "+image, func() (string, bool) {
		i, err := w.Store.Images.Live(context.Background(), image)
		must(t, err)
		why = i.Status.Message
		return why, i.Status.State == v1alpha1.CopyFailed && meta.IsStatusConditionFalse(i.Status.Conditions, v1alpha1.ConditionReady)
	})
	return why
}

func TestAnImageComesBackFromItsBackupOrFromItsSource(t *testing.T) {
	ctx, place := context.Background(), t.TempDir()
	url := "file://" + place
	web := nodetest.NewWeb(t, 12<<20)
	original := bytes.Clone(web.Content)
	w := newWorld(t)
	w.target(t, "nas", url, "", metav1.ConditionTrue)
	w.create(t, provisioner.CreateRequest{Name: "db", RequiredBytes: 16 << 20, Parameters: download("golden", web.URL, web.SHA512())})
	w.write(t, "db", 7)
	w.backedUp(t, "b", "db")
	want, err := os.ReadFile(w.attach(t, "db").Device)
	must(t, err)

	fresh := newWorld(t)
	fresh.target(t, "there", url, "", metav1.ConditionTrue)
	restore := func(t *testing.T, name, from string) {
		t.Helper()
		fresh.create(t, provisioner.CreateRequest{Name: name, Parameters: map[string]string{"fromBackup": url + "?backup=b", "restoreImageFrom": from}})
	}
	served := web.Served.Load()
	t.Run("from the backup, without asking the source, and with its holes", func(t *testing.T) {
		restore(t, "db", "")
		fresh.holds(t, "db", want)
		image, err := fresh.Store.Images.Live(ctx, "golden")
		must(t, err)
		if web.Served.Load() != served || image.Status.RealSize > 7<<20 {
			t.Errorf("the source gave %d bytes, the image takes %d bytes", web.Served.Load()-served, image.Status.RealSize)
		}
		fresh.backedUp(t, "again", "db")
		fresh.forget(t, "db", "golden")
	})
	t.Run("from its source, which a backup of the restored volume knows too", func(t *testing.T) {
		fresh.create(t, provisioner.CreateRequest{Name: "db", Parameters: map[string]string{"fromBackup": url + "?backup=again", "restoreImageFrom": "source"}})
		fresh.holds(t, "db", want)
		if web.Served.Load() == served {
			t.Error("the source was not asked")
		}
		fresh.forget(t, "db", "golden")
		served = web.Served.Load()
	})
	t.Run("from its source, when the class says so", func(t *testing.T) {
		restore(t, "db", "source")
		fresh.holds(t, "db", want)
		if web.Served.Load() == served {
			t.Error("the source was not asked")
		}
		fresh.forget(t, "db", "golden")
	})
	second := manifest.Sum(original[manifest.ChunkBytes : 2*manifest.ChunkBytes])
	block := mustMatch(t, filepath.Join(place, "blocks", "*", fmt.Sprintf("%x", second)))
	content, err := os.ReadFile(block)
	must(t, err)
	must(t, os.Remove(block))
	t.Run("from its source, when the backup lacks a block of it", func(t *testing.T) {
		served = web.Served.Load()
		restore(t, "db", "")
		fresh.holds(t, "db", want)
		if web.Served.Load() == served {
			t.Error("the source was not asked")
		}
		fresh.forget(t, "db", "golden")
	})
	web.Content[0]++
	t.Run("not at all, when the backup lacks a block and the source has become another", func(t *testing.T) {
		restore(t, "db", "backup")
		if why := fresh.imageFails(t, "golden"); !strings.Contains(why, filepath.Base(block)) || !strings.Contains(why, "checksum") {
			t.Errorf("it says %s", why)
		}
		fresh.refused(t, provisioner.CreateRequest{Name: "again", Parameters: map[string]string{"fromBackup": url + "?backup=b"}}, backingimage.Precondition, "golden", "missing")
		fresh.forget(t, "db", "golden")
	})
	must(t, os.WriteFile(block, content, 0o600))
	t.Run("not from a source that has become another", func(t *testing.T) {
		restore(t, "db", "source")
		if why := fresh.imageFails(t, "golden"); !strings.Contains(why, "checksum") {
			t.Errorf("it says %s", why)
		}
		fresh.forget(t, "db", "golden")
	})
	t.Run("from a source that nobody knows is refused", func(t *testing.T) {
		_, err := w.Store.Images.Create(ctx, &v1alpha1.BackingImage{ObjectMeta: metav1.ObjectMeta{Name: "clone"}, Spec: v1alpha1.BackingImageSpec{
			SourceType: v1alpha1.SourceClone, MinNumberOfCopies: 1, SourceParameters: map[string]v1alpha1.SourceParameter{v1alpha1.ParameterBackingImage: "golden"},
		}})
		must(t, err)
		w.create(t, provisioner.CreateRequest{Name: "of-clone", Parameters: map[string]string{"backingImage": "clone"}})
		w.attach(t, "of-clone")
		w.backedUp(t, "c", "of-clone")
		fresh.refused(t, provisioner.CreateRequest{Name: "c", Parameters: map[string]string{"fromBackup": url + "?backup=c", "restoreImageFrom": "source"}}, backingimage.Precondition, "clone", "restore it from the backup")
	})
}
