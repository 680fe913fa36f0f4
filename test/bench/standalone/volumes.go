package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

const imageBytes = 10 * gib

// measureVolumes compares mounting a volume of a ready image through CSI with the bare commands, in turn.
func measureVolumes(ctx context.Context, p *process, runs int) error {
	if err := p.image(); err != nil {
		return err
	}
	var ours, bare []time.Duration
	for i := range runs {
		took, err := p.csiMount(ctx, fmt.Sprintf("bench-%d", i))
		if err != nil {
			return err
		}
		ours = append(ours, took)
		if took, err = p.bareMount(fmt.Sprintf("bare-%d", i)); err != nil {
			return err
		}
		bare = append(bare, took)
	}
	mine, theirs := median(ours), median(bare)
	allowed := 2*theirs + 50*time.Millisecond
	row("CreateVolume to NodePublish : cp --reflink, losetup, mount", round(mine), round(theirs), float64(mine)/float64(theirs), float64(allowed)/float64(theirs))
	return nil
}

// image makes a 10 GiB ext4 image with 1 GiB of data and imports it.
func (p *process) image() error {
	raw := p.path("golden.raw")
	for _, c := range [][]string{
		{"truncate", "-s", fmt.Sprint(int64(imageBytes)), raw},
		{"mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,nodiscard", raw},
	} {
		if err := command(c...); err != nil {
			return err
		}
	}
	if err := p.fill(raw, gib); err != nil {
		return err
	}
	files, err := serveFile(raw)
	if err != nil {
		return err
	}
	defer files.Close()
	return p.cli("image", "create", "golden", "--url", files.url, "--wait")
}

// fill mounts an ext4 image and writes a file of that many bytes into it.
func (p *process) fill(raw string, bytes int64) error {
	mount := p.path("fill")
	if err := os.Mkdir(mount, 0o700); err != nil {
		return err
	}
	if err := command("mount", "-o", "loop", raw, mount); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(mount, "data"))
	if err == nil {
		_, err = io.Copy(f, &arithmetic{size: bytes, data: bytes, pattern: pattern()})
		err = errors.Join(err, f.Close())
	}
	return errors.Join(err, command("umount", mount))
}

// csiMount mounts a new volume as an orchestrator would, takes the time, and removes it.
func (p *process) csiMount(ctx context.Context, name string) (time.Duration, error) {
	controller, node := csi.NewControllerClient(p.conn), csi.NewNodeClient(p.conn)
	capability := &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: "ext4"}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
	staging, target := p.path(name+"-staging"), p.path(name)
	if err := os.Mkdir(staging, 0o700); err != nil {
		return 0, err
	}
	began := time.Now()
	created, err := controller.CreateVolume(ctx, &csi.CreateVolumeRequest{Name: name, VolumeCapabilities: []*csi.VolumeCapability{capability},
		Parameters: map[string]string{"backingImage": "golden"}, CapacityRange: &csi.CapacityRange{RequiredBytes: imageBytes}})
	if err != nil {
		return 0, err
	}
	id, vc := created.Volume.VolumeId, created.Volume.VolumeContext
	if _, err := node.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: staging, VolumeCapability: capability, VolumeContext: vc}); err != nil {
		return 0, err
	}
	if _, err := node.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{VolumeId: id, StagingTargetPath: staging, TargetPath: target, VolumeCapability: capability, VolumeContext: vc}); err != nil {
		return 0, err
	}
	took := time.Since(began)
	if _, err := node.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: target}); err != nil {
		return 0, err
	}
	if _, err := node.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: staging}); err != nil {
		return 0, err
	}
	_, err = controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id})
	return took, err
}

// bareMount does what a person would type, beside the copy in the same pool, takes the time, and removes it.
func (p *process) bareMount(name string) (time.Duration, error) {
	found, err := filepath.Glob(p.path("data/disk/pool/images/*/image.raw"))
	if err != nil || len(found) != 1 {
		return 0, fmt.Errorf("find the image's copy: %v (%w)", found, err)
	}
	file, target := p.path("data/disk/pool/"+name), p.path(name)
	if err := os.Mkdir(target, 0o700); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := command("cp", "--reflink=always", found[0], file); err != nil {
		return 0, err
	}
	if err := os.Chmod(file, 0o600); err != nil {
		return 0, err
	}
	out, err := exec.Command("losetup", "--find", "--show", file).Output()
	if err != nil {
		return 0, fmt.Errorf("losetup: %w", err)
	}
	device := strings.TrimSpace(string(out))
	if err := command("mount", "-t", "ext4", device, target); err != nil {
		return 0, err
	}
	took := time.Since(began)
	for _, c := range [][]string{{"umount", target}, {"losetup", "--detach", device}, {"rm", file}} {
		if err := command(c...); err != nil {
			return 0, err
		}
	}
	return took, nil
}

func command(c ...string) error {
	if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(c, " "), err, out)
	}
	return nil
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func round(d time.Duration) string { return d.Round(10 * time.Microsecond).String() }
