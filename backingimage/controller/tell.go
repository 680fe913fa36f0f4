package controller

import (
	"context"
	"fmt"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/event"
	"plinth.dev/plinth/backingimage/store"
)

// Teller tells of each change of state of copies, disks and nodes, whoever wrote it, so that agents need no leave to write Events.
// What an object is like when it is first seen is not news. Images are told of by the loop that decides about them.
type Teller struct {
	store    *store.Store
	recorder event.Recorder

	mu   sync.Mutex
	last map[types.UID]map[string]string // values of facts, by object
}

// NewTeller makes the loop; it starts nothing.
func NewTeller(s *store.Store, o Options) *Teller {
	return &Teller{store: s, recorder: o.withDefaults().Recorder, last: map[types.UID]map[string]string{}}
}

// Run tells until ctx ends.
func (t *Teller) Run(ctx context.Context) error {
	if err := t.store.Synced(ctx); err != nil {
		return err
	}
	defer t.store.Copies.OnChange(func(c *v1alpha1.BackingImageCopy) {
		_, exists := t.store.Copies.Get(c.Name)
		t.note(ctx, event.Ours("BackingImageCopy", c.Name, c.UID), exists, copyFacts(c))
	})()
	defer t.store.Disks.OnChange(func(d *v1alpha1.Disk) {
		_, exists := t.store.Disks.Get(d.Name)
		t.note(ctx, event.Ours("Disk", d.Name, d.UID), exists, diskFacts(d))
	})()
	defer t.store.Nodes.OnChange(func(n *v1alpha1.StorageNode) {
		_, exists := t.store.Nodes.Get(n.Name)
		t.note(ctx, event.Ours("StorageNode", n.Name, n.UID), exists, nodeFacts(n))
	})()
	<-ctx.Done()
	return nil
}

// fact is something about an object that people want to hear of when it changes.
type fact struct {
	aspect, value string
	warning       bool
	reason        string // "": not worth telling
	message       string
}

// note remembers an object's facts, and tells of those that changed. That something is as it should be from the first is not news.
func (t *Teller) note(ctx context.Context, about event.Object, exists bool, facts []fact) {
	t.mu.Lock()
	before, known := t.last[about.UID]
	delete(t.last, about.UID)
	if exists {
		now := make(map[string]string, len(facts))
		for _, f := range facts {
			now[f.aspect] = f.value
		}
		t.last[about.UID] = now
	}
	t.mu.Unlock()
	for _, f := range facts {
		was, had := before[f.aspect]
		if exists && known && f.reason != "" && was != f.value && (had || f.warning || f.aspect == v1alpha1.ConditionReady) {
			t.recorder.Record(ctx, event.Event{About: about, Warning: f.warning, Reason: f.reason, Message: f.message})
		}
	}
}

// copyReasons are the reasons of the events of a copy's states; the others last for a moment and are not told.
var copyReasons = map[v1alpha1.CopyState]string{
	v1alpha1.CopyInProgress: "InProgress", v1alpha1.CopyReady: "Ready", v1alpha1.CopyFailed: "Failed", v1alpha1.CopyUnknown: "Unknown",
}

func copyFacts(c *v1alpha1.BackingImageCopy) []fact {
	state := c.Status.State
	return []fact{{
		aspect: "state", value: string(state), reason: copyReasons[state], warning: state == v1alpha1.CopyFailed || state == v1alpha1.CopyUnknown,
		message: because(fmt.Sprintf("the copy of image %s on node %s is %s", c.Spec.Image, c.Spec.NodeName, state), c.Status.Message),
	}}
}

func diskFacts(d *v1alpha1.Disk) []fact {
	what := fmt.Sprintf("disk %s of node %s", d.Spec.Path, d.Spec.NodeName)
	return append(conditionFact(d.Status.Conditions, v1alpha1.ConditionReady, what, metav1.ConditionTrue),
		conditionFact(d.Status.Conditions, v1alpha1.ConditionFull, what, metav1.ConditionFalse)...)
}

func nodeFacts(n *v1alpha1.StorageNode) []fact {
	facts := append(conditionFact(n.Status.Conditions, v1alpha1.ConditionReady, "node "+n.Name, metav1.ConditionTrue),
		conditionFact(n.Status.Conditions, v1alpha1.ConditionDrained, "node "+n.Name, metav1.ConditionTrue)...)
	cordoned := fact{aspect: "cordoned", value: fmt.Sprint(n.Status.Cordoned), reason: "Uncordoned", message: fmt.Sprintf("node %s takes new copies and volumes again", n.Name)}
	if n.Status.Cordoned {
		cordoned.reason, cordoned.message = "Cordoned", fmt.Sprintf("node %s is cordoned: it gets nothing new, and what images have only there is made elsewhere", n.Name)
	}
	removed := fact{aspect: v1alpha1.ConditionRemoved, value: "false", reason: "MachineReturned", message: fmt.Sprintf("the machine of node %s is in the cluster again", n.Name)}
	if c := meta.FindStatusCondition(n.Status.Conditions, v1alpha1.ConditionRemoved); c != nil {
		removed = fact{aspect: v1alpha1.ConditionRemoved, value: "true", reason: c.Reason, warning: true, message: "node " + n.Name + ": " + c.Message}
	}
	return append(facts, cordoned, removed)
}

// conditionFact is a condition; one that is not as it should be is a warning.
func conditionFact(conditions []metav1.Condition, kind, what string, should metav1.ConditionStatus) []fact {
	c := meta.FindStatusCondition(conditions, kind)
	if c == nil {
		return nil
	}
	return []fact{{aspect: kind, value: string(c.Status) + c.Reason, warning: c.Status != should, reason: c.Reason, message: because(what, c.Message)}}
}

// because joins a sentence and its cause, if one is known.
func because(sentence, cause string) string {
	if cause == "" {
		return sentence
	}
	return sentence + ": " + cause
}
