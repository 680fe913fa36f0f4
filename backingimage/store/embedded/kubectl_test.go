package embedded_test

import (
	"bufio"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"

	"plinth.dev/plinth/backingimage/store/embedded"
)

const manifest = `apiVersion: plinth.dev/v1alpha1
kind: BackingImage
metadata:
  name: fedora
spec:
  sourceType: download
  sourceParameters:
    url: https://example.com/fedora.qcow2
`

// What kubectl asks of a server, asked without kubectl.
func TestDiscovery(t *testing.T) {
	s := mustServe(t, embedded.Options{Dir: tempDir(t)})
	client, err := discovery.NewDiscoveryClientForConfig(s.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	kinds := []string{"BackingImage", "BackingImageCopy", "Backup", "BackupPolicy", "BackupTarget", "Disk", "Snapshot", "StorageNode", "Volume"}
	for name, legacy := range map[string]bool{"aggregated": false, "classic": true} {
		t.Run(name+" discovery shows all kinds", func(t *testing.T) {
			client.UseLegacyDiscovery = legacy
			_, lists, err := client.ServerGroupsAndResources()
			if err != nil {
				t.Fatal(err)
			}
			var found []string
			for _, list := range lists {
				for _, r := range list.APIResources {
					if list.GroupVersion == "plinth.dev/v1alpha1" && !strings.Contains(r.Name, "/") {
						found = append(found, r.Kind)
					}
				}
			}
			slices.Sort(found)
			if !slices.Equal(found, kinds) {
				t.Errorf("got %v, want %v", found, kinds)
			}
		})
	}
	t.Run("there is no core group", func(t *testing.T) {
		var versions struct{ Versions []string }
		raw, err := client.RESTClient().Get().AbsPath("/api").Do(testContext(t)).Raw()
		if err == nil {
			err = json.Unmarshal(raw, &versions)
		}
		if err != nil || len(versions.Versions) != 0 {
			t.Errorf("got %s, %v", raw, err)
		}
	})
	t.Run("the schema explains fields", func(t *testing.T) { testSchema(t, client.RESTClient()) })
	t.Run("the server has a version", func(t *testing.T) {
		if v, err := client.ServerVersion(); err != nil || v.Major != "1" {
			t.Errorf("got %v, %v", v, err)
		}
	})
}

func testSchema(t *testing.T, client rest.Interface) {
	for _, path := range []string{"/openapi/v2", "/openapi/v3/apis/plinth.dev/v1alpha1"} {
		raw, err := client.Get().AbsPath(path).Do(testContext(t)).Raw()
		if err != nil {
			t.Fatal(err)
		}
		mustContain(t, string(raw), "MinNumberOfCopies that Plinth keeps")
	}
}

// kubectl runs the real one with the server's kubeconfig and nothing of the user's.
type kubectl struct {
	path, home, kubeconfig string
}

func (k kubectl) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, k.path, append([]string{"--kubeconfig", k.kubeconfig}, args...)...)
	cmd.Env = []string{"HOME=" + k.home, "PATH=" + os.Getenv("PATH"), "KUBE_EDITOR=" + filepath.Join(k.home, "edit")}
	return cmd
}

