// Package object is the object store that backups are kept in, as far as they need one: small objects are written whole, read whole
// or by their first bytes, listed and deleted.
//
// A Store is a bucket of gocloud.dev/blob behind a URL, below the URL's path. Which buckets there are is decided by who wires the
// program: an Opener for each scheme, of which this package has the one for directories (file://), NFS among them. Those whose drivers are
// large are opened by package apart in a program of their own.
//
// What a Store adds to the bucket: errors have a Kind, name the object and show nothing that a server said; what may pass is tried
// again a few times, with growing pauses; a call that makes no progress ends; bytes are counted, and limited where a limit is set; an
// answer is never read beyond what the object may have. It relies on the bucket for this: an object is written whole or not at
// all, and whoever reads or lists after a write or a deletion has returned sees it. S3, GCS, Azure and local directories hold to that.
package object

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync/atomic"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
	"golang.org/x/time/rate"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
)

// Bucket is an open bucket and what is particular to it.
type Bucket struct {
	*blob.Bucket
	// Classify gives an error of the bucket's a Kind and a remedy; Precondition when the bucket itself is not there. ctx is that of
	// the call.
	Classify func(ctx context.Context, err error) error
	// Flush makes everything written survive a power loss of the place, where writing alone does not; nil where it does.
	Flush func() error
	// List gives all objects whose name begins with prefix, in order; nil where the bucket's own list does.
	List func(ctx context.Context, prefix string, each func(Object) error) error
	// Has is nil while the bucket has an object, else why it is not the one that is meant: for buckets that another can take the place of,
	// as when a directory is unmounted. May be nil.
	Has func(name string) error
	// Made is called with each new file of a directory's bucket before it is written; it may be nil.
	Made func(*os.File) error
	// Sending prepares what as gives, as blob.WriterOptions.BeforeWrite has it, for the server to compare the object that it gets; nil where
	// that happens anyway.
	Sending func(data []byte, as func(any) bool)
	// Close is called after the bucket was closed; it may be nil.
	Close func() error
}

// Limits of what a Store takes of the network. The zero Limits are none.
type Limits struct {
	UploadBytes   int64 // a second
	DownloadBytes int64 // a second
}

// Options of a Store.
type Options struct {
	Limits   Limits
	Attempts int           // of each call, the first included; 5 by default
	Pause    time.Duration // before the second attempt, doubled before each further one; 500 ms by default
	Timeout  time.Duration // of one attempt; 2 minutes by default
	Clock    clock.Clock
}

func (o *Options) validate() {
	if o.Attempts == 0 {
		o.Attempts = 5
	}
	if o.Pause == 0 {
		o.Pause = 500 * time.Millisecond
	}
	if o.Timeout == 0 {
		o.Timeout = 2 * time.Minute
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
}

// Store is where objects are. It is safe for concurrent use.
type Store struct {
	bucket   Bucket
	shown    string // its URL
	anchor   string // see Anchor
	options  Options
	up, down *rate.Limiter // nil for no limit

	sent, received atomic.Int64
}

// New makes a Store of a bucket; shown is its URL as errors name it.
func New(b Bucket, shown string, o Options) *Store {
	o.validate()
	return &Store{bucket: b, shown: shown, options: o, up: limiter(o.Limits.UploadBytes), down: limiter(o.Limits.DownloadBytes)}
}

// burstBytes is the most that one call takes of a limit at once.
const burstBytes = 4 << 20

func limiter(bytesPerSecond int64) *rate.Limiter {
	if bytesPerSecond <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(bytesPerSecond), burstBytes)
}

// take waits until so many bytes may pass.
func take(ctx context.Context, l *rate.Limiter, bytes int) error {
	for l != nil && bytes > 0 {
		part := min(bytes, burstBytes)
		if err := l.WaitN(ctx, part); err != nil {
			return err
		}
		bytes -= part
	}
	return nil
}

// Anchor names an object that the bucket has from now on, before anybody else uses the store: where it is missing, the bucket is another one,
// of which nothing is read, in which nothing is written, and where nothing proves to be missing.
func (s *Store) Anchor(name string) { s.anchor = name }

// anchored is nil where the anchor is; Precondition.
func (s *Store) anchored() error {
	if s.anchor == "" || s.bucket.Has == nil {
		return nil
	}
	return s.bucket.Has(s.anchor)
}

// String is the store's URL.
func (s *Store) String() string { return s.shown }

// Sent and Received are the bytes of objects that went and came, attempts that failed left out.
func (s *Store) Sent() int64     { return s.sent.Load() }
func (s *Store) Received() int64 { return s.received.Load() }

