package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/test/e2e/rig"
)

// mustOwn returns a node that the test may ill-treat.
func mustOwn(t testing.TB, name string) *rig.Node {
	t.Helper()
	if the.rig == nil {
		t.Skip("left out: this cluster's machines are not ours to switch off")
	}
	for _, n := range the.rig.Nodes {
		if n.Name == name {
			return n
		}
	}
	t.Fatalf("there is no node %s", name)
	return nil
}

// The kubelet is restarted under a pod, and finds everything as it was.
func TestKubeletRestarts(t *testing.T) {
	s := newSpace(t)
	image := mustImage(t, xfsImage)
	class := s.class("c", late, s.onDemand("golden", image))
	pod := s.pod("p", []string{s.claim("p", class, "400Mi")})
	node := mustOwn(t, s.running(pod))
	if err := node.StopKubelet(); err != nil {
		t.Fatal(err)
	}
	if err := node.StartKubelet(); err != nil {
		t.Fatal(err)
	}
	next := s.pod("next", []string{s.claim("next", class, "400Mi")}, onNode(node.Name))
	s.running(next)
	s.mustHold(pod, image)
	s.deletePod(pod)
}

// The agents are replaced by others of another image while pods write.
func TestAgentsAreUpgraded(t *testing.T) {
	if the.rig == nil {
		t.Skip("left out: this cluster has no image of Plinth to change to")
	}
	s := newSpace(t)
	image := mustImage(t, xfsImage)
	class := s.class("c", late, s.onDemand("golden", image))
	var pods []string
	for _, n := range the.rig.Nodes {
		name := "on-" + n.Name
		pods = append(pods, s.pod(name, []string{s.claim(name, class, "400Mi")}, onNode(n.Name)))
	}
	for _, p := range pods {
		s.running(p)
		s.exec(p, "(while sleep 0.1; do echo line >> /data/log || echo failed >> /tmp/failed; done) >/dev/null 2>&1 &")
	}
	for _, to := range []string{nextImage, plinthImage} {
		mustKubectl(t, "", "set", "image", "-n", namespace, "daemonset/plinth-node", "plinth="+to)
		mustKubectl(t, "", "rollout", "status", "-n", namespace, "daemonset/plinth-node", "--timeout=5m")
	}
	for _, p := range pods {
		s.mustHold(p, image)
		if got := s.exec(p, "cat /tmp/failed 2>/dev/null || tail -n 1 /data/log"); got != "line" {
			t.Errorf("pod %s: writing meanwhile: %s", p, got)
		}
		s.deletePod(p)
	}
}

// A node loses everything that is in memory and comes back: so do its pods, with their data.
func TestNodeReboots(t *testing.T) {
	s := newSpace(t)
	image := mustImage(t, xfsImage)
	class := s.class("c", late, s.onDemand("golden", image))
	files := s.pod("files", []string{s.claim("files", class, "400Mi")})
	node := mustOwn(t, s.running(files))
	device := s.pod("device", []string{s.claim("device", class, "400Mi", asBlock)}, onNode(node.Name))
	s.running(device)
	s.exec(files, "echo kept > /data/kept && sync")
	s.exec(device, "echo kept | dd of=/dev/volume bs=512 conv=notrunc,fsync 2>/dev/null")
	before := s.agent(node.Name)
	if err := node.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := node.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{files, device} {
		s.restarted(p)
	}
	if got := s.exec(files, "cat /data/kept"); got != "kept" {
		t.Errorf("after the reboot the file reads %q", got)
	}
	if got := s.exec(device, "head -c 4 /dev/volume"); got != "kept" {
		t.Errorf("after the reboot the device reads %q", got)
	}
	s.mustHold(files, image)
	t.Logf("the agent's pod was %s and is %s", before, s.agent(node.Name))
	next := s.pod("next", []string{s.claim("next", class, "400Mi")}, onNode(node.Name))
	s.running(next)
	s.mustHold(next, image)
}

