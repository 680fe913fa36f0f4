package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// space is a test's namespace. What a test makes in the cluster begins with its name and is gone when the test has ended, or the test fails.
type space struct {
	testing.TB
	name string
}

var unfit = regexp.MustCompile(`[^a-z0-9]+`)

func newSpace(t testing.TB) *space {
	t.Helper()
	name := "e2e-" + strings.Trim(unfit.ReplaceAllString(strings.ToLower(strings.TrimPrefix(t.Name(), "Test")), "-"), "-")
	s := &space{TB: t, name: name[:min(len(name), 50)]}
	_, err := the.core.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.name}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.end)
	return s
}

// end removes everything of the test, and looks that it goes.
func (s *space) end() {
	if s.Failed() {
		s.diagnose()
	}
	ctx := context.Background()
	for _, kind := range []string{"deployments,pods", "pvc"} { // a namespace that is deleted waits longer for its pods
		if _, err := kubectl(ctx, "", "delete", kind, "-n", s.name, "--all", "--wait", "--timeout=3m"); err != nil {
			s.Error(err)
		}
	}
	if err := the.core.CoreV1().Namespaces().Delete(ctx, s.name, metav1.DeleteOptions{}); err != nil {
		s.Error(err)
	}
	err := eventually(ctx, patience, "the test's pods and volumes to go", func(ctx context.Context) error {
		if _, err := the.core.CoreV1().Namespaces().Get(ctx, s.name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("the namespace is there (%w)", err)
		}
		list, err := the.core.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, v := range list.Items {
			if c := v.Spec.ClaimRef; c != nil && c.Namespace == s.name && v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
				return fmt.Errorf("volume %s of claim %s is %s: %s", v.Name, c.Name, v.Status.Phase, v.Status.Message)
			}
		}
		return nil
	})
	if err != nil {
		s.Error(err)
		s.diagnose()
	}
}

// diagnose prints what the cluster says of the test, and keeps what Plinth logged.
func (s *space) diagnose() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, args := range [][]string{
		{"get", "nodes,pods,pvc,pv", "-A", "-o", "wide"},
		{"get", "events", "-n", s.name, "--sort-by=.metadata.creationTimestamp", "-o", "custom-columns=AT:.lastTimestamp,OF:.involvedObject.name,REASON:.reason,N:.count,MESSAGE:.message"},
		{"get", "storagenodes,disks,backingimages,backingimagecopies,volumes.plinth.dev,snapshots.plinth.dev", "-o", "wide"},
	} {
		out, err := kubectl(ctx, "", args...)
		s.Logf("kubectl %s\n%s%s", strings.Join(args, " "), out, errorText(err))
	}
	dir := filepath.Join(*kept, s.name)
	os.RemoveAll(dir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.Log(err)
		return
	}
	pods, err := the.core.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		s.Log(err)
		return
	}
	for _, p := range pods.Items {
		for _, c := range p.Spec.Containers {
			out, err := kubectl(ctx, "", "logs", "-n", namespace, p.Name, "-c", c.Name)
			os.WriteFile(filepath.Join(dir, p.Name+"-"+c.Name+".log"), []byte(out+errorText(err)), 0o644)
			if c.Name == "plinth" {
				lines := strings.Split(strings.TrimSpace(out), "\n")
				s.Logf("the end of the log of %s on %s (%s%s)\n%s", p.Name, p.Spec.NodeName, p.Status.Phase, errorText(err), strings.Join(lines[max(0, len(lines)-25):], "\n"))
			}
		}
	}
	s.Log("whole logs of Plinth are in", dir)
}

// class makes a StorageClass of the test and returns its name.
func (s *space) class(name string, binding storagev1.VolumeBindingMode, parameters map[string]string, changes ...func(*storagev1.StorageClass)) string {
	s.Helper()
	grows, deleted := true, corev1.PersistentVolumeReclaimDelete
	c := &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: s.name + "-" + name}, Provisioner: "csi.plinth.dev", Parameters: parameters,
		VolumeBindingMode: &binding, AllowVolumeExpansion: &grows, ReclaimPolicy: &deleted,
	}
	for _, change := range changes {
		change(c)
	}
	if _, err := the.core.StorageV1().StorageClasses().Create(s.Context(), c, metav1.CreateOptions{}); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		if err := the.core.StorageV1().StorageClasses().Delete(context.Background(), c.Name, metav1.DeleteOptions{}); err != nil {
			s.Error(err)
		}
	})
	return c.Name
}

// onDemand are the parameters of a class whose first volume makes the image. The image is removed with the test.
func (s *space) onDemand(image string, i *diskImage) map[string]string {
	s.Helper()
	url := the.server.serve(s, image+".qcow2", &servedFile{data: i.qcow2})
	return s.fromURL(image, url)
}

func (s *space) fromURL(image, url string) map[string]string {
	s.Helper()
	name := s.name + "-" + image
	s.Cleanup(func() {
		if _, err := kubectl(context.Background(), "", "delete", "backingimage", name, "--ignore-not-found", "--wait", "--timeout=60s"); err != nil {
			s.Error(err)
		}
	})
	return map[string]string{
		"backingImage": name, "backingImageDataSourceType": "download",
		"backingImageDataSourceParameters": fmt.Sprintf(`{"url": %q}`, url),
	}
}

