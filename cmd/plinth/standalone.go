package main

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/cmd/internal/standalone"
)

// standaloneBinary has what `plinth standalone` runs. It is a binary of its own because it links an API server and etcd,
// whose initialisation would cost every other command, and every agent, 45 MB and 60 ms.
const standaloneBinary = "plinth-standalone"

// execStandalone becomes the other binary, with the same command line, which has been checked.
func execStandalone(_ context.Context, _ standalone.Config, _ io.Writer) error {
	path, err := findStandalone()
	if err != nil {
		return err
	}
	if err := unix.Exec(path, os.Args, os.Environ()); err != nil {
		return backingimage.Errorf(backingimage.Unsupported, "run %s: %w", path, err)
	}
	return nil
}

// findStandalone looks beside this binary first, then in PATH.
func findStandalone() (string, error) {
	self, err := os.Executable()
	if err == nil {
		beside := filepath.Join(filepath.Dir(self), standaloneBinary)
		if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() {
			return beside, nil
		}
	}
	path, err := exec.LookPath(standaloneBinary)
	if err != nil {
		return "", backingimage.Errorf(backingimage.Unsupported, "%s is neither beside %s nor in PATH; install it there (make build makes both)", standaloneBinary, self)
	}
	return path, nil
}
