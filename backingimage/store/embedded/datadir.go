package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage/store/join"
)

// layout names what is in the data directory.
type layout struct {
	root       string
	kubeconfig string
	private    string
	lock       string
	token      string
	joining    string
	tls        string
	address    string
	socket     string
	etcd       string
	unfinished string
}

// maxSocketPath is the longest path that the kernel binds a Unix socket to, in bytes: sun_path less its final zero.
const maxSocketPath = len(unix.RawSockaddrUnix{}.Path) - 1

func newLayout(dir string) (layout, error) {
	if dir == "" {
		return layout{}, invalid("data directory: it is empty; name a directory")
	}
	root, err := filepath.Abs(dir)
	if err != nil {
		return layout{}, fmt.Errorf("find data directory %s: %w", dir, err)
	}
	private := filepath.Join(root, "control-plane")
	l := layout{
		root:       root,
		kubeconfig: filepath.Join(root, "kubeconfig"),
		private:    private,
		lock:       filepath.Join(private, "lock"),
		token:      filepath.Join(private, "token"),
		joining:    join.DirectoryBelow(root),
		tls:        filepath.Join(private, "tls.pem"),
		address:    filepath.Join(private, "address"),
		socket:     filepath.Join(private, "etcd.sock"),
		etcd:       filepath.Join(private, "etcd"),
		unfinished: filepath.Join(private, "etcd.unfinished"),
	}
	if over := len(l.socket) - maxSocketPath; over > 0 {
		return layout{}, invalid("data directory %s: its socket %s is %d bytes long and the kernel allows %d; choose a data directory with a path of at most %d bytes",
			root, l.socket, len(l.socket), maxSocketPath, len(root)-over)
	}
	return l, nil
}

// prepare makes the directories and takes the lock.
func (s *Server) prepare(context.Context) error {
	if err := s.dir.create(); err != nil {
		return err
	}
	lock, err := acquire(s.dir)
	if err != nil {
		return err
	}
	s.onStop("release the lock", func(context.Context) error { return lock.Close() })
	return nil
}

// create makes the directories. An existing data directory keeps its mode: it may be one that others use too, such as a
// mount point. What must be private is in a directory of our own.
func (l layout) create() error {
	if err := os.MkdirAll(filepath.Dir(l.root), 0o755); err != nil {
		return fmt.Errorf("create data directory: %w", err)
	}
	if err := os.Mkdir(l.root, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create data directory: %w", err)
	}
	if err := os.Mkdir(l.private, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create private directory: %w", err)
	}
	return ensurePrivate(l.private)
}

// ensurePrivate refuses a directory that somebody else could have put there, and closes it to all but its owner.
func ensurePrivate(dir string) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("examine %s: %w", dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return invalid("%s: it is not a directory; remove it, or choose another data directory", dir)
	}
	if int(st.Uid) != os.Geteuid() {
		return invalid("%s: it belongs to user %d and this process runs as user %d; run as its owner, or choose another data directory", dir, st.Uid, os.Geteuid())
	}
	if st.Mode&0o777 == 0o700 {
		return nil
	}
	return os.Chmod(dir, 0o700)
}
