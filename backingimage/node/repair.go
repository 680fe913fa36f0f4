package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/manifest"
)

// inspect looks at a copy's files: what it is, and which of its chunks are known to be damaged, by the mark beside it or, where
// none could be made, by the status. Errors of fetch.Load and fetch.Damage.
func (a *Agent) inspect(ctx context.Context, c *v1alpha1.BackingImageCopy, d *disk.Disk) (fetch.Record, []int64, error) {
	dir := d.Layout().Image(c.Spec.ImageUID)
	record, err := fetch.Load(dir)
	if err != nil {
		return record, nil, err
	}
	damage, err := fetch.Damage(dir)
	if err != nil || len(damage) > 0 || len(c.Status.BadChunks) == 0 {
		return record, damage, err
	}
	now, err := a.store.Copies.Live(ctx, c.Name) // a repair's end may not have come back yet
	if err != nil || len(now.Status.BadChunks) == 0 {
		return record, nil, backingimage.IgnoreNotFound(err)
	}
	if err := fetch.MarkDamaged(dir, now.Status.BadChunks...); err != nil {
		return record, nil, fmt.Errorf("mark damaged chunks: %w", err)
	}
	return record, now.Status.BadChunks, nil
}

// beginRepair starts to repair a damaged copy, unless that has to wait or cannot help. While the copy is being verified there
// may be more to come; the end of that brings us back.
func (a *Agent) beginRepair(ctx context.Context, name string, d *disk.Disk, record fetch.Record, damage []int64) (time.Duration, error) {
	if a.scrubs.running(name) {
		return 0, nil
	}
	c, image, wait, err := a.due(ctx, name)
	if c == nil || image == nil {
		return wait, err
	}
	r := &repair{agent: a, copy: c, disk: d, image: image, record: record, damage: damage, asked: havers(c, image)}
	waits := a.fetches.start(name, fetchKind{}, r.run, klog.FromContext(ctx))
	if waits == "" {
		return 0, nil
	}
	return waitRetry, a.report(ctx, name, func(s *v1alpha1.BackingImageCopyStatus) {
		s.State, s.Reason, s.BadChunks = v1alpha1.CopyPending, backingimage.Corrupt.String(), listed(damage)
		s.Message = fmt.Sprintf("%s; the repair %s", damageText(damage), waits)
	})
}

// repair is the repair of one copy.
type repair struct {
	agent  *Agent
	copy   *v1alpha1.BackingImageCopy
	disk   *disk.Disk
	image  *v1alpha1.BackingImage
	record fetch.Record
	damage []int64
	asked  map[string]bool // see havers
}

// havers are the disks with other ready copies of a copy's image, as the image has them.
func havers(c *v1alpha1.BackingImageCopy, image *v1alpha1.BackingImage) map[string]bool {
	list := map[string]bool{}
	for disk, f := range image.Status.DiskFileStatusMap {
		if disk != c.Spec.DiskUUID && f.State == v1alpha1.CopyReady {
			list[disk] = true
		}
	}
	return list
}

// hope reports whether a damaged copy, whose repair failed for good, may be repaired after all: by a copy that has become ready
// since. It is asked with every change of the image, and forgets those that are not ready any more.
func (a *Agent) hope(c *v1alpha1.BackingImageCopy, image *v1alpha1.BackingImage) bool {
	if len(c.Status.BadChunks) == 0 {
		return false
	}
	now := havers(c, image)
	before, _ := a.scrubs.hopeless.Load(c.Name)
	asked, _ := before.(map[string]bool)
	for disk := range now {
		if !asked[disk] {
			return true
		}
	}
	a.scrubs.hopeless.Store(c.Name, now)
	return false
}

// run repairs the copy and reports what came of it, in a goroutine of its own, like Agent.fetch.
func (r *repair) run(ctx context.Context) {
	a, name := r.agent, r.copy.Name
	defer a.wakeAll()
	defer a.fetches.finish(name)
	log := klog.FromContext(ctx).WithValues("backingImage", r.image.Name, "disk", r.disk.UUID())
	ctx = klog.NewContext(ctx, log)
	write := func(change func(*v1alpha1.BackingImageCopyStatus)) {
		if err := a.report(ctx, name, change); err != nil && ctx.Err() == nil {
			log.Error(err, "Cannot report a repair")
		}
	}
	write(func(s *v1alpha1.BackingImageCopyStatus) { r.describe(s, fetch.Progress{Step: fetch.Repairing}, 0) })
	meter := newMeter(a.options.Clock, a.options.ProgressInterval, r.describe, write)
	var mended map[string][]int64
	_, err := guarded(ctx, func(ctx context.Context, report func(fetch.Progress)) (_ fetch.Result, err error) {
		mended, err = fetch.Repair(ctx, r.job(report), report)
		return r.record.Result, err
	}, meter.progress)
	meter.stop()
	a.options.Metrics.repaired(mended)
	if err == nil {
		err = publish(r.disk, r.copy.Spec.ImageUID) // closes the seal, and removes what was fetched for this
	}
	switch {
	case ctx.Err() != nil:
	case err == nil:
		if _, complete := a.scrubs.complete.LoadAndDelete(name); !complete {
			a.scrubs.unread.Store(name, true) // where something was damaged, more may be
		}
		write(func(s *v1alpha1.BackingImageCopyStatus) { r.mended(s, mended) })
	case r.gone():
		// what cannot be repaired is made anew
	default:
		a.scrubs.hopeless.Store(name, r.asked)
		if err := a.failed(ctx, name, r.explain(err)); err != nil {
			log.Error(err, "Cannot report the end of a repair; will begin anew")
		}
	}
}

