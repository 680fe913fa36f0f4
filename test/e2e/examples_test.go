package e2e

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// example is a file of deploy/examples with what its comments want done before, and what shows that it works where pods, claims and
// snapshots of its own do not.
type example struct {
	file          string
	before, after func(*examining)
}

// examples are all of them, each after those that it builds upon.
var examples = []example{
	{file: "backingimage.yaml", after: func(e *examining) {
		mustKubectl(e, "", "wait", "backingimage/demo", "--for=condition=Ready", "--timeout=3m")
	}},
	{file: "storageclass.yaml"},
	{file: "pvc.yaml"},
	{file: "pod.yaml"},
	{file: "storageclass-immediate.yaml", before: func(e *examining) {
		e.tag("disk", mustKubectl(e, "", "get", "disks", "-o", "jsonpath={.items[0].metadata.name}"), "ssd")
	}, after: func(e *examining) { e.volumeOf(e.claim("immediate", "demo-image-immediate", "1Gi")) }},
	{file: "block-volume.yaml"},
	{file: "clone-per-pod.yaml"},
	{file: "prefetch.yaml", before: func(e *examining) {
		for _, node := range e.nodes() {
			e.tag("storagenode", node, "gpu")
		}
	}},
	{file: "dataset-on-many-nodes.yaml"},
	{file: "image-per-claim.yaml", after: func(e *examining) { e.pod("web", []string{"web-0", "web-1"}) }},
	{file: "backingimage-private.yaml", before: func(e *examining) { e.secret(namespace, "mirror", "username=reader", "password="+examplePassword) }, after: func(e *examining) {
		mustKubectl(e, "", "wait", "backingimage/private", "--for=condition=Ready", "--timeout=3m")
		mustKubectl(e, "", "delete", "backingimage", "private", "--timeout=60s") // the next example has one of that name
	}},
	{file: "storageclass-private.yaml", before: func(e *examining) {
		e.secret(e.name, "mirror", "username=reader", "password="+examplePassword)
		e.readSecrets()
	}, after: func(e *examining) { e.pod("private", []string{e.claim("private", "private-image", "1Gi")}) }},
	{file: "backup-target.yaml", before: func(e *examining) {
		e.target = e.backups()
		e.secret(namespace, "s3", "PLINTH_BACKUP_KEY="+strings.Repeat("0f", 32))
	}, after: func(e *examining) {
		mustKubectl(e, "", "wait", "backuptarget/offsite", "--for=condition=Ready", "--timeout=1m")
	}},
	{file: "snapshot.yaml", after: func(e *examining) { e.pod("demo-restored", []string{"demo-restored"}) }},
	{file: "snapshots.yaml", after: func(e *examining) {
		e.pod("demo-of-monday", []string{"demo-of-monday"})
		e.snapshot("demo-golden", "plinth-image", "demo")
		e.snapshot("demo-offsite", "plinth-backup", "demo")
	}},
	{file: "storageclass-from-backup.yaml", before: func(e *examining) {
		e.backup = mustKubectl(e, "", "get", "backups.plinth.dev", "-o", "jsonpath={.items[0].status.url}")
	}, after: func(e *examining) { e.pod("restored", []string{e.claim("restored", "from-backup", "1Gi")}) }},
}

const examplePassword = "reader's own"

// examining is a test in whose namespace the examples are.
type examining struct {
	*space
	image           *diskImage
	public, private string // URLs of the image
	target, backup  string // URLs of a backup target and of a backup
}

// Every example is applied as it is but for what it names outside: URLs, sums, the image of its pods; and for sizes, since the disks here are small. Then
// all claims are bound, all pods run, and all snapshots can be used.
func TestExamplesWork(t *testing.T) {
	if the.rig == nil {
		t.Skip("left out: what the examples make has names of its own, which may be in use in this cluster")
	}
	var applied []string
	t.Cleanup(func() { // after the namespace with what uses it
		for i := len(applied) - 1; i >= 0; i-- {
			if _, err := kubectl(context.Background(), applied[i], "delete", "--ignore-not-found", "--wait", "--timeout=1m", "-f", "-"); err != nil {
				t.Error(err)
			}
		}
	})
	e := &examining{space: newSpace(t), image: mustImage(t, ext4Image)}
	e.public = the.server.serve(t, "public.qcow2", &servedFile{data: e.image.qcow2})
	e.private = the.server.serve(t, "private.qcow2", &servedFile{data: e.image.qcow2, user: "reader", password: examplePassword})
	tried := map[string]bool{}
	for _, x := range examples {
		tried[x.file] = true
		if x.before != nil {
			x.before(e)
		}
		text := e.fitted(x.file)
		mustKubectl(t, text, "create", "-n", e.name, "-f", "-")
		applied = append(applied, text)
		if x.after != nil {
			x.after(e)
		}
	}
	e.allWork()
	files, err := filepath.Glob("../../deploy/examples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("there are no examples (%v)", err)
	}
	for _, path := range files {
		if !tried[filepath.Base(path)] {
			t.Errorf("%s was not tried", path)
		}
	}
}

