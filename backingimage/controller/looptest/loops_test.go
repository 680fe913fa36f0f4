// Package looptest runs the controller's loops over a real API. It is apart from the controller's other tests because the API server
// takes long to link. The agents are played: what real ones do is theirs to test.
package looptest

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/controller"
)

func TestSilentNode(t *testing.T) {
	c := newCluster(t, "n1", "n2")
	c.control()
	c.image("two", 2)
	c.until("two", "whole", copiesAre("2/2"))

	c.say(c.dead, "n2", true)
	i := c.until("two", "short of the silent node's copy", shows("n2", v1alpha1.CopyUnknown))
	if i.Status.State != v1alpha1.CopyReady || !strings.Contains(i.Status.DiskFileStatusMap["n2"].Message, "nothing was heard of its agent") {
		t.Errorf("status is %+v", i.Status)
	}
	c.until("two", "said to have too few copies past the grace", func(i *v1alpha1.BackingImage) bool {
		return copiesAre("1/2")(i) && strings.Contains(i.Status.Message, "only 1 of 2")
	})
	c.told("CopyUnknown", v1alpha1.NodeSilent, "Unknown")

	// An agent that is back and does not beat yet says what it finds. Nobody contradicts it for long.
	c.say(c.mute, "n2", true)
	c.say(c.dead, "n2", false)
	name := v1alpha1.CopyName(string(i.UID), "n2")
	c.untilCopy(name, "reported", func(b *v1alpha1.BackingImageCopy) bool { return b.Status.State == v1alpha1.CopyReady })
	before, _ := c.store.Copies.Get(name)
	time.Sleep(time.Second) // dozens of turns of the played agent
	if after, _ := c.store.Copies.Get(name); after.ResourceVersion != before.ResourceVersion {
		t.Errorf("the copy was written again: %+v", after.Status)
	}
	c.say(c.mute, "n2", false)
	c.until("two", "whole again", copiesAre("2/2"))
	if c.made["n2"] != 1 {
		t.Errorf("the copy on n2 was made %d times", c.made["n2"])
	}
}

func TestOriginsNodeDies(t *testing.T) {
	c := newCluster(t, "n1", "n2")
	c.control()
	for _, n := range []string{"n1", "n2"} {
		c.say(c.stalls, n, true)
	}
	i := c.image("one", 1)
	c.until("one", "in progress", func(i *v1alpha1.BackingImage) bool {
		return i != nil && i.Status.State == v1alpha1.CopyInProgress
	})
	first := c.disks(i)[0]
	second := map[string]string{"n1": "n2", "n2": "n1"}[first]
	c.say(c.dead, first, true)
	c.say(c.stalls, second, false)
	c.until("one", "made by another", shows(second, v1alpha1.CopyReady))
	c.say(c.stalls, first, false)
	c.say(c.dead, first, false)
	c.untilCopy(v1alpha1.CopyName(string(i.UID), first), "a receiver", func(b *v1alpha1.BackingImageCopy) bool {
		return !b.Spec.Origin && b.Status.State == v1alpha1.CopyReady
	})
	if !c.events.has("OriginStoodDown") {
		t.Errorf("events: %v", c.events.reasons)
	}
}

func TestEvictionAndCleanup(t *testing.T) {
	c := newCluster(t, "n1", "n2", "n3")
	c.control()
	i := c.image("one", 1)
	c.until("one", "ready", copiesAre("1/1"))
	from := c.disks(i)[0]
	for _, n := range []string{"n1", "n2", "n3"} {
		c.say(c.stalls, n, true)
	}
	_, err := c.store.Disks.Modify(context.Background(), from, func(d *v1alpha1.Disk) { d.Spec.EvictionRequested = true })
	c.must(err)
	c.until("one", "shown to leave", shows(from, v1alpha1.CopyEvicting))
	c.told("CopyEvicting")
	for _, n := range []string{"n1", "n2", "n3"} {
		c.say(c.stalls, n, false)
	}
	c.until("one", "elsewhere", func(i *v1alpha1.BackingImage) bool {
		_, left := i.Status.DiskFileStatusMap[from]
		return copiesAre("1/1")(i) && !left && len(i.Status.DiskFileStatusMap) == 1
	})

	name := v1alpha1.CopyName(string(i.UID), c.disks(i)[0])
	_, err = c.store.Copies.Modify(context.Background(), name, func(b *v1alpha1.BackingImageCopy) { b.Spec.CleanupRequested = true })
	c.must(err)
	c.untilCopy(name, "refused", func(b *v1alpha1.BackingImageCopy) bool {
		return !b.Spec.CleanupRequested && strings.Contains(b.Status.Message, "needs 1 ready copies")
	})
}

