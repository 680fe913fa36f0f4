package embedded

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
)

// acquire takes the data directory's lock, which the kernel releases when the process ends, however it ends. InUse, with
// the holder's process ID, when it is taken.
func acquire(dir layout) (*os.File, error) {
	f, err := os.OpenFile(dir.lock, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		err = writeHolder(f)
	}
	if err == nil {
		return f, nil
	}
	defer f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, backingimage.Errorf(backingimage.InUse, "data directory %s is in use by %s; stop it, or choose another data directory", dir.root, holder(f))
	}
	return nil, fmt.Errorf("lock %s: %w", dir.lock, err)
}

func writeHolder(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// holder describes the process that has the lock. For an instant after it took the lock the file is empty.
func holder(f *os.File) string {
	content := make([]byte, 32)
	n, _ := f.ReadAt(content, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(content[:n])))
	if err != nil {
		return "another process"
	}
	return fmt.Sprintf("process %d", pid)
}
