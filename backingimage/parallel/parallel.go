// Package parallel runs the goroutines that work on one image. It is an errgroup with one difference: a panic in one of its
// goroutines is that group's error, and not the end of the process. What works on hostile bytes, decoders of other people's
// among them, may have a fault that nobody found yet; the image that finds it must not take every other image, and
// the volumes of the node, down with it.
package parallel

import (
	"context"
	"runtime/debug"

	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
)

// Group is goroutines that work on one thing. The first that fails ends the context of all.
type Group struct {
	ctx   context.Context
	group *errgroup.Group
}

// WithContext makes a group and the context that its goroutines watch.
func WithContext(ctx context.Context) (*Group, context.Context) {
	group, ctx := errgroup.WithContext(ctx)
	return &Group{ctx: ctx, group: group}, ctx
}

// Go starts a goroutine.
func (g *Group) Go(work func() error) {
	g.group.Go(func() error { return Guard(g.ctx, work) })
}

// Wait returns when all goroutines have, with the first error.
func (g *Group) Wait() error { return g.group.Wait() }

// Guard calls work and turns a panic into an error of Kind Internal. The stack goes to the log, since no error can hold it.
func Guard(ctx context.Context, work func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = backingimage.Errorf(backingimage.Internal, "panic while working on the image: %v; the log has the stack: please report it", p)
			klog.FromContext(ctx).Error(err, "Panic", "stack", string(debug.Stack()))
		}
	}()
	return work()
}
