package provisioner

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/retry"
	"k8s.io/klog/v2"
	"k8s.io/utils/ptr"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/cluster"
	"plinth.dev/plinth/backingimage/event"
	"plinth.dev/plinth/backingimage/reconcile"
	"plinth.dev/plinth/backingimage/store"
)

// Populator is the loop that gives claims a volume whose dataSourceRef is a BackingImage. The provisioner sidecar leaves those alone. So a claim in
// Plinth's own namespace stands in for each: the sidecar takes that one on, CreateVolume makes its volume of what the original
// asks for, and once it is bound its PersistentVolume is given to the original, whereupon Kubernetes binds those two. Nothing is copied,
// and a volume is made once. Nothing holds the original: a stand-in that has none is deleted, and its volume goes with it.
type Populator struct {
	store     *store.Store
	storage   *cluster.Storage
	recorder  event.Recorder
	driver    string
	namespace string
	claims    cache.SharedIndexInformer
	refusals  cache.SharedIndexInformer // Events of stand-ins
	loop      *reconcile.Loop
}

// storageProvisionerAnnotation is at a claim for which Kubernetes has found no volume: the driver that shall make one.
const storageProvisionerAnnotation = "volume.kubernetes.io/storage-provisioner"

// reasonRefused is the sidecar's reason, too.
const reasonRefused = "ProvisioningFailed"

// NewPopulator makes the loop of a cluster's storage, for the claims of a driver; namespace is Plinth's own. It starts nothing.
func NewPopulator(s *store.Store, storage *cluster.Storage, r event.Recorder, driver, namespace string) *Populator {
	p := &Populator{store: s, storage: storage, recorder: r, driver: driver, namespace: namespace}
	p.claims = cluster.Informer(storage.Claims(""), &corev1.PersistentVolumeClaim{}, "", p.slim)
	p.refusals = cluster.Informer(storage.Events(namespace), &corev1.Event{}, "involvedObject.kind=PersistentVolumeClaim,reason="+reasonRefused, nil)
	p.loop = reconcile.New("stand-ins", p, reconcile.Options{})
	return p
}

// slim keeps of claims that are no concern of the loop's only that they are there.
func (p *Populator) slim(o any) (any, error) {
	c, ok := o.(*corev1.PersistentVolumeClaim)
	if !ok {
		return o, nil
	}
	if p.keyOf(c) == "" {
		return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: c.Namespace, Name: c.Name, UID: c.UID, ResourceVersion: c.ResourceVersion}}, nil
	}
	c.ManagedFields = nil
	return c, nil
}

// keyOf is the key of the original that a claim is or stands in for, "" for any other.
func (p *Populator) keyOf(c *corev1.PersistentVolumeClaim) string {
	if key := c.Annotations[v1alpha1.StandInAnnotation]; key != "" && c.Namespace == p.namespace {
		return key
	}
	if imageSource(c) != "" {
		return claimKey(c)
	}
	return ""
}

// Run works until ctx ends. Where the API has no claims there is nothing to do.
func (p *Populator) Run(ctx context.Context) error {
	if served, err := p.storage.WaitServed(ctx); err != nil || !served {
		<-ctx.Done()
		return nil
	}
	enqueue := func(o any) {
		if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = gone.Obj
		}
		if c, ok := o.(*corev1.PersistentVolumeClaim); ok && p.keyOf(c) != "" {
			p.loop.Enqueue(p.keyOf(c))
		}
	}
	relay := func(o any) { p.relay(ctx, o) }
	for informer, fn := range map[cache.SharedIndexInformer]func(any){p.claims: enqueue, p.refusals: relay} {
		if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: fn, UpdateFunc: func(_, o any) { fn(o) }, DeleteFunc: enqueue}); err != nil {
			return fmt.Errorf("watch claims: %w", err)
		}
	}
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { p.claims.RunWithContext(ctx) })
	if !cache.WaitForCacheSync(ctx.Done(), p.claims.HasSynced) {
		return nil // ctx ended
	}
	running.Go(func() { p.refusals.RunWithContext(ctx) })
	return p.loop.Run(ctx)
}

