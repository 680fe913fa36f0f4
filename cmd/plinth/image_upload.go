package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/backingimage/transfer"
	"plinth.dev/plinth/cmd/internal/program"
)

// uploadRequest is what the flags of `image upload` ask for.
type uploadRequest struct {
	imageRequest
	file      string // "-": stdin
	limitRate string
	via       string
}

func newImageUploadCommand(c *cli) *cobra.Command {
	var r uploadRequest
	cmd := &cobra.Command{
		Use:   "upload FILE --name NAME",
		Short: "Upload an image from this machine",
		Long: "Upload sends a file of this machine straight to the node that makes the image's first copy of it. QCOW2 and RAW files are taken;\n" +
			"- is what comes from a pipe.\n\n" +
			"When the connection breaks, or the node restarts, it goes on by itself. After it was interrupted or killed, the same command\n" +
			"goes on where it stopped, unless the image has been idle for so long that its upload has expired.",
		Example: "  plinth image upload fedora-42.qcow2 --name fedora-42\n  zcat disk.raw.gz | plinth image upload - --name disk",
		Args:    program.Exactly("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.file = args[0]
			return c.uploadImage(cmd.Context(), r)
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.name, "name", "", "`name` of the image (required)")
	f.StringVar(&r.checksum, "checksum", "", "SHA-256 or SHA-512 `sum` that the file must have, in hexadecimal")
	r.addTo(f)
	f.StringVar(&r.limitRate, "limit-rate", "", "most `bytes` to send a second, e.g. 20Mi (default: no limit)")
	addVia(f, &r.via)
	f.BoolVar(&r.wait, "wait", true, "return when a copy is ready, or the image has failed for good")
	f.DurationVar(&r.timeout, "timeout", defaultImageTimeout, "with --wait: how long to wait once all is sent")
	return cmd
}

func (c *cli) uploadImage(ctx context.Context, r uploadRequest) error {
	if r.name == "" {
		return backingimage.Errorf(backingimage.Invalid, "--name is missing: say how the image shall be called, like --name fedora-42")
	}
	wanted, err := r.object(v1alpha1.SourceUpload, nil)
	if err != nil {
		return err
	}
	rate, err := parseSize("--limit-rate", r.limitRate)
	if err := cmp.Or(err, checkVia(r.via)); err != nil {
		return err
	}
	file, err := r.open()
	if err != nil {
		return err
	}
	defer file.Close()
	return c.uploadFile(ctx, r, wanted, file, rate)
}

// uploadFile makes the image where need be, sends the file, and waits.
func (c *cli) uploadFile(ctx context.Context, r uploadRequest, wanted *v1alpha1.BackingImage, file *os.File, rate int64) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	image, err := uploadable(ctx, client, wanted)
	if err != nil {
		return err
	}
	ready, _, err := readyImage(ctx, client, image.Name)
	switch {
	case err != nil:
		return err
	case ready != nil:
		return c.alreadyUploaded(ctx, ready, file)
	}
	if err := c.send(ctx, client, image, file, r, rate); err != nil {
		return err
	}
	if !r.wait {
		_, err = fmt.Fprintf(c.out, "image %s is uploaded; follow it with: plinth image wait %s\n", r.name, r.name)
		return err
	}
	return c.waitForImage(ctx, client, r.name, r.timeout)
}

