package e2e

import (
	"testing"

	storagev1 "k8s.io/api/storage/v1"
)

// An image that nobody made before becomes a pod's files, whoever chooses the node.
func TestSmokeImageBecomesPodsFiles(t *testing.T) {
	for _, binding := range []storagev1.VolumeBindingMode{storagev1.VolumeBindingImmediate, storagev1.VolumeBindingWaitForFirstConsumer} {
		t.Run(string(binding), func(t *testing.T) {
			s := newSpace(t)
			image := mustImage(t, xfsImage)
			class := s.class("c", binding, s.onDemand("golden", image))
			first := s.pod("first", []string{s.claim("first", class, "400Mi")})
			node := s.running(first)
			s.mustHold(first, image)
			s.exec(first, "echo mine > /data/mine && sync")
			second := s.pod("second", []string{s.claim("second", class, "400Mi")})
			t.Logf("on nodes %s and %s", node, s.running(second))
			s.mustHold(second, image)
			if got := s.exec(second, "ls /data"); got != dataName {
				t.Errorf("the second volume has %q, and not only what the image has", got)
			}
		})
	}
}
