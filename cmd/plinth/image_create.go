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
	keeping
	wait    bool
	timeout time.Duration
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
	r.addTo(f)
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
	if err := r.keeping.validate(); err != nil {
		return nil, err
	}
	spec := v1alpha1.BackingImageSpec{SourceType: from, SourceParameters: parameters, Checksum: checksum}
	r.apply(&spec, func(string) bool { return true })
	return &v1alpha1.BackingImage{ObjectMeta: metav1.ObjectMeta{Name: r.name}, Spec: spec}, nil
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
	fixed, kept := imageDifferences(existing.Spec, wanted.Spec), keptDifferences(existing.Spec, wanted.Spec)
	advice := fmt.Sprintf("delete it first (plinth image rm %s), or use another name", wanted.Name)
	switch {
	case len(fixed)+len(kept) == 0:
		return nil
	case len(fixed) == 0:
		advice = "change that with: plinth image set " + wanted.Name
	}
	return backingimage.Errorf(backingimage.Conflict, "image %s exists and is not the same: %s; %s", wanted.Name, strings.Join(append(fixed, kept...), "; "), advice)
}

// imageDifferences are those that stay as long as the image exists.
func imageDifferences(is, wanted v1alpha1.BackingImageSpec) []string {
	differs := difference("source type", is.SourceType, wanted.SourceType)
	differs = append(differs, sourceDifferences(is, wanted)...)
	return append(differs, difference("checksum", checksumText(is.Checksum), checksumText(wanted.Checksum))...)
}

// keptDifferences are those that can be changed.
func keptDifferences(is, wanted v1alpha1.BackingImageSpec) []string {
	sorted := func(tags []string) []string { return slices.Sorted(slices.Values(tags)) }
	return slices.Concat(
		difference("minimum number of copies", is.MinNumberOfCopies, wanted.MinNumberOfCopies),
		difference("node selector", sorted(is.NodeSelector), sorted(wanted.NodeSelector)),
		difference("disk selector", sorted(is.DiskSelector), sorted(wanted.DiskSelector)),
		difference("prefetch", is.Prefetch, wanted.Prefetch))
}

func difference(what string, is, wanted any) []string {
	if fmt.Sprint(is) == fmt.Sprint(wanted) {
		return nil
	}
	return []string{fmt.Sprintf("its %s is %v, not %v", what, is, wanted)}
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
