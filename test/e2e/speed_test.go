package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// rounds of which a median is taken. What is compared takes turns within each, so that whatever else the machine does hits all alike.
const rounds = 10

// A pod with a volume of an image, beside one without a volume and one with an empty volume.
//
// With late binding, the scheduler itself looks whether a claim is bound a second after it began to wait for that, and then once a second,
// whoever makes the volume (BindPodVolumes in the scheduler's volumebinding). So there the rival without a CSI driver is a pod whose claim
// gets a volume of its node's that an administrator made in advance; the bare pod stands beside it for the reader.
func BenchmarkPodStarts(b *testing.B) {
	s := newStarter(b)
	image := s.spread()
	took := map[string][]time.Duration{}
	kinds := []string{"bare", "ready-made"}
	class := map[string]string{"ready-made": s.readyMade()}
	for _, binding := range []storagev1.VolumeBindingMode{immediate, late} {
		for kind, parameters := range map[string]map[string]string{"empty": nil, "image": image} {
			kind += "-" + strings.ToLower(string(binding))
			class[kind] = s.class(kind, binding, parameters)
			kinds = append(kinds, kind)
		}
	}
	for round := range rounds + 1 { // the first warms up
		for i := range kinds {
			kind := kinds[(i+round)%len(kinds)]
			if d := s.starts(class[kind]); round > 0 {
				took[kind] = append(took[kind], d)
			}
		}
	}
	for _, kind := range kinds {
		b.Log(kind, took[kind])
	}
	of := func(kind string) time.Duration { return median(took[kind]) }
	compared.times(b, "claim and pod to running, immediate binding: against a pod without a volume", of("image-immediate"), of("bare"), 1.2)
	compared.times(b, "claim and pod to running, immediate binding: against an empty volume of Plinth's", of("image-immediate"), of("empty-immediate"), 1.1)
	compared.times(b, "claim and pod to running, late binding: against a local volume made in advance", of("image-waitforfirstconsumer"), of("ready-made"), 1.2)
	compared.times(b, "claim and pod to running, late binding: against an empty volume of Plinth's", of("image-waitforfirstconsumer"), of("empty-waitforfirstconsumer"), 1.1)
	compared.times(b, "claim and pod to running, late binding: against a pod without a volume", of("image-waitforfirstconsumer"), of("bare"), 0)
}

// readyMade is a class of local volumes, one on each node for each round: directories that need no driver.
func (s *starter) readyMade() string {
	s.Helper()
	name := s.class("ready-made", late, nil, func(c *storagev1.StorageClass) {
		c.Provisioner, c.AllowVolumeExpansion = "kubernetes.io/no-provisioner", nil
	})
	for _, n := range the.rig.Nodes {
		if err := os.MkdirAll(filepath.Join(n.Root(), "srv/ready-made"), 0o777); err != nil {
			s.Fatal(err)
		}
		for i := range rounds + 1 {
			s.localVolume(fmt.Sprintf("%s-%s-%d", name, n.Name, i), name, n.Name)
		}
	}
	return name
}

func (s *starter) localVolume(name, class, node string) {
	s.Helper()
	on := corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}}}
	v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeSpec{
		StorageClassName: class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Capacity:                      corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(speedSize)},
		PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
		PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/srv/ready-made"}},
		NodeAffinity:                  &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{on}}},
	}}
	if _, err := the.core.CoreV1().PersistentVolumes().Create(s.Context(), v, metav1.CreateOptions{}); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		if err := the.core.CoreV1().PersistentVolumes().Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			s.Error(err)
		}
	})
}

// Fifty claims and pods at once, of an image and empty, and what each costs the API server.
func BenchmarkFiftyPodsStart(b *testing.B) {
	s := newStarter(b)
	image, empty := s.class("image", late, s.spread()), s.class("empty", late, nil)
	took, asked := map[string][]time.Duration{}, map[string]map[string]int{image: {}, empty: {}}
	for _, class := range []string{empty, image, image, empty} {
		d, requests := s.fifty(class)
		took[class] = append(took[class], d)
		for who, n := range requests {
			asked[class][who] += n
		}
	}
	compared.times(b, "fifty claims and pods at once, until all run: against empty volumes", median(took[image]), median(took[empty]), 1.3)
	each := func(class, who string) float64 { return float64(asked[class][who]) / float64(50*len(took[class])) }
	for _, who := range []string{"Plinth", "the sidecars", "everybody"} {
		ours, rival := each(image, who), each(empty, who)
		compared.add(b, comparison{what: "requests to the API server for each of them, by " + who + ": against empty volumes",
			ours: fmt.Sprintf("%.1f", ours), rival: fmt.Sprintf("%.1f", rival), ratio: ours / rival})
	}
}

