package cluster

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// Conditions of copies.
func isReady(b *v1alpha1.BackingImageCopy) bool {
	return b != nil && b.Status.State == v1alpha1.CopyReady
}

func isGone(b *v1alpha1.BackingImageCopy) bool { return b == nil }

func isOrigin(b *v1alpha1.BackingImageCopy) bool { return b != nil && b.Spec.Origin }

// isHalfway is a copy of which something is there.
func isHalfway(b *v1alpha1.BackingImageCopy) bool {
	return b != nil && b.Status.State == v1alpha1.CopyInProgress && b.Status.BytesDone > 0
}

func joinsLate(t *testing.T, c *cluster) {
	c.tag("n2", "late")
	c.tag("n3", "late")
	_, s := c.create(t, "late", imageBytes/4, "--prefetch")
	until(t, "some node fetches it", func() (bool, any) {
		all := c.copies(t, "late")
		return isHalfway(all["n2"]) || isHalfway(all["n3"]), all
	})
	c.join("n4")
	c.tag("n4", "late")
	c.untilCopy(t, "late", "n4", "asked for", func(b *v1alpha1.BackingImageCopy) bool { return b != nil })
	s.Pass(-1)
	i := c.untilCopies(t, "late", "3/3")
	for _, n := range c.nodes {
		n.mustHold(t, i, s.content)
	}
	s.mustBeFetched(t, 1.25) // what was on its way when the link was cut may come again
}

func originsGo(t *testing.T, c *cluster) {
	c.tag("n2", "dies", "dropped")
	c.tag("n3", "stops")
	_, dies := c.create(t, "dies", imageBytes/4)
	dropped, _ := c.create(t, "dropped", imageBytes/4)
	_, stops := c.create(t, "stops", imageBytes/4)
	for image, node := range map[string]string{"dies": "n2", "dropped": "n2", "stops": "n3"} {
		c.untilCopy(t, image, node, "half there", isHalfway)
	}
	c.nodes["n2"].Kill()
	c.nodes["n3"].Signal(syscall.SIGSTOP)
	c.mustDelete(t, dropped)
	c.tag("n4", "dies", "stops")
	for _, image := range []string{"dies", "stops"} {
		c.untilCopy(t, image, "n4", "the origin", isOrigin)
	}
	dies.Pass(-1)
	stops.Pass(-1)
	for image, s := range map[string]*source{"dies": dies, "stops": stops} {
		c.untilCopy(t, image, "n4", "ready", isReady)
		c.nodes["n4"].mustHold(t, c.image(t, image), s.content)
		s.Pass(0) // whoever does not stand down waits for the source in vain
	}
	c.nodes["n2"].Restart()
	c.nodes["n3"].Signal(syscall.SIGCONT)
	for image, node := range map[string]string{"dies": "n2", "stops": "n3"} {
		c.untilCopy(t, image, node, "an ordinary one, and ready", func(b *v1alpha1.BackingImageCopy) bool { return isReady(b) && !b.Spec.Origin })
		c.nodes[node].mustHold(t, c.image(t, image), c.sources[image].content)
		c.sources[image].mustBeFetched(t, 1.25) // a quarter by the first, all by the second
	}
	c.nodes["n2"].untilNothingOf(t, dropped)
}

func cutOff(t *testing.T, c *cluster) {
	n2, n3 := c.nodes["n2"], c.nodes["n3"]
	for _, image := range []string{"cut", "cut-and-dropped"} {
		c.tag("n2", image)
		c.create(t, image, -1)
		c.untilCopies(t, image, "1/1")
	}
	before := n3.counter(t, "plinth_peer_bytes_total")
	n2.link.Pass(imageBytes / 2)
	for _, image := range []string{"cut", "cut-and-dropped"} {
		c.tag("n3", image)
		c.MustCLI("image", "set", image, "--min-copies", "2")
	}
	for _, image := range []string{"cut", "cut-and-dropped"} {
		c.untilCopy(t, image, "n3", "said to wait for n2", func(b *v1alpha1.BackingImageCopy) bool {
			return b != nil && strings.Contains(b.Status.Message, "n2 is silent")
		})
	}
	dropped := c.image(t, "cut-and-dropped")
	c.mustDelete(t, dropped)
	n3.untilNothingOf(t, dropped)
	n2.untilNothingOf(t, dropped)
	n2.link.Pass(-1)
	i := c.untilCopies(t, "cut", "2/2")
	n3.mustHold(t, i, c.sources["cut"].content)
	if got := n3.counter(t, "plinth_peer_bytes_total") - before; got < imageBytes || got > 3*imageBytes/2 { // what had come of the dropped one counts, too
		t.Errorf("n3 received %d bytes for an image of %d", got, imageBytes)
	}
	c.sources["cut"].mustBeFetched(t, 1)
}

