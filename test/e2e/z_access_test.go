package e2e

import (
	"strings"
	"testing"
)

// TestNothingWasForbidden is the last test, by the name of its file: whatever the others did, no container of Plinth's was refused anything by the API
// server. What its accounts may do is not too little. That it is not too much, deploy's own tests compare with the code.
func TestNothingWasForbidden(t *testing.T) {
	for _, pod := range strings.Fields(mustKubectl(t, "", "get", "pods", "-n", namespace, "-o", `jsonpath={.items[*].metadata.name}`)) {
		said := mustKubectl(t, "", "logs", "-n", namespace, pod, "--all-containers", "--prefix")
		n := 0
		for line := range strings.Lines(said) {
			if lower := strings.ToLower(line); strings.Contains(lower, "is forbidden") || strings.Contains(lower, "cannot list resource") {
				if n++; n <= 3 {
					t.Error(strings.TrimSpace(line))
				}
			}
		}
		if !strings.Contains(said, "plinth is ready") {
			t.Errorf("the log of pod %s does not begin with its start, so that nothing is proven:\n%.500s", pod, said)
		}
	}
}
