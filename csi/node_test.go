package csi_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/csi/mount"
	"plinth.dev/plinth/csi/mount/mounttest"
)

func TestFilesystemVolumeLivesThroughRepeatedCalls(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs"} {
		t.Run(fsType, func(t *testing.T) {
			b, c := mustBench(t, 400*mib), withFS(capability(multiWriter, false), fsType, "noatime")
			for range 3 {
				must(t, b.stage(t, c))
			}
			for range 3 {
				must(t, b.publish(t, b.target, c, false), b.publish(t, b.second, c, true))
			}
			must(t, os.WriteFile(b.target+"/f", []byte("data"), 0o600))
			if err := os.WriteFile(b.second+"/g", nil, 0o600); !errors.Is(err, unix.EROFS) {
				t.Errorf("write to the read-only target = %v", err)
			}
			if answer, err := b.stats(t, b.second); err != nil || len(answer.GetUsage()) != 2 || answer.GetVolumeCondition().GetMessage() == "" {
				t.Errorf("stats %v, %v", answer, err)
			}
			wantCode(t, b.unstage(t), codes.FailedPrecondition, b.target)
			for range 3 {
				must(t, b.unpublish(t, b.target), b.unpublish(t, b.second))
			}
			for _, path := range []string{b.target, b.second} {
				if _, err := os.Lstat(path); !os.IsNotExist(err) {
					t.Errorf("target %s is still there: %v", path, err)
				}
			}
			for range 3 {
				must(t, b.unstage(t))
			}
			must(t, b.stage(t, c))
			if data, err := os.ReadFile(b.staging + "/f"); err != nil || string(data) != "data" {
				t.Errorf("data after staging again: %q, %v", data, err)
			}
		})
	}
}

func TestBlockVolumeLivesThroughRepeatedCalls(t *testing.T) {
	b, c := mustBench(t, 64*mib), capability(multiWriter, true)
	for range 2 {
		must(t, b.stage(t, c))
	}
	for range 2 {
		must(t, b.publish(t, b.target, c, false))
	}
	mounttest.MustWriteAt(t, b.target, 0, []byte("data"))
	if got := mustTotal(t, b, b.target); got != 64*mib {
		t.Errorf("size %d", got)
	}
	must(t, b.expand(t, b.target, 64*mib))
	wantCode(t, b.publish(t, b.second, c, true), codes.FailedPrecondition, "for all its users")
	wantCode(t, b.stage(t, capability(multiWriter, false)), codes.FailedPrecondition, "published as a block device")
	must(t, b.unpublish(t, b.target), b.unpublish(t, b.target))

	must(t, b.publish(t, b.second, c, true))
	f, err := os.OpenFile(b.second, os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt([]byte("x"), 0)
		f.Close()
	}
	if err == nil {
		t.Error("a device published read-only took a write")
	}
	must(t, b.unpublish(t, b.second), b.unstage(t), b.unstage(t))
	mounttest.MustWriteAt(t, b.device, 0, []byte("x")) // it was left writable
}

func TestOneWorkloadModesRefuseASecondTarget(t *testing.T) {
	for _, mode := range []spec.VolumeCapability_AccessMode_Mode{singleWriter, spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER} {
		for _, block := range []bool{true, false} {
			b, c := mustBench(t, 64*mib), capability(mode, block)
			must(t, b.stage(t, c), b.publish(t, b.target, c, false), b.publish(t, b.target, c, false))
			wantCode(t, b.publish(t, b.second, c, false), codes.FailedPrecondition, b.target, "one workload")
			wantCode(t, b.publish(t, b.target, c, true), codes.AlreadyExists, b.target)
			if _, err := os.Lstat(b.second); !os.IsNotExist(err) {
				t.Errorf("the refused target was made: %v", err)
			}
		}
	}
}

