package e2e

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
)

// Volumes are on the nodes that their class allows, whoever chooses among them, and their pods with them.
func TestVolumesAreWhereTheirClassAllows(t *testing.T) {
	for _, binding := range []storagev1.VolumeBindingMode{immediate, late} {
		t.Run(string(binding), func(t *testing.T) {
			s := newSpace(t)
			image := mustImage(t, ext4Image)
			names := s.nodes()
			allowed := names[len(names)-1]
			class := s.class("c", binding, s.onDemand("golden", image), func(c *storagev1.StorageClass) {
				c.AllowedTopologies = []corev1.TopologySelectorTerm{{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{{Key: "topology.plinth.dev/node", Values: []string{allowed}}}}}
			})
			for i := range 3 {
				name := fmt.Sprint("p", i)
				pod := s.pod(name, []string{s.claim(name, class, "100Mi")})
				if node := s.running(pod); node != allowed {
					t.Errorf("pod %s is on %s, and its volume may only be on %s", pod, node, allowed)
				}
				s.mustHold(pod, image)
			}
			elsewhere := s.pod("elsewhere", []string{s.claim("elsewhere", class, "100Mi")}, awayFrom(allowed))
			s.says(elsewhere, "node(s)")
		})
	}
}
