package fetch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/manifest"
)

// Giver gives the bytes of an image's chunks.
type Giver struct {
	// Name of what it gives from, for people: "another copy", "a peer".
	Name string
	// Chunk gives a chunk by its index. Its bytes are compared with the digest by who asked. An error of Kind NotFound or Corrupt is about this chunk,
	// any other is about all of them.
	Chunk func(ctx context.Context, index int64, want manifest.Digest) ([]byte, error)
}

// RepairJob is one copy whose damaged chunks are to be written anew.
type RepairJob struct {
	// Dir of the finished copy.
	Dir string
	// Change lets its argument write to the copy's content, once for each chunk; see disk.Disk.ChangeImage.
	Change func(change func(content *os.File) error) error
	// Givers of chunks, asked in their order.
	Givers []Giver
}

// Repair writes the damaged chunks of a copy anew, those that Damage says and no other. A chunk is mended when its bytes are
// on the disk, were read again from there, and are what the manifest says; only then it leaves the mark, so that a kill at
// any instruction leaves a copy that is whole, or one that is known to be damaged. A chunk that is right by now is left alone.
//
// mended has the chunks that each Giver gave, by its name. Errors: Corrupt, with a *BadChunks of those that are left, when
// nobody has them and trying again cannot help; NotReady when it may; Full; those of Load and of ctx.
func Repair(ctx context.Context, job RepairJob, report func(Progress)) (mended map[string][]int64, err error) {
	_, m, err := load(job.Dir)
	if err != nil {
		return nil, err
	}
	bad, err := Damage(job.Dir)
	if err != nil || len(bad) == 0 {
		return nil, err
	}
	if last := bad[len(bad)-1]; last >= m.Chunks() {
		return nil, damaged(job.Dir, "its mark names chunk %d of %d", last, m.Chunks())
	}
	content, err := os.Open(filepath.Join(job.Dir, disk.ImageFile))
	if err != nil {
		return nil, fmt.Errorf("repair copy: %w", err)
	}
	defer content.Close()
	r := &repair{job: job, manifest: m, content: content, bad: bad, mended: map[string][]int64{}, progress: newMeter(clock.RealClock{}, report)}
	r.progress.step(Repairing, 0, int64(len(bad))*manifest.ChunkBytes)
	if err := r.run(ctx); err != nil {
		return r.mended, describeFull(err, job.Dir, int64(len(bad))*manifest.ChunkBytes)
	}
	return r.mended, nil
}

// repair is a Repair at work.
type repair struct {
	job      RepairJob
	manifest *manifest.Manifest
	content  *os.File // for reading
	bad      []int64  // still
	mended   map[string][]int64
	progress *meter
}

func (r *repair) run(ctx context.Context) error {
	if err := r.recheck(); err != nil {
		return err
	}
	var reasons []error
	for _, giver := range append([]Giver{zeros}, r.job.Givers...) {
		if len(r.bad) == 0 {
			return nil
		}
		err := r.ask(ctx, giver)
		var write *writeError
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &write):
			return err
		case err != nil && !errors.Is(err, errNotZero):
			reasons = append(reasons, fmt.Errorf("%s: %w", giver.Name, err))
		}
	}
	if len(r.bad) == 0 {
		return nil
	}
	return r.givenUp(reasons)
}

// givenUp is the error when nobody has the chunks that are left. As long as one who was asked may have them later, it is NotReady.
func (r *repair) givenUp(reasons []error) error {
	kind := backingimage.Corrupt
	for _, reason := range reasons {
		switch {
		case backingimage.Is(reason, backingimage.Full):
			return reason
		case !backingimage.Terminal(reason):
			kind = backingimage.NotReady
		}
	}
	because := errors.Join(reasons...)
	if because == nil {
		because = errors.New("nobody has them")
	}
	return backingimage.Errorf(kind, "%w; they cannot be repaired: %w", &BadChunks{r.bad}, because)
}

// Zeros is the name of the Giver of chunks of zeros, which nobody needs to be asked for.
const Zeros = "manifest"

var zeros = Giver{Name: Zeros, Chunk: func(_ context.Context, _ int64, want manifest.Digest) ([]byte, error) {
	if !want.IsZero() {
		return nil, errNotZero
	}
	return make([]byte, manifest.ChunkBytes), nil
}}

var errNotZero = backingimage.Errorf(backingimage.NotFound, "the chunk is not zero")

// recheck takes from the list what is right by now: an earlier repair was killed after it had written it, perhaps before it
// was on the disk.
func (r *repair) recheck() error {
	if err := r.content.Sync(); err != nil {
		return fmt.Errorf("sync copy: %w", err)
	}
	for _, index := range slices.Clone(r.bad) {
		good, err := r.reread(index)
		if err != nil {
			return err
		}
		if !good {
			continue
		}
		if err := r.done(index); err != nil {
			return err
		}
	}
	return nil
}