func twoDown(t *testing.T, c *cluster) {
	for _, n := range []string{"n1", "n2", "n3"} {
		c.tag(n, "kept")
	}
	c.tag("n2", "doomed")
	c.tag("n3", "doomed")
	c.create(t, "kept", -1, "--prefetch")
	c.create(t, "doomed", -1, "--prefetch")
	before, doomed := c.untilCopies(t, "kept", "3/3"), c.untilCopies(t, "doomed", "2/2")
	was := c.copies(t, "kept")
	got := c.nodes["n3"].counter(t, "plinth_peer_bytes_total")

	c.nodes["n2"].Kill()
	c.nodes["n3"].Signal(syscall.SIGSTOP)
	c.MustCLI("volume", "create", "served", "--image", "kept", "--node", "n1", "--block")
	c.MustCLI("volume", "mount", "served", c.path("served"), "--block", "--staging-dir", c.path("staging"))
	mustBegin(t, c.path("served"), c.sources["kept"].content)
	for _, n := range []string{"n2", "n3"} {
		if shown := c.untilShown(t, "kept", n, v1alpha1.CopyUnknown); !strings.Contains(shown.Message, "node "+n) {
			t.Errorf("the image says of the copy on %s: %q", n, shown.Message)
		}
	}
	c.mustDelete(t, doomed)
	c.untilCopies(t, "kept", "1/3")
	c.MustCLI("volume", "unmount", "served", "--staging-dir", c.path("staging"))
	c.MustCLI("volume", "rm", "served")

	c.nodes["n2"].Restart()
	c.nodes["n3"].Signal(syscall.SIGCONT)
	i := c.untilCopies(t, "kept", "3/3")
	if i.Status.ContentDigest != before.Status.ContentDigest {
		t.Errorf("the content digest was %s and is %s", before.Status.ContentDigest, i.Status.ContentDigest)
	}
	for name, b := range c.copies(t, "kept") {
		if was[name] == nil || was[name].UID != b.UID {
			t.Errorf("the copy on %s is another object than before", name)
		}
	}
	for name, more := range map[string]int64{"n2": c.nodes["n2"].counter(t, "plinth_peer_bytes_total"), "n3": c.nodes["n3"].counter(t, "plinth_peer_bytes_total") - got} {
		if more != 0 {
			t.Errorf("%s received %d bytes of what it has", name, more)
		}
		c.nodes[name].mustHold(t, i, c.sources["kept"].content)
		c.nodes[name].untilNothingOf(t, doomed)
	}
	c.sources["kept"].mustBeFetched(t, 1)
}

// mustBegin checks that a device begins with a content.
func mustBegin(t *testing.T, device string, content []byte) {
	t.Helper()
	f, err := os.Open(device)
	must(t, err)
	defer f.Close()
	got := make([]byte, len(content))
	if _, err := f.ReadAt(got, 0); err != nil || string(got) != string(content) {
		t.Errorf("the volume differs from its image (%v)", err)
	}
}

func (c *cluster) path(name string) string { return filepath.Join(c.Dir, name) }

