package provisioner

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"sync"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/provisioner/backup"
	"plinth.dev/plinth/provisioner/backup/object"
)

// Repositories opens what BackupTarget objects describe. A repository stays open while neither its target nor its secret changes, so that
// all of a process's backups and restores share the target's limits.
type Repositories struct {
	store       *store.Store
	openers     object.Openers
	access      source.Options // without a credential
	credentials credential.Reader

	mu   sync.Mutex
	open map[string]*opened // by the target's name
}

type opened struct {
	busy       chan struct{}      // has an element while it is being opened, which may take minutes
	as         [sha256.Size]byte  // what it was opened with
	repository *backup.Repository // nil: it was not
}

// NewRepositories makes Repositories. access says how servers are asked; credentials may be nil.
func NewRepositories(s *store.Store, openers object.Openers, access source.Options, credentials credential.Reader) *Repositories {
	return &Repositories{store: s, openers: openers, access: access, credentials: credentials, open: map[string]*opened{}}
}

// Open returns the repository of a target. NotFound when there is no such target, or nothing was ever backed up there; Precondition when
// it cannot be used as it is described; NotReady while it does not answer.
func (r *Repositories) Open(ctx context.Context, target string) (*backup.Repository, error) {
	return r.with(ctx, target, backup.Open)
}

// Make is Open, and makes a repository where there is none.
func (r *Repositories) Make(ctx context.Context, target string) (*backup.Repository, error) {
	return r.with(ctx, target, backup.OpenOrMake)
}

func (r *Repositories) with(ctx context.Context, target string, open func(context.Context, *object.Store, backup.Options) (*backup.Repository, error)) (*backup.Repository, error) {
	t, err := r.store.Targets.Live(ctx, target)
	if err != nil {
		return nil, err
	}
	secret, err := r.secret(ctx, t)
	if err != nil {
		return nil, fmt.Errorf("backup target %s: %w", target, err)
	}
	as := identity(t, secret)
	o := r.of(target)
	select {
	case o.busy <- struct{}{}:
		defer func() { <-o.busy }()
	case <-ctx.Done():
		return nil, fmt.Errorf("backup target %s: another call is opening it: %w", target, ctx.Err())
	}
	if o.repository != nil && o.as == as {
		return o.repository, nil
	}
	repository, err := OpenTarget(ctx, t, secret, r.openers, r.access, open)
	if err != nil {
		return nil, fmt.Errorf("backup target %s: %w", target, err)
	}
	o.as, o.repository = as, repository
	return repository, nil
}

func (r *Repositories) of(target string) *opened {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open[target] == nil {
		r.open[target] = &opened{busy: make(chan struct{}, 1)}
	}
	return r.open[target]
}

// secret is the content of the target's secret, nil when it names none.
func (r *Repositories) secret(ctx context.Context, t *v1alpha1.BackupTarget) (map[string][]byte, error) {
	if t.Spec.Secret == "" {
		return nil, nil
	}
	ref, err := credential.NewRef(t.Spec.SecretNamespace, t.Spec.Secret)
	if err != nil {
		return nil, err
	}
	if r.credentials == nil {
		return nil, backingimage.Errorf(backingimage.Precondition, "secret %s cannot be read: this process has no secrets", ref)
	}
	return r.credentials.Get(ctx, ref)
}

