package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/durable"
)

// stagingRoot is a directory in which the CLI, as an orchestrator must, keeps a staging path for each volume that is
// mounted with it, and beside the path a record of where the volume is published. Like the mounts it is gone after a
// reboot.
//
//	<root>/<volume id>/mount        the staging target path of CSI
//	<root>/<volume id>/mounts.json  where the volume is published
type stagingRoot string

func (r *stagingRoot) addFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar((*string)(r), "staging-dir", "/run/plinth/staging", "`directory` that keeps track of what is mounted; the same for mount and unmount")
}

// staged is a volume's directory in a stagingRoot, locked against other commands on the same volume.
type staged struct {
	dir    string
	lock   *os.File
	record stagedRecord
}

type stagedRecord struct {
	Volume string         `json:"volume"`
	Mounts []stagedTarget `json:"mounts"`
}

// stagedTarget is a path where the volume is published.
type stagedTarget struct {
	Path string `json:"path"`
	// Existed is true when the path was there before: unpublishing removes it, so it is put back.
	Existed bool `json:"existed,omitempty"`
}

// knows reports whether a volume was ever mounted from here and not unmounted.
func (r stagingRoot) knows(id string) bool {
	_, err := os.Stat(filepath.Join(string(r), id))
	return err == nil
}

// open locks the volume's directory, making it if need be, and reads its record.
func (r stagingRoot) open(id string) (*staged, error) {
	s := &staged{dir: filepath.Join(string(r), id), record: stagedRecord{Volume: id}}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make staging directory: %w", err)
	}
	var err error
	if s.lock, err = os.Open(s.dir); err != nil {
		return nil, fmt.Errorf("open staging directory: %w", err)
	}
	if !s.locked() {
		s.close()
		return nil, backingimage.Errorf(backingimage.Busy, "another plinth command is working on volume %s; try again when it is done", id)
	}
	if err := s.read(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// locked locks the directory, and makes sure that it has not been removed by the command that had the lock before.
func (s *staged) locked() bool {
	if unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return false
	}
	mine, err := s.lock.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(s.dir)
	return err == nil && os.SameFile(mine, there)
}

func (s *staged) read() error {
	b, err := os.ReadFile(s.file())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(b, &s.record)
	}
	if err != nil {
		return fmt.Errorf("read what is mounted: %w", err)
	}
	return nil
}

func (s *staged) file() string { return filepath.Join(s.dir, "mounts.json") }

// path is the staging target path of CSI.
func (s *staged) path() string { return filepath.Join(s.dir, "mount") }

func (s *staged) close() { _ = s.lock.Close() } // only a lock

// add records a target before it is published, so that a command that is killed leaves nothing unknown.
func (s *staged) add(t stagedTarget) error {
	if s.has(t.Path) {
		return nil
	}
	s.record.Mounts = append(s.record.Mounts, t)
	return s.write()
}

func (s *staged) has(path string) bool {
	return slices.ContainsFunc(s.record.Mounts, func(t stagedTarget) bool { return t.Path == path })
}

// drop forgets a target after it was unpublished.
func (s *staged) drop(path string) error {
	s.record.Mounts = slices.DeleteFunc(s.record.Mounts, func(t stagedTarget) bool { return t.Path == path })
	return s.write()
}

func (s *staged) write() error {
	b, err := json.Marshal(s.record)
	if err != nil {
		return fmt.Errorf("record what is mounted: %w", err)
	}
	return durable.WriteFile(s.file(), b, 0o600)
}

// remove removes the directory of a volume that is mounted nowhere.
func (s *staged) remove() error {
	for _, path := range []string{s.path(), s.file(), s.dir} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove staging directory: %w", err)
		}
	}
	return nil
}

// volumeAt returns the ID of the volume that is published at path, or "".
func (r stagingRoot) volumeAt(path string) (string, error) {
	files, err := filepath.Glob(filepath.Join(string(r), "*", "mounts.json"))
	if err != nil {
		return "", fmt.Errorf("look for what is mounted: %w", err)
	}
	for _, file := range files {
		var record stagedRecord
		b, err := os.ReadFile(file)
		if err != nil || json.Unmarshal(b, &record) != nil {
			continue // unmounted meanwhile, or damaged: open says so
		}
		for _, t := range record.Mounts {
			if t.Path == path {
				return record.Volume, nil
			}
		}
	}
	return "", nil
}