// Close closes the bucket.
func (s *Store) Close() error {
	err := s.bucket.Bucket.Close()
	if s.bucket.Close != nil {
		err = errors.Join(err, s.bucket.Close())
	}
	return err
}

// Get reads an object whole. NotFound; Corrupt when it has more than limit bytes.
func (s *Store) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	var data []byte
	err := s.try(ctx, "read", name, func(ctx context.Context) (err error) {
		data, _, err = s.read(ctx, name, -1, limit)
		return err
	})
	return data, err
}

// Head reads an object's first bytes, and its size. NotFound.
func (s *Store) Head(ctx context.Context, name string, bytes int64) (first []byte, size int64, err error) {
	err = s.try(ctx, "read", name, func(ctx context.Context) (err error) {
		first, size, err = s.read(ctx, name, bytes, bytes)
		return err
	})
	return first, size, err
}

// read makes one attempt; bytes are -1 for all.
func (s *Store) read(ctx context.Context, name string, bytes, limit int64) (data []byte, size int64, err error) {
	r, err := s.bucket.NewRangeReader(ctx, name, 0, bytes, nil)
	if err != nil {
		return nil, 0, err
	}
	defer r.Close()
	size = r.Size()
	if bytes < 0 && size > limit {
		return nil, 0, backingimage.Errorf(backingimage.Corrupt, "it has %d bytes, and such an object has at most %d", size, limit)
	}
	want := size
	if bytes >= 0 {
		want = min(bytes, size)
	}
	data = make([]byte, max(want, 0))
	if n, err := io.ReadFull(r, data); err != nil {
		return nil, 0, backingimage.Errorf(backingimage.NotReady, "%d bytes came of %d", n, want)
	}
	s.received.Add(int64(len(data)))
	return data, size, take(ctx, s.down, len(data))
}

// Put writes an object, in place of one that is there. It survives a power loss when Flush has returned after it.
func (s *Store) Put(ctx context.Context, name string, data []byte) error {
	return s.put(ctx, name, data, false, false)
}

// PutSynced is Put of an object that survives a power loss, as one and whole, when it returns.
func (s *Store) PutSynced(ctx context.Context, name string, data []byte) error {
	return s.put(ctx, name, data, true, false)
}

// PutNew is PutSynced of an object that must not be there. Conflict when it is; a store that cannot tell writes it.
func (s *Store) PutNew(ctx context.Context, name string, data []byte) error {
	return s.put(ctx, name, data, true, true)
}

func (s *Store) put(ctx context.Context, name string, data []byte, synced, fresh bool) error {
	if err := take(ctx, s.up, len(data)); err != nil {
		return err
	}
	err := s.try(ctx, "write", name, func(ctx context.Context) error {
		err := s.write(ctx, name, data, synced, fresh)
		if fresh && gcerrors.Code(err) == gcerrors.FailedPrecondition {
			return backingimage.Errorf(backingimage.Conflict, "there is one")
		}
		if gcerrors.Code(err) == gcerrors.NotFound && backingimage.Is(s.missing(ctx, err), backingimage.NotFound) { // while it is written by another
			return backingimage.Errorf(backingimage.NotReady, "the server does not find what it is sent")
		}
		return err
	})
	if err == nil && synced {
		err = s.Flush()
	}
	return err
}

