package rig

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// run is the directory in which everything of one run lies, and the lock that says that it is not over.
type run struct {
	dir  string
	lock *os.File
}

const (
	runPrefix = "plinth-e2e-"
	lockName  = "lock"
)

// runParent is where runs have their directories: not /tmp, which may be memory.
func runParent() string {
	if dir := os.Getenv("PLINTH_E2E_DIR"); dir != "" {
		return dir
	}
	return "/var/tmp"
}

func newRun() (*run, error) {
	dir, err := os.MkdirTemp(runParent(), runPrefix)
	if err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return &run{dir: dir, lock: lock}, unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
}

// removeDeadRuns removes what runs left that were killed together with the process that waits for them.
func removeDeadRuns() error {
	dirs, err := filepath.Glob(filepath.Join(runParent(), runPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		lock, err := os.Open(filepath.Join(dir, lockName))
		if err != nil || unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
			continue // it runs, or is being made
		}
		fmt.Fprintf(os.Stderr, "removing %s, which a killed run left\n", dir)
		if err := (&run{dir: dir, lock: lock}).remove(); err != nil {
			return err
		}
	}
	return nil
}

// remove clears away what outlives the processes of a run. Devices come first: they hold the files.
func (r *run) remove() error {
	err := errors.Join(detachLoops(r.dir), removeCgroups(filepath.Base(r.dir)))
	if err != nil {
		return fmt.Errorf("clear away after %s: %w", r.dir, err)
	}
	defer r.lock.Close()
	if err := os.RemoveAll(r.dir); err != nil {
		return err
	}
	return nil
}

// eventually repeats try until it succeeds, or returns its last error when the time is over or a process ended that it needs.
func eventually(limit time.Duration, what string, try func() error) error {
	for end := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		err := try()
		if err == nil {
			return nil
		}
		if time.Now().After(end) || errors.As(err, &endedError{}) {
			return fmt.Errorf("waited %s for %s: %w", limit, what, err)
		}
	}
}

// removeCgroups removes the cgroups of that name and all below them, in every hierarchy.
func removeCgroups(name string) error {
	return eventually(20*time.Second, "the cgroups to be empty", func() error {
		var failed error
		for _, h := range hierarchies() {
			failed = errors.Join(failed, removeTree(filepath.Join(h, name)))
		}
		return failed
	})
}

// removeTree removes the directories below a cgroup, the deepest first. The files in them are the kernel's.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, removeTree(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(err, unix.Rmdir(dir))
}

// hierarchies are the roots of the cgroups: one of version 2, or several of version 1.
func hierarchies() []string {
	points, err := mountPoints()
	if err != nil {
		return nil
	}
	var roots []string
	for _, p := range points {
		if strings.HasPrefix(p.kind, "cgroup") && strings.HasPrefix(p.path, "/sys/fs/cgroup") {
			roots = append(roots, p.path)
		}
	}
	return roots
}
