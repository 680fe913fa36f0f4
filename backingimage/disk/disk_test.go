package disk_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/disk/disktest"
)

// childVariable makes this test binary open and close the disk it names, until it is killed.
const childVariable = "PLINTH_DISK_TEST_CHILD"

func TestMain(m *testing.M) {
	dir := os.Getenv(childVariable)
	if dir == "" {
		os.Exit(m.Run())
	}
	fmt.Println("begin")
	for {
		d, err := disk.Open(context.Background(), dir, disk.Options{PoolBytes: disktest.PoolBytes})
		if err == nil {
			err = d.Close(context.Background())
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
}

func wantKind(tb testing.TB, want backingimage.Kind, err error) {
	tb.Helper()
	if !backingimage.Is(err, want) {
		tb.Fatalf("got %v, want a %s error", err, want)
	}
}

func must(tb testing.TB, errs ...error) {
	tb.Helper()
	if err := errors.Join(errs...); err != nil {
		tb.Fatal(err)
	}
}

// open opens a disk that must open, and closes it at once.
func open(t *testing.T, dir string) string {
	t.Helper()
	d, err := disk.Open(context.Background(), dir, disk.Options{PoolBytes: disktest.PoolBytes})
	must(t, err)
	defer d.Close(context.Background())
	must(t, d.Healthy())
	return d.UUID()
}

func TestOpenUsesADirectoryThatCanReflinkAsItIs(t *testing.T) {
	for _, filesystem := range []string{"xfs", "btrfs"} {
		t.Run(filesystem, func(t *testing.T) {
			dir := filepath.Join(disktest.MustFilesystem(t, filesystem, 512<<20), "new", "disk")
			d := disktest.MustOpen(t, dir, 0)
			if d.Pool() || string(d.Layout()) != dir || d.Filesystem() != filesystem || d.Path() != dir {
				t.Errorf("pool %t, layout %s, filesystem %s, path %s", d.Pool(), d.Layout(), d.Filesystem(), d.Path())
			}
			total, available, err := d.Capacity()
			if err != nil || available <= 0 || total < available || total > 512<<20 {
				t.Errorf("capacity is %d, %d, %v", total, available, err)
			}
			must(t, d.Healthy())
		})
	}
}

func TestOpenKeepsTheIdentity(t *testing.T) {
	disktest.NeedRoot(t)
	dir := t.TempDir()
	born := time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)
	d, err := disk.Open(context.Background(), dir, disk.Options{PoolBytes: disktest.PoolBytes, Clock: clocktesting.NewFakePassiveClock(born)})
	must(t, err)
	text, err := os.ReadFile(filepath.Join(string(d.Layout()), disk.IdentityFile))
	must(t, err)
	for _, part := range []string{`"uuid": "` + d.UUID() + `"`, `"formatVersion": 1`, `"createdAt": "2026-02-03T04:05:06Z"`} {
		if !strings.Contains(string(text), part) {
			t.Errorf("the identity lacks %s:\n%s", part, text)
		}
	}
	must(t, d.Close(context.Background()), d.Close(context.Background()))
	if again := open(t, dir); again != d.UUID() {
		t.Errorf("opened again it is %s, it was %s", again, d.UUID())
	}
}

func TestOpenRefusesADiskThatIsOpen(t *testing.T) {
	d := disktest.MustPool(t, disktest.PoolBytes)
	_, err := disk.Open(context.Background(), d.Path(), disk.Options{})
	wantKind(t, backingimage.Busy, err)
	if !strings.Contains(err.Error(), d.Path()) {
		t.Errorf("the message does not name the disk: %v", err)
	}
}

func TestOpenRefusesBadInput(t *testing.T) {
	disktest.NeedRoot(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, nil, 0o600))
	for _, path := range []string{"", "relative", "/", "//", file, filepath.Join(file, "below"), "/proc/plinth"} {
		_, err := disk.Open(context.Background(), path, disk.Options{})
		wantKind(t, backingimage.Invalid, err)
	}
	for _, size := range []int64{-1, 1, 511 << 20} {
		_, err := disk.Open(context.Background(), dir, disk.Options{PoolBytes: size})
		wantKind(t, backingimage.Invalid, err)
		if !strings.Contains(err.Error(), "PoolBytes") {
			t.Errorf("the message does not name the field: %v", err)
		}
	}
}

