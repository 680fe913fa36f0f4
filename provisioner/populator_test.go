package provisioner_test

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2/ktesting"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/cluster"
	"plinth.dev/plinth/backingimage/node/nodetest"
	"plinth.dev/plinth/provisioner"
)

const (
	selectedNode = "volume.kubernetes.io/selected-node"
	fullNode     = "full" // where there is no room
)

// kubernetes is a cluster with claims: its API, and what its controllers, scheduler and provisioner sidecar do.
type kubernetes struct {
	*storageAPI
	t       *testing.T
	w       *world
	storage *cluster.Storage
	volumes provisioner.Controller
	events  *recorded
	classes map[string]map[string]string // parameters
	silent  bool                         // the sidecar does not tell for which claim it asks
	nodes   []string                     // that the scheduler chooses, one after the other
	stop    func()
}

func newKubernetes(t *testing.T, w *world) *kubernetes {
	t.Helper()
	a, cfg := newStorageAPI(t)
	storage, err := cluster.NewStorage(cfg)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := cluster.NewClaims(cfg)
	if err != nil {
		t.Fatal(err)
	}
	k := &kubernetes{storageAPI: a, t: t, w: w, storage: storage, events: &recorded{}, classes: map[string]map[string]string{}}
	k.volumes = provisioner.Idempotent{Controller: provisioner.New(w.Store, provisioner.Options{SizeWait: 5 * time.Second, Claims: claims})}
	k.start()
	t.Cleanup(func() { k.stop() })
	return k
}

// start runs the loop until stop is called.
func (k *kubernetes) start() {
	_, ctx := ktesting.NewTestContext(k.t)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error)
	p := provisioner.NewPopulator(k.w.Store, k.storage, k.events, "csi.plinth.dev", "plinth")
	go func() { done <- p.Run(ctx) }()
	k.stop = func() { cancel(); <-done }
}

func (k *kubernetes) class(name string, binding storagev1.VolumeBindingMode, parameters map[string]string) {
	k.classes[name] = parameters
	k.put("storageclasses", "", name, storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: "csi.plinth.dev", VolumeBindingMode: &binding})
}

// ask makes a claim of namespace shop that asks for a backing image.
func (k *kubernetes) ask(name, class, image string) types.UID {
	group, uid := v1alpha1.GroupVersion.Group, types.UID(uuid.NewString())
	c := corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: uid}, Spec: corev1.PersistentVolumeClaimSpec{
		StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources:     corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("8Mi")}},
		DataSourceRef: &corev1.TypedObjectReference{APIGroup: &group, Kind: "BackingImage", Name: image},
	}}
	c.Annotations = map[string]string{"volume.kubernetes.io/storage-provisioner": "csi.plinth.dev"}
	k.put("persistentvolumeclaims", "shop", name, c)
	return uid
}

func (k *kubernetes) claim(namespace, name string) *corev1.PersistentVolumeClaim {
	for _, c := range all[corev1.PersistentVolumeClaim](k.storageAPI, "persistentvolumeclaims") {
		if c.Namespace == namespace && c.Name == name {
			return &c
		}
	}
	return nil
}

func (k *kubernetes) standIns() (list []corev1.PersistentVolumeClaim) {
	for _, c := range all[corev1.PersistentVolumeClaim](k.storageAPI, "persistentvolumeclaims") {
		if c.Namespace == "plinth" {
			list = append(list, c)
		}
	}
	return list
}

// act does once what is next for everybody but Plinth.
func (k *kubernetes) act() {
	claims := map[types.UID]*corev1.PersistentVolumeClaim{}
	for _, c := range all[corev1.PersistentVolumeClaim](k.storageAPI, "persistentvolumeclaims") {
		claims[c.UID] = &c
		switch {
		case c.Spec.VolumeName == "" && c.Spec.DataSourceRef == nil:
			k.provision(&c)
		case c.Annotations[selectedNode] == "" && len(k.nodes) > 0:
			c.Annotations[selectedNode], k.nodes = k.nodes[0], k.nodes[1:]
			k.put("persistentvolumeclaims", c.Namespace, c.Name, c)
		}
	}
	for _, v := range all[corev1.PersistentVolume](k.storageAPI, "persistentvolumes") {
		k.bind(&v, claims)
	}
}

