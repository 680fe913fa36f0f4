package e2e

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The API server takes the chart and every example as they are, and finds nothing to warn of. What kustomize makes is installed here.
func TestManifestsAreAccepted(t *testing.T) {
	t.Run("the chart", func(t *testing.T) {
		out, err := exec.Command(mustTool(t, "helm"), "template", "plinth", "../../deploy/helm/plinth", "--namespace", namespace, "--kube-version", "1.36.0",
			"--set", "sidecars.snapshotter.enabled=true,sidecars.snapshotMetadata.enabled=true").Output()
		if err != nil {
			t.Fatal(err)
		}
		accepted(t, string(out))
	})
	examples, err := filepath.Glob("../../deploy/examples/*.yaml")
	if err != nil || len(examples) == 0 {
		t.Fatalf("there are no examples (%v)", err)
	}
	for _, path := range examples {
		t.Run(filepath.Base(path), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			accepted(t, string(text))
		})
	}
}

// accepted lets the API server look at objects without keeping them.
func accepted(t *testing.T, objects string) {
	t.Helper()
	if out := mustKubectl(t, objects, "apply", "--server-side", "--force-conflicts", "--field-manager", "e2e", "--dry-run=server", "--warnings-as-errors", "-f", "-"); strings.Contains(strings.ToLower(out), "warning") {
		t.Error(out)
	}
}

// mustTool is a program that "make tools" brings.
func mustTool(t *testing.T, name string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	found, err := filepath.Glob(filepath.Join(cache, "plinth", "tools", name+"*"))
	if err != nil || len(found) == 0 {
		t.Fatalf("%s is neither in PATH nor in %s/plinth/tools: run make tools (%v)", name, cache, err)
	}
	return found[len(found)-1]
}

// An agent's token writes its own node's objects and no others', whatever its role allows.
func TestAgentWritesItsOwnNodesObjectsAlone(t *testing.T) {
	pods := strings.Fields(mustKubectl(t, "", "get", "-n", namespace, "pods", "-l", "app.kubernetes.io/component=node", "-o", `jsonpath={range .items[*]}{.metadata.name}{" "}{.spec.nodeName}{"\n"}{end}`))
	if len(pods) < 4 {
		t.Fatalf("two agents are needed; there are %v", pods)
	}
	pod, own, other := pods[0], pods[1], pods[3]
	bound := strings.TrimSpace(mustKubectl(t, "", "create", "token", "-n", namespace, "plinth-node", "--bound-object-kind", "Pod", "--bound-object-name", pod))
	free := strings.TrimSpace(mustKubectl(t, "", "create", "token", "-n", namespace, "plinth-node"))
	for name, tc := range map[string]struct{ token, node, refused string }{
		"its own":          {bound, own, ""},
		"another's":        {bound, other, `it is of node "` + other + `", and the token is node "` + own + `"'s`},
		"without any node": {free, own, "the token is bound to no node"},
	} {
		t.Run(name, func(t *testing.T) {
			path := "/apis/plinth.dev/v1alpha1/storagenodes/" + tc.node
			kubeconfig := mustKubeconfigOf(t, tc.token)
			var answer error
			must(t, "a write that meets no other", func(context.Context) error {
				object := mustKubectl(t, "", "get", "--raw", path)
				_, answer = kubectl(t.Context(), object, "--kubeconfig", kubeconfig, "replace", "--raw", path+"/status", "-f", "-")
				if answer != nil && strings.Contains(answer.Error(), "the object has been modified") { // by its agent, meanwhile
					return answer
				}
				return nil
			})
			if tc.refused == "" && answer != nil || tc.refused != "" && (answer == nil || !strings.Contains(answer.Error(), tc.refused)) {
				t.Errorf("got %v", answer)
			}
		})
	}
	if _, err := kubectl(t.Context(), "", "--kubeconfig", mustKubeconfigOf(t, bound), "delete", "disks.plinth.dev", "--all", "--dry-run=server"); err == nil || !strings.Contains(err.Error(), "forbidden") {
		t.Errorf("an agent may delete disks: %v", err)
	}
}

// mustKubeconfigOf is the kubeconfig of the tests with a token in place of the administrator's credentials.
func mustKubeconfigOf(t testing.TB, token string) string {
	t.Helper()
	var config map[string]any
	if err := json.Unmarshal([]byte(mustKubectl(t, "", "config", "view", "--raw", "--flatten", "--minify", "-o", "json")), &config); err != nil {
		t.Fatal(err)
	}
	user := config["users"].([]any)[0].(map[string]any)
	user["user"] = map[string]any{"token": token}
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
