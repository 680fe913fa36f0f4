// Package reconcile is the one loop that every controller here runs in: names are queued, workers take them, errors
// back off, and nothing else is remembered. A controller is a Reconciler: it reads the present state by name, does the
// next thing that is missing, and reports; it must be right however often, and after whatever crash, it is called.
package reconcile

import (
	"context"
	"errors"
	"runtime/debug"
	"sync"
	"time"

	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
)

// Reconciler brings what one object describes about. It returns when it wants to be called again though nothing changed
// (0: not before a change), or an error, which is logged and tried again with back-off.
type Reconciler interface {
	Reconcile(ctx context.Context, name string) (again time.Duration, err error)
}

// Options of a Loop.
type Options struct {
	Workers   int           // default 4
	BaseDelay time.Duration // back-off after the first error; default 100 ms
	MaxDelay  time.Duration // default 1 min
	Clock     clock.WithTicker
}

func (o Options) withDefaults() Options {
	if o.Workers == 0 {
		o.Workers = 4
	}
	if o.BaseDelay == 0 {
		o.BaseDelay = 100 * time.Millisecond
	}
	if o.MaxDelay == 0 {
		o.MaxDelay = time.Minute
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	return o
}

// Loop is a queue of names and the workers on it. One name is never reconciled by two workers at once.
type Loop struct {
	name    string
	what    Reconciler
	workers int
	queue   workqueue.TypedRateLimitingInterface[string]
}

// New makes a Loop; name appears in its log lines.
func New(name string, what Reconciler, o Options) *Loop {
	o = o.withDefaults()
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[string](o.BaseDelay, o.MaxDelay)
	config := workqueue.TypedRateLimitingQueueConfig[string]{Name: name, Clock: o.Clock}
	return &Loop{name: name, what: what, workers: o.Workers, queue: workqueue.NewTypedRateLimitingQueueWithConfig(limiter, config)}
}

// Enqueue asks for a name to be reconciled soon.
func (l *Loop) Enqueue(name string) { l.queue.Add(name) }

// Run works until ctx ends and every worker has returned.
func (l *Loop) Run(ctx context.Context) error {
	ctx = klog.NewContext(ctx, klog.FromContext(ctx).WithValues("loop", l.name))
	var wg sync.WaitGroup
	for range l.workers {
		wg.Go(func() {
			for l.next(ctx) {
			}
		})
	}
	<-ctx.Done()
	l.queue.ShutDown()
	wg.Wait()
	return nil
}

func (l *Loop) next(ctx context.Context) bool {
	name, shutdown := l.queue.Get()
	if shutdown {
		return false
	}
	defer l.queue.Done(name)
	log := klog.FromContext(ctx).WithValues("name", name)
	again, err := l.reconcile(klog.NewContext(ctx, log), name)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		if backingimage.Is(err, backingimage.NotReady) || errors.Is(err, context.DeadlineExceeded) {
			log.V(2).Info("Not yet", "why", err)
		} else {
			log.Error(err, "Reconcile failed; will be tried again")
		}
		l.queue.AddRateLimited(name)
	default:
		l.queue.Forget(name)
		if again > 0 {
			l.queue.AddAfter(name, again)
		}
	}
	return true
}

// reconcile turns a panic into an error: one object that we cannot handle must not stop the others.
func (l *Loop) reconcile(ctx context.Context, name string) (again time.Duration, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = backingimage.Errorf(backingimage.Internal, "panic in %s: %v", l.name, p)
			klog.FromContext(ctx).Error(err, "Panic", "stack", string(debug.Stack()))
		}
	}()
	return l.what.Reconcile(ctx, name)
}