func TestStagedVolumeIsGrown(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs"} {
		t.Run(fsType, func(t *testing.T) {
			b, c := mustBench(t, 320*mib), withFS(capability(singleWriter, false), fsType)
			must(t, b.stage(t, c))
			before := mustTotal(t, b, b.staging)
			must(t, b.unstage(t))
			mounttest.Grow(t, b.device, b.file, 640*mib)
			must(t, b.stage(t, c))
			if after := mustTotal(t, b, b.staging); after < before+250*mib {
				t.Errorf("grew from %d to %d bytes", before, after)
			}
			must(t, b.expand(t, b.staging, 640*mib))
		})
	}
}

func TestGrowthThatAKillPreventedIsMadeUpFor(t *testing.T) {
	b, c := mustBench(t, 320*mib), withFS(capability(singleWriter, false), "xfs")
	must(t, b.stage(t, c)) // mounted, and killed before xfs_growfs:
	before := mustTotal(t, b, b.staging)
	mounttest.Grow(t, b.device, b.file, 640*mib)
	must(t, b.stage(t, c))
	if after := mustTotal(t, b, b.staging); after < before+250*mib {
		t.Errorf("grew from %d to %d bytes", before, after)
	}
}

func TestExpandOnline(t *testing.T) {
	b, c := mustBench(t, 320*mib), withFS(capability(multiWriter, false), "xfs")
	must(t, b.stage(t, c), b.publish(t, b.target, c, true))
	before := mustTotal(t, b, b.target)
	wantCode(t, b.expand(t, b.target, 640*mib), codes.Unavailable, "still being expanded")
	mounttest.Grow(t, b.device, b.file, 640*mib)
	must(t, b.expand(t, b.target, 640*mib), b.expand(t, b.target, 640*mib))
	if after := mustTotal(t, b, b.target); after < before+250*mib {
		t.Errorf("grew from %d to %d bytes", before, after)
	}
	wantCode(t, b.expand(t, "some/path", 640*mib), codes.NotFound)
}

func TestReaderOnlyVolumeIsNeitherFormattedNorWrittenNorGrown(t *testing.T) {
	b := mustBench(t, 320*mib)
	reader := capability(readerOnly, false)
	wantCode(t, b.stage(t, reader), codes.FailedPrecondition, "cannot be formatted")
	mounttest.MustRun(t, "mkfs.xfs", "-q", b.device)
	mounttest.Grow(t, b.device, b.file, 640*mib)
	must(t, b.stage(t, reader), b.stage(t, reader), b.publish(t, b.target, reader, false), b.publish(t, b.target, reader, true))
	if err := os.WriteFile(b.target+"/f", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write = %v, want EROFS", err)
	}
	wantCode(t, b.expand(t, b.target, 640*mib), codes.FailedPrecondition, "mounted read-only")
	wantCode(t, b.stage(t, capability(singleWriter, false)), codes.AlreadyExists, "unstage it first")
}

// TestManyReaders has a device that refuses writes, as that of a volume for many readers does, with a filesystem that was not
// unmounted cleanly.
func TestManyReaders(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs"} {
		t.Run(fsType, func(t *testing.T) {
			b, once, c := mustBench(t, 400*mib), withFS(capability(singleWriter, false), fsType), capability(spec.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY, false)
			must(t, b.stage(t, once), os.WriteFile(b.staging+"/f", []byte("data"), 0o600), b.unstage(t))
			must(t, mount.SetReadOnly(b.device, true))
			b.volume.Spec.ReadOnlyMany, b.volume.Spec.Image = true, &v1alpha1.VolumeImage{Name: "data"}
			wantCode(t, b.stage(t, once), codes.InvalidArgument, "ReadOnlyMany")
			for range 2 {
				must(t, b.stage(t, c), b.publish(t, b.target, c, false), b.publish(t, b.second, c, true))
			}
			for _, path := range []string{b.target, b.second} {
				if data, err := os.ReadFile(path + "/f"); err != nil || string(data) != "data" {
					t.Errorf("data on %s: %q, %v", path, data, err)
				}
				if err := os.WriteFile(path+"/g", nil, 0o600); !errors.Is(err, unix.EROFS) {
					t.Errorf("write to %s = %v", path, err)
				}
			}
			must(t, b.unpublish(t, b.target), b.unpublish(t, b.second), b.unstage(t))
			if d, err := mount.Inspect(b.device); err != nil || !d.ReadOnly {
				t.Errorf("the device can be written (%v)", err)
			}
		})
	}
}

