package node_test

import (
	"context"
	"os"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk/disktest"
	"plinth.dev/plinth/backingimage/node/nodetest"
	"plinth.dev/plinth/backingimage/store/embedded/embeddedtest"
)

// fetching is a machine whose agent is in the middle of fetching an image as its origin. There is no controller: the test
// decides.
type fetching struct {
	*nodetest.Machine
	web   *nodetest.Web
	image *v1alpha1.BackingImage
}

func mustFetch(t *testing.T, api *nodetest.Machine, name string) *fetching {
	t.Helper()
	w := nodetest.NewWeb(t, 16<<20)
	w.Hold = make(chan struct{})
	f := &fetching{api, w, api.CreateImage(name, w.URL, "", 1)}
	f.copyOn(t, f.Disks[0].UUID(), f.NodeName, true)
	f.until(t, "being fetched", func(c *v1alpha1.BackingImageCopy) bool { return c.Status.State == v1alpha1.CopyInProgress })
	return f
}

// copyOn asks for a copy, as the controller would.
func (f *fetching) copyOn(t *testing.T, disk, node string, origin bool) string {
	t.Helper()
	name := v1alpha1.CopyName(string(f.image.UID), disk)
	_, err := f.Store.Copies.Create(context.Background(), &v1alpha1.BackingImageCopy{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.BackingImageCopySpec{Image: f.image.Name, ImageUID: string(f.image.UID), DiskUUID: disk, NodeName: node, Origin: origin},
	})
	must(t, err)
	return name
}

// until waits for the agent's copy to be as wanted.
func (f *fetching) until(t *testing.T, what string, is func(*v1alpha1.BackingImageCopy) bool) *v1alpha1.BackingImageCopy {
	t.Helper()
	return untilCopy(t, f.Machine, v1alpha1.CopyName(string(f.image.UID), f.Disks[0].UUID()), what, is)
}

func (f *fetching) origin(t *testing.T, is bool) {
	t.Helper()
	_, err := f.Store.Copies.Modify(context.Background(), v1alpha1.CopyName(string(f.image.UID), f.Disks[0].UUID()), func(c *v1alpha1.BackingImageCopy) { c.Spec.Origin = is })
	must(t, err)
}

// mustNotBeThere checks that nothing of the image was published.
func (f *fetching) mustNotBeThere(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(f.Path(0, f.image)); !os.IsNotExist(err) {
		t.Errorf("the copy was published (%v)", err)
	}
}

func TestAnOriginStandsDown(t *testing.T) {
	disktest.NeedRoot(t)
	m := nodetest.New(t, embeddedtest.MustStart(t), nodetest.NodeName)
	m.Disks = append(m.Disks, disktest.MustPool(t, nodetest.PoolBytes))
	m.AgentOnly = true
	m.Start()

	t.Run("its fetch ends when another is named, and goes on when it is named again", func(t *testing.T) {
		f := mustFetch(t, m, "demoted")
		f.origin(t, false)
		f.until(t, "waiting for the first copy", func(c *v1alpha1.BackingImageCopy) bool {
			return c.Status.State == v1alpha1.CopyPending && strings.Contains(c.Status.Message, "first copy")
		})
		close(f.web.Hold)
		f.origin(t, true)
		f.until(t, "ready", func(c *v1alpha1.BackingImageCopy) bool { return c.Status.State == v1alpha1.CopyReady })
		if n := f.web.Served.Load(); n >= 2*16<<20 {
			t.Errorf("the source gave %d bytes of %d: what was there was fetched again", n, 16<<20)
		}
	})
	t.Run("it does not publish when the image has another content by now", func(t *testing.T) {
		f := mustFetch(t, m, "fixed")
		_, err := f.Store.Images.ModifyStatus(context.Background(), "fixed", func(i *v1alpha1.BackingImage) { i.Status.ContentDigest = "other" })
		must(t, err)
		close(f.web.Hold)
		c := f.until(t, "refused", (*v1alpha1.BackingImageCopy).Final)
		if c.Status.Reason != "Corrupt" || !strings.Contains(c.Status.Message, "the image's content digest is other") {
			t.Errorf("status is %+v", c.Status)
		}
		f.mustNotBeThere(t)
	})
	t.Run("nor when another copy has another content, and the image does not say so yet", func(t *testing.T) {
		f := mustFetch(t, m, "raced")
		other := f.copyOn(t, "another-disk", "n2", false)
		_, err := f.Store.Copies.ModifyStatus(context.Background(), other, func(c *v1alpha1.BackingImageCopy) {
			c.Status.State, c.Status.ContentDigest = v1alpha1.CopyReady, "other"
		})
		must(t, err)
		close(f.web.Hold)
		f.until(t, "refused", (*v1alpha1.BackingImageCopy).Final)
		f.mustNotBeThere(t)
	})
}
