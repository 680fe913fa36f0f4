package looptest

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2/ktesting"

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

func (c *world) untilCopy(name, what string, is func(*v1alpha1.BackingImageCopy) bool) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	if err := c.store.Copies.Wait(ctx, name, func(b *v1alpha1.BackingImageCopy) (bool, error) { return b != nil && is(b), nil }); err != nil {
		c.t.Fatalf("copy %s is not %s: %v", name, what, err)
	}
}

func isReady(n *v1alpha1.StorageNode) bool {
	return n != nil && meta.IsStatusConditionTrue(n.Status.Conditions, v1alpha1.ConditionReady)
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
