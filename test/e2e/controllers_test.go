package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	storagev1 "k8s.io/api/storage/v1"
)

// Controllers die while volumes are asked for, their leaders among them, and are replaced by an upgrade: every claim is bound, every pod runs on the image's
// files, and two replicas are there again.
func TestControllersDieAndAreReplaced(t *testing.T) {
	s := newSpace(t)
	image := mustImage(t, xfsImage)
	class := s.class("c", storagev1.VolumeBindingImmediate, s.onDemand("golden", image))
	var pods []string
	for i := range 6 {
		name := fmt.Sprintf("p%d", i)
		pods = append(pods, s.pod(name, []string{s.claim(name, class, "400Mi")}))
		switch i {
		case 1, 3: // as if its machine had lost power
			s.killLeader()
		case 4:
			mustKubectl(t, "", "rollout", "restart", "-n", namespace, "deployment/plinth-controller")
		}
	}
	for _, p := range pods {
		s.running(p)
		s.mustHold(p, image)
	}
	must(t, "the controllers to be two again", func(ctx context.Context) error {
		_, err := kubectl(ctx, "", "rollout", "status", "-n", namespace, "deployment/plinth-controller", "--timeout=1s")
		return err
	})
	name := s.name + "-golden"
	if volumes := mustKubectl(t, "", "get", "volumes.plinth.dev", "-o", `jsonpath={range .items[?(@.spec.image.name=="`+name+`")]}{.metadata.name}{"\n"}{end}`); strings.Count(volumes, "\n") != len(pods) {
		t.Errorf("there are volumes beside those of the %d claims:\n%s", len(pods), volumes)
	}
}