// relay tells at the original why its stand-in gets no volume.
func (p *Populator) relay(ctx context.Context, o any) {
	e, ok := o.(*corev1.Event)
	if !ok {
		return
	}
	standIn := p.cached(e.InvolvedObject.Namespace, e.InvolvedObject.Name)
	if standIn == nil || standIn.UID != e.InvolvedObject.UID {
		return
	}
	if of, err := parseClaimKey(p.keyOf(standIn)); err == nil {
		p.tell(ctx, of, e.Message)
	}
}

func (p *Populator) tell(ctx context.Context, of v1alpha1.VolumeClaim, why string) {
	p.recorder.Record(ctx, event.Event{About: claimObject(&of), Warning: true, Reason: reasonRefused, Message: why, Latest: true})
}

// cached is a claim as the watch has it, nil when it is not there.
func (p *Populator) cached(namespace, name string) *corev1.PersistentVolumeClaim {
	o, exists, err := p.claims.GetStore().GetByKey(namespace + "/" + name)
	if err != nil || !exists {
		return nil
	}
	return o.(*corev1.PersistentVolumeClaim)
}

// Reconcile does what is next for one original and its stand-in.
func (p *Populator) Reconcile(ctx context.Context, key string) (time.Duration, error) {
	of, err := parseClaimKey(key)
	if err != nil {
		klog.FromContext(ctx).V(4).Info("Not a stand-in", "why", err)
		return 0, nil
	}
	claim, standIn := p.cached(of.Namespace, of.Name), p.cached(p.namespace, standInName(of.UID))
	if standIn != nil && p.keyOf(standIn) != key { // it is somebody's own
		standIn = nil
	}
	switch {
	case claim == nil || claim.UID != of.UID || claim.DeletionTimestamp != nil || claim.Spec.VolumeName != "":
		err = p.remove(ctx, standIn)
	case standIn == nil:
		err = p.standIn(ctx, claim)
	case standIn.DeletionTimestamp != nil: // there will be another
	case standIn.Spec.VolumeName != "":
		err = p.handOver(ctx, claim, standIn)
	case standIn.Annotations[selectedNodeAnnotation] != claim.Annotations[selectedNodeAnnotation]:
		err = p.chooseAgain(ctx, claim, standIn)
	}
	if backingimage.Is(err, backingimage.Precondition) {
		p.tell(ctx, of, err.Error())
	}
	return 0, err
}

// standIn makes the stand-in of a claim once Kubernetes wants a volume made for it and, where binding is late, a node is chosen.
func (p *Populator) standIn(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	driver, name := claim.Annotations[storageProvisionerAnnotation], ptr.Deref(claim.Spec.StorageClassName, "")
	switch {
	case driver == "" || name == "":
		return nil
	case driver != p.driver:
		p.tell(ctx, v1alpha1.VolumeClaim{Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID},
			fmt.Sprintf("its source is backing image %s, and its StorageClass %s is of driver %s: take a class of %s", shortened(imageSource(claim)), name, driver, p.driver))
		return nil
	}
	class, err := p.storage.Classes("").Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return store.Classify("get", "StorageClass", name, err)
	}
	late := class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
	if class.Provisioner != p.driver || late && claim.Annotations[selectedNodeAnnotation] == "" {
		return nil
	}
	s := standInFor(claim, p.namespace)
	_, err = p.storage.Claims(p.namespace).Create(ctx, s, metav1.CreateOptions{})
	switch {
	case apierrors.IsAlreadyExists(err):
		return nil
	case apierrors.IsForbidden(err) || apierrors.IsInvalid(err):
		return backingimage.Errorf(backingimage.Precondition, "make claim %s/%s, which stands in for this one while its volume is made: %w", s.Namespace, s.Name, err)
	case err != nil:
		return store.Classify("create", "claim", s.Namespace+"/"+s.Name, err)
	}
	klog.FromContext(ctx).Info("Made a stand-in of a claim that asks for a backing image", "standIn", klog.KObj(s), "backingImage", imageSource(claim))
	return nil
}

