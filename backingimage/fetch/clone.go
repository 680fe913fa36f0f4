package fetch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/source"
)

// Clone makes a copy of an image whose content is that of another image's finished copy, in directory from. On one disk
// the two share their blocks, and no byte is read; to another disk of this machine the content is copied, each chunk compared
// with the manifest. What is known of the other's source file is true of the clone as well.
//
// Errors: NotReady when from holds no whole copy (any more), or one that is known to be damaged; Corrupt when the other's source file has another checksum than
// the job asks for; Unsupported when that cannot be found out; Full; those of CopyLocal and of ctx.
func Clone(ctx context.Context, from string, job NearJob, report func(Progress)) (Result, error) {
	return near(ctx, job, report, "clone", func(staged staging, want source.Checksum, progress *meter) (Result, *manifest.Manifest, error) {
		record, m, err := load(from)
		if backingimage.Is(err, backingimage.NotFound) || backingimage.Is(err, backingimage.Corrupt) {
			err = backingimage.Errorf(backingimage.NotReady, "its copy in %s is gone or damaged, and is made anew: %w", from, err)
		}
		if err == nil {
			err = undamaged(from)
		}
		if err == nil {
			err = sameFile(ctx, from, record.Result, want, job.Source)
		}
		if err == nil {
			err = staged.cleanExcept()
		}
		if err != nil {
			return Result{}, nil, err
		}
		progress.step(Copying, 0, m.Bytes())
		err = reflink(filepath.Join(from, disk.ImageFile), staged.path(disk.ImageFile))
		if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EOPNOTSUPP) {
			err = copyContent(ctx, from, staged, m, progress)
		}
		return record.Result, m, err
	})
}

// reflink makes the file to, whole and durable, share all blocks of the file from.
func reflink(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("reflink: %w", err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("reflink: %w", err)
	}
	defer out.Close()
	if err := unix.IoctlFileClone(int(out.Fd()), int(in.Fd())); err != nil {
		return fmt.Errorf("reflink %s: %w", from, err)
	}
	if err := out.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", to, err)
	}
	return nil
}

// sameFile checks that the file which a finished copy was made of has the wanted checksum: by what was recorded, or, where
// the content is that file, by reading it.
func sameFile(ctx context.Context, dir string, r Result, want source.Checksum, from string) error {
	switch {
	case want.IsZero():
		return nil
	case want.Algorithm == source.SHA512 && r.Checksum != "":
		return sameSum(want, r.Checksum, from)
	case r.Format != format.Raw:
		return backingimage.Errorf(backingimage.Unsupported, "checksum: %s has the SHA-512 %s of its source file and no other, which %s cannot be compared with; give that one, or none", from, r.Checksum, want)
	}
	f, err := os.Open(filepath.Join(dir, disk.ImageFile))
	if err != nil {
		return fmt.Errorf("check the clone's source: %w", err)
	}
	defer f.Close()
	sums := newHashes(wanted{published: want}, false)
	if err := sums.read(ctx, f, r.SourceBytes); err != nil {
		return err
	}
	return sameSum(want, sums.hex(want.Algorithm), from)
}

func sameSum(want source.Checksum, is, from string) error {
	if want.Hex == is {
		return nil
	}
	return backingimage.Errorf(backingimage.Corrupt, "checksum: the file of %s has %s:%s, but the image asks for %s; correct the checksum, or leave it out", from, want.Algorithm, is, want)
}
