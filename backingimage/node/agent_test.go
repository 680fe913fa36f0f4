package node_test

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk/disktest"
	"plinth.dev/plinth/backingimage/node/nodetest"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/backingimage/store"
)

func TestAgent(t *testing.T) {
	disktest.NeedRoot(t)
	m := nodetest.MustStart(t, disktest.MustPool(t, nodetest.PoolBytes), disktest.MustPool(t, nodetest.PoolBytes))

	t.Run("an image becomes ready with the file's content, size and checksum", func(t *testing.T) {
		w := nodetest.NewWeb(t, 8<<20)
		m.CreateImage("plain", w.URL, w.SHA512(), 1)
		i := m.UntilReady("plain", "1/1")
		if i.Status.Size != 8<<20 || i.Status.VirtualSize != 8<<20 || i.Status.Checksum != w.SHA512() || i.Status.Format != "raw" || i.Status.ContentDigest == "" {
			t.Errorf("status is %+v", i.Status)
		}
		if i.Status.RealSize == 0 || i.Status.RealSize > 6<<20 {
			t.Errorf("a copy whose second half is a hole occupies %d bytes", i.Status.RealSize)
		}
	})

	t.Run("a large image is read in pieces", func(t *testing.T) {
		w := nodetest.NewWeb(t, 5*source.PieceBytes)
		m.CreateImage("large", w.URL, w.SHA512(), 1)
		m.UntilReady("large", "1/1")
		if n := w.Asked.Load(); n != 5 {
			t.Errorf("it took %d requests, want 5", n)
		}
	})

	t.Run("a second copy is made from the first, not from the source", func(t *testing.T) {
		w := nodetest.NewWeb(t, 4<<20)
		m.CreateImage("twice", w.URL, "", 2)
		i := m.UntilReady("twice", "2/2")
		if n := w.Served.Load(); n != 4<<20 {
			t.Errorf("the source gave %d bytes of %d", n, 4<<20)
		}
		for d := range m.Disks {
			if got, err := os.ReadFile(m.Path(d, i)); err != nil || !bytes.Equal(got, w.Content) {
				t.Errorf("copy on disk %d differs (%v)", d, err)
			}
		}
	})

	t.Run("more copies than disks is said, and the image is ready all the same", func(t *testing.T) {
		w := nodetest.NewWeb(t, 1<<20)
		m.CreateImage("three", w.URL, "", 3)
		i := m.UntilReady("three", "2/3")
		if !strings.Contains(i.Status.Message, "only 2 of 3 copies can be placed") {
			t.Errorf("message is %q", i.Status.Message)
		}
	})

	t.Run("a wrong checksum fails once, for good, with the reason, and leaves no file", func(t *testing.T) {
		w := nodetest.NewWeb(t, 1<<20)
		i := m.CreateImage("wrong", w.URL, strings.Repeat("0", 64), 1)
		failed := m.UntilState("wrong", v1alpha1.CopyFailed)
		if !strings.Contains(failed.Status.Message, strings.Repeat("0", 64)) || strings.Contains(failed.Status.Message, "next try") {
			t.Errorf("message is %q", failed.Status.Message)
		}
		time.Sleep(time.Second) // five times the retry
		if n := w.Served.Load(); n != 1<<20 {
			t.Errorf("the source gave %d bytes: it was tried again", n)
		}
		m.UntilNoFiles(i)
	})

	t.Run("a server that is down for a while is tried again, at a time that the status tells", func(t *testing.T) {
		w := nodetest.NewWeb(t, 1<<20)
		w.Fail.Store(true)
		url := w.URL
		m.CreateImage("later", url, "", 1)
		m.UntilImage("later", "known to the agent", func(i *v1alpha1.BackingImage) bool { return i != nil && i.Status.State == v1alpha1.CopyStarting })
		w.Fail.Store(false)
		m.UntilReady("later", "1/1")
	})

	t.Run("a missing file fails for good", func(t *testing.T) {
		w := nodetest.NewWeb(t, 1)
		w.Config.Handler = http.NotFoundHandler()
		m.CreateImage("missing", w.URL+"/x.qcow2", "", 1)
		i := m.UntilState("missing", v1alpha1.CopyFailed)
		if !strings.Contains(i.Status.Message, "404") || strings.Contains(i.Status.Message, "next try") {
			t.Errorf("message is %q", i.Status.Message)
		}
	})

	t.Run("an image deleted in the middle of its fetch goes, with its files", func(t *testing.T) {
		w := nodetest.NewWeb(t, 8<<20)
		w.Hold = make(chan struct{})
		defer close(w.Hold)
		i := m.CreateImage("interrupted", w.URL, "", 1)
		m.UntilState("interrupted", v1alpha1.CopyInProgress)
		must(t, m.Store.Images.Delete(context.Background(), "interrupted"))
		m.UntilGone("interrupted")
		m.UntilNoFiles(i)
	})

	t.Run("an image that a volume waits for is kept until the volume is", func(t *testing.T) {
		w := nodetest.NewWeb(t, 8<<20)
		w.Hold = make(chan struct{})
		i := m.CreateImage("held", w.URL, "", 1)
		v := &v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{Name: "waits"}, Spec: v1alpha1.VolumeSpec{Name: "waits", CapacityBytes: 8 << 20, DiskUUID: m.Disks[0].UUID(), Image: &v1alpha1.VolumeImage{Name: "held", UID: string(i.UID)}}}
		_, err := m.Store.Volumes.Create(context.Background(), v)
		must(t, err)
		m.UntilImage("held", "used", func(i *v1alpha1.BackingImage) bool { return i != nil && len(i.Status.Volumes) == 1 })
		must(t, m.Store.Images.Delete(context.Background(), "held"))
		close(w.Hold)
		held := m.UntilImage("held", "ready and being deleted", func(i *v1alpha1.BackingImage) bool {
			return i != nil && i.DeletionTimestamp != nil && i.Status.State == v1alpha1.CopyReady
		})
		if !strings.Contains(held.Status.Message, "waits for volume waits") {
			t.Errorf("message is %q", held.Status.Message)
		}
		must(t, m.Store.Volumes.Delete(context.Background(), "waits"))
		m.UntilGone("held")
		m.UntilNoFiles(i)
	})
}

