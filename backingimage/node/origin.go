package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
)

// asOrigin is an attempt at making the copy that gives an image its content. Before that is published the API server is asked
// whether it still may: this agent may have been stopped, or cut off, while another was named and went ahead.
func (a *Agent) asOrigin(c *v1alpha1.BackingImageCopy, d *disk.Disk, run attempt) attempt {
	return func(ctx context.Context, report func(fetch.Progress)) (fetch.Result, error) {
		result, err := run(ctx, report)
		if err != nil {
			return result, err
		}
		err = a.untilAnswered(ctx, func(ctx context.Context) error { return a.mayPublish(ctx, c, result.ContentDigest) })
		if backingimage.Is(err, backingimage.Corrupt) {
			err = errors.Join(err, d.Layout().Remove(d.Layout().StagedImage(c.Spec.ImageUID)))
		}
		return result, err
	}
}

// mayPublish is nil when a copy is still the origin and no other has given the image another content: then Corrupt. Who is the
// origin no more stands down, and goes on as a receiver with what it has. NotReady while the API server cannot be asked.
func (a *Agent) mayPublish(ctx context.Context, c *v1alpha1.BackingImageCopy, contentDigest string) error {
	others, err := a.store.Copies.LiveSelect(ctx, "spec.image="+c.Spec.Image)
	if err != nil {
		return err
	}
	fixed := ""
	for _, o := range others {
		switch {
		case o.Spec.ImageUID != c.Spec.ImageUID:
		case o.Name != c.Name && fixed == "":
			fixed = o.Status.ContentDigest
		case o.Name == c.Name && !o.Spec.Origin:
			klog.FromContext(ctx).Info("Another copy gives the image its content now; standing down", "backingImage", c.Spec.Image)
			a.fetches.cancel(c.Name)
			return context.Canceled
		}
	}
	image, err := a.store.Images.Live(ctx, c.Spec.Image)
	if backingimage.IgnoreNotFound(err) != nil {
		return err
	}
	if err == nil && string(image.UID) == c.Spec.ImageUID && image.Status.ContentDigest != "" {
		fixed = image.Status.ContentDigest
	}
	if fixed != "" && fixed != contentDigest {
		return backingimage.Errorf(backingimage.Corrupt, "the source gave something else than to another copy meanwhile: the image's content digest is %s, here it is %s", fixed, contentDigest)
	}
	return nil
}

// untilAnswered asks the API server until it answers: what was fetched is not given up because it is away.
func (a *Agent) untilAnswered(ctx context.Context, ask func(context.Context) error) error {
	for {
		err := ask(ctx)
		if err == nil || ctx.Err() != nil || backingimage.Terminal(err) {
			return err
		}
		klog.FromContext(ctx).V(2).Info("A copy is made and waits for the API", "reason", err.Error())
		select {
		case <-ctx.Done():
			return fmt.Errorf("publish copy: %w", ctx.Err())
		case <-a.options.Clock.After(time.Second):
		}
	}
}
