package e2e

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// The API server takes everything that deploy has, as it is rendered, and would change nothing of what is installed but the tests' own wishes.
func TestEverythingOfDeployIsAccepted(t *testing.T) {
	t.Run("kustomize", func(t *testing.T) {
		mustKubectl(t, "", "apply", "--dry-run=server", "-k", "../../deploy/kubernetes")
		mustKubectl(t, "", "apply", "--dry-run=server", "-k", "../../deploy/testdata/everything")
	})
	t.Run("helm", func(t *testing.T) {
		for _, sets := range [][]string{nil, {"--set", "sidecars.snapshotter.enabled=true"}} {
			out, err := exec.Command(*helm, append([]string{"template", "plinth", "../../deploy/helm/plinth", "--namespace", namespace}, sets...)...).Output()
			if err != nil {
				t.Fatal(err)
			}
			mustKubectl(t, string(out), "apply", "--dry-run=server", "-f", "-")
		}
	})
	examples, err := filepath.Glob("../../deploy/examples/*.yaml")
	if err != nil || len(examples) < 5 {
		t.Fatal("examples are missing: ", examples, err)
	}
	for _, e := range examples {
		t.Run(filepath.Base(e), func(t *testing.T) { mustKubectl(t, "", "apply", "--dry-run=server", "-f", e) })
	}
}
