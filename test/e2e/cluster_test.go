package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"plinth.dev/plinth/test/e2e/rig"
)

// cluster is where everything happens: one for all tests, which keep to namespaces and image names of their own.
type cluster struct {
	rig        *rig.Cluster // nil when it is not ours: nodes cannot be switched off then
	kubeconfig string
	kubectl    string
	core       kubernetes.Interface
	objects    dynamic.Interface // of kinds that are not Kubernetes' own
	server     *imageServer
}

var the cluster

var namespace string // that Plinth is in

const backupsAt = "/mnt/backups" // where its pods have the directory that the rig's nodes share

// useCluster takes somebody's cluster as it is.
func useCluster(ctx context.Context) error {
	if *serveAt == "" {
		return errors.New("-serve-images-at: give host:port of this machine where the nodes can reach it: the tests' images come from there")
	}
	program, err := exec.LookPath("kubectl")
	if err != nil {
		return err
	}
	return connect(ctx, *kubeconfig, program, *serveAt)
}

// connect makes the clients, and the server that images come from.
func connect(ctx context.Context, kubeconfig, program, serveAt string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	config.QPS, config.Burst = 500, 1000
	the.kubeconfig, the.kubectl = kubeconfig, program
	if the.core, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	if the.objects, err = dynamic.NewForConfig(config); err != nil {
		return err
	}
	if the.server, err = serveImages(serveAt); err != nil {
		return err
	}
	err = eventually(ctx, 3*time.Minute, "Plinth to be installed", installed)
	if err != nil {
		pods, _ := kubectl(ctx, "", "describe", "pods", "-n", namespace)
		logs, _ := kubectl(ctx, "", "logs", "-n", namespace, "-l", "app.kubernetes.io/name=plinth", "--all-containers", "--prefix", "--tail=20")
		err = fmt.Errorf("%w\n%s\n%s", err, pods, logs)
	}
	return err
}

// makeCluster makes one with Plinth in it.
func makeCluster(ctx context.Context, dir string) error {
	started := time.Now()
	programs, err := rig.Build(ctx, ".", os.Stderr)
	if err != nil {
		return err
	}
	archive := filepath.Join(dir, "images.tar")
	if err := writeImages(dir, archive, programs); err != nil {
		return err
	}
	c, err := rig.New(ctx, rig.Options{Directory: dir, Programs: programs, Nodes: *nodes, Archives: []string{archive}, CountRequests: measuring()})
	the.rig = c
	if err != nil {
		return err
	}
	the.kubeconfig, the.kubectl = c.Kubeconfig, programs.Path("kubectl")
	if err := install(ctx, dir); err != nil {
		return fmt.Errorf("install Plinth: %w", err)
	}
	if err := connect(ctx, c.Kubeconfig, programs.Path("kubectl"), rig.Address+":0"); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%d nodes with Plinth are up after %s\n", *nodes, time.Since(started).Round(100*time.Millisecond))
	return nil
}

// sidecars are the programs of the images that the manifests name, by the last word of the image's name.
var sidecars = []string{"csi-provisioner", "csi-resizer", "csi-snapshotter", "csi-snapshot-metadata", "csi-node-driver-registrar", "livenessprobe"}

// Images of Plinth: the one that is installed, and one of another name with the same content, for upgrades.
const (
	plinthImage = "plinth.dev/plinth:e2e"
	nextImage   = "plinth.dev/plinth:e2e-next"
)

// writeImages writes an archive of every image that a pod here needs: nothing can be pulled.
func writeImages(dir, archive string, programs rig.Programs) error {
	rendered, err := exec.Command(programs.Path("kubectl"), "kustomize", "deploy").Output()
	if err != nil {
		return fmt.Errorf("render deploy: %w", err)
	}
	names := map[string]string{rig.PauseImage: "pause"}
	for line := range strings.Lines(string(rendered)) {
		name, ok := strings.CutPrefix(strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), "- ")), "image: ")
		for _, s := range sidecars {
			if base, _, _ := strings.Cut(filepath.Base(name), ":"); ok && base == s {
				names[name] = s
			}
		}
	}
	images, err := rig.ProgramImages(dir, programs, names)
	if err != nil {
		return err
	}
	for _, write := range []func(string) ([]rig.Image, error){plinthImages, busyboxImages} {
		more, err := write(dir)
		if err != nil {
			return err
		}
		images = append(images, more...)
	}
	return rig.WriteArchive(archive, images)
}

