package e2e

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A block volume is the image's disk, byte by byte: its partition table is the guest's. It grows under the pod.
func TestBlockVolumeIsTheDisk(t *testing.T) {
	s := newSpace(t)
	image := mustImage(t, machineImage)
	class := s.class("c", late, s.onDemand("golden", image))
	claim := s.claim("vm", class, "128Mi", asBlock)
	pod := s.pod("vm", []string{claim})
	s.running(pod)
	if got := s.exec(pod, "head -c $((65<<20)) /dev/volume | sha256sum | cut -d' ' -f1"); got != image.digest {
		t.Errorf("the device's first 65 MiB have SHA-256 %s, the image's disk has %s", got, image.digest)
	}
	table := regexp.MustCompile(`(?m)^/dev/volume1 +\* .* 2048 +133119 +131072 `)
	if got := s.exec(pod, "fdisk -l /dev/volume"); !table.MatchString(got) {
		t.Errorf("the disk has another partition than from sector 2048 on 131072 sectors to boot from:\n%s", got)
	}
	s.exec(pod, "dd if=/dev/zero of=/dev/volume bs=4096 count=1 seek=16384 conv=notrunc,fsync 2>/dev/null")
	for _, size := range []int64{128, 256} {
		asked := fmt.Sprint(size, "Mi")
		s.ask(claim, asked)
		s.agrees(claim, asked, true)
		if got := s.exec(pod, "blockdev --getsize64 /dev/volume"); got != fmt.Sprint(size<<20) {
			t.Errorf("the device has %s bytes when the claim has %s", got, asked)
		}
	}
}

// A machine's disk as files: the partition that the class names; and without a name, a word of what to do.
func TestPartitionOfAMachinesDisk(t *testing.T) {
	s := newSpace(t)
	image := mustImage(t, machineImage)
	parameters := s.onDemand("golden", image)
	whole := s.pod("whole", []string{s.claim("whole", s.class("whole", late, parameters), "128Mi")})
	s.says(whole, "partition")
	parameters = maps.Clone(parameters)
	parameters["partition"] = "1"
	pod := s.pod("first", []string{s.claim("first", s.class("first", late, parameters), "128Mi")})
	s.running(pod)
	s.mustHold(pod, image)
}

// A claim without an image is an empty filesystem.
func TestEmptyVolume(t *testing.T) {
	s := newSpace(t)
	class := s.class("c", late, nil)
	pod := s.pod("p", []string{s.claim("p", class, "400Mi")})
	s.running(pod)
	s.exec(pod, "echo kept > /data/f && sync")
	s.deletePod(pod)
	s.pod(pod, []string{"p"})
	s.running(pod)
	if got := s.exec(pod, "cat /data/f"); got != "kept" {
		t.Errorf("the next pod reads %q", got)
	}
}

// What a pod asks of its volumes: a group, a part of it, not to write.
func TestPodsWishes(t *testing.T) {
	s := newSpace(t)
	image := mustImage(t, xfsImage)
	class := s.class("c", late, s.onDemand("golden", image))
	claim := s.claim("p", class, "400Mi")
	t.Run("fsGroup", func(t *testing.T) {
		group, user := int64(4242), int64(1000)
		pod := s.pod("group", []string{claim}, func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &group, RunAsUser: &user}
		})
		s.running(pod)
		if got := s.exec(pod, "stat -c %g /data/"+dataName+"; id -G"); !strings.HasPrefix(got, "4242") {
			t.Errorf("the image's file has the group %s", got)
		}
		s.exec(pod, "mkdir /data/part && echo in the part > /data/part/f && sync")
		s.deletePod(pod)
	})
	t.Run("subPath", func(t *testing.T) {
		pod := s.pod("part", []string{claim}, func(p *corev1.Pod) { p.Spec.Containers[0].VolumeMounts[0].SubPath = "part" })
		s.running(pod)
		if got := s.exec(pod, "ls /data && cat /data/f"); got != "f\nin the part" {
			t.Errorf("the part has %q", got)
		}
		s.deletePod(pod)
	})
	t.Run("readOnly", func(t *testing.T) {
		pod := s.pod("reads", []string{claim}, func(p *corev1.Pod) {
			p.Spec.Volumes[0].PersistentVolumeClaim.ReadOnly = true
		})
		s.running(pod)
		s.mustHold(pod, image)
		if out, err := kubectl(t.Context(), "", "exec", "-n", s.name, pod, "--", "touch", "/data/new"); err == nil || !strings.Contains(err.Error(), "Read-only") {
			t.Errorf("writing ends with %v: %s", err, out)
		}
	})
}

