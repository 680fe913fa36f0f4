package deploy_test

import (
	"bytes"
	"io/fs"
	"maps"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"plinth.dev/plinth/test/plinthtest"
)

// objects are what is rendered, by kind, namespace and name.
type objects map[string]*unstructured.Unstructured

// TestChartAndKustomizationRenderTheSame compares what both make, with what is optional and without. The namespace is the one difference:
// Helm makes it (--create-namespace), so a chart cannot.
func TestChartAndKustomizationRenderTheSame(t *testing.T) {
	everything := []string{"--set", "sidecars.snapshotter.enabled=true,sidecars.snapshotMetadata.enabled=true,monitoring.enabled=true,backupDirectories[0].path=/mnt/backups,backupDirectories[0].volume.hostPath.path=/mnt/backups,backupDirectories[0].volume.hostPath.type=Directory"}
	for name, tc := range map[string]struct {
		folder string
		values []string
	}{
		"the defaults":                {folder: "kubernetes"},
		"everything that is optional": {folder: "testdata/everything", values: everything},
		"another namespace":           {folder: "testdata/elsewhere", values: append([]string{"--namespace", "elsewhere"}, everything...)},
	} {
		t.Run(name, func(t *testing.T) {
			kustomized, charted := mustKustomize(t, tc.folder), mustTemplate(t, tc.values...)
			delete(kustomized, "Namespace//plinth")
			delete(kustomized, "Namespace//elsewhere")
			for key := range maps.Keys(kustomized) {
				if charted[key] == nil {
					t.Errorf("helm does not make %s", key)
				}
			}
			for key, o := range charted {
				if diff := cmp.Diff(comparable(kustomized[key]), comparable(o)); diff != "" {
					t.Errorf("%s: kustomize (-) and helm (+) differ:\n%s", key, diff)
				}
			}
			if len(charted) < 20 {
				t.Errorf("only %d objects", len(charted))
			}
		})
	}
}

// comparable is an object without what makes Helm leave the definitions when the chart is removed, and with its containers by name.
func comparable(o *unstructured.Unstructured) map[string]any {
	if o == nil {
		return nil
	}
	annotations := o.GetAnnotations()
	delete(annotations, "helm.sh/resource-policy")
	o.SetAnnotations(annotations)
	if containers, found, _ := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers"); found {
		byName := map[string]any{}
		for _, c := range containers {
			byName[c.(map[string]any)["name"].(string)] = c
		}
		_ = unstructured.SetNestedMap(o.Object, byName, "spec", "template", "spec", "containers") // there is such a field
	}
	return o.Object
}

func TestValuesOfTheChart(t *testing.T) {
	for name, tc := range map[string]struct {
		set  string
		want []string // in the output
		not  []string
	}{
		"another image":          {"image.repository=registry.test/p,image.tag=v1", []string{"image: registry.test/p:v1"}, []string{"plinth.dev/plinth:"}},
		"disks":                  {"node.disks={/srv/a,/srv/b},node.poolSize=200Gi", []string{"- --disk=/srv/b", "mountPath: /srv/a", "path: /srv/b", "- --pool-size=200Gi"}, nil},
		"directories of backups": {"backupDirectories[0].path=/mnt/a,backupDirectories[0].volume.nfs.server=nas,backupDirectories[1].path=/mnt/b,backupDirectories[1].volume.persistentVolumeClaim.claimName=b", []string{"mountPath: /mnt/a", "server: nas", "name: backups-1", "claimName: b"}, nil},
		"another kubelet":        {"node.kubeletDir=/data/kubelet", []string{"mountPath: /data/kubelet/pods", "--kubelet-registration-path=/data/kubelet/plugins/csi.plinth.dev/csi.sock"}, []string{"/var/lib/kubelet"}},
		"another data directory": {"node.dataDir=/data/plinth", []string{"- --data-dir=/data/plinth", "mountPath: /data/plinth"}, []string{"/var/lib/plinth"}},
		"no definitions":         {"crds.install=false", nil, []string{"kind: CustomResourceDefinition"}},
		"no network policy":      {"networkPolicy.enabled=false", nil, []string{"kind: NetworkPolicy"}},
		"a class of theirs":      {"priorityClass.create=false,priorityClass.name=system-node-critical", []string{"priorityClassName: system-node-critical"}, []string{"kind: PriorityClass"}},
		"secrets of a namespace": {"secretNamespaces={team-a}", []string{"namespace: team-a"}, nil},
		"arguments":              {"verbosity=4,node.extraArgs={--max-fetches=2},controller.extraArgs={--over-provisioning=150},sidecars.provisioner.extraArgs={--v=5}", []string{"- --verbosity=4", "- --max-fetches=2", "- --over-provisioning=150", "- --v=5"}, nil},
		"another certificate":    {"sidecars.snapshotMetadata.enabled=true,sidecars.snapshotMetadata.tlsSecret=theirs,networkPolicy.enabled=false", []string{"secretName: theirs", "- --tls-cert=/tls/tls.crt"}, []string{"kind: NetworkPolicy"}},
		"no SELinux mounts":      {"csiDriver.seLinuxMount=false", []string{"seLinuxMount: false"}, nil},
		"pull secrets":           {"imagePullSecrets[0].name=mirror", []string{"- name: mirror"}, nil},
		"tolerations and places": {"node.tolerations=null,node.nodeSelector.disk=ssd,controller.tolerations[0].operator=Exists,controller.nodeSelector.role=infra,controller.podAnnotations.a=b", []string{"disk: ssd", "role: infra", "operator: Exists", "a: b"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			out, stderr, err := template(t, "--set", tc.set)
			if err != nil {
				t.Fatalf("%v: %s", err, stderr)
			}
			mustParse(t, out)
			for _, want := range tc.want {
				if !strings.Contains(out, want) {
					t.Errorf("there is no %q", want)
				}
			}
			for _, not := range tc.not {
				if strings.Contains(out, not) {
					t.Errorf("there is %q", not)
				}
			}
		})
	}
}

