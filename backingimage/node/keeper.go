package node

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/store"
)

// keeper keeps the node's disks as they are wished: it opens those that flags and spec.disks of the StorageNode name, looks at
// each open one with every heartbeat, closes one that is no longer at its path, and takes it up again when it is back. What it
// finds is each Disk's conditions and the StorageNode's status.disks. One disk's trouble is its own: the others are not held up
// by it, and nothing is written to, or removed from, a disk that is not certainly the one it should be.
type keeper struct {
	node    string
	store   *store.Store
	set     *disk.Set
	options Options
	given   []string                      // paths of disks that were open before the agent was
	closing func(d *disk.Disk, wait bool) // ends what works on a disk
	wake    chan struct{}                 // has an element when a pass is due before the next heartbeat
	asked   map[*disk.Disk]reply          // of Healthy, where it has not ended yet
	found   map[string]error              // what each open disk's last check found, by UUID
	opened  map[string]string             // the disk that each path had last, by path
	said    map[string]string             // the last message about each path, so that it is logged once
	pulses  pulses
}

type reply chan error

func newKeeper(node string, s *store.Store, set *disk.Set, o Options, closing func(*disk.Disk, bool)) *keeper {
	k := &keeper{
		node: node, store: s, set: set, options: o, closing: closing, wake: make(chan struct{}, 1),
		asked: map[*disk.Disk]reply{}, found: map[string]error{}, opened: map[string]string{}, said: map[string]string{},
		pulses: pulses{clock: o.Clock, seen: map[string]pulse{}},
	}
	for _, d := range set.List() {
		k.given = append(k.given, d.Path())
	}
	return k
}

// start makes the first pass. A disk of a flag that cannot be a disk is its error: the command line is wrong. A disk that was
// registered before and cannot be opened now is a disk in trouble, which must not keep the node's others from working.
func (k *keeper) start(ctx context.Context) error {
	for _, d := range k.set.List() {
		if err := k.takeUp(ctx, wish{path: d.Path(), fromFlag: true}, d); err != nil {
			k.say(ctx, d.Path(), err)
		}
	}
	outcomes := k.settle(ctx)
	for _, o := range outcomes {
		if o.wish.fromFlag && o.err != nil && reasonOf(o.err) == backingimage.KindOf(o.err).String() && k.registeredAt(o.wish.path) == "" {
			return o.err
		}
	}
	return k.report(ctx, outcomes)
}

// Run makes a pass with every heartbeat, and when it is woken, until ctx ends.
func (k *keeper) Run(ctx context.Context) error {
	generation := int64(0)
	defer k.store.Nodes.OnChange(func(n *v1alpha1.StorageNode) {
		if n.Name == k.node && n.Generation != generation {
			generation = n.Generation
			k.poke()
		}
	})()
	defer k.store.Disks.OnChange(func(d *v1alpha1.Disk) {
		if _, exists := k.store.Disks.Get(d.Name); !exists {
			k.poke()
		}
	})()
	ticker := k.options.Clock.NewTicker(k.options.Heartbeat)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
		case <-k.wake:
		}
		if err := k.pass(ctx); err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "Cannot report this node's disks")
		}
	}
}

// poke asks for a pass soon.
func (k *keeper) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (k *keeper) pass(ctx context.Context) error {
	k.check(ctx)
	return k.report(ctx, k.settle(ctx))
}

// check looks at every open disk, at all of them at once, and lets go of those that are away.
func (k *keeper) check(ctx context.Context) {
	open := k.set.List()
	for _, d := range open {
		if k.asked[d] == nil {
			answer := make(reply, 1)
			k.asked[d] = answer
			go func() { answer <- d.Healthy() }()
		}
	}
	late := k.options.Clock.After(k.options.DiskAnswer)
	for _, d := range open {
		var err error
		select {
		case err = <-k.asked[d]:
			delete(k.asked, d)
		case <-late:
			late = closedTimes
			err = refuse(v1alpha1.DiskSilent, backingimage.NotReady, "disk %s: writing to it takes more than %s: look at the kernel's log for its cause, and replace the disk if it is broken", d.Path(), k.options.DiskAnswer)
			d.Blame(err)
		}
		k.verdict(ctx, d, err)
	}
}

var closedTimes = func() chan time.Time { c := make(chan time.Time); close(c); return c }()

// verdict acts on what a check found.
func (k *keeper) verdict(ctx context.Context, d *disk.Disk, err error) {
	before := k.found[d.UUID()]
	k.found[d.UUID()] = err
	switch {
	case disk.ProblemOf(err).Away():
		k.letGo(ctx, d, err.Error())
	case k.elsewhere(ctx, d):
		k.letGo(ctx, d, "another node has taken the disk over")
	case (before == nil) != (err == nil):
		if err != nil {
			k.closing(d, false)
		}
		k.set.Changed(d.UUID())
	}
}

// letGo ends what works on a disk and closes it. What is attached from it stays attached.
func (k *keeper) letGo(ctx context.Context, d *disk.Disk, why string) {
	klog.FromContext(ctx).Info("Closing disk", "disk", d.UUID(), "path", d.Path(), "why", why)
	k.set.Remove(d)
	k.closing(d, true)
	if err := d.Close(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "Cannot close the disk properly", "disk", d.UUID(), "path", d.Path())
	}
	delete(k.found, d.UUID())
}

// wish is a disk that the node shall have.
type wish struct {
	path      string
	poolBytes int64
	tags      []string
	fromFlag  bool
}

// outcome is what came of a wish: the open disk, or why there is none.
type outcome struct {
	wish wish
	disk *disk.Disk
	err  error
}

