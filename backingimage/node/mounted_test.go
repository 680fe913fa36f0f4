package node_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/disk/disktest"
	"plinth.dev/plinth/backingimage/disk/loop"
	"plinth.dev/plinth/backingimage/node/nodetest"
	"plinth.dev/plinth/backingimage/store/embedded/embeddedtest"
)

// mounted is a filesystem of its own that a test plugs in and out.
type mounted struct {
	t   *testing.T
	dir string
}

func plug(t *testing.T) *mounted {
	t.Helper()
	return &mounted{t: t, dir: disktest.MustFilesystem(t, "xfs", 512<<20)}
}

func (m *mounted) unmount() { must(m.t, unix.Unmount(m.dir, unix.MNT_DETACH)) }

func (m *mounted) mount(at string) {
	m.t.Helper()
	device, found, err := loop.Find(m.dir + ".img")
	must(m.t, err)
	if !found {
		m.t.Fatal("the filesystem's device is gone")
	}
	must(m.t, unix.Mount(device.Path, at, "xfs", unix.MS_NOATIME, ""))
	if at != m.dir {
		m.t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) }) // it may be unmounted already
	}
}

func (m *mounted) remount(flags uintptr) {
	m.t.Helper()
	must(m.t, unix.Mount("", m.dir, "", unix.MS_REMOUNT|unix.MS_NOATIME|flags, ""))
}

// root is the root of the filesystem, and never that of the machine's: what a test does to it must not be done to another.
func (m *mounted) root() *os.File {
	m.t.Helper()
	f, err := os.Open(m.dir)
	must(m.t, err)
	m.t.Cleanup(func() { f.Close() })
	var st unix.Statfs_t
	var here, above unix.Stat_t
	must(m.t, errors.Join(unix.Fstatfs(int(f.Fd()), &st), unix.Fstat(int(f.Fd()), &here), unix.Stat(filepath.Dir(m.dir), &above)))
	if here.Dev == above.Dev || st.Type != unix.XFS_SUPER_MAGIC {
		m.t.Fatalf("%s is not mounted", m.dir)
	}
	return f
}

// shutDown stops the filesystem as an error that it cannot survive does: XFS_IOC_GOINGDOWN of xfs_fs.h, with the log flushed.
func (m *mounted) shutDown() {
	m.t.Helper()
	const goingDown, logFlush = 0x8004587d, 1
	root := m.root()
	defer root.Close()
	must(m.t, unix.IoctlSetPointerInt(int(root.Fd()), goingDown, logFlush))
}

// freeze makes every write to the filesystem hang until the returned function is called: FIFREEZE and FITHAW of linux/fs.h.
func (m *mounted) freeze() (thaw func()) {
	m.t.Helper()
	const freeze, thawAgain = 0xc0045877, 0xc0045878
	root := m.root()
	must(m.t, unix.IoctlSetPointerInt(int(root.Fd()), freeze, 0))
	return func() {
		defer root.Close()
		must(m.t, unix.IoctlSetPointerInt(int(root.Fd()), thawAgain, 0))
	}
}

func (m *mounted) identity() string { return filepath.Join(m.dir, disk.IdentityFile) }

// ready is a disk's Ready condition as "reason: message", "Usable" when it is.
func ready(d *v1alpha1.Disk) string {
	c := meta.FindStatusCondition(d.Status.Conditions, v1alpha1.ConditionReady)
	switch {
	case c == nil:
		return ""
	case c.Status == metav1.ConditionTrue:
		return c.Reason
	}
	return c.Reason + ": " + c.Message
}

// untilDisk waits until a disk's Ready condition begins so, and returns it.
func untilDisk(t *testing.T, m *nodetest.Machine, uuid, begins string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), nodetest.Wait)
	defer cancel()
	last := ""
	err := m.Store.Disks.Wait(ctx, uuid, func(d *v1alpha1.Disk) (bool, error) {
		if d != nil {
			last = ready(d)
		}
		return d != nil && strings.HasPrefix(last, begins), nil
	})
	if err != nil {
		t.Fatalf("disk %s is not %s: %v; it is %q", uuid, begins, err, last)
	}
	return last
}

// untilOutcome waits until the node says so of the disk at a path.
func untilOutcome(t *testing.T, m *nodetest.Machine, path, what string, is func(v1alpha1.NodeDisk) bool) v1alpha1.NodeDisk {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), nodetest.Wait)
	defer cancel()
	var found v1alpha1.NodeDisk
	err := m.Store.Nodes.Wait(ctx, m.NodeName, func(n *v1alpha1.StorageNode) (bool, error) {
		found = v1alpha1.NodeDisk{}
		if n != nil {
			if i := slices.IndexFunc(n.Status.Disks, func(d v1alpha1.NodeDisk) bool { return d.Path == path }); i >= 0 {
				found = n.Status.Disks[i]
			}
		}
		return is(found), nil
	})
	if err != nil {
		t.Fatalf("%s is not %s: %v; it is %+v", path, what, err, found)
	}
	return found
}

func opened(d v1alpha1.NodeDisk) bool { return d.UUID != "" && d.Reason == "" }

func says(t *testing.T, message string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(message, w) {
			t.Errorf("message %q does not say %q", message, w)
		}
	}
}

// startTwo runs an agent on two disks: one that has trouble, and one that must not suffer from it.
func startTwo(t *testing.T) (m *nodetest.Machine, troubled *mounted, uuid, other string) {
	t.Helper()
	troubled = plug(t)
	m = nodetest.New(t, embeddedtest.MustStart(t), nodetest.NodeName)
	m.Paths = []string{troubled.dir, filepath.Join(disktest.MustFilesystem(t, "xfs", 512<<20), "disk")}
	m.Start()
	t.Cleanup(m.Stop)
	uuid = untilOutcome(t, m, m.Paths[0], "open", opened).UUID
	other = untilOutcome(t, m, m.Paths[1], "open", opened).UUID
	return m, troubled, uuid, other
}

func chattr(t *testing.T, flag, dir string) {
	t.Helper()
	if out, err := exec.Command("chattr", flag, dir).CombinedOutput(); err != nil {
		t.Fatalf("chattr %s %s: %v\n%s", flag, dir, err, out)
	}
}