func TestChartRefusesAValueThatThereIsNot(t *testing.T) {
	for set, names := range map[string]string{"node.poolsize=200Gi": "poolsize", "controller.replicas=many": "replicas", "node.disks=/srv": "disks"} {
		if _, stderr, err := template(t, "--set", set); err == nil || !strings.Contains(stderr, names) {
			t.Errorf("%s: got %v: %s", set, err, stderr)
		}
	}
}

func TestChartIsGood(t *testing.T) {
	out, problems, err := run(plinthtest.MustTool(t, "helm"), "lint", "--strict", "--namespace", "plinth", "--kube-version", "1.36.0", "helm/plinth")
	if err != nil {
		t.Errorf("helm lint: %v\n%s%s", err, out, problems)
	}
}

func mustTemplate(t *testing.T, args ...string) objects {
	t.Helper()
	out, stderr, err := template(t, args...)
	if err != nil {
		t.Fatalf("helm template: %v\n%s", err, stderr)
	}
	return mustParse(t, out)
}

func template(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	return run(plinthtest.MustTool(t, "helm"), append([]string{"template", "plinth", "helm/plinth", "--namespace", "plinth", "--kube-version", "1.36.0"}, args...)...)
}

func mustKustomize(t *testing.T, folder string) objects {
	t.Helper()
	out, stderr, err := run(plinthtest.MustTool(t, "kustomize"), "build", folder)
	if err != nil {
		t.Fatalf("kustomize build %s: %v\n%s", folder, err, stderr)
	}
	return mustParse(t, out)
}

// run runs a program on the files of deploy. It lists them, so that go's cache of test results knows of files that the program alone reads.
func run(program string, args ...string) (stdout, stderr string, err error) {
	if err := filepath.WalkDir(".", func(_ string, _ fs.DirEntry, err error) error { return err }); err != nil {
		return "", "", err
	}
	var out, problems bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &out, &problems
	err = cmd.Run()
	return out.String(), problems.String(), err
}

// mustParse reads a stream of objects, each of which there may be once.
func mustParse(t *testing.T, text string) objects {
	t.Helper()
	parsed := objects{}
	for document := range strings.SplitSeq("\n"+text, "\n---") {
		o := &unstructured.Unstructured{}
		if err := yaml.UnmarshalStrict([]byte(document), &o.Object); err != nil {
			t.Fatalf("%v in:\n%s", err, document)
		}
		if len(o.Object) == 0 {
			continue
		}
		if strings.HasPrefix(o.GetKind(), "ValidatingAdmissionPolicy") {
			o.SetNamespace("") // kustomize does not know that they have none; the API server takes it away
		}
		key := o.GetKind() + "/" + o.GetNamespace() + "/" + o.GetName()
		if parsed[key] != nil {
			t.Errorf("%s is there twice", key)
		}
		parsed[key] = o
	}
	return parsed
}
