package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// fromImage makes a claim ask for a backing image as its source.
func fromImage(name string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		c.Spec.DataSourceRef = &corev1.TypedObjectReference{APIGroup: new("plinth.dev"), Kind: "BackingImage", Name: name}
	}
}

// image makes a backing image that a namespace may use, and returns its name.
func (s *space) image(name, url string, namespaces ...string) string {
	s.Helper()
	name = s.fromURL(name, url)["backingImage"]
	allowed := strings.Join(namespaces, ", ")
	mustKubectl(s, fmt.Sprintf("apiVersion: plinth.dev/v1alpha1\nkind: BackingImage\nmetadata: {name: %s}\nspec: {sourceType: download, sourceParameters: {url: %q}, allowedNamespaces: [%s]}\n", name, url, allowed), "create", "-f", "-")
	return name
}

// noStandIns waits until no claim stands in for one of the test's, and no volume of one that did is left.
func (s *space) noStandIns() {
	s.Helper()
	must(s, "nothing to stand in for the test's claims", func(ctx context.Context) error {
		out, err := kubectl(ctx, "", "get", "pvc", "-n", namespace, "-o", `jsonpath={range .items[*]}{.metadata.name}{" "}{.metadata.annotations.plinth\.dev/stands-in-for}{"\n"}{end}`)
		for line := range strings.Lines(out) {
			if strings.Contains(line, " "+s.name+"/") {
				err = fmt.Errorf("there is %s", line)
			}
		}
		return err
	})
	list, err := the.core.CoreV1().PersistentVolumes().List(s.Context(), metav1.ListOptions{})
	if err != nil {
		s.Fatal(err)
	}
	for _, v := range list.Items {
		if c := v.Spec.ClaimRef; c != nil && c.Namespace == namespace && strings.HasPrefix(c.Name, "from-image-") && v.Status.Phase == corev1.VolumeBound {
			s.Errorf("volume %s is still bound to %s", v.Name, c.Name)
		}
	}
}

// volumesFor are Plinth's volumes for a claim of the test, whatever their state.
func (s *space) volumesFor(ctx context.Context, claim string) ([]string, error) {
	out, err := kubectl(ctx, "", "get", "volumes.plinth.dev", "-o", fmt.Sprintf(`jsonpath={range .items[?(@.spec.claim.namespace==%q)]}{.spec.claim.name}{" "}{.metadata.name}{"\n"}{end}`, s.name))
	var names []string
	for line := range strings.Lines(out) {
		if of, volume, _ := strings.Cut(strings.TrimSpace(line), " "); of == claim {
			names = append(names, volume)
		}
	}
	return names, err
}

