package object

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"gocloud.dev/blob/fileblob"
	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/source"
)

// openDirectory opens a directory as a bucket. It must be there: made by us, it would be on the wrong filesystem whenever the one that
// belongs there is not mounted.
func openDirectory(_ context.Context, l Location, _ source.Options) (Bucket, error) {
	info, err := directoryAt(l.Path)
	if err != nil {
		return Bucket{}, err
	}
	b, err := fileblob.OpenBucket(l.Path, &fileblob.Options{Metadata: fileblob.MetadataDontWrite, NoTempDir: true, DirFileMode: 0o700})
	if err != nil {
		return Bucket{}, fmt.Errorf("open directory %s: %w", l.Path, err)
	}
	return Bucket{
		Bucket:   b,
		Classify: func(ctx context.Context, err error) error { return classifyFile(ctx, l.Path, err) },
		Flush:    func() error { return syncFilesystem(l.Path) },
		List:     directory(l.Path).list,
		Has:      directory(l.Path).has,
		Made:     directory(l.Path).share(info.Mode()),
	}, nil
}

// share gives a group what is made in its directory: one that its members write to and whose group is that of what is in it (setgid), as Kubernetes
// makes of a volume with an fsGroup. There the controllers and the agents are different users. Nil for other directories, which are one user's.
func (d directory) share(mode os.FileMode) func(*os.File) error {
	const group = 0o070
	if mode&os.ModeSetgid == 0 || mode&group != group {
		return nil
	}
	base := filepath.Clean(string(d))
	return func(f *os.File) error {
		for folder := filepath.Dir(f.Name()); len(folder) > len(base); folder = filepath.Dir(folder) {
			info, err := os.Stat(folder)
			if err != nil {
				return err
			}
			if info.Mode()&group == group {
				break // and those above it
			}
			if err := os.Chmod(folder, 0o770|os.ModeSetgid); err != nil && !errors.Is(err, unix.EPERM) { // another user's, who is about to
				return err
			}
		}
		return f.Chmod(0o660)
	}
}

// directory lists what is in it. The bucket's own list leaves out what it cannot read, and a list that lacks backups is one by which their
// blocks are garbage; here that is an error.
type directory string

func (d directory) list(ctx context.Context, prefix string, each func(Object) error) error {
	if _, err := directoryAt(string(d)); err != nil {
		return err
	}
	folder, _ := path.Split(prefix)
	return d.walk(ctx, folder, prefix, each)
}

// has implements Bucket.Has: what is mounted at a directory can be unmounted at any time, and leaves one that is empty.
func (d directory) has(name string) error {
	_, err := os.Stat(filepath.Join(string(d), name))
	if err == nil {
		return nil
	}
	if _, err := directoryAt(string(d)); err != nil {
		return err
	}
	if errors.Is(err, os.ErrNotExist) {
		return backingimage.Errorf(backingimage.Precondition, "directory %s has no %s any more; mount what belongs there, or, to begin anew, remove the backup target and add it again", d, name)
	}
	return classifyErrno(err)
}

// walk lists a folder, which is empty or ends with a slash.
func (d directory) walk(ctx context.Context, folder, prefix string, each func(Object) error) error {
	entries, err := os.ReadDir(filepath.Join(string(d), folder))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := folder + e.Name()
		if err := ctx.Err(); err != nil {
			return err
		}
		if e.IsDir() {
			if name += "/"; !strings.HasPrefix(name, prefix) && !strings.HasPrefix(prefix, name) {
				continue
			}
			if err := d.walk(ctx, name, prefix, each); err != nil {
				return err
			}
			continue
		}
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted since
		}
		if err != nil {
			return err
		}
		if err := each(Object{Name: name, Bytes: info.Size(), Modified: info.ModTime()}); err != nil {
			return err
		}
	}
	return nil
}

func directoryAt(path string) (os.FileInfo, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, backingimage.Errorf(backingimage.Precondition, "there is no directory %s; mount what belongs there, or make it", path)
	case err != nil:
		return nil, classifyErrno(err)
	case !info.IsDir():
		return nil, backingimage.Errorf(backingimage.Precondition, "%s is not a directory; correct the URL", path)
	}
	return info, nil
}

// syncFilesystem writes all that is cached of the directory's filesystem; with NFS, to the server.
func syncFilesystem(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(dir.Fd())))
}

func classifyFile(ctx context.Context, path string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if _, gone := directoryAt(path); gone != nil {
		return gone
	}
	return classifyErrno(err)
}

// classifyErrno gives an error of a directory's a Kind. What is not known to last may pass: the server of an NFS is away now and then.
func classifyErrno(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return backingimage.Errorf(backingimage.Full, "%w: make room there, or remove backups", err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.EROFS):
		return backingimage.Errorf(backingimage.Precondition, "%w: let the user that plinth runs as read and write there", err)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG):
		return backingimage.Errorf(backingimage.Corrupt, "%w: something else is where an object must be; remove it", err)
	}
	return backingimage.Errorf(backingimage.NotReady, "%w", err)
}
