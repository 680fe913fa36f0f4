// Package looptest runs the controller's loops over a real API. It is apart from the controller's other tests because the API server
// takes long to link. The agents are played: what real ones do is theirs to test.
package looptest

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2/ktesting"
	clocktesting "k8s.io/utils/clock/testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/controller"
	"plinth.dev/plinth/backingimage/event"
	"plinth.dev/plinth/backingimage/placement"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/backingimage/store/embedded/embeddedtest"
)

// wait bounds waiting for what takes a few seconds.
const wait = time.Minute

// settings are short, so that silence is soon.
var settings = controller.Settings{NodeSilence: 3 * time.Second, RecoveryWait: 3 * time.Second, OriginWait: time.Second,
	Limits: placement.Limits{OverProvisioningPercent: 200, MinimalAvailablePercent: 10}}

// world is an API with a store of the test's own, and agents of nodes with a disk each, which is named like its node.
type world struct {
	t      *testing.T
	api    *rest.Config
	store  *store.Store
	events *events

	mu     sync.Mutex
	dead   map[string]bool // nodes whose agents do nothing
	mute   map[string]bool // nodes whose agents do all but beat
	stalls map[string]bool // nodes on which fetches do not end
	has    map[string]bool // copies that were made
	made   map[string]int  // how often, by disk
}

// events is a Recorder that remembers the reasons.
type events struct {
	mu      sync.Mutex
	reasons []string
}

func (e *events) Record(_ context.Context, told event.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.reasons = append(e.reasons, told.Reason)
}

func (e *events) has(reason string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Contains(e.reasons, reason)
}

// told waits until events of the reasons are recorded.
func (c *world) told(reasons ...string) {
	c.t.Helper()
	for _, reason := range reasons {
		for deadline := time.Now().Add(wait); !c.events.has(reason); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				c.t.Fatalf("no event %s: %v", reason, c.events.reasons)
			}
		}
	}
}

func newCluster(t *testing.T, nodes ...string) *world {
	t.Helper()
	c := &world{t: t, api: embeddedtest.MustStart(t), events: &events{}, dead: map[string]bool{}, mute: map[string]bool{}, stalls: map[string]bool{}, has: map[string]bool{}, made: map[string]int{}}
	c.store = c.run(nil)
	for _, n := range nodes {
		_, err := c.store.Nodes.Create(context.Background(), &v1alpha1.StorageNode{ObjectMeta: metav1.ObjectMeta{Name: n}})
		c.must(err)
		_, err = c.store.Disks.Create(context.Background(), &v1alpha1.Disk{ObjectMeta: metav1.ObjectMeta{Name: n}, Spec: v1alpha1.DiskSpec{NodeName: n}})
		c.must(err)
		go c.agent(n)
	}
	return c
}

// run runs a store, and what more is to run over it, until the test ends.
func (c *world) run(more func(*store.Store) []interface{ Run(context.Context) error }) *store.Store {
	c.t.Helper()
	s, stop := c.start(more)
	c.t.Cleanup(stop)
	return s
}

func (c *world) start(more func(*store.Store) []interface{ Run(context.Context) error }) (*store.Store, func()) {
	c.t.Helper()
	s, err := store.New(c.api, store.Options{})
	c.must(err)
	parts := []interface{ Run(context.Context) error }{s}
	if more != nil {
		parts = append(parts, more(s)...)
	}
	_, ctx := ktesting.NewTestContext(c.t)
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for _, p := range parts {
		wg.Go(func() { _ = p.Run(ctx) })
	}
	c.must(s.Synced(ctx))
	return s, sync.OnceFunc(func() { cancel(); wg.Wait() })
}

// control runs the loops, as a process of its own would, and returns how to stop them.
func (c *world) control() (stop func()) {
	c.t.Helper()
	_, stop = c.start(func(s *store.Store) []interface{ Run(context.Context) error } {
		o := controller.Options{Settings: settings, Recorder: c.events}
		return []interface{ Run(context.Context) error }{controller.NewImages(s, o), controller.NewNodes(s, o), controller.NewTeller(s, o)}
	})
	c.t.Cleanup(stop)
	return stop
}

func (c *world) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// say changes what agents do.
func (c *world) say(what map[string]bool, node string, is bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	what[node] = is
}

func (c *world) is(what map[string]bool, node string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return what[node]
}

