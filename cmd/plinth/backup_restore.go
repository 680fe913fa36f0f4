package main

import (
	"context"
	"fmt"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/cmd/internal/program"
)

// restoreRequest is what the flags of `backup restore` ask for.
type restoreRequest struct {
	backup                backupFlags
	name, to, image, size string
	node, imageFrom       string
	block, wait           bool
	timeout               time.Duration
}

func newBackupRestoreCommand(c *cli) *cobra.Command {
	var r restoreRequest
	cmd := &cobra.Command{
		Use:   "restore NAME --as NEW-NAME",
		Short: "Make a volume, or an image, of a backup",
		Long: `Restore makes a volume of a volume's backup, or an image of an image's. With --target the backup may be of any cluster: its ID or name
is looked up there, and nothing else needs to be known.

The image that the volume began as is used where one of the same content is here, whatever its name; otherwise it is restored too. --image names
another, which must have the same content. An image is restored from the backup, and is downloaded again only if the backup lacks some of it; with
--image-from source it is downloaded from where it came first. Either way it must have the content that it had.`,
		Example: "  plinth backup restore web-1-20261125-020000 --as web-1-old\n  plinth backup restore nightly --target offsite --as web-1",
		Args:    program.Exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.name = args[0]
			return c.restoreBackup(cmd.Context(), r)
		},
	}
	r.backup.add(c, cmd)
	f := cmd.Flags()
	f.StringVar(&r.to, "as", "", "`name` of the new volume or image")
	f.StringVar(&r.size, "size", "", "`size` of the volume, like 20Gi (default: the one that it had)")
	f.StringVar(&r.image, "image", "", "backing `image` that the volume is laid over (default: one of the content that it began as)")
	f.StringVar(&r.imageFrom, "image-from", "", "`place` that an image which is not here comes from: backup (the default), or source, where it was downloaded from")
	f.StringVar(&r.node, "node", "", "`node` that the volume is on (default: the driver chooses)")
	f.BoolVar(&r.block, "block", false, "the volume will be used as a block device, without a filesystem")
	f.BoolVar(&r.wait, "wait", true, "show the progress, and return when the volume is ready")
	f.DurationVar(&r.timeout, "timeout", defaultBackupTimeout, "how long to wait; the restore goes on after it")
	_ = cmd.MarkFlagRequired("as") // fails only for a flag that is not there
	_ = cmd.RegisterFlagCompletionFunc("image", images.complete(c))
	_ = cmd.RegisterFlagCompletionFunc("image-from", cobra.FixedCompletions([]string{v1alpha1.RestoreFromBackup, v1alpha1.RestoreFromSource}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("node", nodes.complete(c))
	return cmd
}

func (c *cli) restoreBackup(ctx context.Context, r restoreRequest) error {
	b, err := c.findBackup(ctx, r.backup, r.name)
	if err != nil {
		return err
	}
	defer b.repository.Close()
	client, err := c.client()
	if err != nil {
		return err
	}
	if b.manifest.Volume == nil {
		return c.restoreImage(ctx, client, r, b)
	}
	return c.restoreVolume(ctx, client, r, b)
}

// restoreImage makes an image of an image's backup.
func (c *cli) restoreImage(ctx context.Context, client *store.Client, r restoreRequest, b namedBackup) error {
	if r.size != "" || r.image != "" || r.node != "" || r.block {
		return backingimage.Errorf(backingimage.Invalid, "backup %s is of an image: --size, --image, --node and --block are for volumes", r.name)
	}
	if err := validateName("an image", r.to); err != nil {
		return err
	}
	image := &v1alpha1.BackingImage{ObjectMeta: metav1.ObjectMeta{Name: r.to, Labels: b.manifest.Image.Labels}, Spec: v1alpha1.BackingImageSpec{
		SourceType: v1alpha1.SourceRestore, MinNumberOfCopies: 1,
		SourceParameters: map[string]v1alpha1.SourceParameter{v1alpha1.ParameterBackupURL: v1alpha1.SourceParameter(b.url)},
	}}
	if r.imageFrom != "" {
		image.Spec.SourceParameters[v1alpha1.ParameterRestoreFrom] = v1alpha1.SourceParameter(r.imageFrom)
	}
	if err := source.ValidateSource(image.Spec.SourceType, image.Spec.Parameters()); err != nil {
		return err
	}
	if _, err := client.Images.Create(ctx, image, metav1.CreateOptions{}); err != nil {
		return apiError(err, "create", "image", r.to)
	}
	if !r.wait {
		_, err := fmt.Fprintf(c.out, "image %s is being restored\n", r.to)
		return err
	}
	return c.waitForImage(ctx, client, r.to, r.timeout)
}

// restoreVolume makes a volume of a volume's backup, as an orchestrator would.
func (c *cli) restoreVolume(ctx context.Context, client *store.Client, r restoreRequest, b namedBackup) error {
	create := volumeRequest{name: r.to, image: r.image, size: r.size, node: r.node, block: r.block, parameters: []string{"fromBackup=" + b.url, "restoreImageFrom=" + r.imageFrom}}
	request, err := create.csi()
	if err != nil {
		return err
	}
	driver, err := c.dialCSI(ctx)
	if err != nil {
		return err
	}
	defer driver.close()
	answer, err := createPatiently(ctx, c, driver, request, r.timeout)
	if err != nil {
		return err
	}
	if !r.wait {
		_, err := fmt.Fprintf(c.out, "volume %s is being restored (%s)\n", r.to, sizeText(answer.GetVolume().GetCapacityBytes()))
		return err
	}
	if err := c.waitForVolume(ctx, client, answer.GetVolume().GetVolumeId(), r.timeout); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "volume %s is restored (%s)\n", r.to, sizeText(answer.GetVolume().GetCapacityBytes()))
	fmt.Fprintf(c.err, "Mount it with: plinth volume mount %s DIRECTORY\n", r.to)
	return nil
}

// createPatiently asks until the answer is final, as an orchestrator does.
func createPatiently(ctx context.Context, c *cli, driver *csiClient, request *csispec.CreateVolumeRequest, timeout time.Duration) (*csispec.CreateVolumeResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	meter := c.newMeter()
	defer meter.end()
	var answer *csispec.CreateVolumeResponse
	var last error
	err := poll(ctx, func(ctx context.Context) (bool, error) {
		var err error
		answer, err = driver.controller.CreateVolume(ctx, request)
		if last = csiError(ctx, err); last != nil && waits(last) {
			meter.say(last.Error())
		}
		return last == nil, last
	})
	return answer, timedOut(err, timeout, "volume %s: %v", request.GetName(), last)
}

// waitForVolume shows what a volume waits for until it is ready, has failed, or the time is over.
func (c *cli) waitForVolume(ctx context.Context, client *store.Client, id string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	meter := c.newMeter()
	defer meter.end()
	said := ""
	err := poll(ctx, func(ctx context.Context) (bool, error) {
		v, err := volumes.get(ctx, client, id)
		if err != nil {
			return false, err
		}
		said = v.Status.Message
		switch v.Status.State {
		case v1alpha1.VolumeReady:
			return true, nil
		case v1alpha1.VolumeFailed:
			return true, backingimage.Errorf(backingimage.KindNamed(v.Status.Reason), "volume %s failed: %s", id, said)
		}
		meter.say("volume " + id + ": " + said)
		return false, nil
	})
	return timedOut(err, timeout, "volume %s is not ready: %s; it goes on, see: plinth volume show %s", id, said, id)
}
