package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Node is a machine with a kubelet. It can be switched off and on again: what is in memory (processes, mounts, loop devices, what is
// below /run) is gone then, and what is on its disk is still there. It shares the host's kernel, and so its page cache: switching it
// off is a crash of all its software, and no loss of power to its disk.
type Node struct {
	Name string

	cluster *Cluster
	number  int
	dir     string // root is the node's file system
	machine *exec.Cmd
	off     chan struct{} // closed when the machine has ended
	parts   map[string]*process
}

func newNode(c *Cluster, number int) *Node {
	name := "n" + strconv.Itoa(number)
	return &Node{Name: name, cluster: c, number: number, dir: filepath.Join(c.options.Directory, name), parts: map[string]*process{}}
}

// Address of the node.
func (n *Node) Address() string { return fmt.Sprintf("10.77.0.%d", 10+n.number) }

func (n *Node) podNetwork() string { return fmt.Sprintf("10.77.%d.0/24", 100+n.number) }

// Root is the directory that the node sees as /. What is mounted within it is not seen from here.
func (n *Node) Root() string { return filepath.Join(n.dir, "root") }

// Start switches the node on. The kubelet waits for the API server by itself.
func (n *Node) Start(ctx context.Context) error {
	if err := n.boot(ctx); err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	if err := n.startContainerd(ctx); err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	return n.StartKubelet()
}

// boot makes the node's files, its first process and its network.
func (n *Node) boot(ctx context.Context) error {
	if err := n.writeFiles(); err != nil {
		return err
	}
	cgroup, err := n.makeCgroup()
	if err != nil {
		return err
	}
	if err := n.startMachine(); err != nil {
		return err
	}
	if err := n.writeKubeletConfig(cgroup); err != nil {
		return err
	}
	veth := "v-" + n.Name
	pid := strconv.Itoa(n.machine.Process.Pid)
	for _, args := range [][]string{
		{"link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", pid},
		{"link", "set", veth, "master", bridge, "up"},
		{"route", "replace", n.podNetwork(), "via", n.Address()},
	} {
		if args[0] == "route" {
			if err := n.configureNetwork(ctx); err != nil {
				return err
			}
		}
		if err := do(ctx, "ip", args...); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) configureNetwork(ctx context.Context) error {
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"addr", "add", n.Address() + "/24", "dev", "eth0"},
		{"link", "set", "eth0", "up"},
		{"route", "add", "default", "via", Address},
	} {
		if err := n.run(ctx, "ip", args...); err != nil {
			return err
		}
	}
	return n.run(ctx, "sysctl", "-qw", "net.ipv4.ip_forward=1")
}

// startMachine starts the first process of the node's namespaces and waits until its root is in place.
func (n *Node) startMachine() error {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{nodeVariable + "=" + n.dir, "PATH=" + nodePath, directoryVariable + "="}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: machineNamespaces}
	ready, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the machine: %w", err)
	}
	off := make(chan struct{})
	n.machine, n.off = cmd, off
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		cmd.Wait()
		return fmt.Errorf("start the machine: %w", err)
	}
	go func() {
		cmd.Wait()
		close(off)
	}()
	return nil
}

const nodePath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Command is a command on the node.
func (n *Node) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	enter := []string{"-t", strconv.Itoa(n.machine.Process.Pid), "-m", "-u", "-i", "-n", "-p", "--", name}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	cmd.Env = []string{"PATH=" + nodePath}
	return cmd
}

func (n *Node) run(ctx context.Context, name string, args ...string) error {
	_, err := output(n.Command(ctx, name, args...))
	return err
}

func (n *Node) startPart(name, program string, args ...string) error {
	p, err := start(n.cluster.logs(), n.Name+"-"+name, n.Command(context.Background(), program, args...))
	n.parts[name] = p
	return err
}

func (n *Node) startContainerd(ctx context.Context) error {
	if err := n.startPart("containerd", "/usr/bin/containerd", "--config", "/etc/containerd/config.toml", "--log-level", "warn"); err != nil {
		return err
	}
	err := eventually(time.Minute, "containerd", func() error {
		if err := n.parts["containerd"].running(); err != nil {
			return err
		}
		return n.ctr(ctx, "version")
	})
	if err != nil {
		return err
	}
	return n.loadImages(ctx)
}

func (n *Node) ctr(ctx context.Context, args ...string) error {
	return n.run(ctx, "ctr", append([]string{"-n", "k8s.io"}, args...)...)
}

// loadImages imports what the node lacks. After the first start it lacks nothing.
func (n *Node) loadImages(ctx context.Context) error {
	done := filepath.Join(n.dir, "images-loaded")
	if _, err := os.Stat(done); err == nil {
		return nil
	}
	for _, archive := range n.cluster.options.Archives {
		if err := n.Load(ctx, archive); err != nil {
			return err
		}
	}
	return os.WriteFile(done, nil, 0o644)
}

// Load imports the images of an archive, in place of others of their names.
func (n *Node) Load(ctx context.Context, archive string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := n.Command(ctx, "ctr", "-n", "k8s.io", "images", "import", "-")
	cmd.Stdin = f
	_, err = output(cmd)
	return err
}

// StartKubelet starts the node's kubelet.
func (n *Node) StartKubelet() error {
	return n.startPart("kubelet", "/opt/plinth-e2e/kubelet", "--config", "/etc/kubernetes/kubelet.yaml", "--kubeconfig", "/etc/kubernetes/kubelet.conf",
		"--hostname-override", n.Name, "--node-ip", n.Address(), "--v", "2")
}

// StopKubelet ends it, as an upgrade of it does. The node's containers go on.
func (n *Node) StopKubelet() error { return n.parts["kubelet"].kill(unix.SIGTERM) }

// WaitReady returns when the API server calls the node ready.
func (n *Node) WaitReady(ctx context.Context) error {
	return eventually(2*time.Minute, "node "+n.Name+" to be ready", func() error {
		if err := n.parts["kubelet"].running(); err != nil {
			return err
		}
		got, err := output(n.cluster.Kubectl(ctx, "get", "node", n.Name, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")]}`))
		if err == nil && !strings.Contains(got, `"status":"True"`) {
			err = errors.New("its condition is " + got)
		}
		return err
	})
}

// PowerOff ends everything on the node at once.
func (n *Node) PowerOff(ctx context.Context) error {
	if err := n.kill(unix.SIGKILL); err != nil {
		return err
	}
	do(ctx, "ip", "link", "del", "v-"+n.Name) // the kernel takes it away with the other end, some time
	if err := detachLoops(n.dir); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(n.Root(), "run")); err != nil {
		return err
	}
	return eventually(20*time.Second, "the cgroups to be empty", func() error {
		var failed error
		for _, h := range hierarchies() {
			failed = errors.Join(failed, removeTree(filepath.Join(h, n.cgroup())))
		}
		return failed
	})
}

func (n *Node) kill(s unix.Signal) error {
	if n.machine == nil {
		return nil
	}
	if err := n.machine.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-n.off
	return nil
}
