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

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/cluster"
	"plinth.dev/plinth/backingimage/controller"
	"plinth.dev/plinth/backingimage/store"
)

// fleet is an orchestrator that says what the test says.
type fleet struct {
	mu       sync.Mutex
	machines map[string]cluster.Machine
	changed  []func(string)
}

func (f *fleet) Synced(context.Context) error { return nil }

func (f *fleet) Get(name string) (cluster.Machine, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m, ok := f.machines[name]
	return m, ok
}

func (f *fleet) Live(_ context.Context, name string) (cluster.Machine, error) {
	m, ok := f.Get(name)
	if !ok {
		return m, backingimage.Errorf(backingimage.NotFound, "there is no machine %s", name)
	}
	return m, nil
}

func (f *fleet) OnChange(fn func(string)) func() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.changed = append(f.changed, fn)
	return func() {}
}

// say makes a machine what is given; nil removes it.
func (f *fleet) say(name string, m *cluster.Machine) {
	f.mu.Lock()
	if m == nil {
		delete(f.machines, name)
	} else {
		f.machines[name] = *m
	}
	fns := slices.Clone(f.changed)
	f.mu.Unlock()
	for _, fn := range fns {
		fn(name)
	}
}

// over runs the loops that look at machines, beside control's.
func (c *world) over(f *fleet, removalWait time.Duration) {
	c.t.Helper()
	c.run(func(s *store.Store) []interface{ Run(context.Context) error } {
		o := controller.Options{Settings: settings, Recorder: c.events}
		o.Settings.RemovalWait = removalWait
		return []interface{ Run(context.Context) error }{controller.NewMachines(s, f, o), controller.NewDrains(s, o)}
	})
}

// node waits until a node is as wanted; nil is one that does not exist.
func (c *world) node(name, what string, until func(*v1alpha1.StorageNode) bool) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	var last *v1alpha1.StorageNode
	err := c.store.Nodes.Wait(ctx, name, func(n *v1alpha1.StorageNode) (bool, error) { last = n; return until(n), nil })
	if err != nil {
		c.t.Fatalf("node %s is never %s: %+v", name, what, last)
	}
}

func is(kind string, status metav1.ConditionStatus, says string) func(*v1alpha1.StorageNode) bool {
	return func(n *v1alpha1.StorageNode) bool {
		if n == nil {
			return false
		}
		c := meta.FindStatusCondition(n.Status.Conditions, kind)
		return c != nil && c.Status == status && strings.Contains(c.Message, says)
	}
}

func TestDrain(t *testing.T) {
	c := newCluster(t, "n1", "n2")
	c.control()
	f := &fleet{machines: map[string]cluster.Machine{"n1": {UID: "m1"}, "n2": {UID: "m2"}}}
	c.over(f, time.Hour)
	c.image("one", 1)
	i := c.until("one", "whole", copiesAre("1/1"))
	holder := c.disks(i)[0]
	other := map[string]string{"n1": "n2", "n2": "n1"}[holder]
	c.say(c.stalls, other, true)

	f.say(holder, &cluster.Machine{UID: "m", Cordoned: true})
	c.node(holder, "cordoned, with the image's last copy", is(v1alpha1.ConditionDrained, metav1.ConditionFalse, "images one are here"))
	c.until("one", "said to be evicted", shows(holder, v1alpha1.CopyEvicting))
	c.say(c.stalls, other, false)
	c.node(holder, "free of last copies", is(v1alpha1.ConditionDrained, metav1.ConditionTrue, "no image"))
	i = c.until("one", "on both", shows(holder, v1alpha1.CopyReady))
	if !shows(other, v1alpha1.CopyReady)(i) {
		t.Errorf("copies are %+v", i.Status.DiskFileStatusMap)
	}
	c.told("Cordoned", "LastCopies", "NothingOnlyHere")

	f.say(holder, &cluster.Machine{UID: "m"})
	c.node(holder, "there again", func(n *v1alpha1.StorageNode) bool {
		return n != nil && !n.Status.Cordoned && meta.FindStatusCondition(n.Status.Conditions, v1alpha1.ConditionDrained) == nil
	})
	if c.made[holder] != 1 {
		t.Errorf("the copy on the node that was away for a moment was made %d times", c.made[holder])
	}
}

func TestRemovedMachine(t *testing.T) {
	c := newCluster(t, "n1", "n2", "joined")
	c.control()
	f := &fleet{machines: map[string]cluster.Machine{"n1": {UID: "m1"}, "n2": {UID: "m2"}}}
	c.over(f, time.Second)
	c.image("two", 2)
	c.until("two", "whole", copiesAre("2/2"))
	c.node("n2", "known", func(n *v1alpha1.StorageNode) bool { return n != nil && n.Status.MachineUID == "m2" })

	f.say("n2", nil)
	c.node("n2", "said to be removed", is(v1alpha1.ConditionRemoved, metav1.ConditionTrue, "unless it returns"))
	f.say("n2", &cluster.Machine{UID: "m3"})
	c.node("n2", "back", func(n *v1alpha1.StorageNode) bool {
		return n != nil && n.Status.MachineUID == "m3" && meta.FindStatusCondition(n.Status.Conditions, v1alpha1.ConditionRemoved) == nil
	})

	f.say("n2", nil)
	c.node("n2", "said to be removed", is(v1alpha1.ConditionRemoved, metav1.ConditionTrue, ""))
	time.Sleep(2 * time.Second) // past the wait: an agent that is heard keeps its node
	c.node("n2", "kept", isReady)
	c.say(c.dead, "n2", true)
	c.node("n2", "forgotten", func(n *v1alpha1.StorageNode) bool { return n == nil })
	i := c.until("two", "made whole elsewhere", func(i *v1alpha1.BackingImage) bool {
		return copiesAre("2/2")(i) && !slices.Contains(c.disks(i), "n2")
	})
	if _, err := c.store.Disks.Live(context.Background(), "n2"); !backingimage.Is(err, backingimage.NotFound) {
		t.Errorf("the disk of the node that was forgotten is there (%v)", err)
	}
	if _, known := c.store.Nodes.Get("joined"); !known || len(c.disks(i)) != 2 {
		t.Errorf("a machine that no cluster knows was forgotten, or copies are on %v", c.disks(i))
	}
	c.told(v1alpha1.NodeRemoved, "MachineReturned")
}
