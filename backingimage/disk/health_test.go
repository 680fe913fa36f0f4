package disk_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/disk/disktest"
)

func TestProblemOf(t *testing.T) {
	for err, want := range map[error]disk.Problem{
		fmt.Errorf("x: %w", unix.EROFS):                         disk.ProblemReadOnly,
		fmt.Errorf("x: %w", unix.ENOSPC):                        disk.ProblemNoRoom,
		fmt.Errorf("x: %w", unix.EIO):                           disk.ProblemFailing,
		errors.New("x"):                                         "",
		backingimage.Errorf(backingimage.NotReady, "no server"): "",
	} {
		if got := disk.ProblemOf(err); got != want {
			t.Errorf("%v is %q, not %q", err, got, want)
		}
	}
	if got := disk.ProblemOf(nil); got != "" {
		t.Errorf("nothing is %q", got)
	}
}

// Each row breaks one thing, and mends it.
func TestHealthyNamesTheProblem(t *testing.T) {
	mount := disktest.MustFilesystem(t, "xfs", 512<<20)
	d := disktest.MustOpen(t, filepath.Join(mount, "disk"), 0)
	dir := d.Path()
	identity := filepath.Join(dir, disk.IdentityFile)
	good, err := os.ReadFile(identity)
	must(t, err)
	chattr := func(flag, dir string) {
		t.Helper()
		if out, err := exec.Command("chattr", flag, dir).CombinedOutput(); err != nil {
			t.Fatalf("chattr %s %s: %v\n%s", flag, dir, err, out)
		}
	}
	for _, row := range []struct {
		name          string
		problem       disk.Problem
		says          string
		begin, mended func()
		away          bool
	}{
		{"its directory is moved away", disk.ProblemGone, "mount it again",
			func() { must(t, os.Rename(dir, dir+".away")) }, func() { must(t, os.Rename(dir+".away", dir)) }, true},
		{"its identity is removed", disk.ProblemMissing, d.UUID(),
			func() { must(t, os.Remove(identity)) }, func() { must(t, os.WriteFile(identity, good, 0o600)) }, false},
		{"its identity is damaged", disk.ProblemUnreadable, identity,
			func() { must(t, os.WriteFile(identity, good[:9], 0o600)) }, func() { must(t, os.WriteFile(identity, good, 0o600)) }, false},
		{"an images directory that is immutable", disk.ProblemImmutable, "chattr -i -a " + d.Layout().Images(),
			func() { chattr("+i", d.Layout().Images()) }, func() { chattr("-i", d.Layout().Images()) }, false},
		{"a staging directory that is append-only", disk.ProblemImmutable, "chattr -i -a " + d.Layout().Staging(),
			func() { chattr("+a", d.Layout().Staging()) }, func() { chattr("-a", d.Layout().Staging()) }, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			row.begin()
			err := d.Healthy()
			if p := disk.ProblemOf(err); p != row.problem || p.Away() != row.away || !strings.Contains(fmt.Sprint(err), row.says) {
				t.Errorf("problem %q: %v", p, err)
			}
			if err := d.Usable(); disk.ProblemOf(err) != row.problem {
				t.Errorf("usable: %v", err)
			}
			row.mended()
			must(t, d.Healthy())
			must(t, d.Usable())
		})
	}
	t.Run("a disk that is blamed is not usable until it is healthy", func(t *testing.T) {
		d.Blame(backingimage.Errorf(backingimage.NotReady, "it hangs"))
		wantKind(t, backingimage.NotReady, d.Usable())
		must(t, d.Healthy(), d.Usable())
	})
	t.Run("a copy in a directory that was made immutable is not removed, with the remedy", func(t *testing.T) {
		disktest.MustImage(t, d, "held", func(f *os.File) { must(t, f.Truncate(4096)) })
		held := d.Layout().Image("held")
		chattr("+i", held)
		err := d.RemoveImage("held")
		chattr("-i", held)
		if disk.ProblemOf(err) != disk.ProblemImmutable || !strings.Contains(fmt.Sprint(err), "chattr -i -a "+held) {
			t.Errorf("got %v", err)
		}
	})
}