func TestImageIsNeverFormatted(t *testing.T) {
	b := mustBench(t, 64*mib)
	b.volume.Spec.Image = &v1alpha1.VolumeImage{Name: "fedora"}
	wantCode(t, b.stage(t, capability(singleWriter, false)), codes.FailedPrecondition, "image fedora", "no filesystem", "volumeMode Block")
	mounttest.MustPartition(t, b.device, mounttest.Partition{Start: 2048, Sectors: 8192})
	wantCode(t, b.stage(t, capability(singleWriter, false)), codes.FailedPrecondition, "dos partition table", `partition: "N"`, "1 (no filesystem, 4 MiB)")
	if b.attached {
		t.Error("the volume stays attached when it was refused")
	}
	must(t, b.stage(t, capability(singleWriter, true)))
	must(t, b.unstage(t))
	mounttest.MustRun(t, "wipefs", "--all", "--quiet", b.device)
	mounttest.MustRun(t, "mkfs.ext4", "-q", "-F", b.device)
	wantCode(t, b.stage(t, withFS(capability(singleWriter, false), "xfs")), codes.FailedPrecondition, "ext4", "xfs")
	must(t, b.stage(t, capability(singleWriter, false)))
	wantCode(t, b.stage(t, withFS(capability(singleWriter, false), "xfs")), codes.AlreadyExists, "unstage it first")
	if !b.attached {
		t.Error("a call that is refused detaches a volume that is staged")
	}
}

func TestClassParametersReachMkfs(t *testing.T) {
	b := mustBench(t, 400*mib)
	b.volume.Spec.Parameters = map[string]string{"fsType": "xfs"}
	b.volume.Spec.MkfsParams = "-p /etc/passwd"
	wantCode(t, b.stage(t, capability(singleWriter, false)), codes.InvalidArgument, "mkfsParams", "-p")
	b.volume.Spec.MkfsParams = "-L much-too-long-a-label"
	wantCode(t, b.stage(t, capability(singleWriter, false)), codes.Internal, "mkfs.xfs")
	b.volume.Spec.MkfsParams = "-L 'a class'"
	must(t, b.stage(t, capability(singleWriter, false)))
	if got := mounttest.MustRun(t, "blkid", "-p", "-o", "value", "-s", "LABEL", b.device); got != "a class" {
		t.Errorf("label %q", got)
	}
}

func TestWaitingEndsBeforeTheCallerDoesAndSaysWhy(t *testing.T) {
	b := mustBench(t, 64*mib)
	b.notReady = true
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := b.NodeStageVolume(ctx, &spec.NodeStageVolumeRequest{VolumeId: "v", StagingTargetPath: b.staging, VolumeCapability: capability(singleWriter, false)})
	wantCode(t, err, codes.Unavailable, "43 % of 2.1 GiB")
}

func TestPathsThatShowSomethingElseAreRefused(t *testing.T) {
	b, c := mustBench(t, 64*mib), capability(singleWriter, false)
	must(t, unix.Mount("tmpfs", b.staging, "tmpfs", 0, ""))
	wantCode(t, b.stage(t, c), codes.FailedPrecondition, b.staging, "tmpfs")
	b.attached = true
	wantCode(t, b.publish(t, b.target, c, false), codes.FailedPrecondition, "not staged")
	must(t, unix.Unmount(b.staging, 0), b.stage(t, c))
	must(t, os.Mkdir(b.target, 0o755), unix.Mount("tmpfs", b.target, "tmpfs", 0, ""))
	wantCode(t, b.publish(t, b.target, c, false), codes.FailedPrecondition, b.target, "tmpfs")
	wantCode(t, b.unpublish(t, b.target), codes.FailedPrecondition, "something else")
	_, err := b.stats(t, b.target)
	wantCode(t, err, codes.NotFound)
}

