package backup_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/provisioner/backup"
	"plinth.dev/plinth/provisioner/backup/object"
)

// within is how long what has to happen may take on a busy machine.
const within = 2 * time.Minute

// mustCollectUntil collects garbage until done says so.
func mustCollectUntil(tb testing.TB, r *backup.Repository, done func(backup.Collected) bool) {
	tb.Helper()
	var last backup.Collected
	for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		var err error
		last, err = r.Collect(context.Background())
		if backingimage.Is(err, backingimage.NotReady) {
			continue
		}
		must(tb, err)
		if done(last) {
			return
		}
	}
	tb.Fatalf("the last collection did %+v", last)
}

func count(tb testing.TB, p *place, folder string) int {
	tb.Helper()
	n := 0
	if p.dir == "" {
		must(tb, p.mustStore(tb).List(context.Background(), folder+"/", func(object.Object) error { n++; return nil }))
		return n
	}
	err := filepath.WalkDir(filepath.Join(p.dir, folder), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !strings.HasPrefix(filepath.Base(path), ".") {
			n++
		}
		return nil
	})
	must(tb, err)
	return n
}

func TestGarbageGoesAndNothingElse(t *testing.T) {
	each(t, func(t *testing.T, p *place, o backup.Options) {
		o.Grace = time.Second
		if p.dir == "" {
			o.Grace = 2 * time.Second // half of it is how long a step may take
		}
		r, ctx := p.mustOpen(t, o), context.Background()
		first, second := content(1, 5<<20), content(2, 5<<20)
		copy(second, first[:backup.BlockBytes]) // one block is shared
		mustSave(t, r, "b-1", backup.Manifest{}, whole(first))
		mustSave(t, r, "b-2", backup.Manifest{}, whole(second))
		before := count(t, p, "blocks")
		must(t, r.Remove(ctx, "b-1"))
		must(t, r.Remove(ctx, "b-1"))
		mustCollectUntil(t, r, func(c backup.Collected) bool { return c.Condemned > 0 })
		if now := count(t, p, "blocks"); now != before {
			t.Errorf("%d of %d blocks are left right after the condemnation", now, before)
		}
		mustCollectUntil(t, r, func(c backup.Collected) bool { return c.Deleted > 0 })
		mustRestore(t, r, "b-2", second)
		if blocks, pages := count(t, p, "blocks"), count(t, p, "pages"); blocks != 3 || pages != 1 {
			t.Errorf("%d blocks and %d pages are left", blocks, pages)
		}
		mustCollectUntil(t, r, func(backup.Collected) bool { return count(t, p, "garbage") == 0 })
		mustSave(t, r, "b-3", backup.Manifest{}, whole(first)) // what was removed is sent again
		mustRestore(t, r, "b-3", first)
	})
}

func TestWhatIsCondemnedIsNotReliedOn(t *testing.T) {
	p := directory(t)
	r, ctx := p.mustOpen(t, backup.Options{Grace: 30 * time.Second}), context.Background()
	volume := content(1, 5<<20)
	mustSave(t, r, "b-1", backup.Manifest{}, whole(volume))
	must(t, r.Remove(ctx, "b-1"))
	condemnAll(t, p)
	mustSave(t, r, "b-2", backup.Manifest{}, whole(volume))
	for _, folder := range []string{"blocks", "pages"} { // what a sweep will do
		for _, path := range mustFind(t, p, folder) {
			if !strings.Contains(filepath.Base(path), ".") {
				must(t, os.Remove(path))
			}
		}
	}
	mustRestore(t, r, "b-2", volume)
	again := mustSave(t, r, "b-3", backup.Manifest{}, whole(volume))
	if again.Stats.NewBytes != 0 {
		t.Errorf("what is there under another name was sent again: %+v", again.Stats)
	}
	mustRestore(t, r, "b-3", volume)
}

// condemnAll writes a list of all blocks and pages.
func condemnAll(tb testing.TB, p *place) {
	tb.Helper()
	var names []string
	for _, folder := range []string{"blocks", "pages"} {
		for _, path := range mustFind(tb, p, folder) {
			name, err := filepath.Rel(p.dir, path)
			must(tb, err)
			names = append(names, name)
		}
	}
	dir := filepath.Join(p.dir, "garbage", "condemned")
	must(tb, os.MkdirAll(dir, 0o700))
	must(tb, os.WriteFile(filepath.Join(dir, "0123456789abcdef"), sealed('c', strings.Join(names, "\n")), 0o600))
}

func TestASessionIsToldWhatWasCondemnedMeanwhile(t *testing.T) {
	p := directory(t)
	r, ctx := p.mustOpen(t, backup.Options{Grace: time.Hour}), context.Background()
	s, err := r.Begin(ctx, false)
	must(t, err)
	volume := content(1, 5<<20)
	m := backup.Manifest{ID: "b-1", Volume: &backup.Volume{Name: "web-1"}}
	m.Content, err = s.Write(ctx, whole(volume), nil)
	must(t, err)
	condemnAll(t, p)
	if err := s.Finish(ctx, &m); !backingimage.Is(err, backingimage.NotReady) {
		t.Errorf("a backup that relies on garbage: %v", err)
	}
	mustSave(t, r, "b-1", backup.Manifest{}, whole(volume))
}

