package deploy_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

// writers are the files whose writes an account makes.
var writers = map[string]struct {
	files []string
	// generic writes stand in functions for any kind.
	generic []string
}{
	"controller": {files: []string{"backingimage/controller/*.go", "provisioner/*.go", "!provisioner/volume_loop.go", "!provisioner/snapshot_loop.go", "!provisioner/backup_loop.go", "!provisioner/backup_copy.go", "!provisioner/attach.go"}},
	"node": {files: []string{"backingimage/node/*.go", "backingimage/transfer/*.go", "provisioner/volume_loop.go", "provisioner/snapshot_loop.go", "provisioner/backup_loop.go", "provisioner/backup_copy.go", "provisioner/attach.go"},
		generic: []string{"create storagenodes", "update backingimagecopies", "update volumes", "update snapshots"}},
}

var resources = map[string]string{"Images": "backingimages", "Copies": "backingimagecopies", "Nodes": "storagenodes", "Disks": "disks", "Volumes": "volumes", "Snapshots": "snapshots",
	"Backups": "backups", "Targets": "backuptargets", "Policies": "backuppolicies",
}

var write = regexp.MustCompile(`store\.([A-Z][a-z]+)\.(Create|Delete|Modify|ModifyStatus|ModifyLiveStatus)\(`)

// TestAccountsMayWriteWhatTheCodeWrites compares the roles with the code, both ways: what is written is allowed, and nothing else of Plinth's is.
func TestAccountsMayWriteWhatTheCodeWrites(t *testing.T) {
	for account, by := range writers {
		written, allowed := slices.Clone(by.generic), mustAllowed(t, account)
		for _, file := range files(t, by.files) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range write.FindAllStringSubmatch(string(text), -1) {
				written = append(written, requestOf(m[2], resources[m[1]]))
			}
		}
		for _, w := range written {
			if !slices.Contains(allowed, w) {
				t.Errorf("%s may not %s, and the code does", account, w)
			}
		}
		for _, a := range allowed {
			if !slices.Contains(written, a) {
				t.Errorf("%s may %s, and the code does not", account, a)
			}
		}
		if len(written) < 5 {
			t.Errorf("found only %v of what %s writes", written, account)
		}
	}
}

// requestOf is the request that a method of a store's kind makes.
func requestOf(method, resource string) string {
	switch method {
	case "Create":
		return "create " + resource
	case "Delete":
		return "delete " + resource
	case "Modify":
		return "update " + resource
	}
	return "update " + resource + "/status"
}

// files expands patterns; one that begins with ! takes away.
func files(t *testing.T, patterns []string) (list []string) {
	t.Helper()
	for _, p := range patterns {
		if without, found := strings.CutPrefix(p, "!"); found {
			list = slices.DeleteFunc(list, func(f string) bool { return f == filepath.Join("..", without) })
			continue
		}
		found, err := filepath.Glob(filepath.Join("..", p))
		if err != nil || len(found) == 0 {
			t.Fatalf("no file is %s (%v)", p, err)
		}
		list = append(list, found...)
	}
	return slices.DeleteFunc(list, func(f string) bool { return strings.HasSuffix(f, "_test.go") })
}

// mustAllowed lists the writes to Plinth's kinds that a role allows.
func mustAllowed(t *testing.T, account string) (allowed []string) {
	t.Helper()
	text, err := os.ReadFile("kubernetes/" + account + "-rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		var role rbacv1.ClusterRole
		if err := yaml.Unmarshal([]byte(document), &role); err != nil {
			t.Fatal(err)
		}
		for _, r := range role.Rules {
			if role.Kind != "ClusterRole" || !slices.Equal(r.APIGroups, []string{"plinth.dev"}) {
				continue
			}
			for _, resource := range r.Resources {
				for _, verb := range r.Verbs {
					if !slices.Contains([]string{"get", "list", "watch"}, verb) && !strings.HasSuffix(resource, "/finalizers") {
						allowed = append(allowed, verb+" "+resource)
					}
				}
			}
		}
	}
	return allowed
}
