package rig

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// beNode is a node's first process: it puts the root in place, says so with a byte, and then buries the dead. dir is the node's
// directory. It never returns without an error.
func beNode(dir string) error {
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	if err := furnish(dir); err != nil {
		return err
	}
	if _, err := os.Stdout.WriteString("\n"); err != nil {
		return err
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	for range children {
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
	return nil
}

// furnish makes the node's mounts and enters its root.
func furnish(dir string) error {
	programs, err := os.ReadFile(filepath.Join(dir, "programs"))
	if err != nil {
		return err
	}
	root := filepath.Join(dir, "root")
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	steps := []func() error{
		func() error { return bind(root, root, 0) }, // what pivot_root enters must be a mount
		func() error { return bindSystem(root) },
		func() error { return bind("/dev", filepath.Join(root, "dev"), unix.MS_REC) },
		func() error { return bind(string(programs), filepath.Join(root, "opt/plinth-e2e"), 0) },
		func() error {
			return bind(filepath.Join(filepath.Dir(dir), sharedName), filepath.Join(root, "mnt/backups"), 0)
		},
		func() error { return mountSys(root) },
		func() error { return mountProc(dir, root) },
		func() error { return enter(root) },
		func() error { return unix.Sethostname([]byte(filepath.Base(dir))) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func bind(from, to string, flags uintptr) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND|flags, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", from, to, err)
	}
	return nil
}

// bindSystem shows the host's programs in the root, and the files of its /etc that they need.
func bindSystem(root string) error {
	for _, name := range []string{"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"} {
		at := filepath.Join(root, name)
		info, err := os.Lstat("/" + name)
		switch {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			return err
		case info.Mode()&os.ModeSymlink != 0: // /bin is usr/bin
			to, err := os.Readlink("/" + name)
			if err == nil {
				err = os.Symlink(to, at)
			}
			if err != nil && !errors.Is(err, os.ErrExist) {
				return err
			}
		default:
			if err := errors.Join(os.MkdirAll(at, 0o755), bind("/"+name, at, 0), readOnly(at)); err != nil {
				return err
			}
		}
	}
	for _, name := range sharedEtc {
		if err := showEtc(name, filepath.Join(root, "etc", name)); err != nil {
			return err
		}
	}
	return nil
}

func readOnly(path string) error {
	return unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
}

func showEtc(name, at string) error {
	from := filepath.Join("/etc", name)
	info, err := os.Stat(from)
	if err != nil {
		return ignoreAbsent(err)
	}
	if info.IsDir() {
		err = os.MkdirAll(at, 0o755)
	} else {
		err = os.WriteFile(at, nil, 0o644)
	}
	return errors.Join(err, bind(from, at, 0))
}

// mountSys shows the node's own network in /sys, and the host's cgroups.
func mountSys(root string) error {
	sys := filepath.Join(root, "sys")
	if err := unix.Mount("sysfs", sys, "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	return bind("/sys/fs/cgroup", filepath.Join(sys, "fs/cgroup"), unix.MS_REC)
}

// kubeletSysctls are the settings of the whole kernel that a kubelet changes when they are not as it wants them. It is shown files that say they
// are, so that the host stays as it was.
var kubeletSysctls = map[string]string{
	"kernel/panic": "10", "kernel/panic_on_oops": "1", "vm/overcommit_memory": "1", "vm/panic_on_oom": "0",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}

// mountProc shows the processes of this namespace.
func mountProc(dir, root string) error {
	proc := filepath.Join(root, "proc")
	if err := unix.Mount("proc", proc, "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for _, area := range []string{"kernel", "vm"} {
		at := filepath.Join(proc, "sys", area)
		if err := errors.Join(bind(at, at, 0), readOnly(at)); err != nil {
			return err
		}
	}
	for name, value := range kubeletSysctls {
		shown := filepath.Join(dir, "sysctl-"+strings.ReplaceAll(name, "/", "-"))
		if err := os.WriteFile(shown, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := bind(shown, filepath.Join(proc, "sys", name), 0); err != nil {
			return err
		}
	}
	return nil
}

// enter makes root the root, and lets go of everything else that the host has mounted. Then mounts are shared, as on a machine that
// systemd has started: a pod's propagate to the host's if it asks for that.
func enter(root string) error {
	if err := unix.PivotRoot(root, filepath.Join(root, "old")); err != nil {
		return fmt.Errorf("enter %s: %w", root, err)
	}
	if err := errors.Join(os.Chdir("/"), unix.Unmount("/old", unix.MNT_DETACH)); err != nil {
		return fmt.Errorf("leave the host's root: %w", err)
	}
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}
