package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// held is a class whose image hardly comes beyond the middle of its download, until it is opened.
func (s *space) held(image *diskImage) (class string, open func()) {
	s.Helper()
	file := &servedFile{data: image.qcow2, gate: make(chan struct{})}
	var opened bool
	open = func() {
		if !opened {
			opened = true
			close(file.gate)
		}
	}
	s.Cleanup(open)
	return s.class("held", late, s.fromURL("held", the.server.serve(s, "held.qcow2", file))), open
}

// says waits until something is said at an object of the test.
func (s *space) says(name, text string) {
	s.Helper()
	must(s, fmt.Sprintf("an event of %s that says %q", name, text), func(ctx context.Context) error {
		list, err := the.core.CoreV1().Events(s.name).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + name})
		if err != nil {
			return err
		}
		var all []string
		for _, e := range list.Items {
			if all = append(all, e.Reason+": "+e.Message); strings.Contains(e.Message, text) {
				return nil
			}
		}
		return fmt.Errorf("events are:\n%s", strings.Join(all, "\n"))
	})
}

// A pod that is deleted while it waits for its volume goes at once, and another gets the volume.
func TestPodDeletedWhileStaging(t *testing.T) {
	s := newSpace(t)
	image := mustImage(t, xfsImage)
	class, open := s.held(image)
	pod := s.pod("waits", []string{s.claim("waits", class, "400Mi")})
	s.volumeOf("waits")
	s.deletePod(pod)
	s.pod("next", []string{"waits"})
	open()
	s.running("next")
	s.mustHold("next", image)
}

// A pod that waits for longer than a kubelet waits for an answer says for what, and runs when that is there.
func TestPodIsToldWhatItWaitsFor(t *testing.T) {
	s := newSpace(t)
	image := mustImage(t, xfsImage)
	class, open := s.held(image)
	pod := s.pod("waits", []string{s.claim("c", class, "400Mi")})
	s.says(pod, "backing image "+s.name+"-held: fetching on ") // whichever node fetches it
	open()
	s.running(pod)
	s.mustHold(pod, image)
}

// A pod that is deleted by force leaves nothing that keeps the next one from its volume.
func TestPodDeletedByForce(t *testing.T) {
	s := newSpace(t)
	image := mustImage(t, xfsImage)
	class := s.class("c", late, s.onDemand("golden", image))
	pod := s.pod("first", []string{s.claim("c", class, "400Mi")})
	s.running(pod)
	s.exec(pod, "echo kept > /data/kept && sync")
	s.deletePod(pod, "--force", "--grace-period=0")
	s.pod("next", []string{"c"})
	s.running("next")
	if got := s.exec("next", "cat /data/kept"); got != "kept" {
		t.Errorf("the next pod reads %q", got)
	}
}

// A claim that is deleted while its image is downloaded goes, and the image serves others.
func TestClaimDeletedWhileDownloading(t *testing.T) {
	s := newSpace(t)
	image := mustImage(t, xfsImage)
	class, open := s.held(image)
	pod := s.pod("waits", []string{s.claim("waits", class, "400Mi")})
	volume := s.volumeOf("waits")
	s.deletePod(pod)
	mustKubectl(t, "", "delete", "pvc", "-n", s.name, "waits", "--wait", "--timeout=60s")
	must(t, "the volume to go though its image has not come", func(ctx context.Context) error {
		out, err := kubectl(ctx, "", "get", "pv,volumes.plinth.dev", "--ignore-not-found", "-o", "name")
		if err == nil && strings.Contains(out, volume) {
			err = fmt.Errorf("there are %s", out)
		}
		return err
	})
	open()
	next := s.pod("next", []string{s.claim("next", class, "400Mi")})
	s.running(next)
	s.mustHold(next, image)
}

// The class's provisioner secret opens a source that asks who is there; so does a secret that is named by reference.
func TestSecretsOpenASource(t *testing.T) {
	image := mustImage(t, xfsImage)
	const password = "correct horse"
	t.Run("provisioner secret", func(t *testing.T) {
		s := newSpace(t)
		s.secret(s.name, "mirror", "username=reader", "password="+password)
		s.readSecrets()
		parameters := s.fromURL("private", the.server.serve(t, "private.qcow2", &servedFile{data: image.qcow2, user: "reader", password: password}))
		parameters["csi.storage.k8s.io/provisioner-secret-name"] = "mirror"
		parameters["csi.storage.k8s.io/provisioner-secret-namespace"] = s.name
		pod := s.pod("p", []string{s.claim("p", s.class("c", late, parameters), "400Mi")})
		s.running(pod)
		s.mustHold(pod, image)
		s.nowhere(password)
	})
	t.Run("by reference", func(t *testing.T) {
		s := newSpace(t)
		name := s.name + "-mirror"
		s.secret(namespace, name, "username=reader", "password=wrong")
		parameters := s.fromURL("private", the.server.serve(t, "private.qcow2", &servedFile{data: image.qcow2, user: "reader", password: password}))
		parameters["backingImageDataSourceParameters"] = strings.TrimSuffix(parameters["backingImageDataSourceParameters"], "}") + fmt.Sprintf(`, "secret": %q, "secret-namespace": %q}`, name, namespace)
		claim := s.claim("p", s.class("c", late, parameters), "400Mi")
		pod := s.pod("p", []string{claim})
		s.says(claim, "401")
		mustKubectl(t, "", "patch", "secret", "-n", namespace, name, "-p", fmt.Sprintf(`{"stringData": {"password": %q}}`, password))
		mustKubectl(t, "", "delete", "backingimage", parameters["backingImage"], "--ignore-not-found", "--timeout=60s")
		s.running(pod)
		s.mustHold(pod, image)
		s.nowhere(password)
	})
}

// nowhere looks for a secret's value where everybody reads.
func (s *space) nowhere(value string) {
	s.Helper()
	for _, args := range [][]string{
		{"get", "backingimages,backingimagecopies,volumes.plinth.dev,pv,events,pvc", "-A", "-o", "yaml"},
		{"logs", "-n", namespace, "-l", "app.kubernetes.io/name=plinth", "-c", "plinth", "--tail=-1", "--prefix"},
	} {
		if out := mustKubectl(s, "", args...); strings.Contains(out, value) {
			s.Errorf("kubectl %s shows the password", strings.Join(args, " "))
		}
	}
}
