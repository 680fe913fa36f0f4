package rig

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// file is a file's identity, which, other than its name, is the same in every mount namespace.
type file struct{ device, inode uint64 }

// loop is a loop device and what it shows.
type loop struct {
	path   string
	node   file // of path
	device uint64
	shows  file
}

// detachLoops ends the loop devices whose files lie under dir, and before them those whose files lie on a filesystem on one of them: that
// is how the volumes of a pool lie. The kernel keeps such devices when every process is gone, other than a real machine's at its end.
func detachLoops(dir string) error {
	return eventually(30*time.Second, "the loop devices to go", func() error {
		loops, err := loopsUnder(dir)
		if err != nil || len(loops) == 0 {
			return err
		}
		for i := len(loops) - 1; i >= 0; i-- {
			err = errors.Join(err, loops[i].detach())
		}
		return errors.Join(err, errors.New("some are still there"))
	})
}

// loopsUnder lists the loop devices that hold files under dir, each before those that lie on it.
func loopsUnder(dir string) ([]loop, error) {
	files := map[file]bool{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return ignoreAbsent(err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return ignoreAbsent(err)
		}
		files[file{st.Dev, st.Ino}] = true
		return nil
	})
	if err != nil {
		return nil, err
	}
	all, err := loops()
	var found []loop
	on := map[uint64]bool{}
	for again := true; again; {
		again = false
		for i, l := range all {
			if l.path != "" && (files[l.shows] || on[l.shows.device]) {
				found, on[l.device], files[l.node], again = append(found, l), true, true, true // kubelets put a loop device on a block volume's
				all[i].path = ""
			}
		}
	}
	return found, err
}

func ignoreAbsent(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// loops lists the loop devices that show a file.
func loops() ([]loop, error) {
	paths, err := filepath.Glob("/dev/loop[0-9]*")
	if err != nil {
		return nil, err
	}
	var list []loop
	for _, path := range paths {
		var st unix.Stat_t
		if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
		f.Close()
		if err == nil { // else it shows nothing
			list = append(list, loop{path: path, node: file{st.Dev, st.Ino}, device: st.Rdev, shows: file{info.Device, info.Inode}})
		}
	}
	return list, nil
}

// detach ends the device, now or when its last user is gone.
func (l loop) detach() error {
	f, err := os.Open(l.path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
	if errors.Is(err, unix.ENXIO) {
		return nil
	}
	return err
}
