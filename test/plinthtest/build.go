package plinthtest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// BinaryVariable names an environment variable: the plinth binary that tests run instead of building one.
const BinaryVariable = "PLINTH_TEST_BINARY"

// commands are Plinth's programs, of which each finds the others beside it.
var commands = []string{"./cmd/plinth", "./cmd/plinth-standalone", "./cmd/plinth-buckets"}

var (
	build        = sync.OnceValues(func() (string, error) { return buildBinaries(commands...) })
	buildBuckets = sync.OnceValues(func() (string, error) { return buildBinaries("./cmd/plinth-buckets") })
)

// MustBinary returns the path of the plinth binary built from this tree. The first call builds it; calls in other test
// processes wait for that and find the work done.
func MustBinary(tb testing.TB) string {
	tb.Helper()
	if path := os.Getenv(BinaryVariable); path != "" {
		return path
	}
	dir, err := build()
	if err != nil {
		tb.Fatalf("build plinth: %v", err)
	}
	return filepath.Join(dir, "plinth")
}

// MustBuckets is MustBinary of the program for buckets that plinth starts.
func MustBuckets(tb testing.TB) string {
	tb.Helper()
	if path := os.Getenv(BinaryVariable); path != "" {
		return filepath.Join(filepath.Dir(path), "plinth-buckets")
	}
	dir, err := buildBuckets()
	if err != nil {
		tb.Fatalf("build plinth-buckets: %v", err)
	}
	return filepath.Join(dir, "plinth-buckets")
}

// buildBinaries links into a directory that outlives the test, where `go build` finds that nothing changed, and returns it. It builds
// as `go test` does, so that the packages are compiled once for both.
func buildBinaries(commands ...string) (dir string, err error) {
	root, err := ModuleRoot()
	if err != nil {
		return "", err
	}
	if err := dependOnSources(root); err != nil {
		return "", err
	}
	dir, err = binaryDir(root)
	if err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	cmd := exec.Command("go", append([]string{"build", "-buildvcs=false", "-o", dir + "/"}, commands...)...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return dir, nil
}

// sourceFolders are those whose files the binaries are made of.
var sourceFolders = []string{"cmd", "csi", "provisioner", "backingimage", "deploy"}

// dependOnSources makes go's cache of test results see what the binaries are made of: a test of a process does not link
// the code that it tests, and a folder that was listed is looked at before a result is taken from the cache.
func dependOnSources(root string) error {
	for _, folder := range sourceFolders {
		err := filepath.WalkDir(filepath.Join(root, folder), func(_ string, _ fs.DirEntry, err error) error { return err })
		if err != nil {
			return fmt.Errorf("look at the sources: %w", err)
		}
	}
	return nil
}

// binaryDir is this tree's own directory in the user's cache.
func binaryDir(root string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	sum := sha256.Sum256([]byte(root))
	dir := filepath.Join(cache, "plinth-test", hex.EncodeToString(sum[:8]))
	return dir, os.MkdirAll(dir, 0o700)
}

// ModuleRoot is the directory of this tree's go.mod.
func ModuleRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find go.mod: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out))), nil
}
