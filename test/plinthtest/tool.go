package plinthtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// MustTool is the path of a program that "make tools" brought: one from PATH, or the newest in the user's cache.
func MustTool(tb testing.TB, name string) string {
	tb.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		tb.Fatal(err)
	}
	found, err := filepath.Glob(filepath.Join(cache, "plinth", "tools", name+"*"))
	if err != nil {
		tb.Fatal(err)
	}
	if len(found) == 0 {
		tb.Fatalf("%s, a program that tests run, is neither in PATH nor in %s/plinth/tools: run \"make tools\"", name, cache)
	}
	return found[len(found)-1]
}
