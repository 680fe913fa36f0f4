package provisioner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/provisioner/backup"
	"plinth.dev/plinth/provisioner/engine"
)

// copying is one attempt to write a backup.
type copying struct {
	*BackupLoop
	backup     *v1alpha1.Backup
	engine     engine.Engine
	repository *backup.Repository
	session    *backup.Session
	report     func(backup.Progress)
}

// copy writes the backup, its manifest last.
func (l *BackupLoop) copy(ctx context.Context, b *v1alpha1.Backup, r *backup.Repository, report func(backup.Progress)) (*backup.Manifest, error) {
	e, mine := l.engines.of(b.Status.DiskUUID)
	if !mine {
		return nil, backingimage.Errorf(backingimage.NotReady, "disk %s is not there%s", b.Status.DiskUUID, diskTrouble(l.store, b.Status.DiskUUID))
	}
	if err := l.engines.usable(b.Status.DiskUUID); err != nil {
		return nil, err
	}
	session, err := r.Begin(ctx, b.Spec.Full)
	if err != nil {
		return nil, err
	}
	c := &copying{BackupLoop: l, backup: b, engine: e, repository: r, session: session, report: report}
	m := &backup.Manifest{ID: string(b.UID), Name: b.Name, Labels: maps.Clone(b.Labels)}
	write := c.volume
	if b.Spec.Image != "" {
		write = c.image
	}
	if err := write(ctx, m); err != nil {
		return nil, err
	}
	if err := l.stillWanted(ctx, b); err != nil {
		return nil, err
	}
	if err := session.Finish(ctx, m); err != nil {
		return nil, err
	}
	if err := l.stillWanted(ctx, b); backingimage.Is(err, backingimage.NotFound) { // who removed it found nothing in the target yet
		return nil, errors.Join(err, r.Remove(ctx, m.ID))
	}
	return m, nil
}

// stillWanted is NotFound when the backup's object is gone or going. The API server is asked: nothing else removes what is written now.
func (l *BackupLoop) stillWanted(ctx context.Context, b *v1alpha1.Backup) error {
	now, err := l.store.Backups.Live(ctx, b.Name)
	if err == nil && (now.UID != b.UID || now.DeletionTimestamp != nil) {
		err = backingimage.Errorf(backingimage.NotFound, "backup %s was deleted", b.Name)
	}
	return err
}

// image writes the backup of an image.
func (c *copying) image(ctx context.Context, m *backup.Manifest) (err error) {
	image, err := c.store.Images.Live(ctx, c.backup.Spec.Image)
	if err != nil {
		return err
	}
	m.Taken = image.CreationTimestamp.UTC()
	m.Image, err = c.keepImage(ctx, image)
	return err
}

// volume writes the backup of a volume, of its snapshot.
func (c *copying) volume(ctx context.Context, m *backup.Manifest) error {
	status := c.backup.Status
	info, err := c.engine.StatSnapshot(ctx, status.Snapshot)
	if err != nil {
		return err
	}
	from := engine.From{Snapshot: status.Snapshot}
	file, err := c.engine.Open(ctx, from)
	if err != nil {
		return err
	}
	defer file.Close()
	m.Taken = info.Created.UTC()
	m.Volume = &backup.Volume{Name: c.backup.Spec.Volume, UID: status.VolumeUID}
	if v := status.Volume; v != nil {
		m.Volume.Asked, m.Volume.Parameters, m.Volume.Labels = v.Name, v.Parameters, status.VolumeLabels
		m.Volume.Partition, m.Volume.MkfsParams = v.Partition, v.MkfsParams
	}
	in := backup.Input{File: file, Bytes: info.Bytes}
	for _, base := range []func(context.Context, engine.From, *backup.Manifest, *backup.Input) (bool, error){c.sinceLast, c.sinceImage, c.sinceNothing} {
		if done, err := base(ctx, from, m, &in); err != nil {
			return err
		} else if done {
			break
		}
	}
	m.Content, err = c.session.Write(ctx, in, c.report)
	return err
}