// gone reports whether there is nothing left to repair.
func (r *repair) gone() bool {
	_, err := fetch.Load(r.disk.Layout().Image(r.copy.Spec.ImageUID))
	return backingimage.Is(err, backingimage.NotFound) || backingimage.Is(err, backingimage.Corrupt)
}

func (r *repair) job(report func(fetch.Progress)) fetch.RepairJob {
	return fetch.RepairJob{
		Dir: r.disk.Layout().Image(r.copy.Spec.ImageUID), Givers: r.givers(report),
		Change: func(change func(*os.File) error) error { return r.disk.ChangeImage(r.copy.Spec.ImageUID, change) },
	}
}

// describe is the status of a copy that is being repaired.
func (r *repair) describe(s *v1alpha1.BackingImageCopyStatus, p fetch.Progress, rate int64) {
	s.State, s.Reason, s.NextTryTime, s.BadChunks = v1alpha1.CopyInProgress, backingimage.Corrupt.String(), nil, listed(r.damage)
	s.Message = damageText(r.damage) + "; " + p.Step
	if p.Trouble != "" {
		s.Message += " is interrupted, and will go on by itself: " + p.Trouble
	}
	count(s, p, rate)
}

// mended is the status of a copy after its repair.
func (r *repair) mended(s *v1alpha1.BackingImageCopyStatus, mended map[string][]int64) {
	ready(s, r.record.Result)
	s.VerifyResult = "repaired " + chunksText(r.damage)
	if len(mended) > 0 {
		var from []string
		for _, giver := range slices.Sorted(maps.Keys(mended)) {
			from = append(from, giversInWords[giver])
		}
		s.VerifyResult += " from " + strings.Join(from, " and ")
	}
}

// explain says which bytes are lost and what can be done, when nobody has them.
func (r *repair) explain(err error) error {
	var left *fetch.BadChunks
	if !errors.As(err, &left) {
		return err
	}
	advice := "it is tried again"
	if backingimage.Terminal(err) {
		advice = fmt.Sprintf("delete the image and create it anew from a good source; or, when the cause is gone: plinth image verify %s", r.image.Name)
	}
	return backingimage.Errorf(backingimage.KindOf(err), "bytes %s of the content are lost on this disk: %w; volumes that were cloned from this copy may have the same damage; %s",
		byteRanges(left.Chunks, r.record.VirtualBytes), err, advice)
}

// suspected marks damage that an attempt to copy from a ready copy found in it, and turns it into something to wait for: it is
// going to be repaired. Other errors stay as they are.
func (a *Agent) suspected(ctx context.Context, name, dir string, err error) error {
	var damage *fetch.BadChunks
	if !backingimage.Is(err, backingimage.Corrupt) || !errors.As(err, &damage) {
		return err
	}
	a.mark(ctx, name, dir, damage.Chunks...)
	return backingimage.Errorf(backingimage.NotReady, "what it is copied from is damaged, and is going to be repaired: %w", err)
}

// mark marks damage that was found outside of a verification.
func (a *Agent) mark(ctx context.Context, name, dir string, chunks ...int64) {
	log := klog.FromContext(ctx)
	log.Error(nil, "Found damaged chunks", "copy", name, "chunks", chunks)
	a.options.Metrics.badChunks.Add(float64(len(chunks)))
	if err := fetch.MarkDamaged(dir, chunks...); err != nil {
		log.Error(err, "Cannot mark damaged chunks", "directory", dir)
	}
	a.loop.Enqueue(name)
}

// listed is as many damaged chunks as a status lists.
func listed(chunks []int64) []int64 { return chunks[:min(len(chunks), maxBadListed)] }

// damageText is like "chunks 12, 40 and 3 more are damaged".
func damageText(chunks []int64) string {
	if len(chunks) == 1 {
		return chunksText(chunks) + " is damaged"
	}
	return chunksText(chunks) + " are damaged"
}

// chunksText is like "chunks 12, 40 and 3 more".
func chunksText(chunks []int64) string {
	const most = 8
	if len(chunks) == 1 {
		return fmt.Sprintf("chunk %d", chunks[0])
	}
	var list []string
	for _, index := range chunks[:min(len(chunks), most)] {
		list = append(list, fmt.Sprint(index))
	}
	text := "chunks " + strings.Join(list, ", ")
	if more := len(chunks) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// byteRanges is like "0-2097151, 6291456-8388607": where sorted chunks of a content of so many bytes are.
func byteRanges(chunks []int64, bytes int64) string {
	const most = 8
	var list []string
	for i := 0; i < len(chunks); {
		end := i + 1
		for end < len(chunks) && chunks[end] == chunks[end-1]+1 {
			end++
		}
		list = append(list, fmt.Sprintf("%d-%d", chunks[i]*manifest.ChunkBytes, min((chunks[end-1]+1)*manifest.ChunkBytes, bytes)-1))
		i = end
	}
	if more := len(list) - most; more > 0 {
		list = append(list[:most], fmt.Sprintf("%d more", more))
	}
	return strings.Join(list, ", ")
}