// provision is the sidecar.
func (k *kubernetes) provision(c *corev1.PersistentVolumeClaim) {
	name := "pvc-" + string(c.UID)
	if c.Annotations[selectedNode] == fullNode {
		delete(c.Annotations, selectedNode)
		k.put("persistentvolumeclaims", c.Namespace, c.Name, c)
		return
	}
	parameters := maps.Clone(k.classes[*c.Spec.StorageClassName])
	if !k.silent {
		parameters["csi.storage.k8s.io/pvc/namespace"], parameters["csi.storage.k8s.io/pvc/name"] = c.Namespace, c.Name
	}
	v, err := k.volumes.Create(k.t.Context(), provisioner.CreateRequest{Name: name, Parameters: parameters, RequiredBytes: c.Spec.Resources.Requests.Storage().Value()})
	if err != nil {
		k.put("events", c.Namespace, name, corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: c.Namespace, Name: name}, Reason: "ProvisioningFailed", Message: err.Error(),
			InvolvedObject: corev1.ObjectReference{Kind: "PersistentVolumeClaim", Namespace: c.Namespace, Name: c.Name, UID: c.UID}})
		return
	}
	pv := corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeSpec{
		ClaimRef:               &corev1.ObjectReference{Kind: "PersistentVolumeClaim", Namespace: c.Namespace, Name: c.Name, UID: c.UID, ResourceVersion: c.ResourceVersion},
		PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "csi.plinth.dev", VolumeHandle: v.Name}},
	}}
	k.put("persistentvolumes", "", name, pv)
}

// bind is Kubernetes' own controller: volumes whose claim is gone go.
func (k *kubernetes) bind(v *corev1.PersistentVolume, claims map[types.UID]*corev1.PersistentVolumeClaim) {
	c := claims[v.Spec.ClaimRef.UID]
	switch {
	case c == nil && k.claim(v.Spec.ClaimRef.Namespace, v.Spec.ClaimRef.Name) == nil:
		if err := k.volumes.Delete(k.t.Context(), v.Spec.CSI.VolumeHandle); err != nil {
			k.t.Error(err)
		}
		k.drop("persistentvolumes", "", v.Name)
	case c != nil && c.Spec.VolumeName == "" && k.claim(c.Namespace, c.Name) != nil:
		c.Spec.VolumeName, c.Status.Phase = v.Name, corev1.ClaimBound
		k.put("persistentvolumeclaims", c.Namespace, c.Name, c)
	}
}

// until acts until the test is content.
func (k *kubernetes) until(what string, content func() bool) {
	k.t.Helper()
	for deadline := time.Now().Add(nodetest.Wait); !content(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			k.t.Fatalf("waited in vain for %s; claims are %+v", what, all[corev1.PersistentVolumeClaim](k.storageAPI, "persistentvolumeclaims"))
		}
		k.act()
	}
}

// populated waits until a claim has its volume and nothing else is left, and returns the volume.
func (k *kubernetes) populated(name string, uid types.UID, image string) *v1alpha1.Volume {
	k.t.Helper()
	k.until("claim "+name+" to be bound", func() bool { return k.claim("shop", name).Status.Phase == corev1.ClaimBound && len(k.standIns()) == 0 })
	list := all[corev1.PersistentVolume](k.storageAPI, "persistentvolumes")
	if len(list) != 1 || list[0].Spec.ClaimRef.UID != uid || list[0].Name != k.claim("shop", name).Spec.VolumeName {
		k.t.Fatalf("PersistentVolumes are %+v", list)
	}
	v, err := k.w.Store.Volumes.Live(k.t.Context(), list[0].Spec.CSI.VolumeHandle)
	if err != nil || v.Spec.Image == nil || v.Spec.Image.Name != image || v.Spec.Claim.Namespace != "shop" || v.Spec.Claim.UID != uid {
		k.t.Fatalf("the volume is %+v (%v)", v, err)
	}
	return v
}

// remove takes a claim away, and waits until its volume is gone.
func (k *kubernetes) remove(name string) {
	k.t.Helper()
	k.drop("persistentvolumeclaims", "shop", name)
	k.until("nothing to be left of "+name, func() bool {
		return len(k.standIns())+len(all[corev1.PersistentVolume](k.storageAPI, "persistentvolumes")) == 0
	})
}

