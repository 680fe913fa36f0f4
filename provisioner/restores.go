package provisioner

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/parallel"
	"plinth.dev/plinth/provisioner/backup"
	"plinth.dev/plinth/provisioner/engine"
)

// restores are the volumes that are being restored from backups on this node, each by a goroutine that goes on until it is done or cannot be.
type restores struct {
	mu      sync.Mutex
	running map[string]*restore // by volume
	slots   chan struct{}       // has an element for each that is being worked on
}

// restore is one of them.
type restore struct {
	cancel context.CancelFunc
	ended  chan struct{}

	mu   sync.Mutex
	text string // how far it is
	done bool
	err  error
}

// maxRestores is how many volumes a node restores at once.
const maxRestores = 2

func newRestores() *restores {
	return &restores{running: map[string]*restore{}, slots: make(chan struct{}, maxRestores)}
}

// of returns the volume's restore, which is begun if there is none.
func (r *restores) of(ctx context.Context, volume string, work func(ctx context.Context, say func(string)) error, changed func()) *restore {
	r.mu.Lock()
	defer r.mu.Unlock()
	if x, ok := r.running[volume]; ok {
		return x
	}
	ctx, cancel := context.WithCancel(ctx)
	x := &restore{cancel: cancel, ended: make(chan struct{}), text: "begins"}
	r.running[volume] = x
	go func() {
		defer close(x.ended)
		err := r.run(ctx, work, func(text string) { x.say(text); changed() })
		x.mu.Lock()
		x.done, x.err = true, err
		x.mu.Unlock()
		changed()
	}()
	return x
}

// Pauses between attempts.
const (
	firstRestorePause = time.Second
	lastRestorePause  = time.Minute
)

// run makes attempts until one succeeds or fails for good. A target that cannot be used as it is now, such as a directory that is not
// mounted, can be mended under a volume that waits.
func (r *restores) run(ctx context.Context, work func(ctx context.Context, say func(string)) error, say func(string)) error {
	if len(r.slots) == cap(r.slots) {
		say("waits for other restores of this node")
	}
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for pause := firstRestorePause; ; pause = min(2*pause, lastRestorePause) {
		err := parallel.Guard(ctx, func() error { return work(ctx, say) })
		if err == nil || ctx.Err() != nil || backingimage.Terminal(err) && !backingimage.Is(err, backingimage.Precondition) {
			return err
		}
		klog.FromContext(ctx).Info("Restore was interrupted and will go on", "why", err.Error())
		say("is interrupted, and goes on by itself: " + err.Error())
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (x *restore) say(text string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.text = text
}

// now is how the restore stands.
func (x *restore) now() (text string, done bool, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.text, x.done, x.err
}

// forget lets a restore that is done go.
func (r *restores) forget(volume string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.running, volume)
}

// stopAll ends all restores and returns when they have ended.
func (r *restores) stopAll() {
	r.mu.Lock()
	volumes := slices.Collect(maps.Keys(r.running))
	r.mu.Unlock()
	for _, volume := range volumes {
		r.stop(volume)
	}
}

// stop ends a volume's restore, if there is one, and returns when it has ended.
func (r *restores) stop(volume string) {
	r.mu.Lock()
	x := r.running[volume]
	delete(r.running, volume)
	r.mu.Unlock()
	if x != nil {
		x.cancel()
		<-x.ended
	}
}

// restore makes the volume of its backup: nil when it is made, NotReady with the progress until then.
func (l *VolumeLoop) restore(ctx context.Context, e engine.Engine, volume engine.Volume, v *v1alpha1.Volume) error {
	if l.sources.Repositories == nil {
		return backingimage.Errorf(backingimage.Unsupported, "this agent cannot read backup targets")
	}
	if v.Spec.Image != nil {
		if err := l.imageReady(ctx, v); err != nil {
			return err
		}
	}
	x := l.restores.of(l.running, v.Name, func(ctx context.Context, say func(string)) error { return l.fill(ctx, e, volume, v, say) }, func() { l.loop.Enqueue(v.Name) })
	text, done, err := x.now()
	if !done {
		return backingimage.Errorf(backingimage.NotReady, "restore of backup %s from target %s %s", v.Spec.Restore.Backup, v.Spec.Restore.Target, text)
	}
	l.restores.forget(v.Name)
	if err != nil {
		return backingimage.Errorf(backingimage.KindOf(err), "restore of backup %s from target %s: %w", v.Spec.Restore.Backup, v.Spec.Restore.Target, err)
	}
	return nil
}

// fill is one attempt of a restore.
func (l *VolumeLoop) fill(ctx context.Context, e engine.Engine, volume engine.Volume, v *v1alpha1.Volume, say func(string)) error {
	r, err := l.sources.Repositories.Open(ctx, v.Spec.Restore.Target)
	if err != nil {
		return err
	}
	m, err := r.Backup(ctx, v.Spec.Restore.Backup)
	if err != nil {
		return err
	}
	from, err := l.under(ctx, v, m)
	if err != nil {
		return err
	}
	p := &pace{clock: l.clock}
	reporting, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		p.run(reporting, func(now backup.Progress, rate, left int64) { say("is on its way: " + progressText(now, rate, left)) })
	})
	defer wg.Wait()
	defer stop()
	say("is on its way")
	return e.Fill(ctx, volume, from, func(f *os.File, again bool) error {
		// The volume may be larger than what the backup gives.
		if err := r.Restore(ctx, m, f, backup.Restoring{WithImage: from == engine.From{}, Compare: again, Report: p.see}); err != nil {
			return err
		}
		if err := f.Truncate(volume.Bytes); err != nil {
			return fmt.Errorf("make the volume %d bytes long: %w", volume.Bytes, err)
		}
		return nil
	})
}

// under is the image whose copy on the disk the volume begins as; none when all of it comes from the backup. Another content than the
// backup was made over is refused.
func (l *VolumeLoop) under(ctx context.Context, v *v1alpha1.Volume, m *backup.Manifest) (engine.From, error) {
	if v.Spec.Image == nil {
		return engine.From{}, nil
	}
	image, err := l.store.Images.Live(ctx, v.Spec.Image.Name)
	if err != nil {
		return engine.From{}, err
	}
	if image.Status.ContentDigest == "" { // the controller writes it a moment after the copy is ready
		return engine.From{}, backingimage.Errorf(backingimage.NotReady, "the content digest of backing image %s is not known yet", image.Name)
	}
	if m.Image == nil || image.Status.ContentDigest != m.Image.ContentDigest {
		return engine.From{}, backingimage.Errorf(backingimage.Conflict, "backing image %s does not have the content that the backup was made over; delete the volume and restore it over another image, or over none", image.Name)
	}
	return engine.From{Image: v.Spec.Image.UID}, nil
}
