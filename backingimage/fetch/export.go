package fetch

import (
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sync/errgroup"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/durable"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/source"
)

// takenFile says that the content beside it is the whole of a volume at one moment. It is written after the content is.
const takenFile = "taken"

// Taken reports whether an Export in the staging directory has its point in time: it needs the volume no longer.
func Taken(dir string) bool {
	staged := staging(dir)
	_, err := os.Stat(staged.path(takenFile))
	if err == nil {
		_, err = os.Stat(staged.path(disk.ImageFile))
	}
	return err == nil
}

// Export makes a copy of an image of a volume's content. take makes the file at a path such, at one moment, and durable. It
// is called once for each copy: an Export that is killed after it goes on with what was taken, and one that is killed
// before it has nothing.
//
// Only what is allocated is read, for the chunks' digests; the file as a whole is read once more if the job asks
// for a checksum, which no publisher gave.
//
// Errors: those of take; Corrupt when checksum or content digest are not what they must be; Full; those of ctx.
func Export(ctx context.Context, job NearJob, take func(ctx context.Context, to string) error, report func(Progress)) (Result, error) {
	return near(ctx, job, report, "export", func(staged staging, want source.Checksum, progress *meter) (Result, *manifest.Manifest, error) {
		if err := takeOnce(ctx, staged, take); err != nil {
			return Result{}, nil, err
		}
		f, err := os.Open(staged.path(disk.ImageFile))
		if err != nil {
			return Result{}, nil, fmt.Errorf("read what was taken: %w", err)
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return Result{}, nil, fmt.Errorf("read what was taken: %w", err)
		}
		progress.say(func(p *Progress) {
			p.Step, p.Total, p.Format, p.SourceBytes, p.VirtualBytes = Verifying, info.Size(), format.Raw, info.Size(), info.Size()
		})
		m, err := digestAllocated(ctx, f, info.Size(), progress, func(offset, length int64) { dropCache(f, offset, length) })
		if err != nil {
			return Result{}, nil, err
		}
		sum, err := checkedSum(ctx, f, info.Size(), want, job.Source)
		return Result{
			Format: format.Raw, SourceBytes: info.Size(), VirtualBytes: info.Size(), Checksum: sum, ContentDigest: m.ContentDigest(),
		}, m, err
	})
}

// takeOnce takes the point in time unless an earlier attempt did.
func takeOnce(ctx context.Context, staged staging, take func(ctx context.Context, to string) error) error {
	if Taken(string(staged)) {
		return nil
	}
	if err := staged.cleanExcept(); err != nil {
		return err
	}
	if err := take(ctx, staged.path(disk.ImageFile)); err != nil {
		return err
	}
	return durable.WriteFile(staged.path(takenFile), nil, 0o600)
}

// Digest computes the manifest of a sparse file's content. Chunks that nothing is stored in are not read. What is read stays in memory
// as far as there is room: it is going to be read again. report is told how many of the bytes are done with; it may be nil.
func Digest(ctx context.Context, f *os.File, bytes int64, report func(done int64)) (*manifest.Manifest, error) {
	progress := newMeter(clock.RealClock{}, func(p Progress) {
		if report != nil {
			report(p.Bytes)
		}
	})
	return digestAllocated(ctx, f, bytes, progress, func(int64, int64) {})
}

// digestAllocated computes the digests of a sparse file's chunks; those that nothing is stored in are not read. read
// is told of each that was.
func digestAllocated(ctx context.Context, f *os.File, bytes int64, progress *meter, read func(offset, length int64)) (*manifest.Manifest, error) {
	digests := new(manifest.Builder)
	group, ctx := errgroup.WithContext(ctx)
	indexes := make(chan int64)
	group.Go(func() error {
		defer close(indexes)
		return allocated(ctx, f, bytes, indexes)
	})
	for range 2 {
		group.Go(func() error {
			buffer := make([]byte, manifest.ChunkBytes)
			for i := range indexes {
				offset := i * manifest.ChunkBytes
				progress.at(offset)
				chunk := buffer[:min(manifest.ChunkBytes, bytes-offset)]
				if _, err := f.ReadAt(chunk, offset); err != nil {
					return fmt.Errorf("read chunk %d: %w", i, err)
				}
				read(offset, int64(len(chunk)))
				digests.Add(i, chunk)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	progress.at(bytes)
	return digests.Manifest(bytes), nil
}

// allocated gives the indexes of the chunks in which something is stored, in order.
func allocated(ctx context.Context, f *os.File, bytes int64, indexes chan<- int64) error {
	for offset := int64(0); offset < bytes; {
		data, err := nextData(f, offset)
		if err != nil {
			return err
		}
		if data < 0 || data >= bytes {
			return nil
		}
		index := data / manifest.ChunkBytes
		select {
		case indexes <- index:
		case <-ctx.Done():
			return ctx.Err()
		}
		offset = (index + 1) * manifest.ChunkBytes
	}
	return nil
}

// checkedSum is the SHA-512 of the file when its checksum is asked for and right, "" when none is asked for.
func checkedSum(ctx context.Context, f *os.File, bytes int64, want source.Checksum, from string) (string, error) {
	if want.IsZero() {
		return "", nil
	}
	sums := newHashes(wanted{published: want}, true)
	if err := sums.read(ctx, f, bytes); err != nil {
		return "", err
	}
	if err := sameSum(want, sums.hex(want.Algorithm), from); err != nil {
		return "", err
	}
	return sums.hex(source.SHA512), nil
}

// read feeds the first bytes of a file to the hashes.
func (h hashes) read(ctx context.Context, f *os.File, bytes int64) error {
	writers := make([]io.Writer, 0, len(h))
	for _, sum := range h {
		writers = append(writers, sum)
	}
	all, buffer := io.MultiWriter(writers...), make([]byte, manifest.ChunkBytes)
	for offset := int64(0); offset < bytes; offset += manifest.ChunkBytes {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := buffer[:min(manifest.ChunkBytes, bytes-offset)]
		if _, err := f.ReadAt(part, offset); err != nil {
			return fmt.Errorf("compute checksum: %w", err)
		}
		all.Write(part)
	}
	return nil
}
