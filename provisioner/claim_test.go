package provisioner_test

import (
	"context"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2/ktesting"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/event"
	"plinth.dev/plinth/backingimage/node/nodetest"
	"plinth.dev/plinth/provisioner"
)

// claims are those of namespace shop, with the image that their annotation names. For those whose name begins with "late", a scheduler has chosen a node.
type claims map[string]string

func (c claims) Get(_ context.Context, namespace, name string) (*corev1.PersistentVolumeClaim, error) {
	image, exists := c[name]
	if !exists || namespace != "shop" {
		return nil, backingimage.Errorf(backingimage.NotFound, "there is no claim %s/%s", namespace, name)
	}
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID("uid-" + name), Annotations: map[string]string{}}}
	if image != "" {
		claim.Annotations[v1alpha1.ImageAnnotation] = image
	}
	if strings.HasPrefix(name, "late") {
		claim.Annotations["volume.kubernetes.io/selected-node"] = "as the request says"
	}
	return claim, nil
}

// of is a request for a claim's volume, as the provisioner sidecar makes it.
func of(claim string, class map[string]string) provisioner.CreateRequest {
	parameters := maps.Clone(class)
	parameters["csi.storage.k8s.io/pvc/namespace"], parameters["csi.storage.k8s.io/pvc/name"] = "shop", claim
	parameters["csi.storage.k8s.io/pv/name"] = "pvc-" + claim
	return provisioner.CreateRequest{Name: "pvc-" + claim, Parameters: parameters}
}

