package cluster

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage/store"
)

// Nodes watches a cluster's Nodes. It takes "get", "list" and "watch" on nodes. An API without Nodes has none, and the cache never fills.
type Nodes struct {
	cfg      *rest.Config
	client   *store.Resource[*corev1.Node, *corev1.NodeList]
	informer cache.SharedIndexInformer
}

// Machine is a Node, as far as Plinth looks at it.
type Machine struct {
	UID      types.UID
	Cordoned bool
}

// NewNodes makes the watch; it starts nothing.
func NewNodes(cfg *rest.Config) (*Nodes, error) {
	in, err := Resource(cfg, corev1.SchemeGroupVersion, "nodes", func() *corev1.Node { return &corev1.Node{} }, func() *corev1.NodeList { return &corev1.NodeList{} })
	if err != nil {
		return nil, err
	}
	return &Nodes{cfg: cfg, client: in(""), informer: Informer(in(""), &corev1.Node{}, "", slim)}, nil
}

// slim keeps of a Node what is looked at: what kubelets report of images and resources is most of it, and changes all the time.
func slim(o any) (any, error) {
	if n, ok := o.(*corev1.Node); ok {
		return &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion},
			Spec:       corev1.NodeSpec{Unschedulable: n.Spec.Unschedulable},
		}, nil
	}
	return o, nil
}

// Run watches until ctx ends.
func (n *Nodes) Run(ctx context.Context) error {
	served, err := WaitServes(ctx, n.cfg, "nodes")
	if err != nil {
		return nil // ctx ended
	}
	if !served {
		klog.FromContext(ctx).Info("This API has no Nodes: who cordons or removes a machine must tell Plinth himself")
		<-ctx.Done()
		return nil
	}
	n.informer.RunWithContext(ctx)
	return nil
}

// Synced returns when the cache is full, or with ctx's error.
func (n *Nodes) Synced(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), n.informer.HasSynced) {
		return fmt.Errorf("fill the cache of Nodes: %w", ctx.Err())
	}
	return nil
}

// Get returns a Node from the cache, and whether it is there.
func (n *Nodes) Get(name string) (Machine, bool) {
	o, exists, err := n.informer.GetStore().GetByKey(name)
	if err != nil || !exists {
		return Machine{}, false
	}
	return machineOf(o.(*corev1.Node)), true
}

// Live returns a Node from the API server. NotFound.
func (n *Nodes) Live(ctx context.Context, name string) (Machine, error) {
	node, err := n.client.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return Machine{}, store.Classify("get", "Node", name, err)
	}
	return machineOf(node), nil
}

func machineOf(n *corev1.Node) Machine { return Machine{UID: n.UID, Cordoned: n.Spec.Unschedulable} }

// OnChange calls fn with the name of every Node that is added, cordoned or not, or removed. fn must not block.
func (n *Nodes) OnChange(fn func(name string)) (stop func()) {
	call := func(o any) {
		if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = gone.Obj
		}
		if node, ok := o.(*corev1.Node); ok {
			fn(node.Name)
		}
	}
	registration, err := n.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: call, DeleteFunc: call,
		UpdateFunc: func(before, now any) {
			if machineOf(before.(*corev1.Node)) != machineOf(now.(*corev1.Node)) {
				call(now)
			}
		},
	})
	if err != nil { // the informer has stopped
		return func() {}
	}
	return func() { _ = n.informer.RemoveEventHandler(registration) }
}
