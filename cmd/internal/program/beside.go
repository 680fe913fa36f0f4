package program

import (
	"os"
	"os/exec"
	"path/filepath"

	"plinth.dev/plinth/backingimage"
)

// FindBeside finds one of Plinth's programs: beside the one that runs, or else in PATH. Unsupported when it is in neither.
func FindBeside(name string) (string, error) {
	self, err := os.Executable()
	if err == nil {
		beside := filepath.Join(filepath.Dir(self), name)
		if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() {
			return beside, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", backingimage.Errorf(backingimage.Unsupported, "%s is neither beside %s nor in PATH; install it there (make build makes it)", name, self)
	}
	return path, nil
}