// open opens the file, which must have something in it.
func (r uploadRequest) open() (*os.File, error) {
	if r.file == "-" {
		return os.Stdin, nil
	}
	f, err := os.Open(r.file)
	if err != nil {
		return nil, backingimage.Errorf(backingimage.Invalid, "FILE: %w", err)
	}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() == 0) {
		err = backingimage.Errorf(backingimage.Invalid, "FILE: %s is not a file that holds an image; give one, or - for what comes from a pipe", r.file)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// uploadable makes the image, or finds the one that is being uploaded already.
func uploadable(ctx context.Context, client *store.Client, wanted *v1alpha1.BackingImage) (*v1alpha1.BackingImage, error) {
	image, err := client.Images.Create(ctx, wanted, metav1.CreateOptions{})
	if err == nil {
		return image, nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return nil, apiError(err, "create", "image", wanted.Name)
	}
	if err := sameImage(ctx, client, wanted); err != nil {
		return nil, err
	}
	p, err := imageProgress(ctx, client, wanted.Name)
	if err != nil {
		return nil, err
	}
	if p.failure != nil {
		return nil, fmt.Errorf("%w; delete it first: plinth image rm %s", p.failure, wanted.Name)
	}
	return images.get(ctx, client, wanted.Name)
}

// alreadyUploaded is success when a ready image is of this very file.
func (c *cli) alreadyUploaded(ctx context.Context, image *v1alpha1.BackingImage, file *os.File) error {
	same, err := sameFile(ctx, file, image.Status)
	if err != nil {
		return err
	}
	if !same {
		return backingimage.Errorf(backingimage.Conflict, "image %s is ready and is not %s; delete it first (plinth image rm %s), or use another name", image.Name, file.Name(), image.Name)
	}
	_, err = fmt.Fprintf(c.out, "image %s is ready and is this file\n", image.Name)
	return err
}

// send uploads the file under a token that lives as long as the upload.
func (c *cli) send(ctx context.Context, client *store.Client, image *v1alpha1.BackingImage, file *os.File, r uploadRequest, rate int64) error {
	a := &access{client: client, image: image.Name, uid: image.UID, via: r.via, clock: c.clock}
	defer a.end()
	meter := c.newMeter()
	p := &transferProgress{meter: meter, what: "image " + r.name, doing: "uploading"}
	if info, err := file.Stat(); err == nil && info.Mode().IsRegular() {
		p.total = info.Size()
	}
	s := &transfer.Sending{Dial: a.dialOrigin, File: file, BytesPerSecond: rate, Report: p.report}
	send := s.Send
	if r.file == "-" {
		send = s.SendStream
	}
	err := send(ctx)
	meter.end()
	switch {
	case err == nil:
		return nil
	case backingimage.Is(err, backingimage.Precondition):
		return cmp.Or(failureOf(ctx, client, r.name), fmt.Errorf("upload image %s: %w", r.name, err))
	case backingimage.Is(err, backingimage.Conflict) && r.file != "-":
		return c.overtaken(ctx, client, image.Name, file, err)
	case r.file != "-" && resumable(err):
		fmt.Fprintf(c.err, "What has been sent is kept for a while; to go on: plinth image upload %s --name %s\n", r.file, r.name)
	}
	return fmt.Errorf("upload image %s: %w", r.name, err)
}

// failureTimeout is how long the status of an image that failed may take to say so.
const failureTimeout = 5 * time.Second

// failureOf is why an image has failed for good; nil when it has not. An agent that takes no more of an upload mostly has
// that reason.
func failureOf(ctx context.Context, client *store.Client, name string) (failure error) {
	ctx, cancel := context.WithTimeout(ctx, failureTimeout)
	defer cancel()
	_ = poll(ctx, func(ctx context.Context) (bool, error) { // its end is that nothing is known
		p, err := imageProgress(ctx, client, name)
		failure = p.failure
		return failure != nil, err
	})
	return failure
}

// resumable reports whether the same command can go on after an error.
func resumable(err error) bool {
	return program.IsContextError(err) || backingimage.Is(err, backingimage.NotReady) || backingimage.Is(err, backingimage.Busy) || backingimage.Is(err, backingimage.Full)
}

// overtaken is for a Conflict: when its cause is that the image is ready meanwhile, of this file, all is well.
func (c *cli) overtaken(ctx context.Context, client *store.Client, name string, file *os.File, cause error) error {
	image, _, err := readyImage(ctx, client, name)
	if err == nil && image != nil {
		return c.alreadyUploaded(ctx, image, file)
	}
	return errors.Join(fmt.Errorf("upload image %s: %w", name, cause), err)
}
