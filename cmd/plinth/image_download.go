package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/transfer"
	"plinth.dev/plinth/cmd/internal/program"
)

// downloadRequest is what the flags of `image download` ask for.
type downloadRequest struct {
	name, file, format, via string
	force                   bool
}

func newImageDownloadCommand(c *cli) *cobra.Command {
	var r downloadRequest
	cmd := &cobra.Command{
		Use:   "download NAME",
		Short: "Download an image to this machine",
		Long: "Download writes the content of a ready image to a file of this machine, as a RAW or a QCOW2 file. Only what is not zeros\n" +
			"travels; every piece of it is compared with the image's manifest, and that with the image's content digest.\n\n" +
			"A RAW file is sparse, and begins as FILE.part: after an interrupt the same command goes on with what is good in it.",
		Example:           "  plinth image download fedora-42 -o disk.raw\n  plinth image download fedora-42 --format qcow2 -o - | ssh other 'cat > disk.qcow2'",
		Args:              program.Exactly("NAME"),
		ValidArgsFunction: images.complete(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.name = args[0]
			return c.downloadImage(cmd.Context(), r)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&r.file, "output", "o", "", "`file` to write; - is the standard output (default: NAME.raw or NAME.qcow2)")
	f.StringVar(&r.format, "format", "", "`format` of the file, raw or qcow2 (default: the image's export-type, else raw)")
	f.BoolVar(&r.force, "force", false, "replace a file that exists")
	addVia(f, &r.via)
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{format.Raw, format.QCOW2}, cobra.ShellCompDirectiveNoFileComp)) // fails only for a flag that is not there
	return cmd
}

func (c *cli) downloadImage(ctx context.Context, r downloadRequest) error {
	if err := checkVia(r.via); err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	image, why, err := readyImage(ctx, client, r.name)
	if err == nil && image == nil {
		err = backingimage.Errorf(backingimage.NotReady, "image %s is not ready: %s; wait for it: plinth image wait %s", r.name, why, r.name)
	}
	if err == nil {
		err = r.complete(image)
	}
	if err != nil {
		return err
	}
	a := &access{client: client, image: image.Name, uid: image.UID, via: r.via, clock: c.clock}
	defer a.end()
	meter := c.newMeter()
	defer meter.end()
	p := &transferProgress{meter: meter, what: "image " + r.name, doing: "downloading"}
	d := &downloading{request: r, progress: p, receiving: &transfer.Receiving{
		Dial: a.dialReady, ContentDigest: image.Status.ContentDigest, Trouble: func(err error) { p.trouble(err) },
	}}
	err = d.run(ctx, c.out)
	meter.end()
	if err != nil {
		return fmt.Errorf("download image %s: %w", r.name, err)
	}
	return c.downloaded(r, d)
}

// complete fills in what the flags leave to the image, and checks it all.
func (r *downloadRequest) complete(image *v1alpha1.BackingImage) error {
	r.format = cmp.Or(r.format, string(image.Spec.SourceParameters[v1alpha1.ParameterExportType]), format.Raw)
	if r.format != format.Raw && r.format != format.QCOW2 {
		return backingimage.Errorf(backingimage.Invalid, "--format: %q is not a format that images are written in; use raw or qcow2", r.format)
	}
	r.file = cmp.Or(r.file, r.name+"."+r.format)
	if r.file == "-" || r.force {
		return nil
	}
	if _, err := os.Lstat(r.file); !errors.Is(err, fs.ErrNotExist) {
		return backingimage.Errorf(backingimage.Conflict, "--output: %s exists; use --force to replace it, or name another file", r.file)
	}
	return nil
}

// downloaded says what there is now. Beside an image on the standard output it is said on the other one.
func (c *cli) downloaded(r downloadRequest, d *downloading) error {
	out, where := c.out, r.file
	if r.file == "-" {
		out, where = c.err, "the standard output"
	}
	text := fmt.Sprintf("image %s is in %s (%s, %s), its content digest verified", r.name, where, r.format, sizeText(d.bytes))
	if d.sha256 != "" {
		text += "\nsha256:" + d.sha256
	}
	_, err := fmt.Fprintln(out, text)
	return err
}

// dialReady makes clients of the agents that have a ready copy. NotReady when there is none.
func (a *access) dialReady(ctx context.Context) ([]*transfer.Client, error) {
	if err := a.grant(ctx); err != nil {
		return nil, err
	}
	image, err := images.get(ctx, a.client, a.image)
	if err != nil {
		return nil, err
	}
	of, err := copiesOf(ctx, a.client, image)
	if err != nil {
		return nil, err
	}
	return a.dialAll(ctx, of)
}

// dialAll makes clients of the nodes of those copies that are ready.
func (a *access) dialAll(ctx context.Context, of []*v1alpha1.BackingImageCopy) ([]*transfer.Client, error) {
	var clients []*transfer.Client
	var problems []error
	for _, c := range of {
		if c.Status.State != v1alpha1.CopyReady {
			continue
		}
		client, err := a.dial(ctx, c.Spec.NodeName)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		clients = append(clients, client)
	}
	if len(clients) > 0 {
		return clients, nil
	}
	return nil, backingimage.Errorf(backingimage.NotReady, "no node has a ready copy of image %s and an address: %w", a.image, errors.Join(problems...))
}