// identity changes with whatever a repository is opened with.
func identity(t *v1alpha1.BackupTarget, secret map[string][]byte) [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%s %d", t.UID, t.Generation)
	for _, key := range slices.Sorted(maps.Keys(secret)) {
		fmt.Fprintf(h, " %q=%q", key, secret[key])
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// OpenTarget opens what a target describes, with the content of its secret. open is backup.Open or backup.OpenOrMake.
func OpenTarget(ctx context.Context, t *v1alpha1.BackupTarget, secret map[string][]byte, openers object.Openers, access source.Options,
	open func(context.Context, *object.Store, backup.Options) (*backup.Repository, error)) (*backup.Repository, error) {
	l, err := object.ParseLocation("spec.url", t.Spec.URL)
	if err != nil {
		return nil, err
	}
	if access.Credential, err = credential.Parse(t.Spec.Secret, secret); err != nil {
		return nil, err
	}
	limits := object.Limits{UploadBytes: t.Spec.UploadBytesPerSecond, DownloadBytes: t.Spec.DownloadBytesPerSecond}
	s, err := openers.Open(ctx, l, access, object.Options{Limits: limits})
	if err != nil {
		return nil, err
	}
	r, err := open(ctx, s, backup.Options{Key: access.Credential.Backup, Concurrency: int(t.Spec.Concurrency)})
	if err != nil {
		s.Close()
	}
	return r, err
}

// found is a backup in a target.
type found struct {
	target     *v1alpha1.BackupTarget
	repository *backup.Repository
	manifest   *backup.Manifest
}

// find finds a backup in a target by its ID or its name; volume is the name of its volume, "" for any.
func (r *Repositories) find(ctx context.Context, target, name, volume string) (*found, error) {
	t, err := r.store.Targets.Live(ctx, target)
	if err != nil {
		return nil, err
	}
	repository, err := r.Open(ctx, target)
	if err != nil {
		return nil, err
	}
	m, err := repository.Find(ctx, name, volume)
	if err != nil {
		return nil, err
	}
	return &found{t, repository, m}, nil
}

// findURL finds the backup of a URL, in the target that the URL begins with.
func (r *Repositories) findURL(ctx context.Context, field, raw string) (*found, error) {
	address, name, err := backup.ParseURL(field, raw)
	if err != nil {
		return nil, err
	}
	l, err := object.ParseLocation(field, address)
	if err != nil {
		return nil, err
	}
	targets, err := r.store.Targets.LiveList(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range targets {
		if is, err := object.ParseLocation("spec.url", t.Spec.URL); err == nil && is == l {
			return r.find(ctx, t.Name, name, "")
		}
	}
	return nil, backingimage.Errorf(backingimage.Precondition, "%s: no backup target has the URL %s; make one with: plinth target add NAME --url %s", field, l, l)
}

// Image implements node.Restorer.
func (r *Repositories) Image(ctx context.Context, parameters map[string]string) (fetch.ImageBackup, error) {
	f, err := r.imageBackup(ctx, parameters[v1alpha1.ParameterBackupURL], parameters[v1alpha1.ParameterBackupTargetName])
	if err != nil {
		return fetch.ImageBackup{}, err
	}
	is := f.manifest.Image
	if is == nil {
		return fetch.ImageBackup{}, backingimage.Errorf(backingimage.Invalid, "the backup %s in %s is of a volume that began without an image", f.manifest.ID, f.repository)
	}
	width, err := concurrency(parameters[v1alpha1.ParameterConcurrentLimit])
	found := fetch.ImageBackup{
		What: "image " + is.Name + " of backup " + f.manifest.ID + " in " + f.repository.String(), Bytes: is.Content.Bytes, ContentDigest: is.ContentDigest, Download: f.origin(), Checksum: is.Checksum,
		Elsewhere: parameters[v1alpha1.ParameterRestoreFrom] == v1alpha1.RestoreFromSource,
		Fill: func(ctx context.Context, to *os.File, digests *manifest.Builder, again bool, report func(int64)) error {
			return f.repository.RestoreImage(ctx, f.manifest, to, backup.Restoring{
				Compare: again, Concurrency: width, Digests: digests, Report: func(p backup.Progress) { report(p.DoneBytes) },
			})
		},
	}
	if found.Elsewhere && found.Download == nil {
		return found, noOrigin(f)
	}
	return found, err
}

// origin are the parameters of the download that the backup's image came from; nil when it was none, or nobody may know, or it takes a
// secret: whoever writes to the target must not choose to whom this cluster shows its secrets.
func (f *found) origin() map[string]string {
	is := f.manifest.Image
	if is.SourceType != string(v1alpha1.SourceDownload) || is.SourceParameters[v1alpha1.ParameterSecret] != "" {
		return nil
	}
	return is.SourceParameters
}

// noOrigin is the refusal to fetch an image again of which nobody knows where it came from.
func noOrigin(f *found) error {
	return backingimage.Errorf(backingimage.Precondition, "the backup %s does not say where its image %s can be downloaded again without a secret; restore it from the backup, or make the image yourself and name it with backingImage", f.manifest.ID, f.manifest.Image.Name)
}

// concurrency reads the parameter that says how many blocks are brought at once; 0 when it says nothing.
func concurrency(text string) (int, error) {
	n, err := strconv.Atoi(cmp.Or(text, "0"))
	if err != nil || n < 0 || n > maxConcurrency {
		return 0, backingimage.Errorf(backingimage.Invalid, "%s: %q is no number of blocks to be brought at once; give 1 to %d", v1alpha1.ParameterConcurrentLimit, text, maxConcurrency)
	}
	return n, nil
}

const maxConcurrency = 64

// imageBackup finds the backup of a URL in the target that is named, or else in the one that has the URL.
func (r *Repositories) imageBackup(ctx context.Context, raw, target string) (*found, error) {
	if target == "" {
		return r.findURL(ctx, v1alpha1.ParameterBackupURL, raw)
	}
	_, name, err := backup.ParseURL(v1alpha1.ParameterBackupURL, raw)
	if err != nil {
		return nil, err
	}
	return r.find(ctx, target, name, "")
}
