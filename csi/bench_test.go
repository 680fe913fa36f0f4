package csi_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/csi"
	"plinth.dev/plinth/csi/mount/mounttest"
	"plinth.dev/plinth/provisioner"
)

const mib = 1 << 20

// machine is a provisioner.Node with one volume, "v", on a loop device that the test made. It keeps only whether the
// volume is attached, so that what is tested is this package's own work on real devices.
type machine struct {
	volume   *v1alpha1.Volume
	device   string
	file     string
	attached bool
	abnormal bool
	notReady bool
}

func (m *machine) Attach(ctx context.Context, id string) (provisioner.Attached, error) {
	if id != m.volume.Name {
		return provisioner.Attached{}, backingimage.Errorf(backingimage.NotFound, "there is no volume %s", id)
	}
	if m.notReady {
		<-ctx.Done()
		return provisioner.Attached{}, backingimage.Errorf(backingimage.NotReady, "backing image fedora: 43 %% of 2.1 GiB")
	}
	m.attached = true
	return m.Attached(ctx, id)
}

func (m *machine) Attached(_ context.Context, id string) (provisioner.Attached, error) {
	switch {
	case id != m.volume.Name:
		return provisioner.Attached{}, backingimage.Errorf(backingimage.NotFound, "there is no volume %s", id)
	case !m.attached:
		return provisioner.Attached{}, backingimage.Errorf(backingimage.Precondition, "volume %s is not attached", id)
	}
	return provisioner.Attached{Volume: m.volume, Device: m.device, FilesystemDevice: m.device, ReadOnly: m.volume.Spec.ReadOnlyMany}, nil
}

func (m *machine) Detach(context.Context, string) error {
	m.attached = false
	return nil
}

func (m *machine) Condition(context.Context, string) (bool, string) { return m.abnormal, "" }

func (m *machine) Name() string { return "node-1" }

// bench is a node that serves, with the paths that an orchestrator would give it.
type bench struct {
	spec.NodeClient
	*machine
	staging, target, second string
}

func mustBench(t *testing.T, bytes int64) *bench {
	t.Helper()
	device, file := mounttest.Loop(t, bytes)
	m := &machine{volume: &v1alpha1.Volume{}, device: device, file: file}
	m.volume.Name = "v"
	dir := t.TempDir()
	b := &bench{machine: m, staging: filepath.Join(dir, "staging"), target: filepath.Join(dir, "target"), second: filepath.Join(dir, "second")}
	if err := os.Mkdir(b.staging, 0o755); err != nil {
		t.Fatal(err)
	}
	b.NodeClient = spec.NewNodeClient(mustServe(t, csi.Options{Node: m}))
	t.Cleanup(func() {
		for _, path := range []string{b.second, b.target, b.staging} {
			mounttest.UnmountAll(path)
		}
	})
	return b
}

func (b *bench) stage(t *testing.T, c *spec.VolumeCapability) error {
	_, err := b.NodeStageVolume(t.Context(), &spec.NodeStageVolumeRequest{VolumeId: "v", StagingTargetPath: b.staging, VolumeCapability: c})
	return err
}

func (b *bench) publish(t *testing.T, target string, c *spec.VolumeCapability, readonly bool) error {
	_, err := b.NodePublishVolume(t.Context(), &spec.NodePublishVolumeRequest{VolumeId: "v", StagingTargetPath: b.staging, TargetPath: target, VolumeCapability: c, Readonly: readonly})
	return err
}

func (b *bench) unpublish(t *testing.T, target string) error {
	_, err := b.NodeUnpublishVolume(t.Context(), &spec.NodeUnpublishVolumeRequest{VolumeId: "v", TargetPath: target})
	return err
}

func (b *bench) unstage(t *testing.T) error {
	_, err := b.NodeUnstageVolume(t.Context(), &spec.NodeUnstageVolumeRequest{VolumeId: "v", StagingTargetPath: b.staging})
	return err
}

func (b *bench) stats(t *testing.T, path string) (*spec.NodeGetVolumeStatsResponse, error) {
	return b.NodeGetVolumeStats(t.Context(), &spec.NodeGetVolumeStatsRequest{VolumeId: "v", VolumePath: path})
}

func (b *bench) expand(t *testing.T, path string, bytes int64) error {
	_, err := b.NodeExpandVolume(t.Context(), &spec.NodeExpandVolumeRequest{VolumeId: "v", VolumePath: path, CapacityRange: &spec.CapacityRange{RequiredBytes: bytes}})
	return err
}

func withFS(c *spec.VolumeCapability, fsType string, flags ...string) *spec.VolumeCapability {
	c.GetMount().FsType, c.GetMount().MountFlags = fsType, flags
	return c
}

func must(tb testing.TB, errs ...error) {
	tb.Helper()
	for _, err := range errs {
		if err != nil {
			tb.Fatal(err)
		}
	}
}

func mustTotal(t *testing.T, b *bench, path string) int64 {
	t.Helper()
	answer, err := b.stats(t, path)
	must(t, err)
	return answer.GetUsage()[0].GetTotal()
}
