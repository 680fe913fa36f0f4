package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
)

const (
	exportedBytes = 512 << 20 // of data, in exportedPieces that lie apart
	exportPieces  = 64
	exportLimit   = 2 * time.Second
	exportRuns    = 3
)

// measureExport makes images of a volume of 10 GiB with 512 MiB of data, from the command to ready, beside reading the data
// once from the disk. The bound is a time: two seconds.
func measureExport(ctx context.Context, p *process) error {
	remove, err := p.written(ctx, "exported")
	if err != nil {
		return err
	}
	var ours, reads []time.Duration
	for i := range exportRuns {
		name := fmt.Sprintf("export-%d", i)
		began := time.Now()
		if err := p.cli("image", "create", name, "--from-volume", "exported", "--wait"); err != nil {
			return err
		}
		ours = append(ours, time.Since(began))
		took, err := readData(p.path("data/disk/pool/volumes/exported/volume.raw"))
		if err != nil {
			return err
		}
		reads = append(reads, took)
		if err := p.cli("image", "rm", name); err != nil {
			return err
		}
	}
	mine, read := median(ours), median(reads)
	fmt.Printf("export of 10 GiB, 512 MiB data : reading the data\t%s\t%s\t%.2f\t-\n", round(mine), round(read), float64(mine)/float64(read))
	row("export of 10 GiB, 512 MiB data : 2 s", round(mine), exportLimit.String(), mine.Seconds()/exportLimit.Seconds(), 1)
	return remove()
}

// written makes a volume of 10 GiB and writes to its device.
func (p *process) written(ctx context.Context, name string) (remove func() error, err error) {
	controller, node := csi.NewControllerClient(p.conn), csi.NewNodeClient(p.conn)
	capability := &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
	staging, target := p.path(name+"-staging"), p.path(name)
	if err := os.Mkdir(staging, 0o700); err != nil {
		return nil, err
	}
	_, err = controller.CreateVolume(ctx, &csi.CreateVolumeRequest{Name: name, VolumeCapabilities: []*csi.VolumeCapability{capability}, CapacityRange: &csi.CapacityRange{RequiredBytes: imageBytes}})
	if err != nil {
		return nil, err
	}
	if _, err := node.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: name, StagingTargetPath: staging, VolumeCapability: capability}); err != nil {
		return nil, err
	}
	if _, err := node.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{VolumeId: name, StagingTargetPath: staging, TargetPath: target, VolumeCapability: capability}); err != nil {
		return nil, err
	}
	if err := writePieces(target); err != nil {
		return nil, err
	}
	return func() error {
		_, uerr := node.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: name, TargetPath: target})
		_, serr := node.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: name, StagingTargetPath: staging})
		_, derr := controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: name})
		return errors.Join(uerr, serr, derr)
	}, nil
}

func writePieces(device string) error {
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	piece := bytes.Repeat(pattern(), exportedBytes/exportPieces>>20)
	for i := range int64(exportPieces) {
		piece[0] = byte(i)
		if _, err := f.WriteAt(piece, i*imageBytes/exportPieces); err != nil {
			return err
		}
	}
	return f.Sync()
}

// readData reads what is allocated of a file, from the disk, and tells how long that took.
func readData(path string) (time.Duration, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return 0, err
	}
	began := time.Now()
	for at := int64(0); ; {
		if at, err = unix.Seek(int(f.Fd()), at, unix.SEEK_DATA); errors.Is(err, unix.ENXIO) {
			return time.Since(began), nil
		} else if err != nil {
			return 0, err
		}
		end, err := unix.Seek(int(f.Fd()), at, unix.SEEK_HOLE)
		if err != nil {
			return 0, err
		}
		if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{io.NewSectionReader(f, at, end-at)}, make([]byte, 2<<20)); err != nil {
			return 0, err
		}
		at = end
	}
}