// must runs kubectl, which must succeed and print all of the wanted parts.
func (k kubectl) must(t *testing.T, stdin string, args []string, want ...string) {
	t.Helper()
	cmd := k.command(testContext(t), args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	mustContain(t, string(out), want...)
}

func mustKubectl(t *testing.T) kubectl {
	t.Helper()
	path, err := exec.LookPath("kubectl")
	if err != nil {
		t.Skip("kubectl is not on PATH; left out: its get, apply, explain, edit, watch and delete against the embedded API (TestDiscovery asks the same of the server without it)")
	}
	home := t.TempDir()
	edit := "#!/bin/sh\nexec sed -i 's/minNumberOfCopies: 1/minNumberOfCopies: 2/' \"$1\"\n"
	if err := os.WriteFile(filepath.Join(home, "edit"), []byte(edit), 0o700); err != nil {
		t.Fatal(err)
	}
	return kubectl{path: path, home: home, kubeconfig: mustServe(t, embedded.Options{Dir: tempDir(t)}).Kubeconfig()}
}

func TestKubectl(t *testing.T) {
	k := mustKubectl(t)
	watched := k.watch(t)
	for _, step := range []struct {
		name, stdin, args string
		want              []string
	}{
		{"api-resources lists kinds with short names", "", "api-resources --api-group=plinth.dev", []string{"backingimages", "bi,bimg", "BackingImageCopy", "StorageNode", "Volume", "Disk"}},
		{"explain shows a field", "", "explain backingimage.spec.checksum", []string{"FIELD: checksum", "SHA-512 or SHA-256"}},
		{"get of nothing succeeds", "", "get backingimages", []string{"No resources found"}},
		{"apply creates", manifest, "apply -f -", []string{"backingimage.plinth.dev/fedora created"}},
		{"apply again changes nothing", manifest, "apply -f -", []string{"unchanged"}},
		{"server-side apply works", manifest, "apply --server-side --force-conflicts -f -", []string{"serverside-applied"}},
		{"diff finds nothing", manifest, "diff -f -", nil},
		{"get prints our columns", "", "get bi -o wide", []string{"NAME", "STATE", "PROGRESS", "COPIES", "VIRTUAL", "MESSAGE", "fedora", "download"}},
		{"get of the category finds it", "", "get plinth", []string{"backingimage.plinth.dev/fedora"}},
		{"edit changes a field", "", "edit bi fedora", []string{"backingimage.plinth.dev/fedora edited"}},
		{"the edit is kept", "", "get bi fedora -o jsonpath={.spec.minNumberOfCopies}", []string{"2"}},
		{"patch of the status works", "", `patch bi fedora --subresource=status --type=merge -p {"status":{"state":"ready"}}`, []string{"patched"}},
		{"wait sees it", "", "wait bi/fedora --for=jsonpath={.status.state}=ready --timeout=30s", []string{"condition met"}},
		{"describe shows it", "", "describe bi fedora", []string{"Source Type:", "download"}},
		{"delete waits until it is gone", "", "delete bi fedora", []string{`"fedora" deleted`}},
		{"a foreground deletion does not hang", manifest, "create -f -", []string{"created"}},
		{"even though nobody collects garbage", "", "delete bi fedora --cascade=foreground --timeout=30s", []string{"deleted"}},
	} {
		t.Run(step.name, func(t *testing.T) { k.must(t, step.stdin, strings.Fields(step.args), step.want...) })
	}
	t.Run("an unknown field is refused by name", func(t *testing.T) {
		k.mustFail(t, manifest+"  colour: blue\n", "apply -f -", `unknown field "spec.colour"`)
	})
	t.Run("a bad object is refused with our message", func(t *testing.T) {
		k.mustFail(t, strings.Replace(manifest, "https:", "ftp:", 1), "apply -f -", "needs an http://, https://, s3:// or oci:// URL")
	})
	t.Run("get --watch saw all of it", func(t *testing.T) {
		select {
		case <-watched:
		case <-testContext(t).Done():
			t.Error("it saw nothing")
		}
	})
}

func (k kubectl) mustFail(t *testing.T, stdin, args, want string) {
	t.Helper()
	cmd := k.command(testContext(t), strings.Fields(args)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Error("it succeeded")
	}
	mustContain(t, string(out), want)
}

// watch returns a channel that is closed when kubectl get --watch has printed the state that a later step sets.
func (k kubectl) watch(t *testing.T) <-chan struct{} {
	t.Helper()
	ctx, cancel := context.WithCancel(testContext(t))
	cmd := k.command(ctx, "get", "bi", "--watch")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if f := strings.Fields(lines.Text()); len(f) > 1 && f[0] == "fedora" && f[1] == "ready" {
				close(seen)
				break
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		_ = cmd.Wait()
	})
	return seen
}