// ask mends what a giver gives. It goes on after an error that is about one chunk, and returns the first.
func (r *repair) ask(ctx context.Context, giver Giver) error {
	var first error
	for _, index := range slices.Clone(r.bad) {
		err := r.mend(ctx, giver, index)
		if err == nil {
			r.mended[giver.Name] = append(r.mended[giver.Name], index)
			continue
		}
		if first == nil {
			first = err
		}
		if !backingimage.Is(err, backingimage.NotFound) && !backingimage.Is(err, backingimage.Corrupt) {
			return err
		}
	}
	return first
}

// mend writes one chunk anew.
func (r *repair) mend(ctx context.Context, giver Giver, index int64) error {
	want := r.manifest.Digest(index)
	offset, length := r.manifest.Span(index)
	chunk, err := giver.Chunk(ctx, index, want)
	if err != nil {
		return err
	}
	if want.IsZero() {
		chunk = chunk[:min(length, int64(len(chunk)))]
	}
	if int64(len(chunk)) != length || manifest.Sum(chunk) != want {
		return backingimage.Errorf(backingimage.Corrupt, "chunk %d of it is not what the manifest says", index)
	}
	klog.FromContext(ctx).Info("Writing a damaged chunk anew; volumes that were cloned before keep what they were given", "directory", r.job.Dir, "chunk", index, "offset", offset, "from", giver.Name)
	err = r.job.Change(func(content *os.File) error { return rewrite(content, format.Chunk{Index: index, Data: chunk}, offset) })
	if err != nil {
		return &writeError{fmt.Errorf("write chunk %d anew: %w", index, err)}
	}
	good, err := r.reread(index)
	if err != nil {
		return &writeError{err}
	}
	if !good {
		return &writeError{backingimage.Errorf(backingimage.Corrupt, "chunk %d was written anew and differs again: the medium is failing; replace the disk", index)}
	}
	return r.done(index)
}

// writeError is an error of the disk that the copy is on, which no other giver can help.
type writeError struct{ error }

func (e *writeError) Unwrap() error { return e.error }

// rewrite replaces a chunk on the disk. What was there is given up first, so that blocks of zeros become holes, and nothing has
// to be read.
func rewrite(content *os.File, chunk format.Chunk, offset int64) error {
	const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	if err := unix.Fallocate(int(content.Fd()), punch, offset, int64(len(chunk.Data))); err != nil {
		return fmt.Errorf("punch a hole: %w", err)
	}
	c := &contentFile{file: content, digests: new(manifest.Builder)}
	if err := c.store(chunk); err != nil {
		return err
	}
	return content.Sync()
}

// reread compares a chunk, as it is on the disk, with the manifest.
func (r *repair) reread(index int64) (good bool, err error) {
	offset, length := r.manifest.Span(index)
	return verifyChunk(r.content, r.manifest.Digest(index), make([]byte, length), offset)
}

// done takes a chunk that is right off the mark.
func (r *repair) done(index int64) error {
	r.bad = slices.DeleteFunc(r.bad, func(i int64) bool { return i == index })
	r.progress.at(r.progress.progress.Total - int64(len(r.bad))*manifest.ChunkBytes)
	if err := unmark(r.job.Dir, index); err != nil {
		return &writeError{err}
	}
	return nil
}

// ChunksOf gives the chunks of another finished copy, in a directory of this machine: those that its manifest has as they are wanted.
func ChunksOf(dir string) func(ctx context.Context, index int64, want manifest.Digest) ([]byte, error) {
	return func(_ context.Context, index int64, want manifest.Digest) ([]byte, error) {
		_, m, err := load(dir)
		if err != nil {
			return nil, backingimage.Errorf(backingimage.NotFound, "no copy to take from: %w", err)
		}
		if index >= m.Chunks() || m.Digest(index) != want {
			return nil, backingimage.Errorf(backingimage.NotFound, "the copy in %s has other content", dir)
		}
		f, err := os.Open(filepath.Join(dir, disk.ImageFile))
		if err != nil {
			return nil, fmt.Errorf("read copy: %w", err)
		}
		defer f.Close()
		offset, length := m.Span(index)
		chunk := make([]byte, length)
		if _, err := f.ReadAt(chunk, offset); err != nil {
			return nil, backingimage.Errorf(backingimage.Corrupt, "read chunk %d of the copy in %s: %w", index, dir, err)
		}
		return chunk, nil
	}
}