func (s *Store) write(ctx context.Context, name string, data []byte, synced, fresh bool) error {
	var file *os.File // of a directory's bucket
	o := &blob.WriterOptions{ContentType: "application/octet-stream", IfNotExist: fresh, BeforeWrite: func(as func(any) bool) error {
		if as(&file) && s.bucket.Made != nil {
			return s.bucket.Made(file)
		}
		return nil
	}}
	if s.bucket.Flush == nil { // the bucket sends from where the bytes are, without a copy
		if err := s.bucket.Upload(ctx, name, bytes.NewReader(data), o); err != nil {
			return err
		}
		s.sent.Add(int64(len(data)))
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := s.bucket.NewWriter(ctx, name, o)
	if err != nil {
		return err
	}
	_, err = w.Write(data)
	if err == nil && synced && file != nil {
		err = file.Sync()
	}
	if err != nil {
		cancel() // so that what is there is not an object
		w.Close()
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	s.sent.Add(int64(len(data)))
	return nil
}

// Flush makes every Put that returned survive a power loss.
func (s *Store) Flush() error {
	if s.bucket.Flush == nil {
		return nil
	}
	if err := s.bucket.Flush(); err != nil {
		return backingimage.Errorf(backingimage.NotReady, "make what was written to %s durable: %w", s.shown, err)
	}
	return nil
}

// Delete removes an object; one that is not there is success.
func (s *Store) Delete(ctx context.Context, name string) error {
	err := s.try(ctx, "delete", name, func(ctx context.Context) error { return s.bucket.Delete(ctx, name) })
	return backingimage.IgnoreNotFound(err)
}

// Modified is when an object was written, by the store's clock. NotFound.
func (s *Store) Modified(ctx context.Context, name string) (time.Time, error) {
	var at time.Time
	err := s.try(ctx, "look at", name, func(ctx context.Context) error {
		a, err := s.bucket.Attributes(ctx, name)
		if err == nil {
			at = a.ModTime
		}
		return err
	})
	return at, err
}

// Object is one of a list.
type Object struct {
	Name     string
	Bytes    int64
	Modified time.Time // by the store's clock
}

// listPage is how many objects are asked for at once.
const listPage = 1000

// List calls each with every object whose name begins with prefix, in order of the names. What is written or deleted meanwhile may be
// in it or not.
func (s *Store) List(ctx context.Context, prefix string, each func(Object) error) error {
	if s.bucket.List != nil {
		err := s.anchored()
		if err == nil {
			err = s.bucket.List(ctx, prefix, each)
		}
		if err == nil { // the whole list was the meant one's
			err = s.anchored()
		}
		if err != nil {
			return s.classifyList(ctx, prefix, err)
		}
		return nil
	}
	token := blob.FirstPageToken
	for len(token) > 0 {
		var page []*blob.ListObject
		err := s.try(ctx, "list", prefix, func(ctx context.Context) error {
			objects, next, err := s.bucket.ListPage(ctx, token, listPage, &blob.ListOptions{Prefix: prefix})
			if err == nil {
				page, token = objects, next
			}
			return err
		})
		if err != nil {
			return err
		}
		for _, o := range page {
			if err := each(Object{Name: o.Key, Bytes: o.Size, Modified: o.ModTime}); err != nil {
				return err
			}
		}
	}
	return nil
}

// classifyList leaves the errors of whom the objects are given to alone.
func (s *Store) classifyList(ctx context.Context, prefix string, err error) error {
	var classified *backingimage.Error
	if errors.As(err, &classified) || ctx.Err() != nil {
		return err
	}
	err = s.bucket.Classify(ctx, err)
	return backingimage.Errorf(backingimage.KindOf(err), "list %s in %s: %w", prefix, s.shown, err)
}

// try makes attempts until one succeeds, cannot, or they are used up.
func (s *Store) try(ctx context.Context, action, name string, attempt func(context.Context) error) error {
	pause := s.options.Pause
	last := errNoAnswer
	for n := 1; ; n++ {
		err := s.once(ctx, attempt)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return s.ended(ctx, action, name, last)
		}
		last = err
		if !backingimage.Is(err, backingimage.NotReady) || n >= s.options.Attempts {
			return backingimage.Errorf(backingimage.KindOf(err), "%s %s in %s: %w", action, name, s.shown, err)
		}
		select {
		case <-s.options.Clock.After(pause):
		case <-ctx.Done():
			return s.ended(ctx, action, name, last)
		}
		pause *= 2
	}
}

var errNoAnswer = errors.New("there was no answer")

// ended is the error of a call whose context is over: when its time was, with what kept it from being done.
func (s *Store) ended(ctx context.Context, action, name string, last error) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return backingimage.Errorf(backingimage.NotReady, "%s %s in %s: %w", action, name, s.shown, last)
	}
	return ctx.Err()
}

func (s *Store) once(ctx context.Context, attempt func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, s.options.Timeout, errTimeout(s.options.Timeout))
	defer cancel()
	err := s.anchored()
	if err == nil {
		err = attempt(ctx)
	}
	if away := s.anchored(); away != nil { // whatever it did was done elsewhere
		err = away
	}
	var classified *backingimage.Error
	switch {
	case err == nil, errors.As(err, &classified):
		return err
	case gcerrors.Code(err) == gcerrors.NotFound:
		return s.missing(ctx, err)
	}
	return s.bucket.Classify(ctx, err)
}

// missing is the error of an object that is not there, or of a bucket that is not.
func (s *Store) missing(ctx context.Context, err error) error {
	if classified := s.bucket.Classify(ctx, err); backingimage.Is(classified, backingimage.Precondition) {
		return classified
	}
	return backingimage.Errorf(backingimage.NotFound, "there is no such object")
}

func errTimeout(after time.Duration) error {
	return backingimage.Errorf(backingimage.NotReady, "there was no answer within %s", after)
}