func TestPopulator(t *testing.T) {
	w := newWorld(t)
	web := nodetest.NewWeb(t, 4<<20)
	first := w.create(t, provisioner.CreateRequest{Name: "first", Parameters: download("golden", web.URL, web.SHA512())})
	allow := func(namespaces ...string) {
		t.Helper()
		if _, err := w.Store.Images.Modify(context.Background(), "golden", func(i *v1alpha1.BackingImage) { i.Spec.AllowedNamespaces = namespaces }); err != nil {
			t.Fatal(err)
		}
	}
	fresh := func(t *testing.T) *kubernetes {
		k := newKubernetes(t, w)
		k.class("any", storagev1.VolumeBindingImmediate, map[string]string{"allowBackingImageOverride": "true"})
		k.class("late", storagev1.VolumeBindingWaitForFirstConsumer, map[string]string{"allowBackingImageOverride": "true"})
		k.class("golden", storagev1.VolumeBindingImmediate, download("golden", web.URL, web.SHA512()))
		k.class("empty", storagev1.VolumeBindingImmediate, map[string]string{})
		return k
	}
	allow("shop")

	// Each write of the loop fails once, before or after it is done, and the loop ends there: another takes over.
	for _, after := range []bool{false, true} {
		for n := 1; ; n++ {
			var writes atomic.Int64
			t.Run(fmt.Sprintf("killed at write %d, done %t", n, after), func(t *testing.T) {
				k := fresh(t)
				killed := make(chan struct{})
				k.broken = func() (bool, bool) {
					if writes.Add(1) == int64(n) {
						close(killed)
						return !after, after
					}
					return false, false
				}
				uid := k.ask("data", "any", "golden")
				for done := false; !done; {
					select {
					case <-killed:
						k.stop()
						k.start()
						done = true
					default:
						k.act()
						c := k.claim("shop", "data")
						done = c.Status.Phase == corev1.ClaimBound && len(k.standIns()) == 0
						time.Sleep(time.Millisecond)
					}
				}
				k.populated("data", uid, "golden")
				k.remove("data")
			})
			if writes.Load() < int64(n) {
				if n != 4 {
					t.Errorf("the loop wrote %d times: a stand-in is made, its volume handed over, and it is removed", n-1)
				}
				break
			}
		}
	}

	t.Run("a class that names the very image needs no leave", func(t *testing.T) {
		k := fresh(t)
		allow()
		defer allow("shop")
		k.populated("data", k.ask("data", "golden", "golden"), "golden")
		k.remove("data")
	})
	t.Run("what is refused is told at the original, and granted when it is mended", func(t *testing.T) {
		k := fresh(t)
		allow("plinth", "other") // where its stand-in is counts for nothing
		defer allow("shop")
		uid := k.ask("data", "any", "golden")
		k.until("a stand-in", func() bool { return len(k.standIns()) == 1 })
		k.act()
		e := k.events.until(t, "ProvisioningFailed", "claim shop/data may not use backing image golden: add namespace shop")
		if e.About.Namespace != "shop" || e.About.Name != "data" || e.About.UID != uid || !e.Warning {
			t.Errorf("told %+v", e)
		}
		allow("shop")
		k.populated("data", uid, "golden")
		k.remove("data")
	})
	for name, c := range map[string]struct{ class, annotated, says string }{
		"a class that lets no claim choose": {"empty", "", "by its spec.dataSourceRef, and its StorageClass does not let it"},
		"a claim that asks for two images":  {"any", "silver", "by spec.dataSourceRef and for"},
	} {
		t.Run(name, func(t *testing.T) {
			k := fresh(t)
			k.ask("data", c.class, "golden")
			if c.annotated != "" {
				claim := k.claim("shop", "data")
				claim.Annotations["plinth.dev/backing-image"] = c.annotated
				k.put("persistentvolumeclaims", "shop", "data", claim)
			}
			k.until("a stand-in", func() bool { return len(k.standIns()) == 1 })
			k.act()
			k.events.until(t, "ProvisioningFailed", c.says)
			k.remove("data")
		})
	}
	t.Run("late binding waits for the scheduler, and has it choose again when there is no room", func(t *testing.T) {
		k := fresh(t)
		uid := k.ask("data", "late", "golden")
		other := k.ask("other", "any", "golden") // when that is done, the loop has looked at the first
		k.until("the other claim to be bound", func() bool {
			return k.claim("shop", "other").Status.Phase == corev1.ClaimBound && k.claim("shop", "other").UID == other
		})
		for _, s := range k.standIns() {
			if strings.Contains(s.Annotations[v1alpha1.StandInAnnotation], "/data/") {
				t.Fatalf("there is %+v", s)
			}
		}
		k.remove("other")
		k.nodes = []string{fullNode, fullNode, "roomy"}
		k.populated("data", uid, "golden")
		if c := k.claim("shop", "data"); c.Annotations[selectedNode] != "roomy" {
			t.Errorf("its node is %s", c.Annotations[selectedNode])
		}
		k.remove("data")
	})
	t.Run("a volume that was made for nobody known is not handed over", func(t *testing.T) {
		k := fresh(t)
		k.silent = true
		k.ask("data", "golden", "golden")
		k.until("the stand-in to be bound", func() bool { s := k.standIns(); return len(s) == 1 && s[0].Status.Phase == corev1.ClaimBound })
		k.events.until(t, "ProvisioningFailed", "run csi-provisioner with --extra-create-metadata, then delete claim plinth/from-image-")
		if c := k.claim("shop", "data"); c.Spec.VolumeName != "" {
			t.Errorf("it has %s", c.Spec.VolumeName)
		}
		k.silent = false
		k.drop("persistentvolumeclaims", "plinth", k.standIns()[0].Name)
		k.populated("data", k.claim("shop", "data").UID, "golden")
		k.remove("data")
	})
	t.Run("a class of another driver", func(t *testing.T) {
		k := fresh(t)
		k.ask("data", "any", "golden")
		c := k.claim("shop", "data")
		c.Name, c.UID, c.Annotations["volume.kubernetes.io/storage-provisioner"] = "theirs", types.UID(uuid.NewString()), "other.example.org"
		k.put("persistentvolumeclaims", "shop", "theirs", c)
		e := k.events.until(t, "ProvisioningFailed", "is of driver other.example.org: take a class of csi.plinth.dev")
		k.until("the other claim to be bound", func() bool {
			return k.claim("shop", "data").Status.Phase == corev1.ClaimBound && len(k.standIns()) == 0
		})
		if e.About.Name != "theirs" || k.claim("shop", "theirs").Spec.VolumeName != "" {
			t.Errorf("told %+v of %+v", e, k.claim("shop", "theirs"))
		}
		k.drop("persistentvolumeclaims", "shop", "theirs")
		k.remove("data")
	})
	t.Run("a claim that is made anew under its name has nothing of the first one's", func(t *testing.T) {
		k := fresh(t)
		allow()
		defer allow("shop")
		k.ask("data", "any", "golden")
		k.until("a stand-in", func() bool { return len(k.standIns()) == 1 })
		old := k.standIns()[0].Name
		k.drop("persistentvolumeclaims", "shop", "data")
		uid := k.ask("data", "any", "golden")
		allow("shop")
		k.populated("data", uid, "golden")
		if strings.HasSuffix(old, string(uid)) {
			t.Errorf("the stand-in %s is the same", old)
		}
		k.remove("data")
	})
	t.Run("no claim of another namespace stands in for one", func(t *testing.T) {
		k := fresh(t)
		k.ask("data", "late", "golden")
		poses := k.claim("shop", "data")
		poses.Name, poses.UID, poses.Spec.DataSourceRef = "poses", types.UID(uuid.NewString()), nil
		poses.Annotations["plinth.dev/stands-in-for"] = "shop/data/" + string(k.claim("shop", "data").UID)
		k.put("persistentvolumeclaims", "shop", "poses", poses)
		k.until("the claim to be bound", func() bool { return k.claim("shop", "poses").Status.Phase == corev1.ClaimBound })
		v, err := w.Store.Volumes.Live(t.Context(), all[corev1.PersistentVolume](k.storageAPI, "persistentvolumes")[0].Spec.CSI.VolumeHandle)
		if err != nil || v.Spec.Image != nil || v.Spec.Claim.Name != "poses" {
			t.Errorf("its volume is %+v (%v)", v, err)
		}
		k.drop("persistentvolumeclaims", "shop", "data")
		k.remove("poses")
	})
	if v, err := w.Store.Volumes.Live(t.Context(), first.Name); err != nil || v.DeletionTimestamp != nil {
		t.Errorf("the volume that was there before is %+v (%v)", v, err)
	}
}
