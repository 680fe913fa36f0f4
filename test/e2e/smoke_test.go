package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	immediate = storagev1.VolumeBindingImmediate
	late      = storagev1.VolumeBindingWaitForFirstConsumer
)

// An image that nobody made before becomes pods' files, on two nodes, whoever chooses them.
func TestSmokeImageBecomesPodsFiles(t *testing.T) {
	for _, binding := range []storagev1.VolumeBindingMode{immediate, late} {
		t.Run(string(binding), func(t *testing.T) {
			s := newSpace(t)
			image := mustImage(t, xfsImage)
			file := &servedFile{data: image.qcow2}
			class := s.class("c", binding, s.fromURL("golden", the.server.serve(t, "golden.qcow2", file)))
			first := s.pod("first", []string{s.claim("first", class, "400Mi")})
			node := s.running(first)
			s.mustHold(first, image)
			s.exec(first, "echo mine > /data/mine && sync")
			second := "second"
			if binding == late { // its volume goes where the pod must be, to a node without a copy
				s.pod(second, []string{s.claim(second, class, "400Mi")}, awayFrom(node))
			} else {
				s.pod(second, []string{s.claim(second, class, "400Mi")})
			}
			if other := s.running(second); binding == late && other == node {
				t.Errorf("both pods are on %s", node)
			}
			s.mustHold(second, image)
			if got := s.exec(second, "ls /data"); got != dataName {
				t.Errorf("the second volume has %q, and not only what the image has", got)
			}
			if _, sent := file.traffic(); sent > int64(len(image.qcow2))*3/2 {
				t.Errorf("the source sent %d bytes of a file of %d: nodes shall give images to each other", sent, len(image.qcow2))
			}
		})
	}
}

func awayFrom(node string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpNotIn, Values: []string{node}}},
		}}}}}
	}
}

// A claim that asks for more gets it while its pod goes on: XFS everywhere, ext4 where root may grow a mounted one.
func TestSmokeGrowsUnderPod(t *testing.T) {
	for _, made := range []func() (*diskImage, error){xfsImage, ext4Image} {
		image := mustImage(t, made)
		t.Run(image.fsType, func(t *testing.T) {
			s := newSpace(t)
			class := s.class("c", late, s.onDemand("golden", image))
			claim := s.claim("grows", class, "400Mi")
			pod := s.pod("grows", []string{claim})
			s.running(pod)
			before := s.blocks(pod)
			s.ask(claim, "800Mi")
			s.grown(claim, "800Mi")
			s.lookAt(pod)
			if image.fsType == "ext4" && !mayGrowExt4() {
				t.Log("root here lacks CAP_SYS_RESOURCE, without which the kernel does not grow a mounted ext4: it shall grow when it is mounted next")
				s.agrees(claim, "800Mi", false)
				s.deletePod(pod)
				s.pod(pod, []string{claim})
				s.running(pod)
			}
			s.agrees(claim, "800Mi", true)
			if after := s.blocks(pod); after < before+300<<10 {
				t.Errorf("the filesystem had %d KiB and has %d", before, after)
			}
			s.mustHold(pod, image)
		})
	}
}

// ask changes how much a claim asks for.
func (s *space) ask(claim, size string) {
	s.Helper()
	mustKubectl(s, "", "patch", "pvc", "-n", s.name, claim, "-p", fmt.Sprintf(`{"spec": {"resources": {"requests": {"storage": %q}}}}`, size))
}

// agrees waits until a claim has what it asked for; or, if the node's part is not awaited, until it is known to be missing.
func (s *space) agrees(claim, size string, whole bool) {
	s.Helper()
	want := resource.MustParse(size)
	must(s, "claim "+claim+" to have "+size, func(ctx context.Context) error {
		c, err := the.core.CoreV1().PersistentVolumeClaims(s.name).Get(ctx, claim, metav1.GetOptions{})
		if err != nil {
			return err
		}
		has := c.Status.Capacity[corev1.ResourceStorage]
		if has.Cmp(want) >= 0 {
			return nil
		}
		if !whole {
			for _, condition := range c.Status.Conditions {
				if condition.Type == corev1.PersistentVolumeClaimFileSystemResizePending || condition.Type == corev1.PersistentVolumeClaimNodeResizeError {
					return nil
				}
			}
		}
		return fmt.Errorf("it has %s, with conditions %v; %s", has.String(), c.Status.Conditions, s.lastEvent(ctx, claim))
	})
}

