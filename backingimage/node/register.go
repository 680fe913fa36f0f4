package node

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
)

// register writes the node's object where it is missing, and what the agent knows of it.
func (a *Agent) register(ctx context.Context) error {
	node := &v1alpha1.StorageNode{ObjectMeta: metav1.ObjectMeta{Name: a.name}}
	if err := ensure(ctx, a.store.Nodes, node); err != nil {
		return fmt.Errorf("register node %s: %w", a.name, err)
	}
	return a.heartbeat(ctx)
}

// ensure creates an object unless it exists.
func ensure[T store.Object](ctx context.Context, kind *store.Kind[T], object T) error {
	if _, exists := kind.Get(object.GetName()); exists {
		return nil
	}
	_, err := kind.Create(ctx, object)
	if backingimage.Is(err, backingimage.Conflict) {
		return nil
	}
	return err
}

// heartbeats reports until ctx ends. A report that fails is logged; the next one may succeed.
func (a *Agent) heartbeats(ctx context.Context) error {
	ticker := a.options.Clock.NewTicker(a.options.Heartbeat)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
		}
		if err := a.heartbeat(ctx); err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "Cannot report this node's state")
		}
	}
}

// heartbeat reports the node.
func (a *Agent) heartbeat(ctx context.Context) error {
	_, err := a.store.Nodes.ModifyStatus(ctx, a.name, func(n *v1alpha1.StorageNode) {
		n.Status.Version = a.options.Version
		n.Status.Address, n.Status.PublicKeyHash = a.options.Address, a.options.PublicKeyHash
		n.Status.LastHeartbeatTime = metav1.NewTime(a.options.Clock.Now())
		meta.SetStatusCondition(&n.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "AgentRuns", Message: "the agent runs"})
	})
	return err
}
