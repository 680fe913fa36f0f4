package rig

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// programs are what a cluster is made of, by package. Their versions are those of go.mod.
var programs = []string{
	"k8s.io/kubernetes/cmd/kube-apiserver",
	"k8s.io/kubernetes/cmd/kube-controller-manager",
	"k8s.io/kubernetes/cmd/kube-scheduler",
	"k8s.io/kubernetes/cmd/kubelet",
	"k8s.io/kubernetes/cmd/kubectl",
	"go.etcd.io/etcd/server/v3",
	"github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner",
	"github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer",
	"github.com/kubernetes-csi/external-snapshotter/v8/cmd/csi-snapshotter",
	"github.com/kubernetes-csi/external-snapshotter/v8/cmd/snapshot-controller",
	"github.com/kubernetes-csi/external-snapshot-metadata/cmd/csi-snapshot-metadata",
}

// standIns are small programs of our own, built with each change: see the README.
var standIns = []string{"pause", "csi-node-driver-registrar", "livenessprobe"}

const kubernetesVersion = "v1.36.3"

// Programs is a directory of programs that are built.
type Programs string

// Path of a program.
func (p Programs) Path(name string) string { return filepath.Join(string(p), name) }

// Build builds what is not in the user's cache already, in the module of directory dir, and says on out what takes long. Several
// may do it at once: the others wait. The cache is that of go.mod's content, so that a change of a version builds anew.
func Build(ctx context.Context, dir string, out io.Writer) (Programs, error) {
	cache, err := cacheFor(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	lock, err := os.Create(filepath.Join(cache, ".lock"))
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", err
	}
	if missing := absent(cache); len(missing) > 0 {
		fmt.Fprintf(out, "building %d programs into %s; the first time this takes about a quarter of an hour on two cores\n", len(missing), cache)
		started := time.Now()
		if err := compile(ctx, dir, cache, missing...); err != nil {
			return "", err
		}
		fmt.Fprintf(out, "built in %s\n", time.Since(started).Round(time.Second))
	}
	var own []string
	for _, s := range standIns {
		own = append(own, "./standin/"+s)
	}
	return Programs(cache), compile(ctx, dir, cache, own...)
}

func cacheFor(dir string) (string, error) {
	user, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return "", err
		}
		sum.Write(text)
	}
	return filepath.Join(user, "plinth", "e2e", fmt.Sprintf("%x", sum.Sum(nil))[:16]), nil
}

func absent(cache string) []string {
	var missing []string
	for _, p := range programs {
		if _, err := os.Stat(filepath.Join(cache, programName(p))); err != nil {
			missing = append(missing, p)
		}
	}
	return missing
}

// programName is the last word of a package's path that is no version.
func programName(pkg string) string {
	if pkg == "go.etcd.io/etcd/server/v3" {
		return "etcd"
	}
	return filepath.Base(pkg)
}

// compile builds packages beside the cache and moves each into it whole: a run may be using what is there.
func compile(ctx context.Context, dir, cache string, packages ...string) error {
	fresh, err := os.MkdirTemp(cache, ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(fresh)
	version := "k8s.io/component-base/version"
	flags := fmt.Sprintf("-s -w -X %s.gitVersion=%s -X %s.gitMajor=1 -X %s.gitMinor=36 -X %s.gitTreeState=clean", version, kubernetesVersion, version, version, version)
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-ldflags", flags, "-o", fresh + "/"}, packages...)...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false")
	cmd.Stderr = os.Stderr // the progress of downloads
	if _, err := output(cmd); err != nil {
		return err
	}
	for _, p := range packages {
		name := programName(p)
		built := filepath.Join(fresh, name)
		if name == "etcd" {
			built = filepath.Join(fresh, "server") // the go command leaves out the version too
		}
		if err := os.Rename(built, filepath.Join(cache, name)); err != nil {
			return err
		}
	}
	return nil
}

// architecture as images and Debian name it.
func architecture() string { return strings.TrimSpace(runtime.GOARCH) }