// grown waits until the volume has the size, whatever its filesystem has.
func (s *space) grown(claim, size string) {
	s.Helper()
	volume, want := s.volumeOf(claim), resource.MustParse(size)
	must(s, "volume "+volume+" to have "+size, func(ctx context.Context) error {
		v, err := the.core.CoreV1().PersistentVolumes().Get(ctx, volume, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if has := v.Spec.Capacity[corev1.ResourceStorage]; has.Cmp(want) < 0 {
			return fmt.Errorf("it has %s; %s", has.String(), s.lastEvent(ctx, claim))
		}
		return nil
	})
}

// lookAt changes a pod, so that its kubelet looks at it now, and not some time in a minute and a half.
func (s *space) lookAt(pod string) {
	s.Helper()
	mustKubectl(s, "", "annotate", "pod", "-n", s.name, pod, "e2e=look")
}

// blocks is the size of the filesystem in a pod, in KiB.
func (s *space) blocks(pod string) int64 {
	s.Helper()
	var kib int64
	if _, err := fmt.Sscan(s.exec(pod, "df -k /data | tail -n 1 | sed 's/^[^ ]* *//' | cut -d' ' -f1"), &kib); err != nil {
		s.Fatal(err)
	}
	return kib
}

// The agent goes and comes while pods use volumes. They notice nothing, and what waits for it goes on.
func TestSmokeAgentRestartsUnderPods(t *testing.T) {
	s := newSpace(t)
	image := mustImage(t, xfsImage)
	class := s.class("c", late, s.onDemand("golden", image))
	pod := s.pod("first", []string{s.claim("first", class, "400Mi")})
	node := s.running(pod)
	agent := s.agent(node)
	mustKubectl(t, "", "delete", "pod", "-n", namespace, agent, "--wait=false")
	s.exec(pod, "echo while it is away > /data/written && sync")
	next := s.pod("next", []string{s.claim("next", class, "400Mi")}, onNode(node))
	s.running(next)
	if now := s.agent(node); now == agent {
		t.Errorf("the agent of %s is still %s", node, agent)
	}
	s.mustHold(next, image)
	s.mustHold(pod, image)
	if got := s.exec(pod, "cat /data/written"); got != "while it is away" {
		t.Errorf("what was written reads %q", got)
	}
	s.deletePod(pod) // a new agent ends what an old one began
	s.pod(pod, []string{"first"})
	s.running(pod)
	if got := s.exec(pod, "cat /data/written"); got != "while it is away" {
		t.Errorf("what was written reads %q in the next pod", got)
	}
}

// agent is the name of the agent's pod on a node, when it is ready.
func (s *space) agent(node string) string {
	s.Helper()
	var name string
	must(s, "the agent of "+node, func(ctx context.Context) error {
		list, err := the.core.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=node", FieldSelector: "spec.nodeName=" + node})
		if err != nil {
			return err
		}
		for _, p := range list.Items {
			for _, c := range p.Status.Conditions {
				if p.DeletionTimestamp == nil && c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
					name = p.Name
					return nil
				}
			}
		}
		return fmt.Errorf("none of its %d pods is ready", len(list.Items))
	})
	return name
}

// The node with an image's only copy is drained: the copy moves first, and the image serves elsewhere though its source is gone.
func TestSmokeDrainOfTheOnlyCopy(t *testing.T) {
	s := newSpace(t)
	image := mustImage(t, xfsImage)
	parameters := s.onDemand("golden", image)
	class := s.class("c", late, parameters)
	pod := s.pod("first", []string{s.claim("first", class, "400Mi")})
	node := s.running(pod)
	the.server.forget()
	s.Cleanup(func() { mustKubectl(t, "", "uncordon", node) })
	mustKubectl(t, "", "cordon", node)
	mustKubectl(t, "", "wait", "storagenode/"+node, "--for=condition=Drained", "--timeout=3m")
	mustKubectl(t, "", "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=3m")
	next := s.pod("next", []string{s.claim("next", class, "400Mi")})
	if other := s.running(next); other == node {
		t.Errorf("the pod is on %s, which is drained", node)
	}
	s.mustHold(next, image)
	must(t, "the event about the cordon", func(ctx context.Context) error {
		events, err := kubectl(ctx, "", "get", "events", "-A", "--field-selector", "involvedObject.kind=StorageNode,involvedObject.name="+node, "-o", `jsonpath={range .items[*]}{.reason}{"\n"}{end}`)
		if err == nil && !strings.Contains(events, "Cordoned") {
			err = errors.New("events at the StorageNode are " + events)
		}
		return err
	})
}
