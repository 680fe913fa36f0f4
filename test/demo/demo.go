package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"plinth.dev/plinth/test/leftover"
)

const (
	example      = "deploy/examples/storageclass.yaml"
	readyWithin  = 60 * time.Second
	stopWithin   = 30 * time.Second
	imageFile    = "demo.qcow2"
	imageVirtual = "512M"
)

// demo is what the steps share.
type demo struct {
	out        io.Writer
	plinth     string // the binary
	dir        string // everything lies below it
	sha256     string // of the image
	url        string
	web        *http.Server
	standalone *exec.Cmd
	exited     chan struct{}
	took       []timing
}

func newDemo(plinth string) (*demo, error) {
	path, err := filepath.Abs(plinth)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "plinth-demo-")
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("make a directory: %w", err)
	}
	d := &demo{out: os.Stdout, plinth: path, dir: dir}
	fmt.Fprintf(d.out, "Everything of this demo lies in %s, called $DEMO below, and goes with it.\n", dir)
	return d, nil
}

// step says what is done, does it, and remembers how long it took.
func (d *demo) step(sentence string, work func() error) error {
	fmt.Fprintf(d.out, "\n# %s\n", sentence)
	start := time.Now()
	if err := work(); err != nil {
		return err
	}
	d.took = append(d.took, timing{sentence, time.Since(start)})
	return nil
}

// timing is how long a step took.
type timing struct {
	sentence string
	time.Duration
}

func (d *demo) summarize() {
	fmt.Fprintln(d.out, "\nHow long each step took:")
	for _, t := range d.took {
		fmt.Fprintf(d.out, "%9s  %s\n", rounded(t.Duration), t.sentence)
	}
}

func (d *demo) makeImage(ctx context.Context) error {
	return d.step("make an ext4 filesystem of this repository's files and its binary, and a compressed QCOW2 image of it", func() error {
		content, raw := filepath.Join(d.dir, "content"), filepath.Join(d.dir, "demo.raw")
		served := filepath.Join(d.dir, "www")
		for _, dir := range []string{content, served} {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return fmt.Errorf("make a directory: %w", err)
			}
		}
		if err := copyTree(".", content, "README.md", "LICENSE", "backingimage", "bin", "cmd", "csi", "deploy", "docs", "provisioner"); err != nil {
			return err
		}
		if _, err := command(ctx, "mkfs.ext4", "-q", "-F", "-L", "demo", "-d", content, raw, imageVirtual); err != nil {
			return err
		}
		image := filepath.Join(served, imageFile)
		if _, err := command(ctx, "qemu-img", "convert", "-c", "-O", "qcow2", raw, image); err != nil {
			return err
		}
		data, err := os.ReadFile(image)
		if err != nil {
			return fmt.Errorf("read the image: %w", err)
		}
		sum := sha256.Sum256(data)
		d.sha256 = hex.EncodeToString(sum[:])
		return nil
	})
}

// serveImage serves the image over HTTP on loopback, and writes the example StorageClass with its URL and checksum.
func (d *demo) serveImage(context.Context) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("serve the image: %w", err)
	}
	d.web = &http.Server{Handler: http.FileServer(http.Dir(filepath.Join(d.dir, "www"))), ReadHeaderTimeout: 10 * time.Second}
	go d.web.Serve(listener) //nolint:errcheck // it ends when cleanUp closes it
	d.url = fmt.Sprintf("http://%s/%s", listener.Addr(), imageFile)
	class, err := os.ReadFile(example)
	if err != nil {
		return fmt.Errorf("read the example: %w", err)
	}
	text := regexp.MustCompile(`https://[^"]*`).ReplaceAllLiteralString(string(class), d.url)
	text = regexp.MustCompile(`sha256:[0-9a-f]{64}`).ReplaceAllLiteralString(text, "sha256:"+d.sha256)
	if !strings.Contains(text, d.url) || !strings.Contains(text, d.sha256) {
		return fmt.Errorf("%s has no URL or no checksum to put the demo's in place of", example)
	}
	return os.WriteFile(filepath.Join(d.dir, "storageclass.yaml"), []byte(text), 0o644)
}

func (d *demo) startPlinth(ctx context.Context) error {
	args := []string{"standalone", "--data-dir", d.path("data"), "--csi-endpoint", d.socket(), "--node-name", "demo",
		"--pool-size", "4Gi", "--http-listen", "127.0.0.1:0", "--allow-source-cidr", "127.0.0.0/8"}
	return d.step("start Plinth: control plane, disk and CSI driver in one process", func() error {
		log, err := os.Create(d.path("plinth.log"))
		if err != nil {
			return fmt.Errorf("start plinth: %w", err)
		}
		defer log.Close()
		d.show(args...)
		d.standalone = exec.Command(d.plinth, args...)
		d.standalone.Stdout, d.standalone.Stderr = log, log
		d.standalone.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the demo, which stops it in order
		if err := d.standalone.Start(); err != nil {
			d.standalone = nil
			return fmt.Errorf("start plinth: %w", err)
		}
		d.exited = make(chan struct{})
		go func() {
			_ = d.standalone.Wait() // its log tells
			close(d.exited)
		}()
		return d.waitReady(ctx)
	})
}

