package main

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	testingclock "k8s.io/utils/clock/testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

func TestKubeconfigComesFromTheFirstThatIsAskedFor(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kubeconfig")
	mustWrite(t, file, "")
	here := "" // of the Plinth that this machine runs, if it runs one
	if anyExists([]string{standaloneKubeconfig}) {
		here = standaloneKubeconfig
	}
	for _, tc := range []struct {
		name, flag string
		env        map[string]string
		want       string // "" when it must fail, naming names
		names      string
	}{
		{"flag", file, map[string]string{"KUBECONFIG": "/nowhere"}, file, ""},
		{"own variable before the general one", "", map[string]string{"PLINTH_KUBECONFIG": file, "KUBECONFIG": "/nowhere"}, file, ""},
		{"general variable as a list", "", map[string]string{"KUBECONFIG": "/nowhere:" + file}, "/nowhere", ""},
		{"a missing file is named, with who asked for it", "", map[string]string{"KUBECONFIG": "/nowhere"}, "", "$KUBECONFIG: there is no file /nowhere"},
		{"nothing found says what to start", "", map[string]string{"HOME": "/nowhere"}, here, "plinth standalone"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			paths, err := kubeconfigPaths(tc.flag, func(key string) string { return tc.env[key] })
			if tc.want == "" {
				if !backingimage.Is(err, backingimage.NotFound) || !strings.Contains(err.Error(), tc.names) {
					t.Fatalf("got %v, %v", paths, err)
				}
				return
			}
			if err != nil || paths[0] != tc.want {
				t.Fatalf("got %v, %v", paths, err)
			}
		})
	}
}

