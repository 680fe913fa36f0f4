package e2e

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// diskImage is a golden disk as users have them: a QCOW2 of a filesystem with a file in it.
type diskImage struct {
	qcow2  []byte
	size   string // virtual
	sum    string // SHA-256 of /data.bin in it
	digest string // SHA-256 of the raw disk
	fsType string
}

// dataName is the file in every image.
const dataName = "data.bin"

// Images that most tests use; mkfs.xfs makes nothing below 300 MiB.
var (
	xfsImage  = sync.OnceValues(func() (*diskImage, error) { return makeImage("xfs", "320M", 4<<20) })
	ext4Image = sync.OnceValues(func() (*diskImage, error) { return makeImage("ext4", "64M", 4<<20) })
)

func mustImage(t testing.TB, made func() (*diskImage, error)) *diskImage {
	t.Helper()
	i, err := made()
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func makeImage(fsType, size string, dataBytes int) (*diskImage, error) {
	dir, err := os.MkdirTemp("", "e2e-image-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	raw, out, content := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "content")
	data := make([]byte, dataBytes)
	rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32s", fsType+size)))).Read(data)
	if err := os.Mkdir(content, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(content, dataName), data, 0o644); err != nil {
		return nil, err
	}
	proto := filepath.Join(dir, "proto") // what mkfs.xfs puts into a filesystem
	if err := os.WriteFile(proto, fmt.Appendf(nil, "/\n0 0\nd--755 0 0\n%s ---644 0 0 %s/%s\n$\n", dataName, content, dataName), 0o644); err != nil {
		return nil, err
	}
	steps := [][]string{{"truncate", "-s", size, raw}}
	if fsType == "xfs" {
		steps = append(steps, []string{"mkfs.xfs", "-q", "-p", proto, raw})
	} else {
		steps = append(steps, []string{"mkfs.ext4", "-q", "-d", content, raw})
	}
	steps = append(steps, []string{"qemu-img", "convert", "-O", "qcow2", raw, out})
	for _, s := range steps {
		if said, err := exec.Command(s[0], s[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%v: %w: %s", s, err, said)
		}
	}
	qcow2, err := os.ReadFile(out)
	if err != nil {
		return nil, err
	}
	whole, err := os.ReadFile(raw)
	if err != nil {
		return nil, err
	}
	return &diskImage{qcow2: qcow2, size: size + "i", sum: fmt.Sprintf("%x", sha256.Sum256(data)), digest: fmt.Sprintf("%x", sha256.Sum256(whole)), fsType: fsType}, nil
}
