package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk/direct"
	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/parallel"
)

// Restoring says how a content is brought back.
type Restoring struct {
	// WithImage brings the image's blocks too, into a file that is empty or that Compare is true of. Otherwise the file holds the
	// image's content already, and gets what differs.
	WithImage bool
	// Compare says that the file may hold part of the result, from an attempt that was cut: what is right in it stays.
	Compare bool
	// Concurrency is how many blocks are on their way at once; that of the repository when 0.
	Concurrency int
	// Digests, unless nil, get the digest of each block that is not zeros.
	Digests *manifest.Builder
	Report  func(Progress) // may be nil; called often, from any goroutine; must not block
}

// Restore writes a backup's content into a file, which has its size then, is sparse, and survives a power loss when Restore has
// returned nil. Each block is proven before it is written. Corrupt when an object is missing or damaged; Full; the file is unfit for use
// after any error, and Restore can be called for it again with Compare.
func (r *Repository) Restore(ctx context.Context, m *Manifest, f *os.File, o Restoring) error {
	if err := f.Truncate(m.Bytes()); err != nil {
		return fmt.Errorf("make the file %d bytes long: %w", m.Bytes(), err)
	}
	x := &restoring{repository: r, file: f, direct: direct.NewWriter(f), options: o, total: m.Bytes()}
	defer x.direct.Close()
	if o.Concurrency <= 0 {
		x.options.Concurrency = r.width
	}
	if err := x.run(ctx, m); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("make the restored content durable: %w", full(err))
	}
	return nil
}

// restoring is one Restore.
type restoring struct {
	repository *Repository
	file       *os.File
	direct     *direct.Writer // of the file
	options    Restoring

	total int64
	done  atomic.Int64
}

func (x *restoring) run(ctx context.Context, m *Manifest) error {
	group, ctx := parallel.WithContext(ctx)
	jobs := make(chan wanted)
	group.Go(func() error {
		defer close(jobs)
		all := joined{give: func(w wanted) error {
			select {
			case jobs <- w:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}}
		if err := x.repository.entries(ctx, m, x.options.WithImage, x.options.Compare, all.add, x.progress); err != nil {
			return err
		}
		return all.flush()
	})
	for range x.options.Concurrency {
		group.Go(func() error { return x.work(ctx, jobs) })
	}
	return group.Wait()
}

func (x *restoring) progress(bytes int64) {
	done := x.done.Add(bytes)
	if x.options.Report != nil {
		x.options.Report(Progress{TotalBytes: x.total, DoneBytes: done})
	}
}

func (x *restoring) work(ctx context.Context, jobs <-chan wanted) error {
	buffer := direct.Buffer(BlockBytes)
	for w := range jobs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := x.block(ctx, w, buffer); err != nil {
			return err
		}
		x.progress(w.length)
	}
	return nil
}

// block brings one block, unless the file has it.
func (x *restoring) block(ctx context.Context, w wanted, buffer []byte) error {
	if x.options.Compare && !w.id.IsZero() {
		here := buffer[:w.length]
		if n, _ := x.file.ReadAt(here, w.offset); n == len(here) && x.repository.keys.sum(here) == w.id {
			x.digest(w, here)
			return nil
		}
	}
	var content []byte
	if !w.id.IsZero() {
		var err error
		if content, err = x.repository.fetch(ctx, kindBlock, w.id, buffer[:0]); err != nil {
			return err
		}
		if int64(len(content)) != w.length {
			return backingimage.Errorf(backingimage.Corrupt, "%s in %s has %d bytes, not the %d of the block at byte %d", nameOf(kindBlock, w.id), x.repository, len(content), w.length, w.offset)
		}
	}
	if !x.options.WithImage || x.options.Compare || w.id.IsZero() {
		if err := punch(x.file, w.offset, w.length); err != nil {
			return fmt.Errorf("clear the block at byte %d: %w", w.offset, full(err))
		}
	}
	x.digest(w, content)
	return x.write(content, w.offset)
}

// digest keeps the digest of a block, whose ID it is where nothing is encrypted.
func (x *restoring) digest(w wanted, content []byte) {
	switch {
	case x.options.Digests == nil || w.id.IsZero():
	case x.repository.Encrypted():
		x.options.Digests.Add(w.offset/BlockBytes, content)
	default:
		x.options.Digests.Set(w.offset/BlockBytes, manifest.Digest(w.id))
	}
}

// holeBytes is the size of the pieces of zeros that stay holes, and their alignment.
const holeBytes = 64 << 10

// write writes what is not zeros.
func (x *restoring) write(p []byte, at int64) error {
	for len(p) > 0 {
		n, zero := piece(p)
		if !zero {
			if _, err := x.direct.WriteAt(p[:n], at); err != nil {
				return fmt.Errorf("write at byte %d: %w", at, full(err))
			}
		}
		p, at = p[n:], at+int64(n)
	}
	return nil
}

// piece is how many bytes at p's beginning are zeros, or are not, in whole pieces.
func piece(p []byte) (n int, zero bool) {
	zero = manifest.AllZero(p[:min(holeBytes, len(p))])
	for n < len(p) {
		end := min(n+holeBytes, len(p))
		if manifest.AllZero(p[n:end]) != zero {
			break
		}
		n = end
	}
	return n, zero
}

func punch(f *os.File, offset, bytes int64) error {
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, bytes)
}

// full gives an error of a disk without room its Kind.
func full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return backingimage.Errorf(backingimage.Full, "%w; make room on the disk", err)
	}
	return err
}
