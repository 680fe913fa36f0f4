package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/manifest"
)

// BadChunks is the error, within one of Kind Corrupt, that names the chunks of a copy whose bytes are not what the
// manifest says.
type BadChunks struct{ Chunks []int64 }

func (e *BadChunks) Error() string {
	const most = 8
	var list []string
	for _, index := range e.Chunks[:min(len(e.Chunks), most)] {
		list = append(list, fmt.Sprintf("%d (from byte %d)", index, index*manifest.ChunkBytes))
	}
	if more := len(e.Chunks) - most; more > 0 {
		list = append(list, fmt.Sprintf("%d more", more))
	}
	return "chunks differ from the manifest: " + strings.Join(list, ", ")
}

// ScrubOptions of a Scrub; the zero value reads as fast as it goes.
type ScrubOptions struct {
	// Pace is called before so many bytes are read, from two goroutines, and returns when they may be; its error ends the Scrub.
	Pace func(ctx context.Context, bytes int64) error
	// Found is called with each bad chunk as soon as it is found, one at a time; its error ends the Scrub.
	Found func(chunk int64) error
}

// Verify reads all bytes of a finished copy again, from the disk and not from memory, and compares them with the
// manifest. Chunks that differ or cannot be read are Corrupt, named by a *BadChunks. Errors of Load come first.
func Verify(ctx context.Context, dir string, report func(Progress)) error {
	return Scrub(ctx, dir, ScrubOptions{}, report)
}

// Scrub is Verify with options.
func Scrub(ctx context.Context, dir string, o ScrubOptions, report func(Progress)) error {
	_, m, err := load(dir)
	if err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(dir, disk.ImageFile))
	if err != nil {
		return fmt.Errorf("verify copy: %w", err)
	}
	defer f.Close()
	progress := newMeter(clock.RealClock{}, report)
	progress.step(Verifying, 0, m.Bytes())
	bad, err := o.verifyContent(ctx, f, m, progress)
	if err != nil {
		return fmt.Errorf("verify copy in %s: %w", dir, err)
	}
	if len(bad) > 0 {
		return damaged(dir, "%w", &BadChunks{bad})
	}
	progress.at(m.Bytes())
	return nil
}

func (o ScrubOptions) verifyContent(ctx context.Context, f *os.File, m *manifest.Manifest, progress *meter) ([]int64, error) {
	var mu sync.Mutex
	var bad []int64
	err := eachChunk(ctx, m, func(index int64, buffer []byte) error {
		offset, length := m.Span(index)
		progress.at(offset)
		want := m.Digest(index)
		if want.IsZero() && isHole(f, offset, length) {
			return nil
		}
		if o.Pace != nil {
			if err := o.Pace(ctx, length); err != nil {
				return err
			}
		}
		good, err := verifyChunk(f, want, buffer[:length], offset)
		if err != nil || good {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		bad = append(bad, index)
		if o.Found != nil {
			return o.Found(index)
		}
		return nil
	})
	slices.Sort(bad)
	return bad, err
}

// verifyChunk compares one chunk. What the disk refuses to give (EIO) is as bad as what it gives wrong.
func verifyChunk(f *os.File, want manifest.Digest, chunk []byte, offset int64) (good bool, err error) {
	dropCache(f, offset, int64(len(chunk)))
	defer dropCache(f, offset, int64(len(chunk)))
	_, err = f.ReadAt(chunk, offset)
	if errors.Is(err, unix.EIO) || errors.Is(err, unix.EBADMSG) || errors.Is(err, io.EOF) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read at byte %d: %w", offset, err)
	}
	return manifest.Sum(chunk) == want, nil
}

// nextData is where the next stored byte at or after an offset is; -1 when there is none.
func nextData(f *os.File, offset int64) (int64, error) {
	data, err := unix.Seek(int(f.Fd()), offset, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return -1, nil
	}
	if err != nil {
		return -1, fmt.Errorf("look for data in %s: %w", f.Name(), err)
	}
	return data, nil
}

// isHole reports whether nothing is stored there; false when that cannot be found out.
func isHole(f *os.File, offset, length int64) bool {
	data, err := unix.Seek(int(f.Fd()), offset, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return true
	}
	return err == nil && data >= offset+length
}

// dropCache makes the kernel forget what it has in memory of a range, so that a read comes from the disk, and a
// verification does not push out what others use. It is a wish: what is dirty or mapped stays.
func dropCache(f *os.File, offset, length int64) {
	_ = unix.Fadvise(int(f.Fd()), offset, length, unix.FADV_DONTNEED)
}
