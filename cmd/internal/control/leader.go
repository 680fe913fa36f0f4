package control

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/cmd/internal/process"
)

// Election says who may run the loops. The zero value elects nobody: this process runs them always.
type Election struct {
	Identity  string        // of this process; no two have the same
	Namespace string        // of the Lease
	Duration  time.Duration // for which a leader that is not heard of stays the leader
}

// leaseName is the Lease's.
const leaseName = "plinth-controller"

// leader runs the loops while this process holds the Lease. Whatever instruction the Lease changes hands at, two processes do not write:
//
//   - A process that stops ends its loops first, waits until they have ended, and then gives the Lease back, so that the next one begins at once.
//   - One that cannot renew its Lease ends its loops after two thirds of the Lease's time. Their context ends every request that is on its way. The
//     last third is for what a slow machine adds; the others may begin only after it.
//   - Loops that do not end then end the process.
//
// A process that is suspended for longer than the last third just before it sends a request could still send one: no lease can prevent that. Every write
// but a delete carries the version of the object that it was decided upon, and is refused; deletes of copies are confirmed with the API server.
type leader struct {
	lock     resourcelock.Interface // nil: nobody is elected
	duration time.Duration
	loops    func() process.Part
	leading  atomic.Bool
}

func newLeader(e Election, api *rest.Config, loops func() process.Part) (*leader, error) {
	l := &leader{duration: e.Duration, loops: loops}
	if e == (Election{}) {
		return l, nil
	}
	api = rest.CopyConfig(api)
	api.Timeout = max(l.renewDeadline()/2, time.Second) // so that one request that hangs is not the end of a term
	client, err := coordination.NewForConfig(api)
	if err != nil {
		return nil, fmt.Errorf("make API client for leases: %w", err)
	}
	l.lock = &resourcelock.LeaseLock{
		LeaseMeta: metav1.ObjectMeta{Namespace: e.Namespace, Name: leaseName}, Client: client,
		LockConfig: resourcelock.ResourceLockConfig{Identity: e.Identity},
	}
	return l, nil
}

func (l *leader) renewDeadline() time.Duration { return l.duration * 2 / 3 }
func (l *leader) retryPeriod() time.Duration   { return l.duration * 2 / 15 }

// Leading reports whether this process runs the loops.
func (l *leader) Leading() bool { return l.leading.Load() }

// Run stands for election, and runs the loops in each term that it wins, until ctx ends.
func (l *leader) Run(ctx context.Context) error {
	if l.lock == nil {
		return l.lead(ctx, ctx)
	}
	for ctx.Err() == nil {
		if err := l.term(ctx); err != nil {
			return err
		}
	}
	return nil
}

// term waits for the Lease, leads, and gives it back.
func (l *leader) term(ctx context.Context) error {
	electing, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	won := make(chan context.Context)
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: l.lock, LeaseDuration: l.duration, RenewDeadline: l.renewDeadline(), RetryPeriod: l.retryPeriod(), Name: leaseName,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(term context.Context) {
				select {
				case won <- term:
				case <-term.Done():
				}
			},
			OnStoppedLeading: func() {},
			OnNewLeader:      func(who string) { klog.FromContext(ctx).Info("Leader elected", "leader", who) },
		},
	})
	if err != nil {
		return fmt.Errorf("elect a leader: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		elector.Run(electing)
		close(ended)
	}()
	select {
	case <-ctx.Done():
	case <-ended:
	case term := <-won:
		err = l.lead(ctx, term)
	}
	stop()
	<-ended
	l.giveBack(ctx)
	return err
}

// giveBack lets the next leader begin at once. client-go would do it too (ReleaseOnCancel), but also when a renewal failed, before the loops are even
// told to end, and without asking whether another has the Lease by then. Where it fails the Lease runs out.
func (l *leader) giveBack(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.renewDeadline())
	defer cancel()
	record, _, err := l.lock.Get(ctx)
	if err == nil && record.HolderIdentity == l.lock.Identity() {
		now := metav1.Now()
		err = l.lock.Update(ctx, resourcelock.LeaderElectionRecord{LeaderTransitions: record.LeaderTransitions, LeaseDurationSeconds: 1, AcquireTime: now, RenewTime: now})
	}
	if err != nil && !apierrors.IsNotFound(err) {
		klog.FromContext(ctx).Info("The lease is not given back; it runs out", "why", err)
	}
}

// lead runs the loops until ctx or the term ends, and returns when they have ended.
func (l *leader) lead(ctx, term context.Context) error {
	running, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(term, stop)()
	l.leading.Store(true)
	defer l.leading.Store(false)
	ended := make(chan error, 1)
	go func() { ended <- l.loops().Run(running) }()
	select {
	case err := <-ended:
		return l.over(ctx, term, err)
	case <-running.Done():
	}
	select {
	case err := <-ended:
		return l.over(ctx, term, err)
	case <-time.After(process.StopTimeout):
		return fmt.Errorf("the controllers have not stopped %s after they should", process.StopTimeout)
	}
}

// over tells why a term ended. Loops that end because the Lease is lost have not failed.
func (l *leader) over(ctx, term context.Context, err error) error {
	if ctx.Err() == nil && term.Err() != nil {
		klog.FromContext(ctx).Info("The lease is lost; the controllers of this process have stopped", "why", context.Cause(term))
		return nil
	}
	return err
}