func (d *demo) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for {
		log, err := os.ReadFile(d.path("plinth.log"))
		if err != nil {
			return fmt.Errorf("wait for plinth: %w", err)
		}
		if strings.Contains(string(log), "plinth is ready") {
			return nil
		}
		select {
		case <-d.exited:
			return fmt.Errorf("plinth standalone ended:\n%s", log)
		case <-ctx.Done():
			return fmt.Errorf("plinth standalone is not ready:\n%s", log)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (d *demo) firstVolume(ctx context.Context) error {
	err := d.step("create a volume of the example class, which also creates the image that it describes", func() error {
		return d.run(ctx, "volume", "create", "first", "--storage-class", d.path("storageclass.yaml"))
	})
	if err != nil {
		return err
	}
	err = d.step("mount it: wait until the image is downloaded, verified and converted; then clone, attach, mount", func() error {
		return d.run(ctx, "volume", "mount", "first", d.path("first"), "--staging-dir", d.path("staging"))
	})
	if err != nil {
		return err
	}
	if err := d.look("first"); err != nil {
		return err
	}
	return d.run(ctx, "image", "ls")
}

func (d *demo) secondVolume(ctx context.Context) error {
	err := d.step("create and mount a second volume, larger than the image, from the copy that is here now", func() error {
		if err := d.run(ctx, "volume", "create", "second", "--storage-class", d.path("storageclass.yaml"), "--size", "1Gi"); err != nil {
			return err
		}
		return d.run(ctx, "volume", "mount", "second", d.path("second"), "--staging-dir", d.path("staging"))
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(d.path("first"), "only-here"), []byte("the first volume's own\n"), 0o644); err != nil {
		return fmt.Errorf("write to the first volume: %w", err)
	}
	if _, err := os.Stat(filepath.Join(d.path("second"), "only-here")); err == nil {
		return fmt.Errorf("what was written to the first volume is in the second")
	}
	if err := d.look("second"); err != nil {
		return err
	}
	return d.run(ctx, "volume", "ls")
}

// look shows that a file of the image is in the volume.
func (d *demo) look(volume string) error {
	content, err := os.ReadFile(filepath.Join(d.path(volume), "README.md"))
	if err != nil {
		return fmt.Errorf("look at a file of the image: %w", err)
	}
	original, err := os.ReadFile("README.md")
	if err != nil || string(original) != string(content) {
		return fmt.Errorf("README.md of volume %s is not the image's", volume)
	}
	first, _, _ := strings.Cut(string(content), "\n")
	fmt.Fprintf(d.out, "$ head -n 1 $DEMO/%s/README.md\n%s\n", volume, first)
	return nil
}

func (d *demo) removeAll(ctx context.Context) error {
	return d.step("unmount and delete everything", func() error {
		for _, volume := range []string{"first", "second"} {
			if err := d.run(ctx, "volume", "unmount", volume, "--staging-dir", d.path("staging")); err != nil {
				return err
			}
		}
		if err := d.run(ctx, "volume", "rm", "first", "second"); err != nil {
			return err
		}
		return d.run(ctx, "image", "rm", "demo")
	})
}

// run runs a plinth command as a person would, and shows it with what it prints.
func (d *demo) run(ctx context.Context, args ...string) error {
	d.show(args...)
	out, err := command(ctx, d.plinth, append(args, "--kubeconfig", filepath.Join(d.path("data"), "kubeconfig"), "--csi-endpoint", d.socket())...)
	if err != nil {
		return err
	}
	fmt.Fprint(d.out, strings.ReplaceAll(out, d.dir, "$DEMO"))
	return nil
}

func (d *demo) show(args ...string) {
	fmt.Fprintln(d.out, "$ plinth", strings.ReplaceAll(strings.Join(args, " "), d.dir, "$DEMO"))
}

func (d *demo) path(name string) string { return filepath.Join(d.dir, name) }
func (d *demo) socket() string          { return "unix://" + d.path("csi.sock") }

// cleanUp ends the processes and removes everything, whatever step was the last.
func (d *demo) cleanUp() error {
	if d.web != nil {
		_ = d.web.Close() // nobody needs it any more
	}
	if d.standalone != nil {
		_ = d.standalone.Process.Signal(syscall.SIGTERM) // fails only when it has ended
		select {
		case <-d.exited:
		case <-time.After(stopWithin):
			_ = d.standalone.Process.Kill() // see above
			<-d.exited
		}
	}
	if err := leftover.Release(d.dir); err != nil {
		return fmt.Errorf("clean up %s: %w", d.dir, err)
	}
	return os.RemoveAll(d.dir)
}