func TestDeletingAnImageOfDeadNodesEnds(t *testing.T) {
	c := newCluster(t, "n1", "n2")
	c.control()
	c.image("gone", 2)
	c.until("gone", "whole", copiesAre("2/2"))
	c.say(c.dead, "n1", true)
	c.say(c.dead, "n2", true)
	began := time.Now()
	c.must(c.store.Images.Delete(context.Background(), "gone"))
	c.until("gone", "gone", func(i *v1alpha1.BackingImage) bool { return i == nil })
	if took := time.Since(began); took > wait/2 {
		t.Errorf("it took %s", took)
	}
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	for len(c.store.Copies.List()) > 0 && ctx.Err() == nil {
		time.Sleep(50 * time.Millisecond)
	}
	if left := c.store.Copies.List(); len(left) > 0 {
		t.Errorf("copies are left: %v", left)
	}
}

// TestNobodyIsSilentBecauseTheAPIIsAway calls the loop by hand, with a clock that the test turns.
func TestNobodyIsSilentBecauseTheAPIIsAway(t *testing.T) {
	c := newCluster(t, "n1")
	c.say(c.dead, "n1", true)
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	time.Sleep(100 * time.Millisecond) // the turn that the played agent was in is over
	c.beat(ctx, "n1")
	c.must(c.store.Nodes.Wait(ctx, "n1", func(n *v1alpha1.StorageNode) (bool, error) { return isReady(n), nil }))
	clock := clocktesting.NewFakeClock(time.Now())
	loop := controller.NewNodes(c.store, controller.Options{Settings: controller.Settings{NodeSilence: time.Minute}, Clock: clock})
	beat := func() { // returns when the loop can have heard it
		before, _ := c.store.Nodes.Get("n1")
		c.beat(ctx, "n1")
		c.must(c.store.Nodes.Wait(ctx, "n1", func(n *v1alpha1.StorageNode) (bool, error) {
			return n != nil && n.Status.LastHeartbeatTime.After(before.Status.LastHeartbeatTime.Time), nil
		}))
	}
	look := func(ctx context.Context, what string, fails, silent bool) {
		t.Helper()
		_, err := loop.Reconcile(ctx, "n1")
		if n, lerr := c.store.Nodes.Live(context.Background(), "n1"); lerr != nil || (err != nil) != fails || isReady(n) == silent {
			t.Fatalf("%s: %v, %v, ready: %t", what, err, lerr, isReady(n))
		}
	}
	away, end := context.WithCancel(ctx)
	end()

	look(ctx, "heard", false, false)
	clock.Step(40 * time.Second)
	look(ctx, "quiet, and the API server says so", false, false)
	clock.Step(time.Minute)
	look(away, "quiet, and the API is away", true, false)
	clock.Step(time.Hour)
	look(ctx, "the API is back, and nobody had time to say anything", false, false)
	clock.Step(29 * time.Second)
	beat()
	look(ctx, "heard again", false, false)
	clock.Step(31 * time.Second)
	look(ctx, "quiet again", false, false)
	clock.Step(30 * time.Second)
	look(ctx, "quiet for a minute, and the API server said so twice", false, true)
}

func TestRestartsOfTheControllerChangeNothing(t *testing.T) {
	c := newCluster(t, "n1", "n2")
	stop := c.control()
	c.image("two", 2)
	i := c.until("two", "whole and written down", func(i *v1alpha1.BackingImage) bool { return copiesAre("2/2")(i) && i.Status.ContentDigest != "" })
	time.Sleep(200 * time.Millisecond) // what is on its way arrives
	versions := c.versions(i.Name)
	for range 10 {
		stop()
		stop = c.control()
	}
	time.Sleep(500 * time.Millisecond)
	if now := c.versions(i.Name); !slices.Equal(now, versions) {
		t.Errorf("ten restarts wrote: %v, before %v", now, versions)
	}
	if c.made["n1"] != 1 || c.made["n2"] != 1 {
		t.Errorf("copies were made anew: %v", c.made)
	}
	if c.events.has(v1alpha1.NodeSilent) {
		t.Errorf("a restart declared a node silent: %v", c.events.reasons)
	}
}
