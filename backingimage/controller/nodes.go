package controller

import (
	"context"
	"fmt"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/reconcile"
	"plinth.dev/plinth/backingimage/store"
)

// Nodes is the loop that says which nodes are silent. It goes by its own clock alone: a node is silent when its heartbeat has
// not changed for the silence time while this loop was looking, whatever time the heartbeat tells. So clocks need not agree,
// and a controller that starts anew first listens. That a node is heard again is its agent's to say.
type Nodes struct {
	store   *store.Store
	options Options
	loop    *reconcile.Loop

	mu    sync.Mutex
	heard map[string]*heard // by node
}

// heard is what was last heard of a node.
type heard struct {
	heartbeat metav1.Time
	since     time.Time // by the controller's clock
	asked     bool      // the API server confirmed since that it is the last
}

// NewNodes makes the loop; it starts nothing.
func NewNodes(s *store.Store, o Options) *Nodes {
	n := &Nodes{store: s, options: o.withDefaults(), heard: map[string]*heard{}}
	n.loop = reconcile.New("nodes", n, reconcile.Options{Clock: n.options.Clock})
	return n
}

// Run listens until ctx ends.
func (n *Nodes) Run(ctx context.Context) error {
	if err := n.store.Synced(ctx); err != nil {
		return err
	}
	defer n.store.Nodes.OnChange(func(node *v1alpha1.StorageNode) { n.loop.Enqueue(node.Name) })()
	return n.loop.Run(ctx)
}

// Reconcile listens to one node. Before it calls a node silent it asks the API server twice, half of the silence time
// apart: while that cannot be reached no heartbeat arrives, and it is not the nodes that are silent.
func (n *Nodes) Reconcile(ctx context.Context, name string) (time.Duration, error) {
	node, ok := n.store.Nodes.Get(name)
	if !ok {
		n.forget(name)
		return 0, nil
	}
	ready := meta.FindStatusCondition(node.Status.Conditions, v1alpha1.ConditionReady)
	h := n.listen(node)
	if ready == nil || ready.Status != metav1.ConditionTrue {
		return 0, nil // its next heartbeat brings us back
	}
	silence := n.options.Settings.NodeSilence
	quiet := n.options.Clock.Since(h.since)
	if left := silence/2 - quiet; left > 0 {
		return left, nil
	}
	live, err := n.store.Nodes.Live(ctx, name)
	if err != nil {
		n.ask(name, false)
		return 0, backingimage.IgnoreNotFound(err)
	}
	if !live.Status.LastHeartbeatTime.Equal(&h.heartbeat) {
		n.listen(live)
		return silence / 2, nil
	}
	if first := n.ask(name, true); first || quiet < silence {
		return max(silence-quiet, silence/2), nil
	}
	return 0, n.silent(ctx, node, h)
}

// listen returns what was heard of a node, with what it says now.
func (n *Nodes) listen(node *v1alpha1.StorageNode) heard {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.heard[node.Name]
	if h == nil || !h.heartbeat.Equal(&node.Status.LastHeartbeatTime) {
		h = &heard{heartbeat: node.Status.LastHeartbeatTime, since: n.options.Clock.Now()}
		n.heard[node.Name] = h
	}
	return *h
}

// ask notes whether the API server knows no later heartbeat, and returns whether that is news.
func (n *Nodes) ask(name string, confirmed bool) (news bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.heard[name]
	if h == nil || h.asked == confirmed {
		return false
	}
	h.asked = confirmed
	return true
}

func (n *Nodes) forget(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.heard, name)
}

// silent writes that nothing is heard of a node, unless something was just now.
func (n *Nodes) silent(ctx context.Context, node *v1alpha1.StorageNode, h heard) error {
	message := fmt.Sprintf("nothing was heard of its agent for %s; is the machine up, and does it reach the API?", n.options.Settings.NodeSilence)
	_, err := n.store.Nodes.ModifyStatus(ctx, node.Name, func(now *v1alpha1.StorageNode) {
		if !now.Status.LastHeartbeatTime.Equal(&h.heartbeat) {
			return
		}
		meta.SetStatusCondition(&now.Status.Conditions, metav1.Condition{
			Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: v1alpha1.NodeSilent, Message: message,
			LastTransitionTime: metav1.NewTime(n.options.Clock.Now()),
		})
	})
	return backingimage.IgnoreNotFound(err)
}