// restarted waits until a pod's container was started anew and runs.
func (s *space) restarted(pod string) {
	s.Helper()
	must(s, "pod "+pod+" to be started anew", func(ctx context.Context) error {
		p, err := the.core.CoreV1().Pods(s.name).Get(ctx, pod, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range p.Status.ContainerStatuses {
			if c.RestartCount > 0 && c.Ready {
				return nil
			}
		}
		return fmt.Errorf("its containers are %+v; %s", p.Status.ContainerStatuses, s.lastEvent(ctx, pod))
	})
	s.running(pod)
}

// The leading controller is killed whenever something is under way; everything gets done, once.
func TestLeaderChangesInTheMiddle(t *testing.T) {
	s := newSpace(t)
	image := mustImage(t, xfsImage)
	class, open := s.held(image)
	first := s.pod("first", []string{s.claim("first", class, "400Mi")})
	s.killLeader()
	s.volumeOf("first")
	s.killLeader()
	second := s.pod("second", []string{s.claim("second", class, "400Mi")})
	open()
	s.killLeader()
	for _, p := range []string{first, second} {
		s.running(p)
		s.mustHold(p, image)
	}
	s.ask("first", "800Mi")
	s.killLeader()
	s.grown("first", "800Mi")
	s.lookAt(first)
	s.agrees("first", "800Mi", true)
	volumes := mustKubectl(t, "", "get", "volumes.plinth.dev", "-o", "name")
	claims := mustKubectl(t, "", "get", "pv", "-o", "name")
	if strings.Count(volumes, "\n") != strings.Count(claims, "\n") {
		t.Errorf("volumes are\n%sand persistent volumes\n%s", volumes, claims)
	}
	must(t, "the controllers to be well", installed)
}

// killLeader waits until a controller leads, and ends its pod without a word.
func (s *space) killLeader() {
	s.Helper()
	var pod string
	must(s, "a controller to lead", func(ctx context.Context) error {
		lease, err := the.core.CoordinationV1().Leases(namespace).Get(ctx, "plinth-controller", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if holder := lease.Spec.HolderIdentity; holder != nil {
			pod, _, _ = strings.Cut(*holder, "_")
		}
		if pod == "" {
			return errors.New("nobody holds the lease")
		}
		return nil
	})
	mustKubectl(s, "", "delete", "pod", "-n", namespace, pod, "--force", "--grace-period=0", "--ignore-not-found")
}

// A machine that is removed from the cluster is forgotten after a while, and its images are whole again elsewhere.
func TestNodeIsRemoved(t *testing.T) {
	s := newSpace(t)
	image := mustImage(t, xfsImage)
	node := mustOwn(t, fmt.Sprint("n", *nodes))
	parameters := s.onDemand("golden", image)
	parameters["backingImageMinNumberOfCopies"] = "2"
	class := s.class("c", late, parameters)
	pod := s.pod("p", []string{s.claim("p", class, "400Mi")}, onNode(node.Name))
	s.running(pod)
	s.deletePod(pod)
	mustKubectl(t, "", "delete", "pvc", "-n", s.name, "p", "--wait", "--timeout=60s")
	mustKubectl(t, "", "cordon", node.Name)
	mustKubectl(t, "", "wait", "storagenode/"+node.Name, "--for=condition=Drained", "--timeout=3m")
	mustKubectl(t, "", "drain", node.Name, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=3m")
	if err := node.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := errors.Join(node.Start(context.Background()), node.WaitReady(context.Background()))
		if err == nil {
			err = eventually(context.Background(), 5*time.Minute, "the node to be back", installed)
		}
		if err != nil {
			t.Error(err)
		}
	})
	mustKubectl(t, "", "delete", "node", node.Name)
	err := eventually(t.Context(), 5*time.Minute, "the node's objects to go", func(ctx context.Context) error {
		out, err := kubectl(ctx, "", "get", "storagenodes,disks", "--no-headers")
		if err == nil && strings.Contains(out, node.Name+" ") {
			err = fmt.Errorf("there are\n%s", out)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	must(t, "two copies on the machines that are left", func(ctx context.Context) error {
		out, err := kubectl(ctx, "", "get", "backingimagecopies", "-o", `jsonpath={range .items[?(@.spec.image=="`+parameters["backingImage"]+`")]}{.spec.nodeName}{" "}{.status.state}{"\n"}{end}`)
		if err == nil && (strings.Count(out, " ready\n") < 2 || strings.Contains(out, node.Name+" ")) {
			err = fmt.Errorf("the copies are\n%s", out)
		}
		return err
	})
	next := s.pod("next", []string{s.claim("next", class, "400Mi")})
	s.running(next)
	s.mustHold(next, image)
}