func TestClaims(t *testing.T) {
	w := newWorld(t)
	web := nodetest.NewWeb(t, 4<<20)
	class := download("golden", web.URL, web.SHA512())
	free := map[string]string{"allowBackingImageOverride": "true"}
	w.create(t, provisioner.CreateRequest{Name: "first", Parameters: class})
	allow := func(namespaces ...string) {
		t.Helper()
		if _, err := w.Store.Images.Modify(context.Background(), "golden", func(i *v1alpha1.BackingImage) { i.Spec.AllowedNamespaces = namespaces }); err != nil {
			t.Fatal(err)
		}
	}
	w.claims["plain"], w.claims["asks"], w.claims["typo"], w.claims["odd"] = "", "golden", "goldne", "../golden"

	t.Run("a volume knows its claim", func(t *testing.T) {
		v := w.create(t, of("plain", class))
		if c := v.Spec.Claim; c == nil || c.Namespace != "shop" || c.Name != "plain" || c.UID != "uid-plain" {
			t.Errorf("its claim is %+v", c)
		}
		if len(v.Spec.Parameters) != len(class) {
			t.Errorf("what the sidecar says of the claim is among the class's parameters: %v", v.Spec.Parameters)
		}
	})
	t.Run("a claim's wish for its class's own image needs no leave", func(t *testing.T) {
		w.create(t, of("asks", class))
		if err := w.volumes.Delete(context.Background(), "pvc-asks"); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("a claim's wish that its class does not allow is refused and not passed over", func(t *testing.T) {
		w.refused(t, of("asks", map[string]string{}), backingimage.Precondition, "claim shop/asks", `"golden"`, "allowBackingImageOverride")
	})
	t.Run("an image that names no namespaces is nobody's to ask for", func(t *testing.T) {
		w.refused(t, of("asks", free), backingimage.Precondition, "spec.allowedNamespaces", "namespace shop")
	})
	t.Run("other namespaces are not this one", func(t *testing.T) {
		allow("shop-2", "sho")
		w.refused(t, of("asks", free), backingimage.Precondition, "namespace shop")
	})
	t.Run("an image that there is not", func(t *testing.T) {
		w.refused(t, of("typo", free), backingimage.NotFound, `"goldne"`, "plinth.dev/backing-image")
	})
	t.Run("what cannot be an image's name", func(t *testing.T) {
		w.refused(t, of("odd", free), backingimage.Invalid, "shop/odd", "plinth.dev/backing-image")
	})
	t.Run("a claim that is gone", func(t *testing.T) {
		w.refused(t, of("gone", free), backingimage.NotFound, "shop/gone")
	})
	t.Run("a sidecar that does not name the claim", func(t *testing.T) {
		w.refused(t, provisioner.CreateRequest{Name: "pvc-x", Parameters: free}, backingimage.Precondition, "--extra-create-metadata")
	})
	t.Run("a claim that cannot be read holds up no class without overrides", func(t *testing.T) {
		if v := w.create(t, of("gone", class)); v.Spec.Claim == nil || v.Spec.Claim.UID != "" {
			t.Errorf("its claim is %+v", v.Spec.Claim)
		}
	})
	t.Run("a claim without a wish has its class's image, here none", func(t *testing.T) {
		r := of("plain", free)
		r.Name, r.RequiredBytes = "pvc-empty", 1<<20
		if v := w.create(t, r); v.Spec.Image != nil {
			t.Errorf("it came from %+v", v.Spec.Image)
		}
	})
	t.Run("an allowed wish is granted, once: what the annotation says later changes nothing", func(t *testing.T) {
		allow("other", "shop")
		v := w.create(t, of("asks", free))
		if v.Spec.Image == nil || v.Spec.Image.Name != "golden" {
			t.Fatalf("it came from %+v", v.Spec.Image)
		}
		w.claims["asks"] = "goldne"
		if again := w.create(t, of("asks", free)); again.UID != v.UID || again.Spec.Image.Name != "golden" {
			t.Errorf("a retry answers %+v", again.Spec)
		}
		allow()
		if again := w.create(t, of("asks", free)); again.UID != v.UID {
			t.Errorf("a retry answers %+v", again.Spec)
		}
	})
	t.Run("every namespace", func(t *testing.T) {
		allow("*")
		w.claims["any"] = "golden"
		r := of("any", map[string]string{"allowBackingImageOverride": "true", "backingImage": "another"})
		if v := w.create(t, r); v.Spec.Image.Name != "golden" {
			t.Errorf("it came from %+v", v.Spec.Image)
		}
	})
}

// recorded are the events that were recorded, of claims alone.
type recorded struct {
	mu     sync.Mutex
	events []event.Event
}

func (r *recorded) Record(_ context.Context, e event.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

// until waits until an event of the reason says so, and returns it.
func (r *recorded) until(t *testing.T, reason, says string) event.Event {
	t.Helper()
	for deadline := time.Now().Add(nodetest.Wait); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		r.mu.Lock()
		for _, e := range r.events {
			if e.Reason == reason && strings.Contains(e.Message, says) {
				r.mu.Unlock()
				return e
			}
		}
		r.mu.Unlock()
	}
	t.Fatalf("no event %s says %q: %+v", reason, says, r.events)
	return event.Event{}
}

func TestClaimsAreToldOfWaits(t *testing.T) {
	w := newWorld(t)
	events := &recorded{}
	_, ctx := ktesting.NewTestContext(t)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error)
	teller := provisioner.NewTeller(w.Store, events, clock.RealClock{})
	go func() { done <- teller.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	web := nodetest.NewWeb(t, 4<<20)
	web.Hold = make(chan struct{})
	w.claims["data"] = ""

	v := w.create(t, of("data", download("golden", web.URL, web.SHA512())))
	e := events.until(t, "WaitingForImage", "backing image golden: ")
	if about := e.About; about.Kind != "PersistentVolumeClaim" || about.Namespace != "shop" || about.Name != "data" || about.UID != "uid-data" || !e.Latest || e.Warning {
		t.Errorf("told %+v", e)
	}
	close(web.Hold)
	if e := events.until(t, "VolumeReady", "volume "+v.Name+" is ready on node "); e.Warning {
		t.Errorf("told %+v", e)
	}
}