// wishes are those of the flags, then those of users, one for each path.
func (k *keeper) wishes() []wish {
	var all []wish
	for _, path := range slices.Concat(k.options.Disks, k.given) {
		all = append(all, wish{path: filepath.Clean(path), poolBytes: k.options.PoolBytes, fromFlag: true})
	}
	if n, ok := k.store.Nodes.Get(k.node); ok {
		for _, w := range n.Spec.Disks {
			all = append(all, wish{path: filepath.Clean(w.Path), poolBytes: w.PoolBytes, tags: w.Tags})
		}
	}
	slices.SortStableFunc(all, func(a, b wish) int { return cmp.Compare(a.path, b.path) })
	return slices.CompactFunc(all, func(a, b wish) bool { return a.path == b.path })
}

// settle closes what nobody wishes any more and opens what is missing.
func (k *keeper) settle(ctx context.Context) []outcome {
	wishes := k.wishes()
	maps.DeleteFunc(k.opened, func(path, _ string) bool {
		return !slices.ContainsFunc(wishes, func(w wish) bool { return w.path == path })
	})
	var outcomes []outcome
	at := map[string]*disk.Disk{}
	for _, d := range k.set.List() {
		if slices.ContainsFunc(wishes, func(w wish) bool { return w.path == d.Path() }) {
			at[d.Path()] = d
		} else if err := k.inUse(d); err != nil {
			outcomes = append(outcomes, outcome{wish{path: d.Path()}, d, err})
		} else {
			k.letGo(ctx, d, "no --disk flag or spec.disks of the node names it any more")
		}
	}
	for _, w := range wishes {
		o := outcome{wish: w, disk: at[w.path]}
		if o.disk == nil {
			o.disk, o.err = k.open(ctx, w)
		} else if _, registered := k.store.Disks.Get(o.disk.UUID()); !registered {
			o.err = k.register(ctx, w, o.disk)
		}
		if o.disk != nil {
			k.opened[w.path] = o.disk.UUID()
		}
		k.say(ctx, w.path, o.err)
		outcomes = append(outcomes, o)
	}
	return outcomes
}

// inUse says which volumes keep a disk open that nobody wishes any more.
func (k *keeper) inUse(d *disk.Disk) error {
	var names []string
	for _, v := range k.store.Volumes.List() {
		if v.Spec.DiskUUID == d.UUID() {
			names = append(names, v.Name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return backingimage.Errorf(backingimage.InUse, "disk %s is not wished any more, and stays open because volumes are on it: %s; delete them, or wish it again with: plinth disk add %s", d.Path(), strings.Join(names, ", "), d.Path())
}

// open opens a wished disk and takes it up.
func (k *keeper) open(ctx context.Context, w wish) (*disk.Disk, error) {
	admit := func(uuid string) error { return k.admit(ctx, w.path, uuid) }
	d, err := disk.Open(ctx, w.path, disk.Options{PoolBytes: w.poolBytes, Clock: k.options.Clock, Admit: admit})
	if err != nil {
		return nil, err
	}
	if err := k.register(ctx, w, d); err != nil {
		return nil, errors.Join(err, d.Close(ctx))
	}
	if err := k.set.Add(d); err != nil {
		return nil, errors.Join(err, d.Close(ctx))
	}
	k.found[d.UUID()] = d.Healthy()
	return d, nil
}

// takeUp admits and registers a disk that was open before the agent was, or closes it.
func (k *keeper) takeUp(ctx context.Context, w wish, d *disk.Disk) error {
	err := k.admit(ctx, w.path, d.UUID())
	if err == nil {
		err = k.register(ctx, w, d)
	}
	if err != nil {
		k.letGo(ctx, d, err.Error())
		return err
	}
	k.found[d.UUID()] = d.Healthy()
	return nil
}

// say logs what is wrong with a wished disk when it is new.
func (k *keeper) say(ctx context.Context, path string, err error) {
	message := ""
	if err != nil {
		message = err.Error()
	}
	if message != "" && message != k.said[path] {
		klog.FromContext(ctx).Info("A disk is not open", "path", path, "reason", reasonOf(err), "message", message)
	}
	k.said[path] = message
}

// refusal is an error with a reason of its own.
type refusal struct {
	error
	reason string
}

func (r *refusal) Unwrap() error { return r.error }

func refuse(reason string, kind backingimage.Kind, format string, args ...any) error {
	return &refusal{backingimage.Errorf(kind, format, args...), reason}
}

// reasonOf is an error in a word, for a condition: what is wrong with the disk, else the error's Kind.
func reasonOf(err error) string {
	var r *refusal
	if errors.As(err, &r) {
		return r.reason
	}
	return cmp.Or(string(disk.ProblemOf(err)), backingimage.KindOf(err).String())
}

// pulse is a node's heartbeat and when this agent saw it change, by its own clock: clocks of two machines may differ.
type pulse struct{ beat, seen time.Time }

type pulses struct {
	clock interface{ Now() time.Time }
	seen  map[string]pulse
}

// silent reports whether a node's heartbeat has not changed for so long, as far as this agent saw.
func (p *pulses) silent(n *v1alpha1.StorageNode, after time.Duration) bool {
	now, beat := p.clock.Now(), n.Status.LastHeartbeatTime.Time
	last, known := p.seen[n.Name]
	if !known || !last.beat.Equal(beat) {
		p.seen[n.Name] = pulse{beat, now}
		return false
	}
	return now.Sub(last.seen) > after
}

// registeredAt is the UUID of the disk that is registered at a path of this node, "" when there is none.
func (k *keeper) registeredAt(path string) string {
	for _, d := range k.store.Disks.List() {
		if d.Spec.NodeName == k.node && d.Spec.Path == path {
			return d.Name
		}
	}
	return ""
}
