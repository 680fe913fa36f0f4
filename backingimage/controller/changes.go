package controller

import (
	"sync"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// changes tells a change of a disk or a node that can alter a plan from a heartbeat, so that a thousand nodes saying
// "still here" do not make every image be planned again.
type changes struct {
	mu    sync.Mutex
	last  map[string]any
	plans func()
}

func newChanges(plans func()) *changes { return &changes{last: map[string]any{}, plans: plans} }

func (c *changes) disk(d *v1alpha1.Disk, exists bool) {
	c.note("disk/"+d.Name, []any{exists, d.Spec, d.UID, d.DeletionTimestamp != nil,
		meta.IsStatusConditionTrue(d.Status.Conditions, v1alpha1.ConditionReady), meta.IsStatusConditionTrue(d.Status.Conditions, v1alpha1.ConditionFull)})
}

func (c *changes) node(n *v1alpha1.StorageNode, exists bool) {
	c.note("node/"+n.Name, []any{exists, n.Spec, n.UID, n.DeletionTimestamp != nil,
		meta.IsStatusConditionTrue(n.Status.Conditions, v1alpha1.ConditionReady), n.Status.Cordoned, n.Status.Waiting})
}

func (c *changes) note(key string, facts any) {
	c.mu.Lock()
	same := apiequality.Semantic.DeepEqual(c.last[key], facts)
	c.last[key] = facts
	c.mu.Unlock()
	if !same {
		c.plans()
	}
}