// fits are what is changed in an example, in order.
var fits = []struct {
	what *regexp.Regexp
	to   func(*examining) string
}{
	{regexp.MustCompile(`(?m)^ *#.*\n| #.*$`), func(*examining) string { return "" }},
	{regexp.MustCompile(`s3://\S+\?backup=\S+`), func(e *examining) string { return e.backup }},
	{regexp.MustCompile(`s3://my-backups/cluster-1`), func(e *examining) string { return e.target }},
	{regexp.MustCompile(`https://mirror\.[^"\s]*`), func(e *examining) string { return e.private }},
	{regexp.MustCompile(`https://[^"\s]*`), func(e *examining) string { return e.public }},
	{regexp.MustCompile(`sha256:[0-9a-f]{64}`), func(e *examining) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(e.image.qcow2)) }},
	{regexp.MustCompile(`busybox:stable`), func(*examining) string { return *testImage }},
	{regexp.MustCompile(`storage: [0-9]+Gi`), func(*examining) string { return "storage: 1Gi" }},
	{regexp.MustCompile(`\bdefault\b`), func(e *examining) string { return e.name }},
}

func (e *examining) fitted(file string) string {
	e.Helper()
	text, err := os.ReadFile(filepath.Join("../../deploy/examples", file))
	if err != nil {
		e.Fatal(err)
	}
	for _, f := range fits {
		text = f.what.ReplaceAllLiteral(text, []byte(f.to(e)))
	}
	return string(text)
}

// allWork waits until everything does what it is there for.
func (e *examining) allWork() {
	e.Helper()
	must(e, "every claim to be bound", func(ctx context.Context) error {
		return e.none(ctx, "pvc", `{range .items[?(@.status.phase!="Bound")]}{.metadata.name}{"\n"}{end}`)
	})
	must(e, "every pod to run", func(ctx context.Context) error {
		return e.none(ctx, "pods", `{range .items[?(@.status.containerStatuses[0].ready!=true)]}{.metadata.name}{"\n"}{end}`)
	})
	must(e, "every snapshot to be ready", func(ctx context.Context) error {
		return e.none(ctx, "volumesnapshots", `{range .items[?(@.status.readyToUse!=true)]}{.metadata.name}{"\n"}{end}`)
	})
	if got := mustKubectl(e, "", "exec", "-n", e.name, "demo", "--", "ls", "/data"); !strings.Contains(got, dataName) {
		e.Errorf("the pod of pod.yaml has %q", got)
	}
}

// none is an error while kubectl's template names something.
func (e *examining) none(ctx context.Context, kind, template string) error {
	out, err := kubectl(ctx, "", "get", kind, "-n", e.name, "-o", "jsonpath="+template)
	for name := range strings.FieldsSeq(out) {
		err = fmt.Errorf("%s: %s", name, e.lastEvent(ctx, name))
	}
	return err
}

// tag gives a node or a disk a tag until the test ends.
func (e *examining) tag(kind, name, tag string) {
	e.Helper()
	mustKubectl(e, "", "patch", kind, name, "--type=merge", "-p", fmt.Sprintf(`{"spec": {"tags": [%q]}}`, tag))
	e.Cleanup(func() { mustKubectl(e, "", "patch", kind, name, "--type=merge", "-p", `{"spec": {"tags": null}}`) })
}

// secret makes one until the test ends.
func (s *space) secret(in, name string, values ...string) {
	s.Helper()
	args := []string{"create", "secret", "generic", name, "-n", in}
	for _, v := range values {
		args = append(args, "--from-literal="+v)
	}
	mustKubectl(s, "", args...)
	s.Cleanup(func() { mustKubectl(s, "", "delete", "secret", name, "-n", in, "--ignore-not-found") })
}

// readSecrets lets the controllers read the secrets of the test's namespace, as docs/how-to/install-kubernetes.md says.
func (s *space) readSecrets() {
	s.Helper()
	mustKubectl(s, "", "create", "rolebinding", "plinth-secrets", "-n", s.name, "--clusterrole", "plinth-secrets", "--serviceaccount", namespace+":plinth-controller")
}
