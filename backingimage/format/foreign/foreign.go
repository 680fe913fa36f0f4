// Package foreign turns other hypervisors' disks (VMDK, VDI, VHD, VHDX) into raw content.
//
// QEMU's readers of these formats are old, large, written in C, and made for files that one trusts. They run as qemu-img in
// a sandbox that holds the image, the file to be written, and nothing else worth having: what an image could
// make them do then ends there. The format is forced, so that the image cannot choose a reader. An image that names
// another file, which qemu-img would open beside it, is refused by what qemu-img says of it, before anything is
// converted; in the sandbox there would be no such file anyway.
package foreign

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/command"
	"plinth.dev/plinth/backingimage/format"
)

const program = "qemu-img"

// Paths in the sandbox.
const (
	sourcePath  = "/source"
	contentPath = "/content"
)

// drivers are what qemu-img calls the formats.
var drivers = map[string]string{format.VMDK: "vmdk", format.VDI: "vdi", format.VHD: "vpc", format.VHDX: "vhdx"}

// Image is another hypervisor's disk, in a file of its own.
type Image struct {
	Format string // one of package format's
	Path   string
}

// Ready returns why images of the format cannot be converted on this machine: Unsupported, with what to install.
func Ready(name string) error {
	if err := command.Ready(program); err != nil {
		return backingimage.Errorf(backingimage.Unsupported, "a %s image is converted by qemu-img in a sandbox: %w; install the packages qemu-utils, %s (Debian's names), or publish the image as qcow2", name, err, command.SandboxPackages)
	}
	return nil
}

// Bounds of the sandbox. qemu-img keeps tables and a few buffers in memory; its threads' stacks take address space only.
// The rates are far below those of any machine: who is slower has found something absurd to do.
const (
	memoryBytes    = 2 << 30
	leastTime      = time.Minute
	sourceBytesPer = 4 << 20   // bytes of the file in a second of a processor
	zeroBytesPer   = 128 << 20 // bytes of content
)

func (i Image) sandbox(fileBytes, virtualBytes int64) *command.Sandbox {
	seconds := fileBytes/sourceBytesPer + virtualBytes/zeroBytesPer
	return &command.Sandbox{
		Reads: map[string]string{sourcePath: i.Path}, CPU: leastTime + time.Duration(seconds)*time.Second,
		MemoryBytes: memoryBytes, LargestBytes: virtualBytes,
	}
}

// Inspect returns the size of the content in bytes, a multiple of format.SectorBytes and within the limits, of an image
// that can be converted. One that depends on another file is Unsupported, one that qemu-img cannot read, or that
// is cut, Corrupt, one without content Invalid.
func (i Image) Inspect(ctx context.Context, limits format.Limits) (int64, error) {
	fileBytes, err := i.fileBytes()
	if err != nil {
		return 0, err
	}
	text, err := i.sandbox(fileBytes, 0).Run(ctx, program, "info", "--output=json", "-f", drivers[i.Format], sourcePath)
	if err != nil {
		return 0, i.explain("read", err)
	}
	d, err := parse(text)
	if err != nil {
		return 0, fmt.Errorf("read what qemu-img says of the %s image: %w", i.Format, err)
	}
	switch {
	case d.namesAnotherFile():
		return 0, format.AnotherFile(i.Format)
	case d.VirtualSize == 0:
		return 0, backingimage.Errorf(backingimage.Invalid, "the %s image's virtual size is 0; publish one that holds a disk", i.Format)
	}
	if err := limits.CheckVirtual(d.VirtualSize); err != nil {
		return 0, err
	}
	bytes := format.Padded(int64(d.VirtualSize))
	return bytes, i.checkWhole(ctx, fileBytes, bytes)
}

// Convert writes the content to a file that exists, has the content's size in bytes, and has no data.
func (i Image) Convert(ctx context.Context, to string, bytes int64) error {
	fileBytes, err := i.fileBytes()
	if err != nil {
		return err
	}
	s := i.sandbox(fileBytes, bytes)
	s.Writes = map[string]string{contentPath: to}
	_, err = s.Run(ctx, program, "convert", "-n", "--target-is-zero", "-S", "64k", "-f", drivers[i.Format], "-O", "raw", sourcePath, contentPath)
	if err != nil {
		return i.explain("convert", err)
	}
	return nil
}

// explain gives qemu-img's failure its Kind.
func (i Image) explain(action string, err error) error {
	stderr := command.Stderr(err)
	switch {
	case command.ExceededCPU(err):
		return backingimage.Errorf(backingimage.Corrupt, "%s the %s image: qemu-img was ended because it took too long, or too much memory; convert it with \"qemu-img convert -O qcow2\" and publish the result", action, i.Format)
	case strings.Contains(stderr, "No space left on device"):
		return fmt.Errorf("%s the %s image: %w", action, i.Format, syscall.ENOSPC)
	case stderr != "":
		return backingimage.Errorf(backingimage.Corrupt, "%s the %s image: qemu-img says: %s; check the file with \"qemu-img check\" and publish it anew", action, i.Format, stderr)
	}
	return fmt.Errorf("%s the %s image: %w", action, i.Format, err)
}