// life makes, checks, deletes backups and collects garbage at random, of contents that share blocks, until ctx ends. It fails for nothing but
// what must not happen.
func life(ctx context.Context, r *backup.Repository, who string, random *rand.Rand) error {
	pool := make([][]byte, 6)
	for i := range pool {
		pool[i] = content(byte(i), backup.BlockBytes)
	}
	for n := 0; ctx.Err() == nil; n++ {
		if random.IntN(3) == 0 {
			if _, err := r.Collect(ctx); err != nil && ctx.Err() == nil && !backingimage.Is(err, backingimage.NotReady) {
				return fmt.Errorf("collect: %w", err)
			}
			continue
		}
		var volume []byte
		for range 1 + random.IntN(3) {
			volume = append(volume, pool[random.IntN(len(pool))]...)
		}
		id := fmt.Sprintf("%s-%d", who, n%4)
		_ = r.Remove(ctx, id)
		switch _, err := save(r, id, backup.Manifest{}, whole(volume)); {
		case ctx.Err() != nil, backingimage.Is(err, backingimage.NotReady):
			continue
		case err != nil:
			return fmt.Errorf("back up: %w", err)
		}
		if err := check(ctx, r, id); err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

// check verifies a backup, if it is there.
func check(ctx context.Context, r *backup.Repository, id string) error {
	m, err := r.Backup(ctx, id)
	if err != nil {
		return backingimage.IgnoreNotFound(err)
	}
	v, err := r.Verify(ctx, m, nil)
	if err == nil {
		err = v.Err()
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("backup %s: %w", id, err)
	}
	return nil
}

func mustBeSound(tb testing.TB, r *backup.Repository) int {
	tb.Helper()
	list, err := r.List(context.Background())
	must(tb, err)
	for _, l := range list {
		must(tb, l.Err)
		must(tb, check(context.Background(), r, l.ID))
	}
	return len(list)
}

// TestWritersAndCollectorsDoNotHarmEachOther has several of both at work on one repository whose grace time is as short as can be.
func TestWritersAndCollectorsDoNotHarmEachOther(t *testing.T) {
	t.Parallel()
	p := directory(t)
	o := backup.Options{Grace: time.Second, Concurrency: 2}
	p.mustOpen(t, o)
	ctx, cancel := context.WithTimeout(context.Background(), lifetime())
	defer cancel()
	var wg sync.WaitGroup
	for n := range 4 {
		r := p.mustOpen(t, o)
		wg.Go(func() {
			if err := life(ctx, r, fmt.Sprintf("w%d", n), rand.New(rand.NewPCG(uint64(n), 1))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := mustBeSound(t, p.mustOpen(t, o)); n == 0 {
		t.Error("no backup is left")
	}
}

// lifetime is how long writers and collectors are let loose on each other.
func lifetime() time.Duration {
	if testing.Short() { // under the race detector
		return 3 * time.Second
	}
	return 6 * time.Second
}

// childVariable makes the test's binary one of the processes that TestKilledProcessesLoseNothing kills: it is the place's URL.
const childVariable = "PLINTH_BACKUP_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childVariable); dir != "" {
		childLife(dir)
		return
	}
	os.Exit(m.Run())
}

func childLife(dir string) {
	who := os.Args[len(os.Args)-1]
	var tb fatal
	r := (&place{url: "file://" + dir, dir: dir}).mustOpen(tb, backup.Options{Grace: time.Second, Concurrency: 2})
	if err := life(context.Background(), r, who, rand.New(rand.NewPCG(uint64(os.Getpid()), 1))); err != nil {
		tb.Fatal(err)
	}
}

// fatal is a testing.TB of a process that is no test.
type fatal struct{ testing.TB }

func (fatal) Helper()           {}
func (fatal) Cleanup(func())    {}
func (fatal) Fatal(args ...any) { fmt.Println(args...); os.Exit(1) }

// crashRounds is how many processes are killed; `make crash` has more.
func crashRounds() int {
	if n, err := strconv.Atoi(os.Getenv("PLINTH_CRASH_ROUNDS")); err == nil {
		return n
	}
	if testing.Short() { // under the race detector
		return 2
	}
	return 6
}

func TestKilledProcessesLoseNothing(t *testing.T) {
	t.Parallel()
	p := directory(t)
	o := backup.Options{Grace: time.Second, Concurrency: 2}
	p.mustOpen(t, o)
	var wg sync.WaitGroup
	for n := range 2 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(n), 2))
			for range crashRounds() {
				cmd := exec.Command(os.Args[0], fmt.Sprintf("k%d", n))
				cmd.Env = append(os.Environ(), childVariable+"="+p.dir)
				var said strings.Builder
				cmd.Stdout, cmd.Stderr = &said, &said
				if err := cmd.Start(); err != nil {
					t.Error(err)
					return
				}
				time.Sleep(time.Duration(200+random.IntN(1200)) * time.Millisecond)
				cmd.Process.Kill()
				cmd.Wait()
				if said.Len() > 0 {
					t.Errorf("a process said %s", said.String())
				}
			}
		})
	}
	wg.Wait()
	r := p.mustOpen(t, o)
	mustBeSound(t, r)
	mustCollectUntil(t, r, func(backup.Collected) bool { return count(t, p, "garbage") == 0 })
	mustBeSound(t, r)
}