// fifty is how long fifty pods took until all ran, and what was asked of the API server meanwhile.
func (s *starter) fifty(class string) (time.Duration, map[string]int) {
	s.Helper()
	before, from := s.requests(), time.Now()
	var pods []string
	for range 50 {
		pods = append(pods, s.begin(class))
	}
	last := from
	for _, p := range pods {
		if at := s.runsAt(p); at.After(last) {
			last = at
		}
	}
	requests := s.requests()
	for what, n := range before {
		requests[what] -= n
	}
	for _, what := range slices.Sorted(maps.Keys(requests)) {
		if n := requests[what]; n >= 25 && strings.HasPrefix(what, "plinth-") {
			s.Logf("%s: %.1f for each of %s", what, float64(n)/50, class)
		}
	}
	s.clear()
	return last.Sub(from), requests
}

// requests counts what was asked of the API server so far: by everybody, by who asked, and of whom what. What is asked from time to time, whatever
// volumes there are, does not count: leases, and the agents' heartbeats.
func (s *starter) requests() map[string]int {
	s.Helper()
	all, err := the.rig.Requests()
	if err != nil {
		s.Fatal(err)
	}
	counts := map[string]int{}
	for _, r := range all {
		if r.Object.Resource == "leases" || r.Object.Resource == "storagenodes" {
			continue
		}
		counts["everybody"]++
		program, _, _ := strings.Cut(r.UserAgent, "/")
		switch {
		case strings.HasPrefix(program, "plinth"):
			counts["Plinth"]++
		case strings.HasPrefix(program, "csi-"):
			counts["the sidecars"]++
		}
		counts[fmt.Sprintf("%s %s %s/%s", program, r.Verb, r.Object.Resource, r.Object.Subresource)]++
	}
	return counts
}

// How long after a copy is ready the pod that waits for it has its volume: by the kubelet's log, which says when NodeStageVolume has returned.
func BenchmarkImageReadyToStaged(b *testing.B) {
	s := newStarter(b)
	image := mustImage(b, xfsImage)
	var took []time.Duration
	for i := range rounds {
		name := fmt.Sprint("held", i)
		file := &servedFile{data: image.qcow2, gate: make(chan struct{})}
		parameters := s.fromURL(name, the.server.serve(s, name+".qcow2", file))
		pod := s.begin(s.class(name, late, parameters))
		node, volume := s.waitsOnNode(pod), s.volumeOf(pod)
		ready := s.copyReady(parameters["backingImage"])
		close(file.gate)
		s.runsAt(pod)
		took = append(took, s.staged(node, volume).Sub(<-ready))
		s.clear()
	}
	b.Log(took)
	compared.times(b, "an image is ready, to NodeStageVolume returned for the pod that waits: against a second", median(took), time.Second, 1)
}

// waitsOnNode waits until a pod is its node's, for so long that the kubelet has called for its volume, and returns the node.
func (s *starter) waitsOnNode(pod string) (node string) {
	s.Helper()
	must(s, "pod "+pod+" to wait on its node", func(ctx context.Context) error {
		p, err := the.core.CoreV1().Pods(s.name).Get(ctx, pod, metav1.GetOptions{})
		if err != nil {
			return err
		}
		node = p.Spec.NodeName
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionTrue && time.Since(c.LastTransitionTime.Time) > 3*time.Second {
				return nil
			}
		}
		return fmt.Errorf("its conditions are %v", p.Status.Conditions)
	})
	return node
}

// copyReady is when the first copy of an image is seen to be ready.
func (s *starter) copyReady(image string) <-chan time.Time {
	s.Helper()
	copies := the.objects.Resource(schema.GroupVersionResource{Group: "plinth.dev", Version: "v1alpha1", Resource: "backingimagecopies"})
	changes, err := copies.Watch(s.Context(), metav1.ListOptions{})
	if err != nil {
		s.Fatal(err)
	}
	at := make(chan time.Time, 1)
	go func() {
		defer changes.Stop()
		for e := range changes.ResultChan() {
			c, ok := e.Object.(*unstructured.Unstructured)
			if !ok {
				continue
			}
			of, _, _ := unstructured.NestedString(c.Object, "spec", "image")
			state, _, _ := unstructured.NestedString(c.Object, "status", "state")
			if of == image && state == "ready" {
				at <- time.Now()
				return
			}
		}
	}()
	return at
}

// staged is when a node's kubelet logged that a volume is staged.
func (s *starter) staged(node, volume string) (at time.Time) {
	s.Helper()
	must(s, "volume "+volume+" to be staged by the kubelet's log", func(context.Context) error {
		text, err := os.ReadFile(filepath.Join(the.rig.Logs(), node+"-kubelet.log"))
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			if !strings.Contains(line, "MountVolume.MountDevice succeeded") || !strings.Contains(line, volume) {
				continue
			}
			at, err = time.ParseInLocation("2006 0102 15:04:05.000000", fmt.Sprint(time.Now().Year())+" "+line[1:21], time.Local)
			return err
		}
		return errors.New("it does not say so")
	})
	return at
}
