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

// told waits until an event of a claim says so, and returns how often it was told.
func (s *space) told(claim, reason, says string) int32 {
	s.Helper()
	var count int32
	must(s, fmt.Sprintf("claim %s to be told %s: %s", claim, reason, says), func(ctx context.Context) error {
		list, err := the.core.CoreV1().Events(s.name).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.kind=PersistentVolumeClaim,involvedObject.name=" + claim})
		if err != nil {
			return err
		}
		for _, e := range list.Items {
			if e.Reason == reason && strings.Contains(e.Message, says) {
				count = e.Count
				return nil
			}
		}
		return fmt.Errorf("there are %d events: %s", len(list.Items), s.lastEvent(ctx, claim))
	})
	return count
}

// Who waits for an image is told at the claim how far it is, and that it is there, in one event each.
func TestClaimIsToldWhatItWaitsFor(t *testing.T) {
	s := newSpace(t)
	image := mustImage(t, xfsImage)
	gate := make(chan struct{})
	url := the.server.serve(s, "slow.qcow2", &servedFile{data: image.qcow2, gate: gate})
	class := s.class("c", storagev1.VolumeBindingImmediate, s.fromURL("slow", url))
	pod := s.pod("waits", []string{s.claim("waits", class, "400Mi")})
	s.told("waits", "WaitingForImage", "backing image "+s.name+"-slow: fetching on ")
	close(gate)
	s.running(pod)
	s.mustHold(pod, image)
	s.told("waits", "VolumeReady", "cloned from backing image "+s.name+"-slow")
}

// What a class says wrong is told at the claim, also where the scheduler first looks for room.
func TestClaimIsToldWhyItIsRefused(t *testing.T) {
	s := newSpace(t)
	class := s.class("c", late, map[string]string{"backingImages": "golden"})
	s.pod("p", []string{s.claim("p", class, "100Mi")})
	s.told("p", "ProvisioningFailed", `did you mean "backingImage"?`)
}

// One class serves every image: the claim names its own, where the image allows the namespace.
func TestClaimChoosesItsImage(t *testing.T) {
	s := newSpace(t)
	image := mustImage(t, ext4Image)
	s.pod("maker", []string{s.claim("maker", s.class("maker", storagev1.VolumeBindingImmediate, s.onDemand("chosen", image)), "100Mi")})
	s.running("maker")
	class := s.class("any", storagev1.VolumeBindingWaitForFirstConsumer, map[string]string{"allowBackingImageOverride": "true"})
	s.claim("chooses", class, "100Mi", func(c *corev1.PersistentVolumeClaim) {
		c.Annotations = map[string]string{"plinth.dev/backing-image": s.name + "-chosen"}
	})
	pod := s.pod("chooses", []string{"chooses"})
	s.told("chooses", "ProvisioningFailed", "add namespace "+s.name+" to the image's spec.allowedNamespaces")
	mustKubectl(t, "", "patch", "backingimage", s.name+"-chosen", "--type=merge", "-p", fmt.Sprintf(`{"spec": {"allowedNamespaces": [%q]}}`, s.name))
	s.running(pod)
	s.mustHold(pod, image)
}

// One volume of an image is read by pods on every node, a part of it too, and written by none.
func TestManyReaders(t *testing.T) {
	s := newSpace(t)
	image := mustImage(t, xfsImage)
	class := s.class("c", storagev1.VolumeBindingImmediate, s.onDemand("set", image))
	s.claim("set", class, "320Mi", func(c *corev1.PersistentVolumeClaim) {
		c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany}
	})
	var pods []string
	for i, node := range s.nodes() {
		for range 2 {
			group := int64(2000)
			pods = append(pods, s.pod(fmt.Sprint("reader-", i, "-", len(pods)), []string{"set"}, onNode(node), func(p *corev1.Pod) {
				p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &group}
				p.Spec.Volumes[0].PersistentVolumeClaim.ReadOnly = true
				c := &p.Spec.Containers[0]
				c.VolumeMounts[0].ReadOnly = true
				c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: c.VolumeMounts[0].Name, MountPath: "/part", SubPath: dataName, ReadOnly: true})
			}))
		}
	}
	for _, pod := range pods {
		s.running(pod)
		s.mustHold(pod, image)
		if got := s.sum(pod, "/part"); got != image.sum {
			t.Errorf("pod %s: the file as subPath has SHA-256 %s", pod, got)
		}
		if said := s.exec(pod, "touch /data/mine 2>&1 || true"); !strings.Contains(said, "Read-only") {
			t.Errorf("pod %s: to write says %q", pod, said)
		}
	}
	s.deletePod(pods[0])
	s.mustHold(pods[1], image)
	for _, pod := range pods[1:] {
		s.deletePod(pod)
	}
	mustKubectl(t, "", "delete", "pvc", "-n", s.name, "set", "--wait", "--timeout=3m") // the image stays while the volume is there
}