// Fifty at once.
func TestFiftyClaimsAtOnce(t *testing.T) {
	s := newSpace(t)
	image := mustImage(t, xfsImage)
	file := &servedFile{data: image.qcow2}
	class := s.class("c", late, s.fromURL("golden", the.server.serve(t, "golden.qcow2", file)))
	const n = 50
	for i := range n {
		name := fmt.Sprint("p", i)
		s.pod(name, []string{s.claim(name, class, "400Mi")})
	}
	for i := range n {
		s.running(fmt.Sprint("p", i))
	}
	s.mustHold("p0", image)
	s.mustHold(fmt.Sprint("p", n-1), image)
	if _, sent := file.traffic(); sent > int64(len(image.qcow2))*3/2 {
		t.Errorf("the source sent %d bytes of a file of %d", sent, len(image.qcow2))
	}
}

// What the class retains stays when its claim goes.
func TestRetainedVolumeStays(t *testing.T) {
	s := newSpace(t)
	retain := corev1.PersistentVolumeReclaimRetain
	class := s.class("c", immediate, nil, func(c *storagev1.StorageClass) { c.ReclaimPolicy = &retain })
	claim := s.claim("p", class, "64Mi", asBlock)
	volume := s.volumeOf(claim)
	mustKubectl(t, "", "delete", "pvc", "-n", s.name, claim, "--wait", "--timeout=60s")
	must(t, "the volume to be released", func(ctx context.Context) error {
		v, err := the.core.CoreV1().PersistentVolumes().Get(ctx, volume, metav1.GetOptions{})
		if err == nil && v.Status.Phase != corev1.VolumeReleased {
			err = fmt.Errorf("it is %s", v.Status.Phase)
		}
		return err
	})
	mustKubectl(t, "", "get", "volumes.plinth.dev", volume)
	mustKubectl(t, "", "patch", "pv", volume, "-p", `{"spec": {"persistentVolumeReclaimPolicy": "Delete"}}`)
	must(t, "the volume to go when it is not retained any more", func(ctx context.Context) error {
		out, err := kubectl(ctx, "", "get", "volumes.plinth.dev", volume, "--ignore-not-found")
		if err == nil && out != "" {
			err = fmt.Errorf("there is %s", out)
		}
		return err
	})
}

// volumeOf waits until a claim is bound and returns the volume's name.
func (s *space) volumeOf(claim string) string {
	s.Helper()
	var name string
	must(s, "claim "+claim+" to be bound", func(ctx context.Context) error {
		c, err := the.core.CoreV1().PersistentVolumeClaims(s.name).Get(ctx, claim, metav1.GetOptions{})
		if err == nil && c.Status.Phase != corev1.ClaimBound {
			err = fmt.Errorf("it is %s; %s", c.Status.Phase, s.lastEvent(ctx, claim))
		}
		if err == nil {
			name = c.Spec.VolumeName
		}
		return err
	})
	return name
}

// The scheduler is told how much room each node has.
func TestCapacityOfEveryNodeIsPublished(t *testing.T) {
	s := newSpace(t)
	class := s.class("c", late, nil)
	must(t, "a capacity for each node", func(ctx context.Context) error {
		list, err := the.core.StorageV1().CSIStorageCapacities(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		known := map[string]bool{}
		for _, c := range list.Items {
			if c.StorageClassName == class && c.Capacity != nil && c.Capacity.Value() > 1<<30 {
				known[metav1.FormatLabelSelector(c.NodeTopology)] = true
			}
		}
		nodes, err := the.core.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err == nil && len(known) != len(nodes.Items) {
			err = fmt.Errorf("of %d nodes there are those of %v", len(nodes.Items), known)
		}
		return err
	})
	t.Run("what has room nowhere is not tried", func(t *testing.T) {
		s.says(s.pod("large", []string{s.claim("large", class, "900Gi")}), "enough free storage")
	})
}
