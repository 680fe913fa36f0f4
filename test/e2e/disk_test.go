package e2e

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// diskImage is a golden disk as users have them: a QCOW2 of a filesystem with a file in it, or of a disk whose first partition has that.
type diskImage struct {
	qcow2  []byte
	size   string // virtual
	sum    string // SHA-256 of /data.bin in it
	digest string // SHA-256 of the raw disk
	fsType string
}

// dataName is the file in every image, and dataBytes its size.
const (
	dataName  = "data.bin"
	dataBytes = 4 << 20
)

// Images that most tests use; mkfs.xfs makes nothing below 300 MiB. machineImage is a virtual machine's disk.
var (
	xfsImage     = sync.OnceValues(func() (*diskImage, error) { return makeImage("xfs", 320, false) })
	ext4Image    = sync.OnceValues(func() (*diskImage, error) { return makeImage("ext4", 64, false) })
	machineImage = sync.OnceValues(func() (*diskImage, error) { return makeImage("ext4", 64, true) })
)

func mustImage(t testing.TB, made func() (*diskImage, error)) *diskImage {
	t.Helper()
	i, err := made()
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func makeImage(fsType string, mib int, partitioned bool) (*diskImage, error) {
	dir, err := os.MkdirTemp("", "e2e-image-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	data := make([]byte, dataBytes)
	rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32s", fmt.Sprint(fsType, mib, "M"))))).Read(data)
	raw, out := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.qcow2")
	if err := makeFilesystem(dir, raw, fsType, fmt.Sprint(mib, "M"), data); err != nil {
		return nil, err
	}
	whole, err := os.ReadFile(raw)
	if err != nil {
		return nil, err
	}
	if partitioned {
		whole = inPartition(whole)
		mib = len(whole) >> 20
		if err := os.WriteFile(raw, whole, 0o600); err != nil {
			return nil, err
		}
	}
	if err := do("qemu-img", "convert", "-O", "qcow2", raw, out); err != nil {
		return nil, err
	}
	qcow2, err := os.ReadFile(out)
	if err != nil {
		return nil, err
	}
	return &diskImage{qcow2: qcow2, size: fmt.Sprint(mib, "Mi"), sum: fmt.Sprintf("%x", sha256.Sum256(data)), digest: fmt.Sprintf("%x", sha256.Sum256(whole)), fsType: fsType}, nil
}

// makeFilesystem makes a filesystem with the data as a file in it.
func makeFilesystem(dir, raw, fsType, size string, data []byte) error {
	content, proto := filepath.Join(dir, "content"), filepath.Join(dir, "proto") // which tells mkfs.xfs what is in it
	if err := os.Mkdir(content, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(content, dataName), data, 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(proto, fmt.Appendf(nil, "/\n0 0\nd--755 0 0\n%s ---644 0 0 %s/%s\n$\n", dataName, content, dataName), 0o644); err != nil {
		return err
	}
	if err := do("truncate", "-s", size, raw); err != nil {
		return err
	}
	if fsType == "xfs" {
		return do("mkfs.xfs", "-q", "-p", proto, raw)
	}
	return do("mkfs.ext4", "-q", "-d", content, raw)
}

// inPartition is a disk with a DOS partition table and the filesystem as its first partition, which begins at 1 MiB.
func inPartition(filesystem []byte) []byte {
	const sector, start = 512, 1 << 20
	disk := make([]byte, start, start+len(filesystem))
	entry := disk[446:462]
	entry[0], entry[4] = 0x80, 0x83 // to boot from, Linux
	binary.LittleEndian.PutUint32(entry[8:], start/sector)
	binary.LittleEndian.PutUint32(entry[12:], uint32(len(filesystem)/sector))
	disk[510], disk[511] = 0x55, 0xaa
	return append(disk, filesystem...)
}

func do(name string, args ...string) error {
	if said, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %v: %w: %s", name, args, err, said)
	}
	return nil
}
