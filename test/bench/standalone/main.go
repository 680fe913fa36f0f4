// Command standalone measures the real process over its CSI socket:
//
//   - CreateVolume, NodeStage and NodePublish of a volume from a ready 10 GiB image (1 GiB of data), beside the commands that
//     a person would type for the same: cp --reflink, losetup, mount. The bound is twice those and 50 ms for the API.
//   - an upload of a dense file until its image is ready, beside curl -T to a server that writes the file to the same disk and
//     syncs it. Ours is encrypted, hashed twice, and verified by chunks.
//   - an image exported from a volume of 10 GiB with 512 MiB of data, beside reading that data once; the bound is 2 s.
//   - its resident memory while it imports 20 GiB beside a budget of 200 MiB, and how much that grows from the first third to
//     the last.
//   - the resident memory of an agent that joined it, idle with 200 copies, beside a budget of 60 MiB.
//
// One line for each comparison: name <TAB> ours <TAB> rival <TAB> ratio <TAB> bound.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"plinth.dev/plinth/test/leftover"
)

const gib = 1 << 30

func main() {
	dir := flag.String("dir", os.TempDir(), "working directory; up to 25 GiB are written below it and removed")
	plinth := flag.String("plinth", "bin/plinth", "the binary to measure")
	runs := flag.Int("runs", 21, "volumes to mount; the median counts")
	importBytes := flag.Int64("import", 20*gib, "bytes to import while memory is watched")
	uploadBytes := flag.Int64("upload", 2*gib, "bytes to upload")
	only := flag.String("only", "", "measure only this: volumes, upload, export, memory or agent")
	flag.Parse()
	if err := run(context.Background(), *dir, *plinth, *only, *runs, *uploadBytes, *importBytes); err != nil {
		fmt.Fprintln(os.Stderr, "standalone:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dir, plinth, only string, runs int, uploadBytes, importBytes int64) error {
	p, err := start(dir, plinth)
	if err != nil {
		return err
	}
	defer p.stop()
	web, err := serve()
	if err != nil {
		return err
	}
	defer web.Close()
	for _, m := range []struct {
		name    string
		measure func() error
	}{
		{"volumes", func() error { return measureVolumes(ctx, p, runs) }},
		{"upload", func() error { return measureUpload(p, uploadBytes) }},
		{"export", func() error { return measureExport(ctx, p) }},
		{"memory", func() error { return measureMemory(ctx, p, web, importBytes) }},
		{"agent", func() error { return measureAgent(ctx, p, web) }},
	} {
		if only != "" && only != m.name {
			continue
		}
		if err := m.measure(); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return nil
}

// process is a `plinth standalone` below a directory of its own.
type process struct {
	dir  string
	cmd  *exec.Cmd
	conn *grpc.ClientConn
	bin  string
}

func start(parent, bin string) (*process, error) {
	dir, err := os.MkdirTemp(parent, "bench-standalone-")
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, err
	}
	p := &process{dir: dir, bin: bin}
	err = p.run("standalone", "--data-dir", p.path("data"), "--csi-endpoint", "unix://"+p.path("csi.sock"),
		"--node-name", "bench", "--pool-size", "40Gi", "--allow-source-cidr", "127.0.0.0/8", "--over-provisioning", "10000")
	if err != nil {
		return nil, err
	}
	p.conn, err = grpc.NewClient("unix://"+p.path("csi.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	return p, err
}

func (p *process) waitReady() error {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if log, err := os.ReadFile(p.path("log")); err == nil && strings.Contains(string(log), "plinth is ready") {
			return nil
		}
	}
	log, _ := os.ReadFile(p.path("log"))
	return fmt.Errorf("plinth did not become ready:\n%s", log)
}

func (p *process) path(name string) string { return filepath.Join(p.dir, name) }

// cli runs a command of plinth against the process.
func (p *process) cli(args ...string) error {
	out, err := exec.Command(p.bin, append(args, "--kubeconfig", p.path("data/kubeconfig"))...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("plinth %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// stop ends the process and removes everything of it.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // fails only when it has ended
	_ = p.cmd.Wait()                          // its log says why it ended
	if err := leftover.Release(p.dir); err != nil {
		fmt.Fprintln(os.Stderr, "standalone: clean up:", err)
		return
	}
	os.RemoveAll(p.dir)
}

func row(name, ours, rival string, ratio, bound float64) {
	fmt.Printf("%s\t%s\t%s\t%.2f\t%.2f\n", name, ours, rival, ratio, bound)
}