// A claim whose source is a backing image gets a volume of it, made once, and nothing that helped to make it stays. Who waits is told of the wait at the
// claim itself.
func TestClaimIsPopulatedFromImage(t *testing.T) {
	for _, binding := range []storagev1.VolumeBindingMode{immediate, late} {
		t.Run(string(binding), func(t *testing.T) {
			s := newSpace(t)
			image := mustImage(t, xfsImage)
			gate := make(chan struct{})
			golden := s.image("golden", the.server.serve(t, "golden.qcow2", &servedFile{data: image.qcow2, gate: gate}), s.name)
			class := s.class("any", binding, map[string]string{"allowBackingImageOverride": "true"})
			pod := s.pod("p", []string{s.claim("p", class, "400Mi", fromImage(golden))})
			s.told("p", "WaitingForImage", "backing image "+golden+": ")
			close(gate)
			s.running(pod)
			s.mustHold(pod, image)
			s.noStandIns()

			volumes, err := s.volumesFor(t.Context(), "p")
			if err != nil || len(volumes) != 1 {
				t.Fatalf("Plinth's volumes for the claim are %v (%v)", volumes, err)
			}
			c, err := the.core.CoreV1().PersistentVolumeClaims(s.name).Get(t.Context(), "p", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			pv, err := the.core.CoreV1().PersistentVolumes().Get(t.Context(), c.Spec.VolumeName, metav1.GetOptions{})
			if err != nil || pv.Spec.ClaimRef.UID != c.UID || pv.Status.Phase != corev1.VolumeBound || c.Status.Phase != corev1.ClaimBound || pv.Spec.CSI.VolumeHandle != volumes[0] {
				t.Errorf("the claim is %+v, its volume %+v (%v)", c.Status, pv, err)
			}
			s.ask("p", "600Mi") // and from here on it is a claim like any other
			s.grown("p", "600Mi")
			s.deletePod(pod)
			mustKubectl(t, "", "delete", "pvc", "-n", s.name, "p", "--wait", "--timeout=60s")
			must(t, "the volume to go with its claim", func(ctx context.Context) error {
				left, err := s.volumesFor(ctx, "p")
				if err == nil && len(left) > 0 {
					err = fmt.Errorf("there is %v", left)
				}
				return err
			})
		})
	}
}

// What the class, the image or the claim itself does not allow is told at the claim that asks, and granted when that is mended. A claim cannot make itself
// stand in for another.
func TestClaimIsToldWhyItsSourceIsRefused(t *testing.T) {
	s := newSpace(t)
	image := mustImage(t, ext4Image)
	url := the.server.serve(t, "golden.qcow2", &servedFile{data: image.qcow2})
	golden := s.image("golden", url)
	closed := s.class("closed", immediate, map[string]string{})
	open := s.class("open", late, map[string]string{"allowBackingImageOverride": "true"})
	s.claim("closed", closed, "100Mi", fromImage(golden))
	s.told("closed", "ProvisioningFailed", `set the class's parameter allowBackingImageOverride to "true"`)
	pod := s.pod("p", []string{s.claim("p", open, "100Mi", fromImage(golden))})
	s.told("p", "ProvisioningFailed", "add namespace "+s.name+" to the image's spec.allowedNamespaces")

	c, err := the.core.CoreV1().PersistentVolumeClaims(s.name).Get(t.Context(), "p", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.choosesAgain("from-image-" + string(c.UID))
	s.claim("poses", s.class("empty", immediate, map[string]string{}), "100Mi", func(p *corev1.PersistentVolumeClaim) {
		p.Annotations = map[string]string{"plinth.dev/stands-in-for": s.name + "/p/" + string(c.UID)}
	})
	s.volumeOf("poses")
	if volumes, err := s.volumesFor(t.Context(), "poses"); err != nil || len(volumes) != 1 {
		t.Errorf("the volumes of a claim that says that it stands in for another are %v (%v)", volumes, err)
	}

	mustKubectl(t, "", "patch", "backingimage", golden, "--type=merge", "-p", fmt.Sprintf(`{"spec": {"allowedNamespaces": [%q]}}`, s.name))
	s.running(pod)
	s.mustHold(pod, image)
	mustKubectl(t, "", "delete", "pvc", "-n", s.name, "closed", "--wait", "--timeout=60s")
	s.noStandIns()
}

// choosesAgain does with a stand-in what the sidecar does when there is no room on the node, and waits until it is made anew, for the node that the
// scheduler then chose for the original.
func (s *space) choosesAgain(standIn string) {
	s.Helper()
	before := mustKubectl(s, "", "get", "pvc", "-n", namespace, standIn, "-o", "jsonpath={.metadata.uid}")
	mustKubectl(s, "", "annotate", "pvc", "-n", namespace, standIn, "volume.kubernetes.io/selected-node-")
	must(s, "another stand-in, with a node", func(ctx context.Context) error {
		now, err := kubectl(ctx, "", "get", "pvc", "-n", namespace, standIn, "-o", `jsonpath={.metadata.uid} {.metadata.annotations.volume\.kubernetes\.io/selected-node}`)
		if uid, node, _ := strings.Cut(now, " "); err == nil && (uid == before || node == "") {
			err = fmt.Errorf("there is %q", now)
		}
		return err
	})
}

// A claim that is deleted while its image is downloaded leaves nothing: no stand-in, no volume.
func TestClaimFromImageDeletedWhileDownloading(t *testing.T) {
	s := newSpace(t)
	image := mustImage(t, xfsImage)
	gate := make(chan struct{})
	golden := s.image("golden", the.server.serve(t, "golden.qcow2", &servedFile{data: image.qcow2, gate: gate}), `"*"`)
	class := s.class("any", late, map[string]string{"allowBackingImageOverride": "true"})
	pod := s.pod("p", []string{s.claim("p", class, "400Mi", fromImage(golden))})
	var volumes []string
	must(t, "a volume of the claim's", func(ctx context.Context) (err error) {
		if volumes, err = s.volumesFor(ctx, "p"); err == nil && len(volumes) == 0 {
			err = fmt.Errorf("there is none; %s", s.lastEvent(ctx, "p"))
		}
		return err
	})
	s.deletePod(pod)
	mustKubectl(t, "", "delete", "pvc", "-n", s.name, "p", "--wait", "--timeout=60s")
	must(t, "the volume to go though its image has not come", func(ctx context.Context) error {
		out, err := kubectl(ctx, "", "get", "pv,volumes.plinth.dev", "--ignore-not-found", "-o", "name")
		if err == nil && strings.Contains(out, volumes[0]) {
			err = fmt.Errorf("there are %s", out)
		}
		return err
	})
	s.noStandIns()
	close(gate)
}
