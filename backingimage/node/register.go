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
	if err := a.claim(ctx); err != nil {
		return fmt.Errorf("register node %s: %w", a.name, err)
	}
	return a.heartbeat(ctx)
}

// claim returns when no other agent has this node's name: Conflict when one is heard of. An agent is known by its key, and whether the one that
// had the name is alive shows in its next heartbeat: its clock need not be right. One that is silent has lost the name; should it wake,
// displaced tells it.
func (a *Agent) claim(ctx context.Context) error {
	before, err := a.store.Nodes.Live(ctx, a.name)
	if err != nil || !a.others(before) {
		return err
	}
	klog.FromContext(ctx).Info("Another agent had this node's name; waiting whether it is still heard of", "address", before.Status.Address, "wait", a.options.TakeOverAfter)
	waiting, cancel := context.WithTimeout(ctx, a.options.TakeOverAfter)
	defer cancel()
	err = a.store.Nodes.Wait(waiting, a.name, func(now *v1alpha1.StorageNode) (bool, error) {
		return now != nil && a.others(now) && now.Status.LastHeartbeatTime.After(before.Status.LastHeartbeatTime.Time), nil
	})
	switch {
	case err == nil:
		return backingimage.Errorf(backingimage.Conflict, "another agent runs under this name, with its server at %s: give this one another --node-name, or stop that one", before.Status.Address)
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return nil
}

// others reports whether a node's object is that of an agent with another key.
func (a *Agent) others(n *v1alpha1.StorageNode) bool {
	return n.Status.PublicKeyHash != "" && a.options.PublicKeyHash != "" && n.Status.PublicKeyHash != a.options.PublicKeyHash
}

// displaced is Conflict when another agent has claimed this node's name since. What the cache says of that is asked of the API server.
func (a *Agent) displaced(ctx context.Context) error {
	if n, ok := a.store.Nodes.Get(a.name); !ok || !a.others(n) {
		return nil
	}
	n, err := a.store.Nodes.Live(ctx, a.name)
	if err != nil || !a.others(n) {
		return nil
	}
	return backingimage.Errorf(backingimage.Conflict, "another agent, with its server at %s, has taken the name of node %s while this one was not heard of; give one of them another --node-name", n.Status.Address, a.name)
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

// heartbeats reports until ctx ends, or another agent has this node's name. A report that fails is logged; the next one may succeed.
func (a *Agent) heartbeats(ctx context.Context) error {
	ticker := a.options.Clock.NewTicker(a.options.Heartbeat)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
		}
		if err := a.displaced(ctx); err != nil {
			return err
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
