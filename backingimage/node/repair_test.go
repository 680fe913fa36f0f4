package node_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk/disktest"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/node"
	"plinth.dev/plinth/backingimage/node/nodetest"
)

func TestADamagedCopyIsRepairedFromAnotherOnTheNode(t *testing.T) {
	m := mustRot(t, nil, 2)
	w := nodetest.NewWeb(t, 16<<20)
	m.CreateImage("image", w.URL, "", 2)
	i := m.UntilReady("image", "2/2")
	w.Fail.Store(true)
	m.flip(t, 0, i, 1)
	m.verify(t, 0, i)
	if s := m.untilVerified(t, 0, i); s.State != v1alpha1.CopyReady || !strings.Contains(s.VerifyResult, "another copy") {
		t.Errorf("status is %+v", s)
	}
	m.mustBeWhole(t, 0, i, w.Content)

	t.Run("two that are damaged in different places repair each other", func(t *testing.T) {
		m.flip(t, 0, i, 1)
		m.flip(t, 1, i, 5<<20)
		for d := range m.Disks {
			m.verify(t, d, i)
		}
		for d := range m.Disks {
			if s := m.untilVerified(t, d, i); s.State != v1alpha1.CopyReady {
				t.Errorf("status is %+v", s)
			}
			m.mustBeWhole(t, d, i, w.Content)
		}
	})
	t.Run("damage that is found while it is copied from is repaired first", func(t *testing.T) {
		m.flip(t, 0, i, 1)
		disktest.MustUnseal(t, m.Disks[1], string(i.UID))
		must(t, os.RemoveAll(filepath.Dir(m.Path(1, i))))
		w.Fail.Store(false)
		m.untilCopy(t, 1, i, "ready again", func(c *v1alpha1.BackingImageCopy) bool {
			_, err := os.Stat(m.Path(1, i))
			return err == nil && c.Status.State == v1alpha1.CopyReady
		})
		for d := range m.Disks {
			m.mustBeWhole(t, d, i, w.Content)
		}
		m.untilCopy(t, 0, i, "read as a whole", func(c *v1alpha1.BackingImageCopy) bool {
			return c.Status.State == v1alpha1.CopyReady && strings.Contains(c.Status.VerifyResult, "every chunk")
		})
	})
}

func TestADamagedCopyThatNobodyCanRepair(t *testing.T) {
	m := mustRot(t, nil, 1)
	w := nodetest.NewWeb(t, 16<<20)
	m.CreateImage("image", w.URL, "", 1)
	i := m.UntilReady("image", "1/1")

	w.Fail.Store(true)
	m.flip(t, 0, i, 1)
	m.verify(t, 0, i)
	s := m.untilCopy(t, 0, i, "failed for now", func(c *v1alpha1.BackingImageCopy) bool { return c.Status.State == v1alpha1.CopyFailed }).Status
	if s.NextTryTime == nil || !strings.Contains(s.Message, "bytes 0-2097151") || len(s.BadChunks) != 1 {
		t.Errorf("status is %+v", s)
	}
	t.Run("nothing is made of it, a restart later neither", func(t *testing.T) {
		m.Stop()
		m.Start()
		if err := fetch.Check(filepath.Dir(m.Path(0, i))); !backingimage.Is(err, backingimage.NotReady) {
			t.Errorf("Check says %v", err)
		}
	})
	t.Run("it is repaired when the source is back", func(t *testing.T) {
		w.Fail.Store(false)
		m.UntilReady("image", "1/1")
		m.mustBeWhole(t, 0, i, w.Content)
	})
	t.Run("when the source has other bytes it fails for good, with what to do", func(t *testing.T) {
		good := w.Content
		w.Content = bytes.Clone(good)
		w.Content[7] ^= 1
		m.flip(t, 0, i, 1)
		m.verify(t, 0, i)
		s := m.untilVerified(t, 0, i)
		if s.State != v1alpha1.CopyFailed || s.NextTryTime != nil || s.Reason != "Corrupt" || !strings.Contains(s.Message, "bytes 0-2097151") || !strings.Contains(s.Message, "delete the image") {
			t.Errorf("status is %+v", s)
		}
		w.Content = good
		m.verify(t, 0, i)
		if s := m.untilVerified(t, 0, i); s.State != v1alpha1.CopyReady {
			t.Errorf("asked again it is %+v", s)
		}
		m.mustBeWhole(t, 0, i, w.Content)
	})
	t.Run("when it is removed by hand it is made anew", func(t *testing.T) {
		good := w.Content
		w.Content = bytes.Clone(good)
		w.Content[7] ^= 1
		m.flip(t, 0, i, 1)
		m.verify(t, 0, i)
		m.untilVerified(t, 0, i)
		w.Content = good
		disktest.MustUnseal(t, m.Disks[0], string(i.UID))
		must(t, os.RemoveAll(filepath.Dir(m.Path(0, i))))
		m.untilCopy(t, 0, i, "made anew", func(c *v1alpha1.BackingImageCopy) bool { return c.Status.State == v1alpha1.CopyReady })
		m.mustBeWhole(t, 0, i, w.Content)
	})
}