func TestOpenNeedsRoomForAPool(t *testing.T) {
	dir := disktest.MustFilesystem(t, "ext4", 400<<20)
	_, err := disk.Open(context.Background(), dir, disk.Options{})
	wantKind(t, backingimage.Full, err)
	if left, _ := filepath.Glob(filepath.Join(dir, "pool.xfs*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestOpenTakesMostOfTheFreeSpaceForAPool(t *testing.T) {
	dir := disktest.MustFilesystem(t, "ext4", 1<<30)
	d := disktest.MustOpen(t, dir, 0)
	info, err := os.Stat(filepath.Join(dir, "pool.xfs"))
	must(t, err)
	if size := info.Size(); !d.Pool() || size < 600<<20 || size > 820<<20 {
		t.Errorf("the pool has %d bytes", size)
	}
}

func TestIdentity(t *testing.T) {
	mount := disktest.MustFilesystem(t, "xfs", 512<<20)
	for _, test := range []struct {
		outcome, content string
		want             backingimage.Kind
	}{
		{"a file that is no JSON is Corrupt", "{", backingimage.Corrupt},
		{"an empty file is Corrupt", "", backingimage.Corrupt},
		{"a UUID that is none is Corrupt", `{"uuid": "x", "formatVersion": 1}`, backingimage.Corrupt},
		{"a missing version is Corrupt", `{"uuid": "375d141f-c688-4773-97c0-7303f1b66a75"}`, backingimage.Corrupt},
		{"an unknown field is Corrupt", `{"uuid": "375d141f-c688-4773-97c0-7303f1b66a75", "formatVersion": 1, "color": 1}`, backingimage.Corrupt},
		{"a newer version is Unsupported, whatever else it says", `{"id": 7, "formatVersion": 2}`, backingimage.Unsupported},
	} {
		t.Run(test.outcome, func(t *testing.T) {
			dir, err := os.MkdirTemp(mount, "")
			must(t, err, os.WriteFile(filepath.Join(dir, disk.IdentityFile), []byte(test.content), 0o600))
			_, err = disk.Open(context.Background(), dir, disk.Options{})
			wantKind(t, test.want, err)
			if got, _ := os.ReadFile(filepath.Join(dir, disk.IdentityFile)); string(got) != test.content {
				t.Errorf("the file was changed to %q", got)
			}
		})
	}
	for _, name := range []string{"images", "volumes"} {
		t.Run("a missing file on a disk with "+name+" is Precondition, never a new identity", func(t *testing.T) {
			dir, err := os.MkdirTemp(mount, "")
			must(t, err, os.MkdirAll(filepath.Join(dir, name, "something"), 0o700))
			_, err = disk.Open(context.Background(), dir, disk.Options{})
			wantKind(t, backingimage.Precondition, err)
			if !strings.Contains(err.Error(), filepath.Join(dir, disk.IdentityFile)) {
				t.Errorf("the message does not name the file: %v", err)
			}
			if _, err := os.Stat(filepath.Join(dir, disk.IdentityFile)); err == nil {
				t.Error("a new identity was made")
			}
		})
	}
	t.Run("a disk moved to a filesystem that cannot reflink is Precondition", func(t *testing.T) {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, disk.IdentityFile), nil, 0o600))
		_, err := disk.Open(context.Background(), dir, disk.Options{PoolBytes: disktest.PoolBytes})
		wantKind(t, backingimage.Precondition, err)
	})
}

func TestHealthyFindsWhatIsWrong(t *testing.T) {
	d := disktest.MustOpen(t, filepath.Join(disktest.MustFilesystem(t, "xfs", 512<<20), "disk"), 0)
	identity := filepath.Join(string(d.Layout()), disk.IdentityFile)
	good, err := os.ReadFile(identity)
	must(t, err, d.Healthy())

	must(t, os.Remove(identity))
	wantKind(t, backingimage.Precondition, d.Healthy())
	must(t, os.WriteFile(identity, []byte("{"), 0o600))
	wantKind(t, backingimage.Corrupt, d.Healthy())
	must(t, os.WriteFile(identity, []byte(strings.Replace(string(good), d.UUID(), "375d141f-c688-4773-97c0-7303f1b66a75", 1)), 0o600))
	wantKind(t, backingimage.Precondition, d.Healthy())
	must(t, os.WriteFile(identity, good, 0o600), d.Healthy())

	must(t, os.Rename(d.Path(), d.Path()+".away"), os.Mkdir(d.Path(), 0o700))
	wantKind(t, backingimage.Precondition, d.Healthy())
	must(t, os.Remove(d.Path()))
	wantKind(t, backingimage.Precondition, d.Healthy())
	must(t, os.Rename(d.Path()+".away", d.Path()), d.Healthy())
}

// A process that opens and closes the disk is killed again and again; the disk must become one disk and stay it.
func TestOpenAfterKill(t *testing.T) {
	disktest.NeedRoot(t)
	for range 6 {
		dir, uuid := t.TempDir(), ""
		for range 4 {
			killOpener(t, dir)
			now := open(t, dir)
			if uuid != "" && now != uuid {
				t.Fatalf("the disk became %s, it was %s", now, uuid)
			}
			uuid = now
		}
		disktest.MustOpen(t, dir, disktest.PoolBytes) // cleans up, and checks that nothing is left
	}
}

func killOpener(t *testing.T, dir string) {
	t.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childVariable+"="+dir)
	out, err := child.StdoutPipe()
	must(t, err, child.Start())
	said := bufio.NewScanner(out)
	said.Scan() // "begin"
	time.Sleep(time.Duration(rand.IntN(40_000)) * time.Microsecond)
	child.Process.Kill()
	for said.Scan() {
		t.Errorf("before it was killed: %s", said.Text())
	}
	child.Wait() // always "killed"
}
