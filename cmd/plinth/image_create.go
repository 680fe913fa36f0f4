package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/cmd/internal/program"
)

// imageRequest is what the flags of `image create` ask for.
type imageRequest struct {
	name, checksum string
	source         imageSource
	minCopies      int32
	nodes, disks   []string
	prefetch, wait bool
	timeout        time.Duration
}

func newImageCreateCommand(c *cli) *cobra.Command {
	var r imageRequest
	cmd := &cobra.Command{
		Use:   "create NAME (--url URL | --from-volume VOLUME | --clone-of IMAGE)",
		Short: "Make an image: fetched, exported from a volume, or cloned",
		Long: "Create asks for an image: it begins at once, whether you wait for it or not. It comes from a URL, from a volume's content as\n" +
			"it is now, or from another image. An image that exists already and is the same is left as it is, so the command can be repeated.",
		Example: "  plinth image create fedora-42 --url https://example.org/fedora-42.qcow2 --checksum sha256:… --wait\n" +
			"  plinth image create golden --from-volume build-vm --wait\n" +
			"  plinth image create golden-2 --clone-of golden",
		Args: program.Exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.name = args[0]
			return c.createImage(cmd.Context(), r)
		},
	}
	f := cmd.Flags()
	r.source.flags(f)
	f.StringVar(&r.checksum, "checksum", "", "SHA-256 or SHA-512 `sum` of the file, as its publisher gives it, in hexadecimal")
	f.Int32Var(&r.minCopies, "min-copies", 1, "least `number` of copies to keep, on different nodes where possible")
	f.StringSliceVar(&r.nodes, "node-selector", nil, "comma list of `tags` that a node must have to hold a copy")
	f.StringSliceVar(&r.disks, "disk-selector", nil, "comma list of `tags` that a disk must have to hold a copy")
	f.BoolVar(&r.prefetch, "prefetch", false, "keep a copy on every disk that the selectors match")
	f.BoolVar(&r.wait, "wait", false, "return when a copy is ready, or the image has failed for good")
	f.DurationVar(&r.timeout, "timeout", defaultImageTimeout, "with --wait: how long to wait; the work goes on after it")
	return cmd
}

func (c *cli) createImage(ctx context.Context, r imageRequest) error {
	wanted, err := r.image()
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	_, err = client.Images.Create(ctx, wanted, metav1.CreateOptions{})
	switch {
	case apierrors.IsAlreadyExists(err):
		if err := sameImage(ctx, client, wanted); err != nil {
			return err
		}
		fmt.Fprintf(c.out, "image %s exists and is the same\n", r.name)
	case err != nil:
		return apiError(err, "create", "image", r.name)
	default:
		fmt.Fprintf(c.out, "image %s created\n", r.name)
	}
	if !r.wait {
		fmt.Fprintf(c.err, "It is being made; follow it with: plinth image wait %s\n", r.name)
		return nil
	}
	return c.waitForImage(ctx, client, r.name, r.timeout)
}

// image checks the request and is the object that it stands for.
func (r imageRequest) image() (*v1alpha1.BackingImage, error) {
	from, parameters, err := r.source.parameters()
	if err != nil {
		return nil, err
	}
	if from == v1alpha1.SourceClone && r.source.image == r.name {
		return nil, backingimage.Errorf(backingimage.Invalid, "--clone-of: image %s cannot be a clone of itself; name another image", r.name)
	}
	typed := map[string]v1alpha1.SourceParameter{}
	for key, value := range parameters {
		typed[key] = v1alpha1.SourceParameter(value)
	}
	return r.object(from, typed)
}

// object checks all of the request but where the bytes come from, and is the object that it stands for.
func (r imageRequest) object(from v1alpha1.SourceType, parameters map[string]v1alpha1.SourceParameter) (*v1alpha1.BackingImage, error) {
	if err := validateName("an image", r.name); err != nil {
		return nil, err
	}
	checksum := ""
	if r.checksum != "" {
		sum, err := source.ParseChecksum(r.checksum)
		if err != nil {
			return nil, fmt.Errorf("--%w", err) // it begins with checksum:
		}
		checksum = sum.String()
	}
	if r.minCopies < 1 || r.minCopies > 100 {
		return nil, backingimage.Errorf(backingimage.Invalid, "--min-copies: %d is not a number of copies to keep; use 1 to 100", r.minCopies)
	}
	return &v1alpha1.BackingImage{
		ObjectMeta: metav1.ObjectMeta{Name: r.name},
		Spec: v1alpha1.BackingImageSpec{
			SourceType:        from,
			SourceParameters:  parameters,
			Checksum:          checksum,
			MinNumberOfCopies: r.minCopies,
			NodeSelector:      tagList(r.nodes),
			DiskSelector:      tagList(r.disks),
			Prefetch:          r.prefetch,
		},
	}, nil
}

// sameImage is nil when the image of that name is what the request asks for, else Conflict with each difference.
func sameImage(ctx context.Context, client *store.Client, wanted *v1alpha1.BackingImage) error {
	existing, err := images.get(ctx, client, wanted.Name)
	if err != nil {
		return err
	}
	if existing.DeletionTimestamp != nil {
		return backingimage.Errorf(backingimage.Precondition, "image %s is being deleted; try again when it is gone, or use another name", wanted.Name)
	}
	if differs := imageDifferences(existing.Spec, wanted.Spec); len(differs) > 0 {
		return backingimage.Errorf(backingimage.Conflict, "image %s exists and is not the same: %s; delete it first (plinth image rm %s), or use another name",
			wanted.Name, strings.Join(differs, "; "), wanted.Name)
	}
	return nil
}

func imageDifferences(is, wanted v1alpha1.BackingImageSpec) []string {
	var differs []string
	compare := func(what string, is, wanted any) {
		if fmt.Sprint(is) != fmt.Sprint(wanted) {
			differs = append(differs, fmt.Sprintf("its %s is %v, not %v", what, is, wanted))
		}
	}
	compare("source type", is.SourceType, wanted.SourceType)
	differs = append(differs, sourceDifferences(is, wanted)...)
	compare("checksum", checksumText(is.Checksum), checksumText(wanted.Checksum))
	compare("minimum number of copies", is.MinNumberOfCopies, wanted.MinNumberOfCopies)
	compare("node selector", slices.Sorted(slices.Values(is.NodeSelector)), slices.Sorted(slices.Values(wanted.NodeSelector)))
	compare("disk selector", slices.Sorted(slices.Values(is.DiskSelector)), slices.Sorted(slices.Values(wanted.DiskSelector)))
	compare("prefetch", is.Prefetch, wanted.Prefetch)
	return differs
}

// checksumText is a checksum in the one form in which two can be compared.
func checksumText(s string) string {
	if s == "" {
		return "none"
	}
	if sum, err := source.ParseChecksum(s); err == nil {
		return sum.String()
	}
	return s
}