// sinceLast makes the input what changed since the volume's last backup, if that and its snapshot are there.
func (c *copying) sinceLast(ctx context.Context, of engine.From, m *backup.Manifest, in *backup.Input) (bool, error) {
	if c.backup.Spec.Full {
		return false, nil
	}
	last := lastBackup(c.store.Backups.List(), c.backup)
	if last == nil {
		return false, nil
	}
	changed, err := c.engine.Extents(ctx, of, engine.From{Snapshot: last.Status.Snapshot})
	if err != nil {
		return false, backingimage.IgnoreNotFound(err)
	}
	known, err := c.repository.Backup(ctx, string(last.UID))
	if err != nil {
		return false, backingimage.IgnoreNotFound(err)
	}
	has, err := c.session.HasPages(ctx, &known.Content)
	if err == nil && has && known.Image != nil {
		has, err = c.session.HasPages(ctx, &known.Image.Content)
	}
	if err != nil || !has {
		return false, err
	}
	m.Image, in.Last, in.OverImage, in.Changed = known.Image, &known.Content, known.Image != nil, changed
	_, err = c.store.Backups.ModifyStatus(ctx, c.backup.Name, func(now *v1alpha1.Backup) { now.Status.Base = string(last.UID) })
	return true, err
}

// lastBackup is the newest backup of the same volume, in the same target and of the same disk, whose snapshot is kept; nil for none.
func lastBackup(all []*v1alpha1.Backup, b *v1alpha1.Backup) *v1alpha1.Backup {
	var last *v1alpha1.Backup
	for _, o := range all {
		s := o.Status
		if o.UID == b.UID || s.State != v1alpha1.BackupReady || s.Snapshot == "" || o.DeletionTimestamp != nil || s.TakenTime == nil ||
			o.Spec.Target != b.Spec.Target || s.VolumeUID == "" || s.VolumeUID != b.Status.VolumeUID || s.DiskUUID != b.Status.DiskUUID {
			continue
		}
		if last == nil || last.Status.TakenTime.Before(s.TakenTime) {
			last = o
		}
	}
	return last
}

// sinceImage makes the input what differs from the image that the volume began as, if that has a copy on the disk. All of the volume's
// data is read in a full backup; what is the image's is then found to be in the target.
func (c *copying) sinceImage(ctx context.Context, of engine.From, m *backup.Manifest, in *backup.Input) (bool, error) {
	if c.backup.Status.Volume == nil || c.backup.Status.Volume.Image == nil {
		return false, nil
	}
	began := c.backup.Status.Volume.Image
	image, err := c.store.Images.Live(ctx, began.Name)
	if err != nil || string(image.UID) != began.UID || image.Status.ContentDigest == "" {
		return false, backingimage.IgnoreNotFound(err)
	}
	changed, err := c.engine.Extents(ctx, of, engine.From{Image: began.UID})
	if err != nil {
		return false, backingimage.IgnoreNotFound(err)
	}
	if c.backup.Spec.Full {
		data, err := c.engine.Extents(ctx, of, engine.From{})
		if err != nil {
			return false, err
		}
		changed = union(changed, data)
	}
	in.Changed, in.OverImage = changed, true
	m.Image, err = c.keepImage(ctx, image)
	if backingimage.Is(err, backingimage.NotFound) {
		m.Image = nil
		return false, nil
	}
	return true, err
}

// sinceNothing makes the input all data.
func (c *copying) sinceNothing(ctx context.Context, of engine.From, _ *backup.Manifest, in *backup.Input) (bool, error) {
	var err error
	in.OverImage = false
	in.Changed, err = c.engine.Extents(ctx, of, engine.From{})
	return true, err
}