// plinthImages are what deploy/Dockerfile makes: its Debian packages, and the program.
func plinthImages(dir string) ([]rig.Image, error) {
	packages, err := rig.DockerfilePackages("../../deploy/Dockerfile")
	if err != nil {
		return nil, err
	}
	contents, err := rig.DebianFiles(packages...)
	if err != nil {
		return nil, err
	}
	maps.Copy(contents, rig.BaseLinks())
	layer, err := rig.WriteLayer(filepath.Join(dir, "debian.tar"), contents)
	if err != nil {
		return nil, err
	}
	program, err := rig.WriteLayer(filepath.Join(dir, "plinth.tar"), rig.Contents{"/usr/local/bin/plinth": *plinth})
	if err != nil {
		return nil, err
	}
	layers, entrypoint := []*rig.Layer{layer, program}, []string{"/usr/local/bin/plinth"}
	return []rig.Image{{Name: plinthImage, Layers: layers, Entrypoint: entrypoint}, {Name: nextImage, Layers: layers, Entrypoint: entrypoint}}, nil
}

// commands are those that tests run in pods.
var commands = strings.Fields("sh ls cat cp dd sync sleep mount df sha256sum stat id touch rm mkdir blockdev grep head tail seq wc chmod chown fdisk od test echo true sed cut date")

func busyboxImages(dir string) ([]rig.Image, error) {
	contents := rig.Contents{"/bin/busybox": "/bin/busybox", "/tmp": "", "/etc": "", "/proc": "", "/sys": "", "/dev": "", "/data": ""}
	for _, c := range commands {
		contents["/bin/"+c] = "@busybox"
	}
	layer, err := rig.WriteLayer(filepath.Join(dir, "busybox.tar"), contents)
	return []rig.Image{{Name: *testImage, Layers: []*rig.Layer{layer}, Entrypoint: []string{"/bin/sh", "-c"}}}, err
}

// install does what docs/how-to/install-kubernetes.md says, with everything that is optional. Files that are made on the way are left in dir.
func install(ctx context.Context, dir string) error {
	if err := define(ctx); err != nil {
		return err
	}
	if err := the.rig.StartController("snapshot-controller", "--leader-election=false"); err != nil {
		return err
	}
	if _, err := kubectl(ctx, "", "apply", "-f", "../../deploy/kubernetes/namespace.yaml"); err != nil {
		return err
	}
	certificate, err := documented("install-kubernetes.md", "What changed between snapshots")
	if err != nil {
		return err
	}
	if err := follow(ctx, dir, certificate); err != nil {
		return err
	}
	_, err = kubectl(ctx, "", "apply", "-k", "deploy")
	return err
}

// define brings the kinds that are not Plinth's.
func define(ctx context.Context) error {
	for module, flag := range map[string]string{"external-snapshotter/client/v8": "-k", "external-snapshot-metadata/client": "-f"} {
		dir, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}/config/crd", "github.com/kubernetes-csi/"+module).Output()
		if err != nil {
			return fmt.Errorf("find the definitions of %s: %w", module, err)
		}
		if _, err := kubectl(ctx, "", "apply", "--server-side", flag, strings.TrimSpace(string(dir))); err != nil {
			return err
		}
	}
	_, err := kubectl(ctx, "", "wait", "crd/snapshotmetadataservices.cbt.storage.k8s.io", "--for=condition=Established", "--timeout=1m")
	return err
}

// installed is nil when everything of Plinth's is ready.
func installed(ctx context.Context) error {
	out, err := kubectl(ctx, "", "get", "-n", namespace, "pods", "-o", `jsonpath={range .items[*]}{.metadata.name}{" "}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}`)
	if err != nil {
		return err
	}
	if strings.Contains(out, " False") || strings.Count(out, " True") < 3 {
		return fmt.Errorf("pods are\n%s", out)
	}
	drivers, err := kubectl(ctx, "", "get", "csinodes", "-o", `jsonpath={range .items[*]}{.metadata.name}{" "}{.spec.drivers[*].name}{"\n"}{end}`)
	if err != nil || strings.Count(drivers, "\n") != strings.Count(drivers, " csi.plinth.dev\n") {
		return fmt.Errorf("the driver is not on every node (%w):\n%s", err, drivers)
	}
	return nil
}
