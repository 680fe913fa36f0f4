package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// starter makes pods and says how long they took to run.
type starter struct {
	*space
	made int

	mu     sync.Mutex
	runs   map[string]time.Time // when a pod was first seen to run
	change chan struct{}        // closed when runs changes
}

func newStarter(b *testing.B) *starter {
	b.Helper()
	s := &starter{space: newSpace(b), runs: map[string]time.Time{}, change: make(chan struct{})}
	ctx, stop := context.WithCancel(context.Background())
	b.Cleanup(stop)
	pods, err := the.core.CoreV1().Pods(s.name).Watch(ctx, metav1.ListOptions{TimeoutSeconds: new(int64(6 * 3600))})
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		for e := range pods.ResultChan() {
			if p, ok := e.Object.(*corev1.Pod); ok && p.Status.Phase == corev1.PodRunning {
				s.saw(p.Name, time.Now())
			}
		}
	}()
	return s
}

func (s *starter) saw(pod string, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, before := s.runs[pod]; !before {
		s.runs[pod] = at
		close(s.change)
		s.change = make(chan struct{})
	}
}

// begin makes a pod and, unless class is "", a claim of that class before it.
func (s *starter) begin(class string, changes ...func(*corev1.Pod)) (name string) {
	s.Helper()
	s.made++
	name = fmt.Sprint("p", s.made)
	changes = append(changes, endsAtOnce)
	if class != "" {
		changes = append(changes, withClaim(s.claim(name, class, speedSize)))
	}
	return s.pod(name, nil, changes...)
}

// speedSize of the volumes that are compared: an empty one has the least filesystem that mkfs.xfs makes, as the image has.
const speedSize = "320Mi"

// endsAtOnce makes a pod end when it is asked to, so that little is left of one measurement while the next is taken.
func endsAtOnce(p *corev1.Pod) {
	p.Spec.Containers[0].Command = []string{"sh", "-c", "trap exit TERM; sleep 100000 & wait"}
}

func withClaim(claim string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}})
		c := &p.Spec.Containers[0]
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "v", MountPath: mountedAt})
	}
}

// runsAt waits until a pod runs and returns when that was seen.
func (s *starter) runsAt(pod string) time.Time {
	s.Helper()
	for end := time.After(patience); ; {
		s.mu.Lock()
		at, runs := s.runs[pod]
		change := s.change
		s.mu.Unlock()
		if runs {
			return at
		}
		select {
		case <-change:
		case <-end:
			s.Fatalf("pod %s does not run after %s; %s", pod, patience, s.lastEvent(s.Context(), pod))
		}
	}
}

// starts is how long a pod of a class takes from its claim on. When it returns, nothing of it is left.
func (s *starter) starts(class string, changes ...func(*corev1.Pod)) time.Duration {
	s.Helper()
	from := time.Now()
	pod := s.begin(class, changes...)
	took := s.runsAt(pod).Sub(from)
	s.clear()
	return took
}

// clear removes all pods and claims, and waits until their volumes are gone.
func (s *starter) clear() {
	s.Helper()
	ctx := s.Context()
	if err := the.core.CoreV1().Pods(s.name).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		s.Fatal(err)
	}
	if err := the.core.CoreV1().PersistentVolumeClaims(s.name).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		s.Fatal(err)
	}
	must(s, "pods and volumes to be gone", func(ctx context.Context) error {
		pods, err := the.core.CoreV1().Pods(s.name).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		volumes, err := the.core.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
		left := len(pods.Items)
		for _, v := range volumes.Items {
			if v.Spec.ClaimRef != nil && v.Spec.ClaimRef.Namespace == s.name && v.Spec.Local == nil {
				left++
			}
		}
		if err == nil && left > 0 {
			err = fmt.Errorf("%d are left", left)
		}
		return err
	})
}

// spread makes an image and brings a copy of it to every node.
func (s *starter) spread() map[string]string {
	s.Helper()
	parameters := s.onDemand("golden", mustImage(s, xfsImage))
	parameters["backingImageMinNumberOfCopies"] = fmt.Sprint(*nodes)
	s.claim("first", s.class("first", immediate, parameters), speedSize)
	must(s, "a copy on every node", func(ctx context.Context) error {
		out, err := kubectl(ctx, "", "get", "backingimagecopies", "-o", fmt.Sprintf(`jsonpath={range .items[?(@.spec.image==%q)]}{.status.state}{"\n"}{end}`, parameters["backingImage"]))
		if err == nil && strings.Count(out, "ready\n") < *nodes {
			err = fmt.Errorf("copies are %q", out)
		}
		return err
	})
	s.clear()
	return parameters
}
