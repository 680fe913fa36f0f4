// Package rig runs a real Kubernetes on one Linux machine, as root, out of nothing but the modules in go.mod and a few Debian
// packages: etcd, the API server with its admission, the controller manager, the scheduler, and nodes that each have a kubelet
// and a containerd of their own.
//
// A program that calls Isolate goes on in namespaces of its own, as their first process, and is the machine of the control plane.
// A node is a machine within: first process, mounts, network and names of its own, and a root that shares nothing but programs and
// devices with the host. So nothing listens on the host, nothing is mounted there, and whatever happens to the program (it returns, it panics, it
// is killed), the kernel ends all that it started. What a kernel keeps beyond that, loop devices and cgroups, and the files of
// the run, are removed by the process that waits outside; if that one was killed too, by the next run.
package rig

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// What the process within is told by the one outside.
const (
	directoryVariable = "PLINTH_E2E_RUN"
	nodeVariable      = "PLINTH_E2E_NODE" // makes the program a node's first process
)

// Isolate runs the rest of the program in namespaces of its own and exits with its code; within them, it returns the
// directory of the run. Call it before anything else.
func Isolate() string {
	if root := os.Getenv(nodeVariable); root != "" {
		exitOn("node", beNode(root))
	}
	if dir := os.Getenv(directoryVariable); dir != "" {
		exitOn("isolate", settle())
		return dir
	}
	code, err := outside()
	exitOn("isolate", err)
	os.Exit(code)
	return ""
}

func exitOn(what string, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", what, err)
		os.Exit(1)
	}
}

// outside makes the run's directory, starts the process within, and clears away after it, whatever became of it.
func outside() (int, error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("a cluster's nodes need namespaces, mounts and loop devices: run it as root")
	}
	if err := removeDeadRuns(); err != nil {
		return 0, err
	}
	run, err := newRun()
	if err != nil {
		return 0, err
	}
	interrupts := make(chan os.Signal, 4) // the process within gets them too, from the terminal; this one must outlive it
	signal.Notify(interrupts, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	code, err := within(run.dir, interrupts)
	return code, errors.Join(err, run.remove())
}

// within starts this program again as the first process of new namespaces, passes signals on, and returns its exit code.
func within(dir string, signals <-chan os.Signal) (int, error) {
	runtime.LockOSThread() // the child dies with the thread that made it
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), directoryVariable+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: machineNamespaces, Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start in new namespaces: %w", err)
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case s := <-signals:
				cmd.Process.Signal(s)
			case <-done:
				return
			}
		}
	}()
	err := cmd.Wait()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	}
	return 0, err
}

const machineNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

// settle makes the new namespaces usable: mounts that nobody outside sees, a /proc of its own, and no hold on what others
// have mounted, which this process would otherwise keep busy for as long as it lives.
func settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	points, err := mountPoints()
	if err != nil {
		return err
	}
	for _, p := range points {
		if p.foreign() {
			unix.Unmount(p.path, unix.MNT_DETACH) // what lies under one that is gone already is gone with it
		}
	}
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	go func() {
		fmt.Fprintf(os.Stderr, "ended by %s\n", <-interrupts)
		os.Exit(130)
	}()
	return nil
}

type mountPoint struct{ path, kind, source string }

// foreign says that a mount is somebody's volume and not part of this machine.
func (p mountPoint) foreign() bool {
	loop := strings.HasPrefix(p.source, "/dev/loop") || strings.HasPrefix(p.kind, "fuse")
	inside, err := filepath.Rel(p.path, mustExecutable())
	return loop && p.path != "/" && (err != nil || strings.HasPrefix(inside, ".."))
}

func mustExecutable() string {
	path, err := os.Executable()
	exitOn("isolate", err)
	return path
}

func mountPoints() ([]mountPoint, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []mountPoint
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		for i := 6; i+2 < len(f); i++ {
			if f[i] == "-" {
				points = append(points, mountPoint{path: f[4], kind: f[i+1], source: f[i+2]})
				break
			}
		}
	}
	return points, nil
}