// chooseAgain takes back a stand-in that is for another node than the claim. Where the sidecar took the node away, which has no room,
// the scheduler is to choose another: that is what taking it away from a claim means, and only of the original's it hears.
func (p *Populator) chooseAgain(ctx context.Context, claim, standIn *corev1.PersistentVolumeClaim) error {
	if err := p.remove(ctx, standIn); err != nil || standIn.Annotations[selectedNodeAnnotation] != "" {
		return err
	}
	client, node := p.storage.Claims(claim.Namespace), claim.Annotations[selectedNodeAnnotation]
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		now, err := client.Get(ctx, claim.Name, metav1.GetOptions{})
		if err != nil || now.UID != claim.UID || now.Annotations[selectedNodeAnnotation] != node {
			return err
		}
		delete(now.Annotations, selectedNodeAnnotation)
		_, err = client.Update(ctx, now, metav1.UpdateOptions{})
		return err
	})
	return backingimage.IgnoreNotFound(store.Classify("take the node from", "claim", claim.Namespace+"/"+claim.Name, err))
}

// handOver gives a stand-in's volume to the original.
func (p *Populator) handOver(ctx context.Context, claim, standIn *corev1.PersistentVolumeClaim) error {
	name := standIn.Spec.VolumeName
	pv, err := p.storage.Volumes("").Get(ctx, name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return store.Classify("get", "PersistentVolume", name, err)
	}
	switch {
	case err != nil || pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID != claim.UID && pv.Spec.ClaimRef.UID != standIn.UID:
		return p.remove(ctx, standIn) // it is of no use any more; another is made
	case pv.Spec.ClaimRef.UID == claim.UID || standIn.Status.Phase != corev1.ClaimBound:
		return nil // Kubernetes is at it
	}
	if err := p.suits(ctx, pv, claim, standIn); err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": pv.ResourceVersion},
		"spec": map[string]any{"claimRef": corev1.ObjectReference{
			APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID, ResourceVersion: claim.ResourceVersion,
		}},
	})
	if err != nil {
		return fmt.Errorf("encode the claim of PersistentVolume %s: %w", name, err)
	}
	if _, err := p.storage.Volumes("").Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return store.Classify("patch", "PersistentVolume", name, err)
	}
	klog.FromContext(ctx).Info("Gave a stand-in's volume to its claim", "persistentVolume", name, "claim", klog.KObj(claim))
	return nil
}

// suits refuses a volume that was not made of the image that the original asks for: whoever made it did not know whom for.
func (p *Populator) suits(ctx context.Context, pv *corev1.PersistentVolume, claim, standIn *corev1.PersistentVolumeClaim) error {
	if pv.Spec.CSI != nil && pv.Spec.CSI.Driver == p.driver {
		v, err := p.store.Volumes.Live(ctx, pv.Spec.CSI.VolumeHandle)
		if err != nil {
			return err
		}
		if v.Spec.Claim != nil && v.Spec.Claim.UID == claim.UID && v.Spec.Image != nil && v.Spec.Image.Name == imageSource(claim) {
			return nil
		}
	}
	return backingimage.Errorf(backingimage.Precondition, "volume %s was made for it, and not of backing image %s: run csi-provisioner with --extra-create-metadata, then delete claim %s/%s, so that another is made",
		pv.Name, shortened(imageSource(claim)), standIn.Namespace, standIn.Name)
}

// remove deletes a stand-in, if it is there.
func (p *Populator) remove(ctx context.Context, standIn *corev1.PersistentVolumeClaim) error {
	if standIn == nil || standIn.DeletionTimestamp != nil {
		return nil
	}
	err := p.storage.Claims(p.namespace).Delete(ctx, standIn.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &standIn.UID}})
	if apierrors.IsConflict(err) { // there is another of that name
		return nil
	}
	return backingimage.IgnoreNotFound(store.Classify("delete", "claim", standIn.Namespace+"/"+standIn.Name, err))
}
