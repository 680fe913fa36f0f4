package deploy_test

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// packageOf has the Debian package of each program that the agent runs.
var packageOf = map[string]string{
	"mkfs.xfs": "xfsprogs", "xfs_growfs": "xfsprogs", "mkfs.ext4": "e2fsprogs", "e2fsck": "e2fsprogs", "resize2fs": "e2fsprogs",
	"blkid": "util-linux", "partx": "util-linux", "prlimit": "util-linux", "fsfreeze": "util-linux", "sh": "dash", "cat": "coreutils", "timeout": "coreutils", "mount": "mount", "qemu-img": "qemu-utils", "bwrap": "bubblewrap",
}

var program = regexp.MustCompile(`(?:command\.Run\(.*?, |command\.Survive\(|exec\.CommandContext\(ctx, |program: +|sandbox\.Run\(ctx, |const program = )"([a-z0-9_.-]+)"`)

var (
	needed = regexp.MustCompile(`command\.Need\(([^)]*)\)`)
	quoted = regexp.MustCompile(`"([^"]*)"`)
)

// TestImageHasTheProgramsThatAreRun looks for them in the code, and for their packages in the Dockerfile.
func TestImageHasTheProgramsThatAreRun(t *testing.T) {
	dockerfile, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	run := map[string]bool{"prlimit": true, "bwrap": true} // of every sandbox
	for _, folder := range []string{"backingimage", "csi", "provisioner"} {
		for _, name := range programsIn(t, filepath.Join("..", folder)) {
			run[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(run)) {
		switch of := packageOf[name]; {
		case of == "":
			t.Errorf("the code runs %s: say here which package has it, and install that in the Dockerfile", name)
		case !strings.Contains(string(dockerfile), " "+of+" ") && !strings.Contains(string(dockerfile), " "+of+"\n"):
			t.Errorf("the code runs %s, and the Dockerfile does not install %s", name, of)
		}
	}
	for name := range packageOf {
		if !run[name] {
			t.Errorf("the code does not run %s any more", name)
		}
	}
}

// programsIn finds the programs that a folder's code runs, tests and packages for tests apart.
func programsIn(t *testing.T, folder string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") || strings.HasSuffix(filepath.Dir(path), "test") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range program.FindAllSubmatch(text, -1) {
			names = append(names, string(m[1]))
		}
		for _, list := range needed.FindAll(text, -1) {
			for _, m := range quoted.FindAllSubmatch(list, -1) {
				names = append(names, string(m[1]))
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