// agent plays the agent of a node until the test ends.
func (c *world) agent(name string) {
	ctx := c.t.Context()
	for n := 0; ctx.Err() == nil; n++ {
		if !c.is(c.dead, name) {
			if n%10 == 0 && !c.is(c.mute, name) {
				c.beat(ctx, name)
			}
			for _, b := range c.store.Copies.List() {
				if b.Spec.NodeName == name && b.DeletionTimestamp == nil {
					c.make(ctx, b)
				}
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (c *world) beat(ctx context.Context, name string) {
	ready := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Played", Message: "the agent runs"}
	_, _ = c.store.Nodes.ModifyStatus(ctx, name, func(n *v1alpha1.StorageNode) {
		n.Status.LastHeartbeatTime = metav1.NewTime(n.Status.LastHeartbeatTime.Add(time.Second)) // a clock that nobody shares
		meta.SetStatusCondition(&n.Status.Conditions, ready)
	})
	_, _ = c.store.Disks.ModifyStatus(ctx, name, func(d *v1alpha1.Disk) {
		d.Status.CapacityBytes, d.Status.AvailableBytes = 100<<30, 50<<30
		meta.SetStatusCondition(&d.Status.Conditions, ready)
	})
}

// make does the next thing for a copy that an agent would.
func (c *world) make(ctx context.Context, b *v1alpha1.BackingImageCopy) {
	peer := slices.ContainsFunc(c.store.Copies.By(store.ByImage, b.Spec.Image), func(o *v1alpha1.BackingImageCopy) bool {
		return o.Status.State == v1alpha1.CopyReady && o.Name != b.Name
	})
	state := v1alpha1.CopyPending
	switch stalls := c.is(c.stalls, b.Spec.NodeName); {
	case c.is(c.has, b.Name):
		state = v1alpha1.CopyReady
	case (b.Spec.Origin || peer) && stalls:
		state = v1alpha1.CopyInProgress
	case b.Spec.Origin || peer:
		state = v1alpha1.CopyReady
		c.mu.Lock()
		c.has[b.Name] = true
		c.made[b.Spec.DiskUUID]++
		c.mu.Unlock()
	}
	_, _ = c.store.Copies.ModifyStatus(ctx, b.Name, func(b *v1alpha1.BackingImageCopy) {
		if b.Status.State == state {
			return
		}
		b.Status.State, b.Status.Message, b.Status.LastStateTransitionTime = state, "", metav1.Now()
		if state == v1alpha1.CopyReady {
			b.Status.ContentDigest = "digest"
		}
	})
}

// image creates an image.
func (c *world) image(name string, copies int32) *v1alpha1.BackingImage {
	c.t.Helper()
	i, err := c.store.Images.Create(context.Background(), &v1alpha1.BackingImage{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.BackingImageSpec{
		SourceType: v1alpha1.SourceDownload, SourceParameters: map[string]v1alpha1.SourceParameter{"url": "http://192.0.2.1/x"}, MinNumberOfCopies: copies}})
	c.must(err)
	return i
}

// until waits for an image to be as wanted; is sees nil while there is none.
func (c *world) until(name, what string, is func(*v1alpha1.BackingImage) bool) *v1alpha1.BackingImage {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	var last *v1alpha1.BackingImage
	if err := c.store.Images.Wait(ctx, name, func(i *v1alpha1.BackingImage) (bool, error) { last = i; return is(i), nil }); err != nil {
		c.t.Fatalf("image %s is not %s: %v; it is %+v", name, what, err, last)
	}
	return last
}

func copiesAre(text string) func(*v1alpha1.BackingImage) bool {
	return func(i *v1alpha1.BackingImage) bool { return i != nil && i.Status.Copies == text }
}

func shows(disk string, state v1alpha1.CopyState) func(*v1alpha1.BackingImage) bool {
	return func(i *v1alpha1.BackingImage) bool {
		return i != nil && i.Status.DiskFileStatusMap[disk].State == state
	}
}

// disks are those with a copy of an image.
func (c *world) disks(i *v1alpha1.BackingImage) (holders []string) {
	for _, b := range c.store.Copies.By(store.ByImage, i.Name) {
		holders = append(holders, b.Spec.DiskUUID)
	}
	return holders
}

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

func (c *world) untilCopy(name, what string, is func(*v1alpha1.BackingImageCopy) bool) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	if err := c.store.Copies.Wait(ctx, name, func(b *v1alpha1.BackingImageCopy) (bool, error) { return b != nil && is(b), nil }); err != nil {
		c.t.Fatalf("copy %s is not %s: %v", name, what, err)
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

func isReady(n *v1alpha1.StorageNode) bool {
	return n != nil && meta.IsStatusConditionTrue(n.Status.Conditions, v1alpha1.ConditionReady)
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

// versions of an image and its copies, which change with every write.
func (c *world) versions(image string) []string {
	c.t.Helper()
	i, err := c.store.Images.Live(context.Background(), image)
	c.must(backingimage.IgnoreNotFound(err))
	all := []string{i.ResourceVersion}
	for _, b := range c.store.Copies.By(store.ByImage, image) {
		all = append(all, b.ResourceVersion)
	}
	return all
}