// union merges two sorted lists of extents.
func union(a, b []engine.Extent) []engine.Extent {
	all := append(slices.Clone(a), b...)
	slices.SortFunc(all, func(x, y engine.Extent) int { return cmp.Compare(x.Offset, y.Offset) })
	merged := all[:0]
	for _, e := range all {
		if n := len(merged); n > 0 && e.Offset <= merged[n-1].Offset+merged[n-1].Bytes {
			merged[n-1].Bytes = max(merged[n-1].Bytes, e.Offset+e.Bytes-merged[n-1].Offset)
		} else {
			merged = append(merged, e)
		}
	}
	return merged
}

// keepImage sees to it that the image's content is in the target, where all backups of its volumes share it. NotFound when it has no
// copy on the disk.
func (c *copying) keepImage(ctx context.Context, image *v1alpha1.BackingImage) (*backup.Image, error) {
	digest := image.Status.ContentDigest
	if digest == "" {
		return nil, backingimage.Errorf(backingimage.NotReady, "backing image %s is not ready yet", image.Name)
	}
	kept := &backup.Image{
		Name: image.Name, ContentDigest: digest, Checksum: cmp.Or(image.Spec.Checksum, image.Status.Checksum), Labels: maps.Clone(image.Labels),
	}
	c.keepSource(ctx, image, kept)
	digests := c.digests(image)
	if !c.backup.Spec.Full { // which looks at each block
		known, err := c.repository.FindImage(ctx, digest, digests)
		if err != nil {
			return nil, err
		}
		if known != nil {
			if has, err := c.session.HasPages(ctx, known); err != nil || has {
				kept.Content = *known
				return kept, err
			}
		}
	}
	from := engine.From{Image: string(image.UID)}
	file, err := c.engine.Open(ctx, from)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("read image %s: %w", image.Name, err)
	}
	data, err := c.engine.Extents(ctx, from, engine.From{})
	if err != nil {
		return nil, err
	}
	kept.Content, err = c.session.Write(ctx, backup.Input{File: file, Bytes: info.Size(), Changed: data, Digests: digests}, c.report)
	return kept, err
}

// keepSource writes down where an image came from, when anyone may know that. Of one that was itself restored that is what its backup says, as long as
// that is there.
func (c *copying) keepSource(ctx context.Context, image *v1alpha1.BackingImage, kept *backup.Image) {
	parameters := image.Spec.Parameters()
	if isPublic(parameters) {
		kept.SourceType, kept.SourceParameters = string(image.Spec.SourceType), parameters
	}
	if image.Spec.SourceType != v1alpha1.SourceRestore {
		return
	}
	f, err := c.repositories.imageBackup(ctx, parameters[v1alpha1.ParameterBackupURL], parameters[v1alpha1.ParameterBackupTargetName])
	if err != nil {
		klog.FromContext(ctx).V(2).Info("It is not known any more where a restored image came from first", "backingImage", image.Name, "reason", err.Error())
		return
	}
	if was := f.manifest.Image; was != nil && was.ContentDigest == kept.ContentDigest && f.origin() != nil {
		kept.SourceType, kept.SourceParameters, kept.Checksum = was.SourceType, was.SourceParameters, was.Checksum
	}
}

// isPublic reports whether source parameters may be told to whoever can read the target: a URL's query may be a secret.
func isPublic(parameters map[string]string) bool {
	raw := parameters[v1alpha1.ParameterURL]
	return source.RedactURL(raw) == raw
}

// digests are what the chunks of the image's copy on the disk must be; nil when that cannot be told.
func (c *copying) digests(image *v1alpha1.BackingImage) *manifest.Manifest {
	d, open := c.engines.disks.Get(c.backup.Status.DiskUUID)
	if !open {
		return nil
	}
	file, err := os.ReadFile(filepath.Join(d.Layout().Image(string(image.UID)), disk.ManifestFile))
	if err != nil {
		return nil
	}
	m, err := manifest.Parse(file)
	if err != nil || m.ContentDigest() != image.Status.ContentDigest {
		return nil
	}
	return m
}