func TestOpenOfAReadOnlyDisk(t *testing.T) {
	mount := disktest.MustFilesystem(t, "xfs", 512<<20)
	dir := filepath.Join(mount, "disk")
	uuid := open(t, dir)
	must(t, unix.Mount("", mount, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	d := disktest.MustOpen(t, dir, 0)
	if d.UUID() != uuid || disk.ProblemOf(d.Healthy()) != disk.ProblemReadOnly {
		t.Errorf("disk %s: %v", d.UUID(), d.Healthy())
	}
	must(t, unix.Mount("", mount, "", unix.MS_REMOUNT, ""))
	must(t, d.Healthy())
}

func TestRoom(t *testing.T) {
	d := disktest.MustOpen(t, filepath.Join(disktest.MustFilesystem(t, "xfs", 512<<20), "disk"), 0)
	for _, row := range []struct {
		total, available int64
		full             bool
	}{
		{100 << 30, 2 << 30, false}, {100 << 30, 1 << 29, true}, {512 << 20, 17 << 20, false}, {512 << 20, 15 << 20, true}, {512 << 20, -1, true},
	} {
		if err := d.Room(row.total, row.available); backingimage.Is(err, backingimage.Full) != row.full {
			t.Errorf("%d of %d free: %v", row.available, row.total, err)
		}
	}
}

func TestAdmitIsAskedBeforeAnythingIsWritten(t *testing.T) {
	disktest.NeedRoot(t)
	ctx := context.Background()
	no := errors.New("not this one")
	mount := disktest.MustFilesystem(t, "xfs", 512<<20)
	known := filepath.Join(mount, "known")
	uuid := open(t, known)
	must(t, os.Mkdir(filepath.Join(known, "staging", "volume-half"), 0o700)) // an admitted Open would sweep it
	for _, row := range []struct{ name, dir, found string }{
		{"a directory that is not there", filepath.Join(mount, "new"), ""},
		{"an empty directory", t.TempDir(), ""}, // where a pool would be made, if it cannot reflink
		{"a disk", known, uuid},
	} {
		t.Run(row.name, func(t *testing.T) {
			before, _ := os.ReadDir(row.dir)
			asked := "never"
			_, err := disk.Open(ctx, row.dir, disk.Options{PoolBytes: disktest.PoolBytes, Admit: func(uuid string) error { asked = uuid; return no }})
			if !errors.Is(err, no) || asked != row.found {
				t.Errorf("asked %q: %v", asked, err)
			}
			if after, _ := os.ReadDir(row.dir); len(after) != len(before) {
				t.Errorf("it was written to: %v", after)
			}
			if _, err := os.Stat(filepath.Join(known, "staging", "volume-half")); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSet(t *testing.T) {
	mount := disktest.MustFilesystem(t, "xfs", 512<<20)
	one := disktest.MustOpen(t, filepath.Join(mount, "one"), 0)
	text, err := os.ReadFile(filepath.Join(one.Path(), disk.IdentityFile))
	must(t, err)
	must(t, os.Mkdir(filepath.Join(mount, "twin"), 0o700), os.WriteFile(filepath.Join(mount, "twin", disk.IdentityFile), text, 0o600))
	twin := disktest.MustOpen(t, filepath.Join(mount, "twin"), 0)

	s, err := disk.NewSet(one)
	must(t, err)
	var mu sync.Mutex
	changed := 0
	stop := s.OnChange(func(string) { mu.Lock(); changed++; mu.Unlock() })
	err = s.Add(twin)
	wantKind(t, backingimage.Conflict, err)
	for _, part := range []string{one.Path(), twin.Path(), one.UUID()} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the message does not name %s: %v", part, err)
		}
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				s.Remove(one)
				_, _ = s.Use(one.UUID())
				_ = s.Add(one)
			}
		})
	}
	wg.Wait()
	if d, err := s.Use(one.UUID()); d != one || err != nil || len(s.List()) != 1 {
		t.Errorf("use: %v, %v", d, err)
	}
	one.Blame(errors.New("it hangs"))
	_, err = s.Use(one.UUID())
	wantKind(t, backingimage.NotReady, err)
	must(t, one.Healthy())
	_, err = s.Use("no-such-disk")
	wantKind(t, backingimage.NotFound, err)
	stop()
	before := changed
	must(t, s.Close(context.Background()))
	if before == 0 || changed != before || len(s.List()) != 0 {
		t.Errorf("told %d times, %d after the end; %d disks left", before, changed-before, len(s.List()))
	}
}
