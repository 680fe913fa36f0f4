package node_test

import (
	"bytes"
	"context"
	"errors"
	"os"
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
	"plinth.dev/plinth/backingimage/node/nodetest"
	"plinth.dev/plinth/backingimage/store/embedded/embeddedtest"
)

// Each thing that can happen to a disk has its own condition with a remedy; it harms no image on another disk, nothing is fetched again,
// nothing is removed, and when the remedy is applied the disk is used again by itself.
func TestTroubleWithADiskIsItsOwn(t *testing.T) {
	disktest.NeedRoot(t)
	m, d, uuid, other := startTwo(t)
	w := nodetest.NewWeb(t, 4<<20)
	image := m.CreateImage("both", w.URL, w.SHA512(), 2)
	m.UntilReady("both", "2/2")
	content := filepath.Join(disk.Layout(d.dir).Image(string(image.UID)), disk.ImageFile)
	identity, err := os.ReadFile(d.identity())
	must(t, err)

	var thaw func()
	for _, trouble := range []struct {
		name       string
		begin, end func()
		reason     string
		says       []string
		unreadable bool // while it lasts, nothing of the disk can be read at its path
		kept       bool // a restart of the agent meanwhile changes nothing
	}{
		{
			name: "unmounted", reason: "Gone", says: []string{"mount"}, unreadable: true, kept: true,
			begin: d.unmount, end: func() { d.mount(d.dir) },
		},
		{
			name: "identity file removed", reason: "IdentityMissing", says: []string{d.identity(), uuid}, kept: true,
			begin: func() { must(t, os.Remove(d.identity())) },
			end:   func() { must(t, os.WriteFile(d.identity(), identity, 0o600)) },
		},
		{
			name: "identity file of another disk", reason: "ForeignIdentity", says: []string{"375d141f-c688-4773-97c0-7303f1b66a75", "mount what belongs there"}, kept: true,
			begin: func() {
				must(t, os.WriteFile(d.identity(), bytes.ReplaceAll(identity, []byte(uuid), []byte("375d141f-c688-4773-97c0-7303f1b66a75")), 0o600))
			},
			end: func() { must(t, os.WriteFile(d.identity(), identity, 0o600)) },
		},
		{
			name: "identity file that cannot be read", reason: "IdentityUnreadable", says: []string{d.identity()}, kept: true,
			begin: func() { must(t, os.WriteFile(d.identity(), []byte("{"), 0o600)) },
			end:   func() { must(t, os.WriteFile(d.identity(), identity, 0o600)) },
		},
		{
			name: "read-only filesystem", reason: "ReadOnly", says: []string{"remount"}, kept: true,
			begin: func() { d.remount(unix.MS_RDONLY) }, end: func() { d.remount(0) },
		},
		{
			name: "immutable directory of images", reason: "Immutable", says: []string{"chattr -i -a " + filepath.Join(d.dir, "images")}, kept: true,
			begin: func() { chattr(t, "+i", filepath.Join(d.dir, "images")) },
			end:   func() { chattr(t, "-i", filepath.Join(d.dir, "images")) },
		},
		{
			name: "immutable root", reason: "Immutable", says: []string{"chattr -i -a " + d.dir}, kept: true,
			begin: func() { chattr(t, "+i", d.dir) }, end: func() { chattr(t, "-i", d.dir) },
		},
		{
			name: "filesystem that has shut down", reason: "Failing", says: []string{"umount -l", "kernel's log"}, unreadable: true,
			begin: d.shutDown,
			end: func() {
				d.unmount()
				untilDisk(t, m, uuid, "Gone: ")
				d.mount(d.dir)
			},
		},
		{
			name: "filesystem that hangs", reason: "NotAnswering", says: []string{"kernel's log"},
			begin: func() { thaw = d.freeze() }, end: func() { thaw() },
		},
	} {
		t.Run(trouble.name, func(t *testing.T) {
			trouble.begin()
			ended := false
			defer func() {
				if !ended {
					trouble.end()
				}
			}()
			says(t, untilDisk(t, m, uuid, trouble.reason+": "), append(trouble.says, d.dir)...)
			if trouble.kept {
				m.Stop()
				m.Start()
				untilDisk(t, m, uuid, trouble.reason+": ")
				untilDisk(t, m, other, "Usable")
			}
			if left, _ := os.ReadDir(d.dir); trouble.unreadable && len(left) > 0 {
				t.Errorf("something was written where the disk is not: %v", left)
			}
			if _, err := os.Stat(content); !trouble.unreadable && err != nil {
				t.Errorf("the copy was touched: %v", err)
			}
			name := strings.ReplaceAll(trouble.name, " ", "-")
			more := nodetest.NewWeb(t, 1<<20)
			m.CreateImage(name, more.URL, "", 1)
			m.UntilReady(name, "1/1")
			if c, ok := m.Store.Copies.Get(v1alpha1.CopyName(string(mustImage(t, m, name).UID), other)); !ok || c.Status.State != v1alpha1.CopyReady {
				t.Error("the other disk does not have the image that was created meanwhile")
			}
			must(t, m.Store.Images.Delete(context.Background(), name))
			m.UntilGone(name)
			trouble.end()
			ended = true
			untilDisk(t, m, uuid, "Usable")
			m.UntilReady("both", "2/2")
			if got, err := os.ReadFile(content); err != nil || !bytes.Equal(got, w.Content) {
				t.Errorf("the copy has %d bytes (%v)", len(got), err)
			}
			if n := w.Served.Load(); n != 4<<20 {
				t.Errorf("the source gave %d bytes: the copy was fetched again", n)
			}
		})
	}
}