func TestFilesBelowATargetAreNotRemoved(t *testing.T) {
	b := mustBench(t, 64*mib)
	must(t, os.Mkdir(b.target, 0o755), os.WriteFile(b.target+"/f", nil, 0o600))
	wantCode(t, b.unpublish(t, b.target), codes.FailedPrecondition, "not the volume's")
}

func TestNodeRefuses(t *testing.T) {
	b, c := mustBench(t, 64*mib), capability(singleWriter, false)
	stage := func(id, path string, c *spec.VolumeCapability) error {
		_, err := b.NodeStageVolume(t.Context(), &spec.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: path, VolumeCapability: c})
		return err
	}
	publish := func(id, staging, target string, c *spec.VolumeCapability) error {
		_, err := b.NodePublishVolume(t.Context(), &spec.NodePublishVolumeRequest{VolumeId: id, StagingTargetPath: staging, TargetPath: target, VolumeCapability: c})
		return err
	}
	publishAttached := func() error {
		b.attached = true
		return publish("v", b.staging, b.target, c)
	}
	for name, c := range map[string]struct {
		err  error
		want codes.Code
		says string
	}{
		"staging without an ID":                      {stage("", b.staging, c), codes.InvalidArgument, "volume_id"},
		"staging without a path":                     {stage("v", "", c), codes.InvalidArgument, "staging_target_path"},
		"staging on a relative path":                 {stage("v", "a/b", c), codes.InvalidArgument, "absolute"},
		"staging on the root":                        {stage("v", "/", c), codes.InvalidArgument, "absolute"},
		"staging without a capability":               {stage("v", b.staging, nil), codes.InvalidArgument, "volume_capability"},
		"staging for many nodes":                     {stage("v", b.staging, capability(manyNodes, false)), codes.InvalidArgument, "one node's disk"},
		"staging a volume that is not there":         {stage("w", b.staging, c), codes.NotFound, "w"},
		"staging where there is no directory":        {stage("v", b.target, c), codes.InvalidArgument, "no directory"},
		"publishing without an ID":                   {publish("", b.staging, b.target, c), codes.InvalidArgument, "volume_id"},
		"publishing without a target":                {publish("v", b.staging, "", c), codes.InvalidArgument, "target_path"},
		"publishing without a staging path":          {publish("v", "", b.target, c), codes.FailedPrecondition, "staging_target_path"},
		"publishing a volume that is not there":      {publish("w", b.staging, b.target, c), codes.NotFound, "w"},
		"publishing what is attached but not staged": {publishAttached(), codes.FailedPrecondition, "stage"},
	} {
		t.Run(name, func(t *testing.T) { wantCode(t, c.err, c.want, c.says) })
	}
}

func TestNodeSaysWhereItIs(t *testing.T) {
	b := mustBench(t, mib)
	info, err := b.NodeGetInfo(t.Context(), &spec.NodeGetInfoRequest{})
	must(t, err)
	if info.GetNodeId() != "node-1" || info.GetAccessibleTopology().GetSegments()["topology.plinth.dev/node"] != "node-1" || info.GetMaxVolumesPerNode() != 0 {
		t.Errorf("%v", info)
	}
}

func TestIllVolumeIsAnsweredWithItsCondition(t *testing.T) {
	b, c := mustBench(t, 64*mib), capability(singleWriter, false)
	must(t, b.stage(t, c))
	b.abnormal = true
	answer, err := b.stats(t, b.staging)
	if err != nil || !answer.GetVolumeCondition().GetAbnormal() {
		t.Errorf("%v, %v", answer, err)
	}
}