func TestWhatNobodyCouldRepairIsRepairedWhenAGoodCopyAppears(t *testing.T) {
	m := mustRot(t, nil, 2)
	w := nodetest.NewWeb(t, 16<<20)
	m.CreateImage("image", w.URL, "", 2)
	i := m.UntilReady("image", "2/2")
	good := w.Content
	w.Content = bytes.Clone(good)
	w.Content[7] ^= 1
	for d := range m.Disks {
		m.flip(t, d, i, 1)
		m.verify(t, d, i)
	}
	for d := range m.Disks {
		m.untilCopy(t, d, i, "failed for good", (*v1alpha1.BackingImageCopy).Final)
	}
	first, second := 0, 1 // the origin is made anew by the controller; the other one is the agent's affair
	if c, _ := m.Store.Copies.Get(m.copyName(1, i)); c.Spec.Origin {
		first, second = 1, 0
	}
	m.flip(t, first, i, 1)
	m.verify(t, first, i)
	m.UntilReady("image", "2/2")
	m.mustBeWhole(t, second, i, good)
}

func TestARepairOfAnImageThatIsConverted(t *testing.T) {
	content := nodetest.NewWeb(t, 16<<20).Content
	w := nodetest.NewWebOf(t, mustGzip(t, content))
	m := mustRot(t, nil, 1)
	m.CreateImage("image", w.URL, "", 1)
	i := m.UntilReady("image", "1/1")
	m.flip(t, 0, i, 1)
	m.verify(t, 0, i)
	if s := m.untilVerified(t, 0, i); s.State != v1alpha1.CopyReady || !strings.Contains(s.VerifyResult, "from the image's source") {
		t.Errorf("status is %+v", s)
	}
	m.mustBeWhole(t, 0, i, content)
	if _, err := os.Stat(m.Disks[0].Layout().StagedImage(string(i.UID))); !os.IsNotExist(err) {
		t.Errorf("what was fetched for the repair is still there (%v)", err)
	}
}

func TestAMediumThatGivesUp(t *testing.T) {
	m := mustRot(t, nil, 1)
	w := nodetest.NewWeb(t, 160<<20)
	m.CreateImage("image", w.URL, "", 1)
	i := m.UntilReady("image", "1/1")
	var all []int64
	for at := int64(1); at < 160<<20; at += manifest.ChunkBytes {
		all = append(all, at)
	}
	m.flip(t, 0, i, all...)
	m.verify(t, 0, i)
	m.untilCopy(t, 0, i, "known to be damaged as a whole", func(c *v1alpha1.BackingImageCopy) bool {
		return len(c.Status.BadChunks) == 64 && strings.Contains(c.Status.Message, "and 72 more are damaged")
	})
	if s := m.untilVerified(t, 0, i); s.State != v1alpha1.CopyReady {
		t.Errorf("status is %+v", s)
	}
	m.mustBeWhole(t, 0, i, w.Content)
}

func mustGzip(t *testing.T, content []byte) []byte {
	t.Helper()
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, err := w.Write(content)
	must(t, err)
	must(t, w.Close())
	return packed.Bytes()
}

// peerChunks is a peer's copy in memory.
type peerChunks struct {
	content []byte
	gave    atomic.Int64
}

func (p *peerChunks) Chunk(_ context.Context, _ string, index int64, _ manifest.Digest) ([]byte, error) {
	p.gave.Add(1)
	return bytes.Clone(p.content[index*manifest.ChunkBytes:][:manifest.ChunkBytes]), nil
}

func TestPeersAreAskedBeforeTheSource(t *testing.T) {
	peer := &peerChunks{}
	m := mustRot(t, func(o *node.Options) { o.Peers = peer }, 1)
	w := nodetest.NewWeb(t, 16<<20)
	peer.content = w.Content
	m.CreateImage("image", w.URL, "", 1)
	i := m.UntilReady("image", "1/1")
	w.Config.Handler = http.NotFoundHandler()
	m.flip(t, 0, i, 1, 5<<20)
	m.verify(t, 0, i)
	if s := m.untilVerified(t, 0, i); s.State != v1alpha1.CopyReady || !strings.Contains(s.VerifyResult, "repaired chunks 0, 2 from a peer") || peer.gave.Load() != 2 {
		t.Errorf("%d chunks, status %+v", peer.gave.Load(), s)
	}
	m.mustBeWhole(t, 0, i, w.Content)
}

func TestACopyIsRepairedFromAnotherNode(t *testing.T) {
	c := mustCluster(t, 2)
	c[1].Start()
	w := nodetest.NewWeb(t, 16<<20)
	c[0].CreateImage("image", w.URL, "", 2)
	i := c[0].UntilReady("image", "2/2")
	w.Fail.Store(true)
	for _, on := range c {
		m := &rotting{on, map[string]time.Time{}}
		m.flip(t, 0, i, 1, 5<<20)
		m.verify(t, 0, i)
		if s := m.untilVerified(t, 0, i); s.State != v1alpha1.CopyReady || !strings.Contains(s.VerifyResult, "from a peer") {
			t.Errorf("on %s it is %+v", on.NodeName, s)
		}
		m.mustBeWhole(t, 0, i, w.Content)
	}
}