func mustImage(t *testing.T, m *nodetest.Machine, name string) *v1alpha1.BackingImage {
	t.Helper()
	i, err := m.Store.Images.Live(context.Background(), name)
	must(t, err)
	return i
}

func TestADiskThatIsNotThereWhenTheAgentStartsIsTakenUpLater(t *testing.T) {
	disktest.NeedRoot(t)
	m, d, uuid, other := startTwo(t)
	m.Stop()
	d.unmount()
	m.Start()
	says(t, untilDisk(t, m, uuid, "Gone: "), "mount", "plinth disk rm "+uuid)
	untilDisk(t, m, other, "Usable")
	if left, _ := os.ReadDir(d.dir); len(left) > 0 {
		t.Errorf("a disk was made where one should be mounted: %v", left)
	}
	d.mount(d.dir)
	untilDisk(t, m, uuid, "Usable")
}

func TestAFullDiskSaysSoAndServesWhatItHas(t *testing.T) {
	disktest.NeedRoot(t)
	m, d, uuid, other := startTwo(t)
	w := nodetest.NewWeb(t, 4<<20)
	image := m.CreateImage("kept", w.URL, "", 2)
	m.UntilReady("kept", "2/2")
	filler, err := os.Create(filepath.Join(d.dir, "filler"))
	must(t, err)
	for size := 64 << 20; size >= 4096; size /= 2 {
		for err = nil; err == nil; {
			_, err = filler.Write(make([]byte, size))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
	must(t, filler.Close())

	ctx, cancel := context.WithTimeout(context.Background(), nodetest.Wait)
	defer cancel()
	full := ""
	must(t, m.Store.Disks.Wait(ctx, uuid, func(d *v1alpha1.Disk) (bool, error) {
		c := meta.FindStatusCondition(d.Status.Conditions, v1alpha1.ConditionFull)
		if c != nil && c.Status == metav1.ConditionTrue {
			full = c.Message
		}
		return full != "", nil
	}))
	says(t, full, "are free", "plinth disk evict "+uuid)
	untilDisk(t, m, uuid, "Usable")

	more := nodetest.NewWeb(t, 64<<20)
	_, err = m.Store.Images.Create(ctx, &v1alpha1.BackingImage{ObjectMeta: metav1.ObjectMeta{Name: "no-room"}, Spec: v1alpha1.BackingImageSpec{
		SourceType: v1alpha1.SourceDownload, SourceParameters: map[string]v1alpha1.SourceParameter{"url": v1alpha1.SourceParameter(more.URL)},
		MinNumberOfCopies: 1, DiskFileSpecMap: map[string]v1alpha1.DiskFileSpec{uuid: {}},
	}})
	must(t, err)
	m.UntilImage("no-room", "failed for want of room", func(i *v1alpha1.BackingImage) bool {
		return i != nil && i.Status.State == v1alpha1.CopyFailed && strings.Contains(i.Status.Message, "free")
	})
	m.CreateImage("elsewhere", more.URL, "", 1)
	m.UntilReady("elsewhere", "1/1")
	if c, ok := m.Store.Copies.Get(v1alpha1.CopyName(string(mustImage(t, m, "elsewhere").UID), other)); !ok || c.Status.State != v1alpha1.CopyReady {
		t.Error("the other disk does not have the image that was created meanwhile")
	}
	if got, err := os.ReadFile(filepath.Join(disk.Layout(d.dir).Image(string(image.UID)), disk.ImageFile)); err != nil || !bytes.Equal(got, w.Content) {
		t.Errorf("the image on the full disk has %d bytes (%v)", len(got), err)
	}
	must(t, os.Remove(filler.Name()))
	m.UntilReady("no-room", "1/1")
	untilDisk(t, m, uuid, "Usable")
}

// wishDisks writes spec.disks of a node, as a person would.
func wishDisks(t *testing.T, m *nodetest.Machine, wishes ...v1alpha1.DiskWish) {
	t.Helper()
	_, err := m.Store.Nodes.Modify(context.Background(), m.NodeName, func(n *v1alpha1.StorageNode) { n.Spec.Disks = wishes })
	must(t, err)
}

func TestDisksThatUsersWish(t *testing.T) {
	disktest.NeedRoot(t)
	m, d, _, _ := startTwo(t)
	dir := filepath.Join(d.dir, "wished")

	wishDisks(t, m, v1alpha1.DiskWish{Path: dir, Tags: []string{"fast"}})
	uuid := untilOutcome(t, m, dir, "open", opened).UUID
	untilDisk(t, m, uuid, "Usable")
	if object, _ := m.Store.Disks.Get(uuid); object.Spec.Path != dir || !slices.Equal(object.Spec.Tags, []string{"fast"}) {
		t.Errorf("disk is %+v", object.Spec)
	}

	t.Run("one that cannot be opened is said, and the others work", func(t *testing.T) {
		file := filepath.Join(d.dir, "file")
		must(t, os.WriteFile(file, nil, 0o600))
		wishDisks(t, m, v1alpha1.DiskWish{Path: dir}, v1alpha1.DiskWish{Path: file})
		bad := untilOutcome(t, m, file, "refused", func(o v1alpha1.NodeDisk) bool { return o.Message != "" })
		says(t, bad.Message, file)
		untilDisk(t, m, uuid, "Usable")
	})

	t.Run("a second directory with one UUID is refused, and both are named", func(t *testing.T) {
		twin := filepath.Join(d.dir, "twin")
		text, err := os.ReadFile(filepath.Join(dir, disk.IdentityFile))
		must(t, err)
		must(t, os.Mkdir(twin, 0o700))
		must(t, os.WriteFile(filepath.Join(twin, disk.IdentityFile), text, 0o600))
		wishDisks(t, m, v1alpha1.DiskWish{Path: dir}, v1alpha1.DiskWish{Path: twin})
		o := untilOutcome(t, m, twin, "refused", func(o v1alpha1.NodeDisk) bool { return o.Reason == v1alpha1.DiskTwin })
		says(t, o.Message, dir, twin, uuid)
		untilDisk(t, m, uuid, "Usable")
		if left, _ := os.ReadDir(twin); len(left) != 1 {
			t.Errorf("the second was written to: %v", left)
		}
	})

	t.Run("one that is not wished any more is closed, keeps its files, and says so", func(t *testing.T) {
		wishDisks(t, m)
		says(t, untilDisk(t, m, uuid, "NotWanted: "), "plinth disk add "+dir, "plinth disk rm "+uuid)
		if _, open := m.Set.Get(uuid); open {
			t.Error("it is still open")
		}
		if _, err := os.Stat(filepath.Join(dir, disk.IdentityFile)); err != nil {
			t.Error(err)
		}
	})

	t.Run("wished again it is the same disk", func(t *testing.T) {
		wishDisks(t, m, v1alpha1.DiskWish{Path: dir})
		if again := untilOutcome(t, m, dir, "open", opened).UUID; again != uuid {
			t.Errorf("it is %s, it was %s", again, uuid)
		}
		untilDisk(t, m, uuid, "Usable")
	})

	t.Run("with a volume on it, it stays open though nobody wishes it", func(t *testing.T) {
		_, err := m.Store.Volumes.Create(context.Background(), &v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{Name: "there"}, Spec: v1alpha1.VolumeSpec{Name: "there", CapacityBytes: 1 << 20, DiskUUID: uuid, NodeName: m.NodeName}})
		must(t, err)
		wishDisks(t, m)
		o := untilOutcome(t, m, dir, "kept", func(o v1alpha1.NodeDisk) bool { return o.Reason == "InUse" })
		says(t, o.Message, "there", "plinth disk add "+dir)
		must(t, m.Store.Volumes.Delete(context.Background(), "there"))
		untilDisk(t, m, uuid, "NotWanted: ")
	})

	t.Run("paths that cannot be are refused by the API", func(t *testing.T) {
		for _, path := range []string{"", "relative", "/", "/a/", "/a//b", "/a/../b", "/a/.."} {
			_, err := m.Store.Nodes.Modify(context.Background(), m.NodeName, func(n *v1alpha1.StorageNode) { n.Spec.Disks = []v1alpha1.DiskWish{{Path: path}} })
			if err == nil || !strings.Contains(err.Error(), "spec.disks[0]") {
				t.Errorf("path %q: %v", path, err)
			}
		}
	})
}

func TestOrphansAreListed(t *testing.T) {
	disktest.NeedRoot(t)
	m, d, uuid, _ := startTwo(t)
	lost := disk.Layout(d.dir).Volume("lost")
	must(t, os.Mkdir(lost, 0o700))
	must(t, os.WriteFile(filepath.Join(lost, disk.VolumeFile), make([]byte, 1<<20), 0o600))
	ctx, cancel := context.WithTimeout(context.Background(), nodetest.Wait)
	defer cancel()
	must(t, m.Store.Disks.Wait(ctx, uuid, func(d *v1alpha1.Disk) (bool, error) {
		return len(d.Status.Orphans) == 1 && d.Status.Orphans[0].UsedBytes >= 1<<20, nil
	}))
	object, _ := m.Store.Disks.Get(uuid)
	if o := object.Status.Orphans[0]; o.Kind != v1alpha1.OrphanVolume || o.Name != "lost" || o.Path != lost {
		t.Errorf("the orphan is %+v", o)
	}
	if _, err := os.Stat(lost); err != nil {
		t.Errorf("a volume without an object was touched: %v", err)
	}
}

// A disk of a flag that never was one, and can be none, ends the agent: the command line is wrong.
func TestAFlagsDiskThatCanBeNoneEndsTheAgent(t *testing.T) {
	disktest.NeedRoot(t)
	m := nodetest.New(t, embeddedtest.MustStart(t), nodetest.NodeName)
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	m.Paths = []string{file}
	if err := m.Failing(); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("got %v", err)
	}
}
