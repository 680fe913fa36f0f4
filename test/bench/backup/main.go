// Command backup measures backups to a directory, and restores from it, beside the simplest programs that move the same bytes: a full backup
// beside zstd -T2 and a sync, a restore beside cat and a sync, an incremental backup beside reading the volume. What is counted is
// beside what has to be: the bytes that are read and stored of a volume that differs little from its image, and the memory of it all. Files are
// out of the page cache when a run begins. One line for each comparison:
//
//	name <TAB> ours <TAB> rival <TAB> ratio <TAB> bound
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/provisioner/backup"
	"plinth.dev/plinth/provisioner/backup/object"
	"plinth.dev/plinth/provisioner/engine"
	"plinth.dev/plinth/provisioner/engine/reflink"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

func main() {
	dir := flag.String("dir", os.TempDir(), "working directory, with room for 12 GiB")
	runs := flag.Int("runs", 3, "runs of what is timed; the median counts")
	flag.Parse()
	if err := run(context.Background(), *dir, *runs); err != nil {
		fmt.Fprintln(os.Stderr, "backup:", err)
		os.Exit(1)
	}
}

type bench struct {
	dir    string
	runs   int
	engine engine.Engine
	disk   *disk.Disk
}

func run(ctx context.Context, dir string, runs int) (err error) {
	root, err := os.MkdirTemp(dir, "bench-backup-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	d, err := disk.Open(ctx, filepath.Join(root, "disk"), disk.Options{PoolBytes: 40 * gib})
	if err != nil {
		return err
	}
	defer func() {
		if cerr := d.Close(ctx); err == nil {
			err = cerr
		}
	}()
	b := &bench{dir: root, runs: runs, disk: d, engine: reflink.New(d.Layout(), reflink.Options{Capacity: d.Capacity})}
	for _, measure := range []func(context.Context) error{b.whole, b.ofImage} {
		if err := measure(ctx); err != nil {
			return err
		}
	}
	peak, err := peakMemory()
	row("peak memory of backups and restores : budget", fmt.Sprintf("%d MiB", peak), "250 MiB", float64(peak)/250, 1)
	return err
}

// whole measures a full backup, and a restore, of random bytes.
func (b *bench) whole(ctx context.Context) error {
	const bytes = 2 * gib
	content := filepath.Join(b.dir, "content")
	if err := fill(content, bytes, 1); err != nil {
		return err
	}
	defer os.Remove(content)
	var ours, zstd, restores, cats []float64
	for n := range b.runs {
		place := filepath.Join(b.dir, fmt.Sprint("target-", n))
		r, err := b.repository(ctx, place)
		if err != nil {
			return err
		}
		var m *backup.Manifest
		took, err := timed(content, func() (err error) { m, err = save(ctx, r, content, bytes); return err })
		if err != nil {
			return err
		}
		ours = append(ours, took)
		packed := filepath.Join(b.dir, "content.zst")
		took, err = timed(content, func() error { return shell("zstd -q -T2 -f %s -o %s && sync %s", content, packed, packed) })
		if err != nil {
			return err
		}
		zstd = append(zstd, took)
		os.Remove(packed)
		restored := filepath.Join(b.dir, "restored")
		took, err = timed(place, func() error { return restore(ctx, r, m, restored) })
		if err != nil {
			return err
		}
		if err := shell("cmp %s %s", content, restored); err != nil {
			return fmt.Errorf("the restored content differs: %w", err)
		}
		restores = append(restores, took)
		took, err = timed(content, func() error { return shell("cat %s > %s.copy && sync %s.copy", content, restored, restored) })
		if err != nil {
			return err
		}
		cats = append(cats, took)
		os.Remove(restored)
		os.Remove(restored + ".copy")
		os.RemoveAll(place)
	}
	row("full backup of 2 GiB of random bytes to a directory : zstd -T2 and sync", seconds(median(ours)), seconds(median(zstd)), median(ours)/median(zstd), 1/0.7)
	row("restore of them : cat and sync", seconds(median(restores)), seconds(median(cats)), median(restores)/median(cats), 1/0.8)
	return nil
}

// ofImage measures backups of a volume that began as an image.
func (b *bench) ofImage(ctx context.Context) error {
	const bytes, data, own = 10 * gib, 4 * gib, 100 * mib
	image := filepath.Join(b.disk.Layout().Image("golden"), disk.ImageFile)
	if err := os.MkdirAll(filepath.Dir(image), 0o700); err != nil {
		return err
	}
	if err := fill(image, data, 2); err != nil {
		return err
	}
	if err := os.Truncate(image, bytes); err != nil {
		return err
	}
	if err := b.engine.Clone(ctx, engine.Volume{ID: "v", Bytes: bytes}, engine.From{Image: "golden"}); err != nil {
		return err
	}
	r, err := b.repository(ctx, filepath.Join(b.dir, "target"))
	if err != nil {
		return err
	}
	volume := filepath.Join(b.disk.Layout().Volume("v"), disk.VolumeFile)
	if err := change(volume, own, 10*mib, 3); err != nil { // as ten files would be
		return err
	}
	var m backup.Manifest
	m.Image = &backup.Image{Name: "golden"}
	if m.Image.Content, err = b.save(ctx, r, "", engine.From{Image: "golden"}, engine.From{}, nil, &backup.Manifest{}); err != nil {
		return err
	}
	if m.Content, err = b.snapshot(ctx, r, "s1", engine.From{Image: "golden"}, nil, &m); err != nil {
		return err
	}
	row("read of an image's volume with 100 MiB of its own : MiB", fmt.Sprint(m.Stats.ReadBytes/mib), "110", float64(m.Stats.ReadBytes)/(110*mib), 1)
	row("stored of it before compression : MiB", fmt.Sprint(m.Stats.NewBytes/mib), "110", float64(m.Stats.NewBytes)/(110*mib), 1)
	return b.incremental(ctx, r, volume, data/100, m)
}

// incremental measures the next backup after a hundredth of the data changed.
func (b *bench) incremental(ctx context.Context, r *backup.Repository, volume string, changed int64, last backup.Manifest) error {
	var ours, reads []float64
	base := "s1"
	for n := range b.runs {
		if err := change(volume, changed, 4*mib, byte(10+n)); err != nil {
			return err
		}
		next, m := fmt.Sprint("s", n+2), backup.Manifest{Image: last.Image}
		took, err := timed(volume, func() (err error) {
			m.Content, err = b.snapshot(ctx, r, next, engine.From{Snapshot: base}, &last.Content, &m)
			return err
		})
		if err != nil {
			return err
		}
		ours, base, last = append(ours, took), next, m
		took, err = timed(volume, func() error { return shell("cat %s > /dev/null", volume) })
		if err != nil {
			return err
		}
		reads = append(reads, took)
	}
	row("incremental backup after 1 % changed : reading the volume", seconds(median(ours)), seconds(median(reads)), median(ours)/median(reads), 0.05)
	return nil
}

// snapshot takes a snapshot of the volume and backs it up.
func (b *bench) snapshot(ctx context.Context, r *backup.Repository, id string, since engine.From, last *backup.Content, m *backup.Manifest) (backup.Content, error) {
	if err := b.engine.Snapshot(ctx, engine.Snapshot{ID: id, Volume: "v"}); err != nil {
		return backup.Content{}, err
	}
	return b.save(ctx, r, id, engine.From{Snapshot: id}, since, last, m)
}

// save stores what differs of a content, and finishes the backup that has an ID.
func (b *bench) save(ctx context.Context, r *backup.Repository, id string, of, since engine.From, last *backup.Content, m *backup.Manifest) (c backup.Content, err error) {
	f, err := b.engine.Open(ctx, of)
	if err != nil {
		return c, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return c, err
	}
	extents, err := b.engine.Extents(ctx, of, since)
	if err != nil {
		return c, err
	}
	s, err := r.Begin(ctx, false)
	if err != nil {
		return c, err
	}
	c, err = s.Write(ctx, backup.Input{File: f, Bytes: info.Size(), Changed: extents, Last: last, OverImage: since != engine.From{}}, nil)
	if err != nil || id == "" {
		return c, err
	}
	m.ID, m.Volume, m.Content = id, &backup.Volume{Name: "v"}, c
	return c, s.Finish(ctx, m)
}

func (b *bench) repository(ctx context.Context, place string) (*backup.Repository, error) {
	if err := os.Mkdir(place, 0o700); err != nil {
		return nil, err
	}
	l, err := object.ParseLocation("place", "file://"+place)
	if err != nil {
		return nil, err
	}
	s, err := object.Openers{}.Open(ctx, l, source.Options{}, object.Options{})
	if err != nil {
		return nil, err
	}
	return backup.OpenOrMake(ctx, s, backup.Options{})
}

// save makes a full backup of a file.
func save(ctx context.Context, r *backup.Repository, path string, bytes int64) (*backup.Manifest, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s, err := r.Begin(ctx, false)
	if err != nil {
		return nil, err
	}
	m := &backup.Manifest{ID: "whole", Volume: &backup.Volume{Name: "v"}}
	if m.Content, err = s.Write(ctx, backup.Input{File: f, Bytes: bytes, Changed: []engine.Extent{{Bytes: bytes}}}, nil); err != nil {
		return nil, err
	}
	return m, s.Finish(ctx, m)
}

func restore(ctx context.Context, r *backup.Repository, m *backup.Manifest, path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return r.Restore(ctx, m, f, backup.Restoring{WithImage: true})
}

// fill makes a file of random bytes.
func fill(path string, bytes int64, seed byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	random, buffer := rand.NewChaCha8([32]byte{seed}), make([]byte, mib)
	for range bytes / mib {
		random.Read(buffer)
		if _, err := f.Write(buffer); err != nil {
			return err
		}
	}
	return f.Sync()
}

// change writes random bytes over so many of a file, in pieces.
func change(path string, bytes, piece int64, seed byte) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	random, buffer := rand.NewChaCha8([32]byte{seed}), make([]byte, piece)
	for n := range bytes / piece {
		random.Read(buffer)
		if _, err := f.WriteAt(buffer, n*300*mib+int64(seed)*16*mib); err != nil {
			return err
		}
	}
	return f.Sync()
}

// timed runs what is measured when nothing of a file, or of the files below a directory, is in the page cache.
func timed(cold string, what func() error) (float64, error) {
	err := filepath.WalkDir(cold, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
	if err != nil {
		return 0, err
	}
	began := time.Now()
	err = what()
	return time.Since(began).Seconds(), err
}

func shell(format string, args ...any) error {
	out, err := exec.Command("sh", "-c", fmt.Sprintf(format, args...)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", fmt.Sprintf(format, args...), err, out)
	}
	return nil
}

// peakMemory is the most that this process had resident, in MiB.
func peakMemory() (int, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		var kib int
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err == nil {
			return kib / 1024, nil
		}
	}
	return 0, fmt.Errorf("no VmHWM of this process")
}

func median(list []float64) float64 {
	list = slices.Clone(list)
	slices.Sort(list)
	return list[len(list)/2]
}

func seconds(s float64) string { return fmt.Sprintf("%.2f s", s) }

func row(name, ours, rival string, ratio, bound float64) {
	fmt.Printf("%s\t%s\t%s\t%.3f\t%.2f\n", name, ours, rival, ratio, bound)
}
