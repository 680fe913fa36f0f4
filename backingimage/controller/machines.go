package controller

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/cluster"
	"plinth.dev/plinth/backingimage/event"
	"plinth.dev/plinth/backingimage/reconcile"
	"plinth.dev/plinth/backingimage/store"
)

// Fleet is an orchestrator's view of the machines that nodes run on; cluster.Nodes is Kubernetes'.
type Fleet interface {
	// Synced returns when Get knows every machine.
	Synced(ctx context.Context) error
	// Get returns a machine by its node's name, and whether there is one.
	Get(name string) (cluster.Machine, bool)
	// Live asks anew. NotFound.
	Live(ctx context.Context, name string) (cluster.Machine, error)
	// OnChange calls fn, which must not block, with the name of each machine that comes, changes or goes.
	OnChange(fn func(name string)) (stop func())
}

// Machines is the loop that takes over what the orchestrator says of machines: which of them are cordoned, so that copies move away before
// they are drained; and which were removed. A removed one whose agent is silent is forgotten after a while, with its disks: its
// images are then made whole elsewhere. Nodes that the orchestrator never knew, like machines that joined from elsewhere, are left alone.
type Machines struct {
	store   *store.Store
	fleet   Fleet
	options Options
	loop    *reconcile.Loop
}

// NewMachines makes the loop; it starts nothing.
func NewMachines(s *store.Store, fleet Fleet, o Options) *Machines {
	m := &Machines{store: s, fleet: fleet, options: o.withDefaults()}
	m.loop = reconcile.New("machines", m, reconcile.Options{Clock: m.options.Clock})
	return m
}

// Run looks on until ctx ends.
func (m *Machines) Run(ctx context.Context) error {
	if err := m.store.Synced(ctx); err != nil {
		return err
	}
	if err := m.fleet.Synced(ctx); err != nil {
		return nil // ctx ended, perhaps because there is no fleet
	}
	defer m.store.Nodes.OnChange(func(n *v1alpha1.StorageNode) { m.loop.Enqueue(n.Name) })()
	defer m.fleet.OnChange(m.loop.Enqueue)()
	return m.loop.Run(ctx)
}

// Reconcile looks at one node.
func (m *Machines) Reconcile(ctx context.Context, name string) (time.Duration, error) {
	n, ok := m.store.Nodes.Get(name)
	if !ok {
		return 0, nil
	}
	machine, exists := m.fleet.Get(name)
	if !exists && n.Status.MachineUID == "" {
		return 0, nil
	}
	if !exists {
		var err error
		if machine, err = m.fleet.Live(ctx, name); backingimage.Is(err, backingimage.NotFound) {
			return m.removed(ctx, n)
		} else if err != nil {
			return 0, err
		}
	}
	_, err := m.store.Nodes.ModifyStatus(ctx, name, func(now *v1alpha1.StorageNode) {
		now.Status.MachineUID, now.Status.Cordoned = machine.UID, machine.Cordoned
		meta.RemoveStatusCondition(&now.Status.Conditions, v1alpha1.ConditionRemoved)
	})
	return 0, backingimage.IgnoreNotFound(err)
}

// removed says that a node's machine was removed and, when that is some time ago and nothing is heard of its agent, forgets the node.
func (m *Machines) removed(ctx context.Context, n *v1alpha1.StorageNode) (time.Duration, error) {
	since := m.options.Clock.Now()
	if c := meta.FindStatusCondition(n.Status.Conditions, v1alpha1.ConditionRemoved); c != nil {
		since = c.LastTransitionTime.Time
	} else if err := m.sayRemoved(ctx, n, since); err != nil {
		return 0, backingimage.IgnoreNotFound(err)
	}
	wait := m.options.Settings.RemovalWait
	if left := wait - m.options.Clock.Since(since); wait < 0 || left > 0 {
		return max(left, 0), nil
	}
	if ready := meta.FindStatusCondition(n.Status.Conditions, v1alpha1.ConditionReady); ready != nil && ready.Status == metav1.ConditionTrue {
		return 0, nil // it runs; when it is silent, that brings us back
	}
	return 0, m.forget(ctx, n)
}

func (m *Machines) sayRemoved(ctx context.Context, n *v1alpha1.StorageNode, now time.Time) error {
	message := "its machine was removed from the cluster; when its agent is silent, the node is forgotten"
	if wait := m.options.Settings.RemovalWait; wait > 0 {
		message += " from " + now.Add(wait).UTC().Format(time.RFC3339) + " on, unless it returns"
	}
	_, err := m.store.Nodes.ModifyStatus(ctx, n.Name, func(now *v1alpha1.StorageNode) {
		meta.SetStatusCondition(&now.Status.Conditions, metav1.Condition{
			Type: v1alpha1.ConditionRemoved, Status: metav1.ConditionTrue, Reason: v1alpha1.NodeRemoved, Message: message, LastTransitionTime: metav1.NewTime(m.options.Clock.Now()),
		})
	})
	return err
}

// forget removes a node's disks and the node. Its copies count as gone from then on, and its volumes say where their data is.
func (m *Machines) forget(ctx context.Context, n *v1alpha1.StorageNode) error {
	disks, err := m.store.Disks.LiveList(ctx)
	if err != nil {
		return err
	}
	m.options.Recorder.Record(ctx, event.Event{About: event.Ours("StorageNode", n.Name, n.UID), Warning: true, Reason: v1alpha1.NodeRemoved,
		Message: fmt.Sprintf("node %s is forgotten with its disks: its machine was removed from the cluster; should it return, its agent registers it again", n.Name)})
	for _, d := range disks {
		if d.Spec.NodeName != n.Name {
			continue
		}
		if err := m.store.Disks.Delete(ctx, d.Name); err != nil {
			return err
		}
	}
	return m.store.Nodes.Delete(ctx, n.Name)
}
