package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/spf13/cobra"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/cmd/internal/program"
)

// stageDeadline bounds one NodeStageVolume call, as an orchestrator's deadline does; the call is repeated until the
// command's own time is over.
const stageDeadline = time.Minute

// mountRequest is what `volume mount` asks for.
type mountRequest struct {
	name, path, fsType string
	readOnly, block    bool
	timeout            time.Duration
	staging            stagingRoot
}

func newVolumeMountCommand(c *cli) *cobra.Command {
	var r mountRequest
	cmd := &cobra.Command{
		Use:   "mount NAME PATH",
		Short: "Mount a volume here, waiting for its image if need be",
		Long: "Mount stages and publishes the volume on this machine through the CSI socket, as an orchestrator does for a container,\n" +
			"and shows the progress while the volume's image is still being fetched. PATH is made when it does not exist.\n" +
			"With --block PATH becomes the block device. The same command again changes nothing.",
		Args:              program.Exactly("NAME", "PATH"),
		ValidArgsFunction: volumes.complete(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.name, r.path = args[0], args[1]
			return c.mountVolume(cmd.Context(), r)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&r.readOnly, "read-only", false, "mount it read-only")
	f.StringVar(&r.fsType, "fs-type", "", "filesystem `type` to expect: ext4 or xfs (default: what the volume was created with)")
	f.BoolVar(&r.block, "block", false, "make the block device appear at PATH instead of mounting a filesystem")
	f.DurationVar(&r.timeout, "timeout", defaultImageTimeout, "how long to wait for the volume's image")
	r.staging.addFlag(cmd)
	return cmd
}

func (c *cli) mountVolume(ctx context.Context, r mountRequest) error {
	var err error
	if r.path, err = filepath.Abs(r.path); err != nil {
		return fmt.Errorf("find %s: %w", r.path, err)
	}
	client, v, driver, err := c.reachVolume(ctx, r.name)
	if err != nil {
		return err
	}
	defer driver.close()
	s, err := r.staging.open(v.Name)
	if err != nil {
		return err
	}
	defer s.close()
	target, err := r.target(s)
	if err != nil {
		return err
	}
	mode, err := driver.writerMode(ctx)
	if err != nil {
		return err
	}
	use := capability(r.block, cmp.Or(r.fsType, v.Spec.Parameters[parameterFSType]), mode)
	stop := c.showImage(ctx, client, v)
	err = driver.stage(ctx, v.Name, s.path(), use, r.timeout)
	stop()
	if err != nil {
		return err
	}
	if err := s.add(target); err != nil {
		return err
	}
	if err := driver.publish(ctx, v.Name, s.path(), r, use); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.out, "volume %s is mounted at %s\n", r.name, r.path)
	return err
}

// target checks that the volume can be published at the path.
func (r mountRequest) target(s *staged) (stagedTarget, error) {
	none := stagedTarget{}
	if s.has(r.path) {
		return stagedTarget{Path: r.path}, nil
	}
	other, err := r.staging.volumeAt(r.path)
	if err != nil {
		return none, err
	}
	if other != "" {
		return none, backingimage.Errorf(backingimage.Conflict, "volume %s is mounted at %s; unmount it first (plinth volume unmount %s), or use another path", other, r.path, r.path)
	}
	info, err := os.Stat(r.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return stagedTarget{Path: r.path}, os.MkdirAll(filepath.Dir(r.path), 0o755)
	case err != nil:
		return none, fmt.Errorf("look at %s: %w", r.path, err)
	case r.block:
		return none, backingimage.Errorf(backingimage.Precondition, "%s exists; with --block, name a path that does not", r.path)
	case !info.IsDir():
		return none, backingimage.Errorf(backingimage.Precondition, "%s is not a directory; name one, or a path that does not exist", r.path)
	}
	entries, err := os.ReadDir(r.path)
	if err != nil {
		return none, fmt.Errorf("look at %s: %w", r.path, err)
	}
	if len(entries) > 0 {
		return none, backingimage.Errorf(backingimage.Precondition, "directory %s is not empty; the volume would hide what is in it, so name an empty one", r.path)
	}
	return stagedTarget{Path: r.path, Existed: true}, nil
}

// stage stages the volume, again and again while the driver says that it must wait.
func (c *csiClient) stage(ctx context.Context, id, path string, use *csispec.VolumeCapability, timeout time.Duration) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("make staging path: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	last := errors.New("the driver has not answered")
	err := poll(ctx, func(ctx context.Context) (bool, error) {
		call, cancel := context.WithTimeout(ctx, stageDeadline)
		defer cancel()
		_, err := c.node.NodeStageVolume(call, &csispec.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: path, VolumeCapability: use})
		if err = csiError(ctx, err); waits(err) {
			last = err
		}
		return err == nil, err
	})
	return timedOut(err, timeout, "volume %s cannot be mounted yet: %s", id, last)
}

// showImage shows the progress of what a volume is made of until stop is called.
func (c *cli) showImage(ctx context.Context, client *store.Client, v *v1alpha1.Volume) (stop func()) {
	if v.Status.State == v1alpha1.VolumeReady || !v.Waits() && v.Spec.SourceDisk == "" {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		meter := c.newMeter()
		defer meter.end()
		_ = poll(ctx, func(ctx context.Context) (bool, error) { // what goes wrong here is the staging's to report
			if !v.Waits() { // it comes from another disk
				now, err := volumes.get(ctx, client, v.Name)
				if err == nil && now.Status.Message != "" {
					meter.say("volume " + v.Name + ": " + now.Status.Message)
				}
				return err == nil && now.Status.State == v1alpha1.VolumeReady, err
			}
			p, err := imageProgress(ctx, client, v.Spec.Image.Name)
			if err == nil {
				meter.show(p)
			}
			return p.ready, err
		})
	}()
	return func() { cancel(); <-done }
}

func (c *csiClient) publish(ctx context.Context, id, staging string, r mountRequest, use *csispec.VolumeCapability) error {
	_, err := c.node.NodePublishVolume(ctx, &csispec.NodePublishVolumeRequest{
		VolumeId: id, StagingTargetPath: staging, TargetPath: r.path, VolumeCapability: use, Readonly: r.readOnly,
	})
	return csiError(ctx, err)
}