func evicted(t *testing.T, c *cluster) {
	c.tag("n2", "moved")
	i, s := c.create(t, "moved", -1)
	c.untilCopies(t, "moved", "1/1")
	c.MustCLI("node", "evict", "n2")
	if shown := c.untilShown(t, "moved", "n2", v1alpha1.CopyEvicting); shown.Message == "" {
		t.Error("an eviction that has nowhere to go does not say so")
	}
	c.nodes["n2"].mustHold(t, i, s.content)
	c.tag("n3", "moved")
	c.untilCopy(t, "moved", "n2", "gone", isGone)
	if b := c.copies(t, "moved")["n3"]; !isReady(b) {
		t.Errorf("the copy on n2 went before that on n3 was ready: %+v", b)
	}
	c.nodes["n2"].untilNothingOf(t, i)
	c.nodes["n3"].mustHold(t, i, s.content)
	c.MustCLI("node", "evict", "n2", "--undo")
	s.mustBeFetched(t, 1)
}

func diskRemoved(t *testing.T, c *cluster) {
	n3 := c.nodes["n3"]
	second := filepath.Join(n3.Dir, "second")
	must(t, os.Mkdir(second, 0o700))
	c.tag("n3", "shelved")
	c.create(t, "shelved", -1)
	c.untilCopies(t, "shelved", "1/1")
	c.MustCLI("disk", "add", second, "--node", "n3", "--pool-size", "512Mi")
	c.MustCLI("disk", "evict", "n3"+filepath.Join(n3.DataDir, "disk"))
	on := func(path string) func(*v1alpha1.BackingImageCopy) bool {
		uuid := c.disk(t, path)
		return func(b *v1alpha1.BackingImageCopy) bool { return isReady(b) && b.Spec.DiskUUID == uuid }
	}
	until(t, "the copy is on the second disk alone", func() (bool, any) {
		i := c.image(t, "shelved")
		return len(i.Status.DiskFileStatusMap) == 1 && on(second)(c.copies(t, "shelved")["n3"]), i.Status
	})
	c.MustCLI("disk", "evict", filepath.Join(n3.DataDir, "disk"), "--undo")
	if r := c.CLI("disk", "rm", "n3"+second); r.Code != 5 || !strings.Contains(r.Stderr, "shelved") {
		t.Errorf("rm of the disk with the last copy: exit code %d, %s", r.Code, r.Stderr)
	}
	c.tag("n4", "shelved")
	c.MustCLI("image", "set", "shelved", "--min-copies", "2")
	c.untilCopies(t, "shelved", "2/2")
	c.MustCLI("disk", "rm", "n3"+second, "--timeout", wait.String())
	i := c.untilCopies(t, "shelved", "2/2")
	n3.mustHold(t, i, c.sources["shelved"].content)
	if ls := c.MustCLI("disk", "ls"); strings.Contains(ls, second) {
		t.Errorf("the disk is still there:\n%s", ls)
	}
	c.sources["shelved"].mustBeFetched(t, 1)
}

// disk is the UUID of the disk at a path.
func (c *cluster) disk(t *testing.T, path string) string {
	t.Helper()
	list, err := c.Client(t).Disks.List(context.Background(), metav1.ListOptions{})
	must(t, err)
	for _, d := range list.Items {
		if d.Spec.Path == path {
			return d.Name
		}
	}
	t.Fatalf("no disk at %s", path)
	return ""
}

func controlPlaneDies(t *testing.T, c *cluster) {
	var passed, got int64
	count := func() (source, peers int64) {
		for _, s := range c.sources {
			source += s.Passed()
		}
		for _, n := range c.nodes {
			peers += n.counter(t, "plinth_peer_bytes_total")
		}
		return source, peers
	}
	was := c.copies(t, "kept")
	passed, got = count()
	for range 10 {
		c.Kill()
		c.Restart()
	}
	for _, image := range []string{"late", "kept"} {
		c.untilCopies(t, image, "3/3")
	}
	if source, peers := count(); source != passed || peers != got {
		t.Errorf("ten restarts fetched %d bytes from sources and %d from peers", source-passed, peers-got)
	}
	for name, b := range c.copies(t, "kept") {
		if was[name] == nil || was[name].UID != b.UID {
			t.Errorf("the copy on %s is another object than before", name)
		}
	}
}
