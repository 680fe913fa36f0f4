package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/spf13/cobra"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/cmd/internal/program"
)

func newVolumeUnmountCommand(c *cli) *cobra.Command {
	var staging stagingRoot
	cmd := &cobra.Command{
		Use:     "unmount NAME|PATH",
		Aliases: []string{"umount"},
		Short:   "Unmount a volume here",
		Long: "Unmount with a path undoes that mount; with a volume's name, every mount of it on this machine.\n" +
			"After its last mount the volume's block device is removed too. A volume that is not mounted is left as it is.",
		Args:              program.Exactly("NAME or PATH"),
		ValidArgsFunction: volumes.complete(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.unmountVolume(cmd.Context(), args[0], staging)
		},
	}
	staging.addFlag(cmd)
	return cmd
}

func (c *cli) unmountVolume(ctx context.Context, nameOrPath string, staging stagingRoot) error {
	id, path, err := c.mounted(ctx, nameOrPath, staging)
	if err != nil {
		return err
	}
	driver, err := c.dialCSI(ctx)
	if err != nil {
		return err
	}
	defer driver.close()
	s, err := staging.open(id)
	if err != nil {
		return err
	}
	defer s.close()
	if len(s.record.Mounts) == 0 {
		fmt.Fprintf(c.err, "volume %s is not mounted here\n", id)
	}
	for _, t := range slices.Clone(s.record.Mounts) {
		if path != "" && t.Path != path {
			continue
		}
		if err := driver.unpublish(ctx, id, t, s); err != nil {
			return err
		}
		fmt.Fprintf(c.out, "volume %s unmounted from %s\n", id, t.Path)
	}
	if len(s.record.Mounts) > 0 {
		return nil
	}
	if _, err := driver.node.NodeUnstageVolume(ctx, &csispec.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: s.path()}); err != nil {
		return csiError(ctx, err)
	}
	return s.remove()
}

// mounted finds the volume, and the path when it is one, that an argument means. Whatever is mounted at a path of that
// name comes first.
func (c *cli) mounted(ctx context.Context, nameOrPath string, staging stagingRoot) (id, path string, err error) {
	path, err = filepath.Abs(nameOrPath)
	if err != nil {
		return "", "", fmt.Errorf("find %s: %w", nameOrPath, err)
	}
	if id, err = staging.volumeAt(path); err != nil || id != "" {
		return id, path, err
	}
	if filepath.Base(nameOrPath) != nameOrPath {
		return "", "", backingimage.Errorf(backingimage.NotFound, "no volume is mounted at %s with plinth volume mount (looked in --staging-dir %s)", path, staging)
	}
	client, err := c.client()
	if err != nil {
		return "", "", err
	}
	v, err := findVolume(ctx, client, nameOrPath)
	if err != nil {
		return "", "", err
	}
	return v.Name, "", nil
}

// unpublish undoes one mount, and puts back the directory that was there before it.
func (c *csiClient) unpublish(ctx context.Context, id string, t stagedTarget, s *staged) error {
	if _, err := c.node.NodeUnpublishVolume(ctx, &csispec.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: t.Path}); err != nil {
		return csiError(ctx, err)
	}
	if t.Existed {
		if err := os.Mkdir(t.Path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("put back %s: %w", t.Path, err)
		}
	}
	return s.drop(t.Path)
}