func TestAgentRestarts(t *testing.T) {
	disktest.NeedRoot(t)
	m := nodetest.MustStart(t, disktest.MustPool(t, nodetest.PoolBytes))
	w := nodetest.NewWeb(t, 16<<20)
	w.Hold = make(chan struct{})
	partial := m.CreateImage("partial", w.URL, "", 1)
	m.UntilImage("partial", "in progress", func(i *v1alpha1.BackingImage) bool {
		return i != nil && i.Status.State == v1alpha1.CopyInProgress && i.Status.VirtualSize == 16<<20
	})
	m.Stop()
	close(w.Hold)
	m.Start()
	m.UntilReady("partial", "1/1")
	if got, err := os.ReadFile(m.Path(0, partial)); err != nil || !bytes.Equal(got, w.Content) {
		t.Fatalf("the copy that went on after a restart differs (%v)", err)
	}

	served := w.Served.Load()
	for range 10 {
		m.Stop()
		m.Start()
	}
	m.UntilReady("partial", "1/1")
	if n := w.Served.Load(); n != served {
		t.Errorf("ten restarts fetched %d bytes again", n-served)
	}

	t.Run("a copy removed by hand comes back by itself", func(t *testing.T) {
		m.Stop()
		must(t, m.Disks[0].RemoveImage(string(partial.UID)))
		m.Start()
		m.UntilImage("partial", "there again", func(*v1alpha1.BackingImage) bool {
			_, err := os.Stat(m.Path(0, partial))
			return err == nil
		})
		m.UntilReady("partial", "1/1")
	})

	t.Run("a copy whose object went while the agent was away is removed", func(t *testing.T) {
		m.Stop()
		client, err := store.NewClient(m.API)
		must(t, err)
		must(t, client.Copies.Delete(context.Background(), v1alpha1.CopyName(string(partial.UID), m.Disks[0].UUID()), metav1.DeleteOptions{}))
		image, err := client.Images.Get(context.Background(), "partial", metav1.GetOptions{})
		must(t, err)
		image.Finalizers = nil
		_, err = client.Images.Update(context.Background(), image, metav1.UpdateOptions{})
		must(t, err)
		must(t, client.Images.Delete(context.Background(), "partial", metav1.DeleteOptions{}))
		m.Start()
		m.UntilNoFiles(partial)
	})
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func TestTroubleWithTheSourceIsSaidWhileItLasts(t *testing.T) {
	disktest.NeedRoot(t)
	m := nodetest.MustStart(t, disktest.MustPool(t, nodetest.PoolBytes))
	w := nodetest.NewWeb(t, 1<<20)
	w.Fail.Store(true)
	m.CreateImage("troubled", w.URL, "", 1)
	i := m.UntilImage("troubled", "in trouble", func(i *v1alpha1.BackingImage) bool {
		return i != nil && strings.Contains(i.Status.Message, "interrupted")
	})
	if !strings.Contains(i.Status.Message, "503") || i.Status.State != v1alpha1.CopyInProgress {
		t.Errorf("state %s, message %q", i.Status.State, i.Status.Message)
	}
	w.Fail.Store(false)
	if i := m.UntilReady("troubled", "1/1"); i.Status.Message != "" {
		t.Errorf("message is %q", i.Status.Message)
	}
}
