package main

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/cmd/internal/program"
)

// exportRequest is what `volume export` asks for.
type exportRequest struct {
	volume, image, file, format string
	force                       bool
	timeout                     time.Duration
}

func newVolumeExportCommand(c *cli) *cobra.Command {
	var r exportRequest
	cmd := &cobra.Command{
		Use:   "export VOLUME (--name IMAGE | --file FILE)",
		Short: "Make an image or a file of a volume's content",
		Long: "Export takes the volume's content at this moment, as a snapshot does, and makes an image of it (--name), a file of this machine (--file),\n" +
			"or both. Without --name the image is only there until the file is.",
		Example:           "  plinth volume export build-vm --name golden\n  plinth volume export build-vm --file golden.qcow2 --format qcow2",
		Args:              program.Exactly("VOLUME"),
		ValidArgsFunction: volumes.complete(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.volume = args[0]
			return c.exportVolume(cmd.Context(), r)
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.image, "name", "", "`name` of the image to make")
	f.StringVar(&r.file, "file", "", "`file` to write; - is the standard output")
	f.StringVar(&r.format, "format", format.Raw, "`format` of the file, and of later downloads of the image: raw or qcow2")
	f.BoolVar(&r.force, "force", false, "replace a file that exists")
	f.DurationVar(&r.timeout, "timeout", defaultImageTimeout, "how long to wait for the image")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{format.Raw, format.QCOW2}, cobra.ShellCompDirectiveNoFileComp)) // fails only for a flag that is not there
	return cmd
}

func (c *cli) exportVolume(ctx context.Context, r exportRequest) (err error) {
	if r.image == "" && r.file == "" {
		return backingimage.Errorf(backingimage.Invalid, "say what to make of volume %s: --name IMAGE, --file FILE, or both", r.volume)
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	v, err := findVolume(ctx, client, r.volume)
	if err != nil {
		return err
	}
	out := c.out
	if r.image == "" {
		r.image = "export-" + uuid.NewString()
		defer func() {
			err = errors.Join(err, deleteAfter(ctx, client, r.image))
			c.out = out
		}()
		c.out = c.err // nobody needs to know of it
	}
	request := imageRequest{name: r.image, keeping: keeping{minCopies: 1}, wait: true, timeout: r.timeout, source: imageSource{volume: v.Name, exportType: r.format}}
	if err := c.createImage(ctx, request); err != nil || r.file == "" {
		return err
	}
	c.out = out
	return c.downloadImage(ctx, downloadRequest{name: r.image, file: r.file, format: r.format, force: r.force})
}

// deleteAfter deletes an image that a command needs no more, also when the command was interrupted.
func deleteAfter(ctx context.Context, client *store.Client, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	return backingimage.IgnoreNotFound(apiError(client.Images.Delete(ctx, name, metav1.DeleteOptions{}), "delete", "image", name))
}
