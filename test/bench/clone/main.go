// Command clone measures what a volume's clone costs beside the least that any program could do: open the image, make a
// file, FICLONE, ftruncate. The engine does more for its price (a record, a name given in one step, all of it on disk when it
// returns), so the bare clone is measured with an fsync as well, for the reader.
//
// Beside it stand a snapshot of a volume that has the image's content, and a volume that is made from a snapshot: each is one such clone as well.
//
// The images have 1 GiB of data in 512 pieces that lie apart on the disk, as a parallel download leaves them, at
// 1, 10 and 100 GiB of virtual size; medians of alternating runs. One line for each comparison:
//
//	name <TAB> ours <TAB> rival <TAB> ratio <TAB> bound
//
// A bound of "-" is a line for the reader.
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/provisioner/engine"
	"plinth.dev/plinth/provisioner/engine/reflink"
)

const (
	gib        = 1 << 30
	pieces     = 512
	pieceBytes = gib / pieces
)

// sizes of the images, in GiB.
var sizes = []int64{1, 10, 100}

func main() {
	dir := flag.String("dir", os.TempDir(), "working directory; a disk of up to 4 GiB is made in it and removed")
	runs := flag.Int("runs", 41, "runs of each clone; the median counts")
	flag.Parse()
	if err := run(context.Background(), *dir, *runs); err != nil {
		fmt.Fprintln(os.Stderr, "clone:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dir string, runs int) (err error) {
	root, err := os.MkdirTemp(dir, "bench-clone-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	d, err := disk.Open(ctx, root, disk.Options{PoolBytes: 16 * gib})
	if err != nil {
		return err
	}
	defer func() {
		if cerr := d.Close(ctx); err == nil {
			err = cerr
		}
	}()
	b := &bench{disk: d, engine: reflink.New(d.Layout(), reflink.Options{Capacity: d.Capacity}), runs: runs}
	return b.measure(ctx)
}

type bench struct {
	disk   *disk.Disk
	engine engine.Engine
	runs   int
}

// measure prints all lines. Every size and every rival takes its turn in each round, so that what else the machine does
// meanwhile falls on all alike.
func (b *bench) measure(ctx context.Context) error {
	var contenders []func(i int) error
	for _, size := range sizes {
		uid := fmt.Sprintf("image-%d", size)
		if err := b.image(uid, size*gib); err != nil {
			return fmt.Errorf("make image: %w", err)
		}
		defer b.disk.RemoveImage(uid)
		contenders = append(contenders, b.contenders(ctx, uid, size*gib+1<<20)...)
	}
	medians, err := b.alternate(contenders)
	if err != nil {
		return err
	}
	for i, size := range sizes {
		of, m := fmt.Sprintf(" of %d GiB", size), medians[rivals*i:]
		line("clone"+of+" : bare", m[0], m[1], "1.5")
		line("clone"+of+" : bare and fsync", m[0], m[2], "-")
		line("snapshot"+of+" : bare", m[3], m[1], "1.5")
		line("restore"+of+" : bare", m[4], m[1], "1.5")
	}
	last := rivals * (len(sizes) - 1)
	line("clone of 100 GiB : of 1 GiB", medians[last], medians[0], "1.25")
	line("snapshot of 100 GiB : of 1 GiB", medians[last+3], medians[3], "1.25")
	return nil
}

// rivals is how many contenders there are for each size.
const rivals = 5

// contenders clone an image: ours, bare, and bare with an fsync; and take a snapshot of its clone, and make a volume from one.
func (b *bench) contenders(ctx context.Context, uid string, size int64) []func(i int) error {
	source := filepath.Join(b.disk.Layout().Image(uid), disk.ImageFile)
	scratch := func(kind string, i int) string {
		return filepath.Join(b.disk.Layout().Staging(), fmt.Sprintf("%s-%s-%d", kind, uid, i))
	}
	return []func(i int) error{
		func(i int) error {
			return b.engine.Clone(ctx, engine.Volume{ID: fmt.Sprintf("%s-%d", uid, i), Bytes: size}, engine.From{Image: uid})
		},
		func(i int) error { return bare(source, scratch("bare", i), size, false) },
		func(i int) error { return bare(source, scratch("synced", i), size, true) },
		func(i int) error {
			return b.engine.Snapshot(ctx, engine.Snapshot{ID: fmt.Sprintf("%s-%d", uid, i), Volume: uid + "-0"})
		},
		func(i int) error {
			return b.engine.Clone(ctx, engine.Volume{ID: fmt.Sprintf("%s-restored-%d", uid, i), Bytes: size}, engine.From{Snapshot: uid + "-0"})
		},
	}
}

// image publishes an image whose pieces were written in random order, so that neighbours in the file are none on the disk.
func (b *bench) image(uid string, size int64) error {
	staged := b.disk.Layout().StagedImage(uid)
	if err := os.MkdirAll(staged, 0o700); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(staged, disk.ImageFile))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	piece := make([]byte, pieceBytes)
	order := rand.New(rand.NewPCG(1, 2)).Perm(pieces)
	for _, i := range order {
		piece[0] = byte(i)
		if _, err := f.WriteAt(piece, int64(i)*(size/pieces)); err != nil {
			return err
		}
		if err := f.Sync(); err != nil { // allocates it here and now
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(staged, disk.ManifestFile), nil, 0o600); err != nil {
		return err
	}
	return b.disk.PublishImage(uid)
}

// bare is the rival.
func bare(source, target string, size int64, sync bool) error {
	s, err := os.Open(source)
	if err != nil {
		return err
	}
	defer s.Close()
	t, err := os.OpenFile(target, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer t.Close()
	if err := unix.IoctlFileClone(int(t.Fd()), int(s.Fd())); err != nil {
		return err
	}
	if err := t.Truncate(size); err != nil || !sync {
		return err
	}
	return t.Sync()
}

// alternate runs the contenders in turn and returns their medians. What one leaves for the filesystem to do later is
// done before the next begins.
func (b *bench) alternate(contenders []func(i int) error) ([]time.Duration, error) {
	root, err := os.Open(string(b.disk.Layout()))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	took := make([][]time.Duration, len(contenders))
	for i := range b.runs {
		for c, contend := range contenders {
			begin := time.Now()
			if err := contend(i); err != nil {
				return nil, err
			}
			took[c] = append(took[c], time.Since(begin))
			if err := unix.Syncfs(int(root.Fd())); err != nil {
				return nil, err
			}
		}
	}
	medians := make([]time.Duration, len(contenders))
	for c := range took {
		slices.Sort(took[c])
		medians[c] = took[c][len(took[c])/2]
	}
	return medians, nil
}

func line(name string, ours, rival time.Duration, bound string) {
	fmt.Printf("%s\t%v\t%v\t%.2f\t%s\n", name, ours.Round(time.Microsecond), rival.Round(time.Microsecond), float64(ours)/float64(rival), bound)
}
