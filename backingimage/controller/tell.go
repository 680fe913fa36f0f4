package controller

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/event"
	"plinth.dev/plinth/backingimage/store"
)

// Teller tells of each change of state of copies, disks and nodes, whoever wrote it, so that agents need no leave to write Events.
// Images are told of by the loop that decides about them.
type Teller struct {
	store   *store.Store
	changes *event.Changes
}

// NewTeller makes the loop; it starts nothing.
func NewTeller(s *store.Store, o Options) *Teller {
	return &Teller{store: s, changes: event.NewChanges(o.withDefaults().Recorder)}
}

// Run tells until ctx ends.
func (t *Teller) Run(ctx context.Context) error {
	if err := t.store.Synced(ctx); err != nil {
		return err
	}
	defer t.store.Copies.OnChange(func(c *v1alpha1.BackingImageCopy) {
		_, exists := t.store.Copies.Get(c.Name)
		t.changes.Note(ctx, event.Ours("BackingImageCopy", c.Name, c.UID), exists, copyFacts(c))
	})()
	defer t.store.Disks.OnChange(func(d *v1alpha1.Disk) {
		_, exists := t.store.Disks.Get(d.Name)
		t.changes.Note(ctx, event.Ours("Disk", d.Name, d.UID), exists, diskFacts(d))
	})()
	defer t.store.Nodes.OnChange(func(n *v1alpha1.StorageNode) {
		_, exists := t.store.Nodes.Get(n.Name)
		t.changes.Note(ctx, event.Ours("StorageNode", n.Name, n.UID), exists, nodeFacts(n))
	})()
	<-ctx.Done()
	return nil
}

// copyReasons are the reasons of the events of a copy's states; the others last for a moment and are not told.
var copyReasons = map[v1alpha1.CopyState]string{
	v1alpha1.CopyInProgress: "InProgress", v1alpha1.CopyReady: "Ready", v1alpha1.CopyFailed: "Failed", v1alpha1.CopyUnknown: "Unknown",
}

func copyFacts(c *v1alpha1.BackingImageCopy) []event.Fact {
	state := c.Status.State
	return []event.Fact{{
		Aspect: "state", Value: string(state), Reason: copyReasons[state], Warning: state == v1alpha1.CopyFailed || state == v1alpha1.CopyUnknown,
		Message: event.Because(fmt.Sprintf("the copy of image %s on node %s is %s", c.Spec.Image, c.Spec.NodeName, state), c.Status.Message),
	}}
}

func diskFacts(d *v1alpha1.Disk) []event.Fact {
	what := fmt.Sprintf("disk %s of node %s", d.Spec.Path, d.Spec.NodeName)
	return append(event.Condition(d.Status.Conditions, v1alpha1.ConditionReady, what, metav1.ConditionTrue),
		event.Condition(d.Status.Conditions, v1alpha1.ConditionFull, what, metav1.ConditionFalse)...)
}

func nodeFacts(n *v1alpha1.StorageNode) []event.Fact {
	facts := append(event.Condition(n.Status.Conditions, v1alpha1.ConditionReady, "node "+n.Name, metav1.ConditionTrue),
		event.Condition(n.Status.Conditions, v1alpha1.ConditionDrained, "node "+n.Name, metav1.ConditionTrue)...)
	cordoned := event.Fact{Aspect: "cordoned", Value: fmt.Sprint(n.Status.Cordoned), Reason: "Uncordoned", Message: fmt.Sprintf("node %s takes new copies and volumes again", n.Name)}
	if n.Status.Cordoned {
		cordoned.Reason, cordoned.Message = "Cordoned", fmt.Sprintf("node %s is cordoned: it gets nothing new, and what images have only there is made elsewhere", n.Name)
	}
	removed := event.Fact{Aspect: v1alpha1.ConditionRemoved, Value: "false", Reason: "MachineReturned", Message: fmt.Sprintf("the machine of node %s is in the cluster again", n.Name)}
	if c := meta.FindStatusCondition(n.Status.Conditions, v1alpha1.ConditionRemoved); c != nil {
		removed = event.Fact{Aspect: v1alpha1.ConditionRemoved, Value: "true", Reason: c.Reason, Warning: true, Message: "node " + n.Name + ": " + c.Message}
	}
	return append(facts, cordoned, removed)
}
