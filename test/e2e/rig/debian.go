package rig

import (
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// DebianFiles are the files of Debian packages as they are installed on this machine, with the libraries that their programs need: what a
// Dockerfile's apt-get install brings, without an archive to fetch it from.
func DebianFiles(packages ...string) (Contents, error) {
	contents := Contents{}
	for _, p := range packages {
		list, err := output(exec.Command("dpkg-query", "-L", p))
		if err != nil {
			return nil, fmt.Errorf("package %s is not installed here; make e2e-deps: %w", p, err)
		}
		for path := range strings.Lines(list) {
			path = strings.TrimSpace(path)
			if strings.HasPrefix(path, "/usr/share/") && !strings.HasPrefix(path, "/usr/share/qemu") {
				continue
			}
			if err := contents.addFile(path); err != nil {
				return nil, err
			}
		}
	}
	return contents, nil
}

// addFile adds a file, a link and what it leads to, and the libraries of a program.
func (c Contents) addFile(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return ignoreAbsent(err) // a package's file that an administrator removed
	}
	real, err := filepath.EvalSymlinks(filepath.Dir(path)) // /lib is usr/lib
	if err != nil {
		return err
	}
	at := filepath.Join(real, filepath.Base(path))
	if _, have := c[at]; have {
		return nil
	}
	switch info.Mode() & fs.ModeType {
	case fs.ModeSymlink:
		to, err := os.Readlink(path)
		if err != nil {
			return err
		}
		c[at] = "@" + to
		if !filepath.IsAbs(to) {
			to = filepath.Join(real, to)
		}
		return c.addFile(to)
	case 0:
		c[at] = path
		return c.addLibraries(path)
	}
	return nil
}

var libraryPath = regexp.MustCompile(`(?m)(?:=> |^\s+)(/\S+) \(0x`)

func (c Contents) addLibraries(path string) error {
	program, err := elf.Open(path)
	if err != nil {
		return nil // a script, or data
	}
	defer program.Close()
	if needed, err := program.ImportedLibraries(); err != nil || len(needed) == 0 {
		return err
	}
	text, err := output(exec.Command("ldd", path))
	if err != nil {
		return err
	}
	for _, m := range libraryPath.FindAllStringSubmatch(text, -1) {
		if err := c.addFile(m[1]); err != nil {
			return err
		}
	}
	return nil
}

// BaseLinks are the names of directories that moved into /usr, as a Debian base image has them.
func BaseLinks() Contents {
	return Contents{"/bin": "@usr/bin", "/sbin": "@usr/sbin", "/lib": "@usr/lib", "/lib64": "@usr/lib64", "/tmp": "", "/proc": "", "/sys": "", "/dev": "", "/run": "", "/etc": "", "/var/tmp": "", "/root": ""}
}

var installed = regexp.MustCompile(`apt-get install((?:\s+|\\\n|[a-z0-9][a-z0-9.+-]*|--?[a-z-]+)+)`)

// DockerfilePackages are the Debian packages that a Dockerfile installs.
func DockerfilePackages(dockerfile string) ([]string, error) {
	text, err := os.ReadFile(dockerfile)
	if err != nil {
		return nil, err
	}
	m := installed.FindSubmatch(text)
	if m == nil {
		return nil, fmt.Errorf("%s installs no packages", dockerfile)
	}
	var packages []string
	for _, word := range strings.Fields(string(m[1])) {
		if word != `\` && !strings.HasPrefix(word, "-") {
			packages = append(packages, word)
		}
	}
	return packages, nil
}