func TestSizes(t *testing.T) {
	for bytes, want := range map[int64]string{0: "", 1: "1 B", 1023: "1023 B", 1 << 20: "1 MiB", 1<<20 - 1: "1 MiB", 2254857830: "2.1 GiB", 10 << 30: "10 GiB"} {
		if got := sizeText(bytes); got != want {
			t.Errorf("%d bytes are shown as %q, not %q", bytes, got, want)
		}
	}
	for s, want := range map[string]int64{"": 0, "10Gi": 10 << 30, "10G": 10_000_000_000, "512": 512} {
		if got, err := parseSize("--size", s); err != nil || got != want {
			t.Errorf("%q is read as %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"ten", "10GB", "-1", "0", "8Ei", "1e30"} {
		if _, err := parseSize("--size", s); !backingimage.Is(err, backingimage.Invalid) || !strings.Contains(err.Error(), "--size") {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestTableLinesUpAndLeavesEmptyColumnsOut(t *testing.T) {
	var b bytes.Buffer
	if err := printTable(&b, []string{"NAME", "TAGS", "SIZE"}, [][]string{{"a", "", "1 GiB"}, {"longer", "", "2\nGiB"}}); err != nil {
		t.Fatal(err)
	}
	if want := "NAME     SIZE\na        1 GiB\nlonger   2 GiB\n"; b.String() != want {
		t.Errorf("got\n%s", &b)
	}
}

const class = `apiVersion: v1
kind: Namespace
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
provisioner: csi.plinth.dev
parameters:
  backingImage: fedora
  csi.storage.k8s.io/fstype: xfs
`

func TestStorageClassParameters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "class.yaml")
	mustWrite(t, path, class)
	r := volumeRequest{name: "v", class: path, parameters: []string{"backingImage=debian", "nodeSelector="}}
	parameters, fsType, err := r.classParameters()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"backingImage": "debian", "fsType": "xfs", "nodeSelector": ""}
	if !maps.Equal(parameters, want) || fsType != "xfs" {
		t.Errorf("got %v, filesystem %q", parameters, fsType)
	}
}

func TestStorageClassParametersRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "class.yaml")
	for _, tc := range []struct{ name, file, says string }{
		{"of another driver", strings.Replace(class, driverName, "driver.longhorn.io", 1), `provisioner is "driver.longhorn.io"`},
		{"two classes", class + "---\n" + class, "2 StorageClasses"},
		{"no class", "kind: Namespace\n", "0 StorageClasses"},
		{"not YAML", "kind: [", "yaml"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mustWrite(t, path, tc.file)
			_, _, err := volumeRequest{class: path}.classParameters()
			if !backingimage.Is(err, backingimage.Invalid) || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v", err)
			}
		})
	}
	for _, r := range []volumeRequest{
		{parameters: []string{"novalue"}},
		{parameters: []string{"a=1", "a=2"}},
		{parameters: []string{"backingImage=a"}, image: "b"},
		{parameters: []string{"csi.storage.k8s.io/fstype=ext4"}, fsType: "xfs"},
	} {
		if _, _, err := r.classParameters(); !backingimage.Is(err, backingimage.Invalid) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

func TestImageSources(t *testing.T) {
	const url = "https://example.org/a"
	for name, tc := range map[string]struct {
		source imageSource
		t      v1alpha1.SourceType // "" when it is refused
		want   map[string]string
		says   string
	}{
		"a URL":                          {source: imageSource{url: url}, t: v1alpha1.SourceDownload, want: map[string]string{"url": url}},
		"a private one":                  {source: imageSource{url: url, secret: "s", secretNamespace: "n", proxy: "http://p:1"}, t: v1alpha1.SourceDownload, want: map[string]string{"url": url, "secret": "s", "secret-namespace": "n", "proxy": "http://p:1"}},
		"a volume":                       {source: imageSource{volume: "VM disk", exportType: "qcow2"}, t: v1alpha1.SourceExport, want: map[string]string{"volume-name": "VM disk", "export-type": "qcow2"}},
		"an image":                       {source: imageSource{image: "a"}, t: v1alpha1.SourceClone, want: map[string]string{"backing-image": "a"}},
		"nothing":                        {says: "--url"},
		"two":                            {source: imageSource{url: url, image: "a"}, says: "--url and --clone-of contradict each other"},
		"a secret of a volume":           {source: imageSource{volume: "v", secret: "s"}, says: "--secret means nothing with --from-volume"},
		"an export type of a URL":        {source: imageSource{url: url, exportType: "raw"}, says: "--export-type means nothing with --url"},
		"a namespace without its secret": {source: imageSource{url: url, secretNamespace: "n"}, says: "--secret-namespace"},
		"an export type nobody knows":    {source: imageSource{volume: "v", exportType: "vmdk"}, says: "vmdk"},
		"a URL nobody can fetch":         {source: imageSource{url: "ftp://example.org/a"}, says: `--url: "ftp://`},
	} {
		t.Run(name, func(t *testing.T) {
			from, got, err := tc.source.parameters()
			if tc.t == "" {
				if !backingimage.Is(err, backingimage.Invalid) || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil || from != tc.t || !maps.Equal(got, tc.want) {
				t.Errorf("got %s %v, %v", from, got, err)
			}
		})
	}
}

func TestImageProgressIsThatOfTheFurthestCopy(t *testing.T) {
	next := metav1.NewTime(time.Unix(60, 0))
	failed := copyIn(v1alpha1.CopyFailed, func(s *v1alpha1.BackingImageCopyStatus) { s.Message, s.NextTryTime = "connection reset", &next })
	final := copyIn(v1alpha1.CopyFailed, func(s *v1alpha1.BackingImageCopyStatus) { s.Message, s.Reason = "404", "NotFound" })
	fetching := copyIn(v1alpha1.CopyInProgress, func(s *v1alpha1.BackingImageCopyStatus) {
		s.BytesDone, s.BytesTotal, s.BytesPerSecond, s.ETASeconds = 43<<20, 100<<20, 10<<20, 6
	})
	ready := copyIn(v1alpha1.CopyReady, func(s *v1alpha1.BackingImageCopyStatus) { s.VirtualSize = 1 << 30 })
	image := &v1alpha1.BackingImage{ObjectMeta: metav1.ObjectMeta{Name: "i", UID: types.UID("u")}}
	for _, tc := range []struct {
		name, sentence string
		copies         []*v1alpha1.BackingImageCopy
		kind           backingimage.Kind
		final, ready   bool
	}{
		{name: "none yet", sentence: "pending"},
		{name: "one fetches while another has failed", copies: []*v1alpha1.BackingImageCopy{final, fetching, failed}, sentence: "in-progress, 43 % of 100 MiB, 10 MiB/s, 6s left"},
		{name: "one will be tried again", copies: []*v1alpha1.BackingImageCopy{final, failed}, sentence: "failed: connection reset"},
		{name: "all failed for good", copies: []*v1alpha1.BackingImageCopy{final}, sentence: "failed: 404", final: true, kind: backingimage.NotFound},
		{name: "one is ready", copies: []*v1alpha1.BackingImageCopy{fetching, ready}, sentence: "ready", ready: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := summarizeCopies(image, tc.copies)
			if p.sentence() != tc.sentence || p.ready != tc.ready || (p.failure != nil) != tc.final {
				t.Errorf("got %+v: %s", p, p.sentence())
			}
			if tc.final && !backingimage.Is(p.failure, tc.kind) {
				t.Errorf("failure is %v", p.failure)
			}
		})
	}
}

func TestMeterPrintsALineAtMostEveryFiveSeconds(t *testing.T) {
	var b bytes.Buffer
	clock := testingclock.NewFakePassiveClock(time.Unix(100, 0))
	m := (&cli{err: &b, clock: clock}).newMeter()
	for i, text := range []string{"one", "two", "three", "three", "four"} {
		clock.SetTime(time.Unix(100+int64(3*i), 0))
		m.say(text)
	}
	m.end()
	if got := b.String(); got != "one\nthree\nfour\n" {
		t.Errorf("got %q", got)
	}
}

func TestStagingRemembersWhatIsMounted(t *testing.T) {
	root := stagingRoot(filepath.Join(t.TempDir(), "staging"))
	s := mustOpen(t, root, "v1")
	if _, err := root.open("v1"); !backingimage.Is(err, backingimage.Busy) {
		t.Errorf("a second command on the volume: %v", err)
	}
	must(t, s.add(stagedTarget{Path: "/mnt/a"}))
	must(t, s.add(stagedTarget{Path: "/mnt/b"}))
	must(t, s.add(stagedTarget{Path: "/mnt/a"}))
	s.close()
	if id, err := root.volumeAt("/mnt/b"); id != "v1" || err != nil {
		t.Errorf("volume at /mnt/b: %q, %v", id, err)
	}
	s = mustOpen(t, root, "v1")
	if len(s.record.Mounts) != 2 {
		t.Errorf("remembered %v", s.record.Mounts)
	}
	must(t, s.drop("/mnt/a"))
	must(t, s.drop("/mnt/b"))
	must(t, s.remove())
	s.close()
	if left, _ := filepath.Glob(filepath.Join(string(root), "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestMountTargetsRefused(t *testing.T) {
	dir := t.TempDir()
	root := stagingRoot(filepath.Join(dir, "staging"))
	must(t, os.MkdirAll(filepath.Join(dir, "full", "x"), 0o755))
	mustWrite(t, filepath.Join(dir, "file"), "")
	other := mustOpen(t, root, "other")
	must(t, other.add(stagedTarget{Path: filepath.Join(dir, "taken")}))
	other.close()
	s := mustOpen(t, root, "v1")
	defer s.close()
	for _, tc := range []struct {
		path  string
		block bool
		kind  backingimage.Kind
	}{{"full", false, backingimage.Precondition}, {"file", false, backingimage.Precondition}, {"file", true, backingimage.Precondition}, {"taken", false, backingimage.Conflict}} {
		r := mountRequest{path: filepath.Join(dir, tc.path), block: tc.block, staging: root}
		if _, err := r.target(s); !backingimage.Is(err, tc.kind) {
			t.Errorf("%s: %v", tc.path, err)
		}
	}
	if target, err := (mountRequest{path: filepath.Join(dir, "new", "deep"), staging: root}).target(s); err != nil || target.Existed {
		t.Errorf("a path that does not exist: %+v, %v", target, err)
	}
}

func copyIn(state v1alpha1.CopyState, change func(*v1alpha1.BackingImageCopyStatus)) *v1alpha1.BackingImageCopy {
	c := &v1alpha1.BackingImageCopy{Status: v1alpha1.BackingImageCopyStatus{State: state}}
	change(&c.Status)
	return c
}

func mustOpen(tb testing.TB, root stagingRoot, id string) *staged {
	tb.Helper()
	s, err := root.open(id)
	must(tb, err)
	return s
}

func mustWrite(tb testing.TB, path, content string) {
	tb.Helper()
	must(tb, os.WriteFile(path, []byte(content), 0o600))
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
