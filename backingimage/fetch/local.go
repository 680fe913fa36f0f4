package fetch

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/manifest"
)

// CopyLocal makes a copy from a finished one on another disk of this machine. Every chunk is compared with the manifest
// on its way: a damaged one is Corrupt and says which; damage that is known already is NotReady. to is a staging directory as of Job.Dir; a killed CopyLocal is
// begun anew by the next.
func CopyLocal(ctx context.Context, from, to string, report func(Progress)) (Result, error) {
	progress := newMeter(clock.RealClock{}, report)
	result, err := copyLocal(ctx, from, to, progress)
	if err == nil {
		return result, nil
	}
	err = ended(ctx, err, to, progress.progress.Total)
	return Result{}, fmt.Errorf("copy image from %s: %w", from, err)
}

func copyLocal(ctx context.Context, from, to string, progress *meter) (Result, error) {
	record, m, err := load(from)
	if err == nil {
		err = undamaged(from)
	}
	if err != nil {
		return Result{}, err
	}
	staged := staging(to)
	if err := staged.make(); err != nil {
		return Result{}, err
	}
	if done, err := Load(to); err == nil && done.ImageUID == record.ImageUID && done.ContentDigest == record.ContentDigest {
		return done.Result, staged.clean()
	}
	if err := staged.cleanExcept(); err != nil {
		return Result{}, err
	}
	progress.step(Copying, 0, m.Bytes())
	if err := copyContent(ctx, from, staged, m, progress); err != nil {
		return Result{}, err
	}
	return staged.seal(record, m)
}

func copyContent(ctx context.Context, from string, to staging, m *manifest.Manifest, progress *meter) error {
	in, err := os.Open(filepath.Join(from, disk.ImageFile))
	if err != nil {
		return fmt.Errorf("read copy: %w", err)
	}
	defer in.Close()
	content, err := newContentFile(to.path(disk.ImageFile), m.Bytes(), new(manifest.Builder))
	if err != nil {
		return err
	}
	defer content.file.Close()
	err = eachChunk(ctx, m, func(index int64, buffer []byte) error {
		offset, length := m.Span(index)
		progress.at(offset)
		if m.Digest(index).IsZero() {
			return nil
		}
		chunk := buffer[:length]
		if _, err := in.ReadAt(chunk, offset); err != nil {
			return fmt.Errorf("read chunk %d: %w", index, err)
		}
		if err := content.store(format.Chunk{Index: index, Data: chunk}); err != nil {
			return err
		}
		if content.digests.Digest(index) != m.Digest(index) {
			return damaged(from, "%w", &BadChunks{[]int64{index}})
		}
		return nil
	})
	if err != nil {
		return err
	}
	return settle(content.file, m.Bytes())
}