// claim makes a PersistentVolumeClaim.
func (s *space) claim(name, class, size string, changes ...func(*corev1.PersistentVolumeClaim)) string {
	s.Helper()
	c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeClaimSpec{
		StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
	}}
	for _, change := range changes {
		change(c)
	}
	if _, err := the.core.CoreV1().PersistentVolumeClaims(s.name).Create(s.Context(), c, metav1.CreateOptions{}); err != nil {
		s.Fatal(err)
	}
	return name
}

func asBlock(c *corev1.PersistentVolumeClaim) {
	mode := corev1.PersistentVolumeBlock
	c.Spec.VolumeMode = &mode
}

// Where a pod has its claim's volume.
const (
	mountedAt = "/data"
	deviceAt  = "/dev/volume"
)

// pod makes a pod that sleeps, with the claims' volumes: the first at /data, or at /dev/volume for a block device, the next at /data1 and so on.
func (s *space) pod(name string, claims []string, changes ...func(*corev1.Pod)) string {
	s.Helper()
	grace := int64(1)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"e2e": name}}, Spec: corev1.PodSpec{
		TerminationGracePeriodSeconds: &grace, RestartPolicy: corev1.RestartPolicyAlways,
		Containers: []corev1.Container{{Name: "c", Image: *testImage, ImagePullPolicy: corev1.PullIfNotPresent, Command: []string{"sleep", "100000"}}},
	}}
	c := &p.Spec.Containers[0]
	for i, claim := range claims {
		volume, suffix := fmt.Sprint("v", i), ""
		if i > 0 {
			suffix = fmt.Sprint(i)
		}
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: volume, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}})
		pvc, err := the.core.CoreV1().PersistentVolumeClaims(s.name).Get(s.Context(), claim, metav1.GetOptions{})
		if err != nil {
			s.Fatal(err)
		}
		if m := pvc.Spec.VolumeMode; m != nil && *m == corev1.PersistentVolumeBlock {
			c.VolumeDevices = append(c.VolumeDevices, corev1.VolumeDevice{Name: volume, DevicePath: deviceAt + suffix})
		} else {
			c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: volume, MountPath: mountedAt + suffix})
		}
	}
	for _, change := range changes {
		change(p)
	}
	if _, err := the.core.CoreV1().Pods(s.name).Create(s.Context(), p, metav1.CreateOptions{}); err != nil {
		s.Fatal(err)
	}
	return name
}

func onNode(name string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{corev1.LabelHostname: name} }
}

// running waits until a pod runs, and returns its node.
func (s *space) running(name string) string {
	s.Helper()
	var node string
	must(s, "pod "+name+" to run", func(ctx context.Context) error {
		p, err := the.core.CoreV1().Pods(s.name).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		node = p.Spec.NodeName
		for _, c := range p.Status.ContainerStatuses {
			if c.Ready && p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
				return nil
			}
		}
		return fmt.Errorf("it is %s on node %q; %s", p.Status.Phase, node, s.lastEvent(ctx, name))
	})
	return node
}

// lastEvent is the latest that was said of an object of the test.
func (s *space) lastEvent(ctx context.Context, name string) string {
	list, err := the.core.CoreV1().Events(s.name).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + name})
	if err != nil || len(list.Items) == 0 {
		return "no event says why" + errorText(err)
	}
	last := slices.MaxFunc(list.Items, func(a, b corev1.Event) int { return saidAt(a).Compare(saidAt(b)) })
	return last.Reason + ": " + last.Message
}

// saidAt is when an event was said last; who says it in the way of events.k8s.io, as the scheduler does, leaves out what the others fill in.
func saidAt(e corev1.Event) time.Time {
	switch {
	case e.Series != nil:
		return e.Series.LastObservedTime.Time
	case !e.LastTimestamp.IsZero():
		return e.LastTimestamp.Time
	}
	return e.EventTime.Time
}

// exec runs a line of shell in a pod.
func (s *space) exec(pod, script string) string {
	s.Helper()
	return strings.TrimSpace(mustKubectl(s, "", "exec", "-n", s.name, pod, "-c", "c", "--", "sh", "-c", script))
}

// sum is the SHA-256 of a file in a pod.
func (s *space) sum(pod, path string) string {
	s.Helper()
	sum, _, _ := strings.Cut(s.exec(pod, "sha256sum "+path), " ")
	return sum
}

// mustHold fails unless the image's file is in the volume of a pod, whole.
func (s *space) mustHold(pod string, i *diskImage) {
	s.Helper()
	if got := s.sum(pod, mountedAt+"/"+dataName); got != i.sum {
		s.Errorf("pod %s: %s in the volume has SHA-256 %s, the image's is %s", pod, dataName, got, i.sum)
	}
}

// deletePod deletes a pod and waits until it is gone, its mounts included.
func (s *space) deletePod(name string, args ...string) {
	s.Helper()
	mustKubectl(s, "", append([]string{"delete", "pod", "-n", s.name, name, "--wait", "--timeout=3m"}, args...)...)
}

// nodes are the names of the cluster's nodes, in order.
func (s *space) nodes() []string {
	s.Helper()
	list, err := the.core.CoreV1().Nodes().List(s.Context(), metav1.ListOptions{})
	if err != nil {
		s.Fatal(err)
	}
	var names []string
	for _, n := range list.Items {
		names = append(names, n.Name)
	}
	slices.Sort(names)
	return names
}
