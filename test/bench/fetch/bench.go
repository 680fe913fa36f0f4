package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// bench runs the cases.
type bench struct {
	config
	files string // what the server serves
	work  string // emptied between runs
	url   string
	far   string // url at the other end of a link
}

// errSlow is a ratio over its bound.
var errSlow = errors.New("a figure is over its bound")

// figure is one side of one run: seconds, or MiB.
type figure float64

// duel is a case: two sides that are measured in turn.
type duel struct {
	name        string
	bound       float64
	ours, rival func(context.Context) (figure, error)
}

func (b *bench) run(ctx context.Context) error {
	for _, dir := range []string{b.files, b.work} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	url, far, stop, err := startServer(ctx, b.files)
	if err != nil {
		return err
	}
	defer stop()
	b.url, b.far = url, far
	slow := false
	for _, d := range b.duels() {
		if !strings.Contains(d.name, b.only) {
			continue
		}
		within, err := b.fight(ctx, d)
		if err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
		slow = slow || !within
	}
	if slow {
		return errSlow
	}
	return nil
}

// duels are the cases.
func (b *bench) duels() []duel {
	list := []duel{
		{"download-raw", 1.2, b.fetch(b.url+"raw.img", total), b.curl("raw.img")},
		{"download-ranges", 0.33, b.fetch(b.far+"ranges.img", total), b.fetchOver("1", b.far+"ranges.img", total)},
		{"download-sparse", 1.2, b.fetch(b.url+"sparse.img", b.sparseTotal), b.sha512("sparse.img")},
		{"convert-qcow2-zlib", 1.3, b.fetch(b.url+"zlib.qcow2", conversion), b.qemu("zlib.qcow2")},
		{"convert-qcow2-zstd", 1.3, b.fetch(b.url+"zstd.qcow2", conversion), b.qemu("zstd.qcow2")},
		{"convert-qcow2-plain", 1.1, b.fetch(b.url+"plain.qcow2", conversion), b.qemu("plain.qcow2")},
		{"decompress-zstd", 1.25, b.fetch(b.url+"content.zst", total), b.decompress("content.zst", "zstd")},
		{"decompress-gzip", 1.25, b.fetch(b.url+"content.gz", total), b.decompress("content.gz", "gzip")},
	}
	if b.memoryBytes > 0 {
		url := fmt.Sprintf("%sgenerated/%d", b.url, b.memoryBytes)
		budget := func(context.Context) (figure, error) { return 40, nil }
		list = append(list, duel{"memory-import", 1, b.fetch(url, memory), budget})
	}
	return list
}

// fight measures both sides in turn and prints the case's line.
func (b *bench) fight(ctx context.Context, d duel) (within bool, err error) {
	var ours, rivals, ratios []figure
	for range b.runs {
		mine, err := b.clean(ctx, d.ours)
		if err != nil {
			return false, err
		}
		theirs, err := b.clean(ctx, d.rival)
		if err != nil {
			return false, err
		}
		ours, rivals, ratios = append(ours, mine), append(rivals, theirs), append(ratios, mine/theirs)
	}
	ratio := float64(median(ratios))
	fmt.Printf("%s\t%.2f\t%.2f\t%.2f\t%.2f\n", d.name, median(ours), median(rivals), ratio, d.bound)
	return ratio <= d.bound, nil
}

// clean runs one side in an empty directory on a disk that has nothing left to write.
func (b *bench) clean(ctx context.Context, side func(context.Context) (figure, error)) (figure, error) {
	if err := os.RemoveAll(b.work); err != nil {
		return 0, err
	}
	if err := os.Mkdir(b.work, 0o700); err != nil {
		return 0, err
	}
	if err := exec.CommandContext(ctx, "sync", "-f", b.work).Run(); err != nil {
		return 0, fmt.Errorf("sync: %w", err)
	}
	return side(ctx)
}

func median(list []figure) figure {
	slices.Sort(list)
	return list[len(list)/2]
}

// shell is a side that times a script, whose $1 and $2 are the arguments.
func (b *bench) shell(script string, args ...string) func(context.Context) (figure, error) {
	return func(ctx context.Context) (figure, error) {
		start := time.Now()
		out, err := exec.CommandContext(ctx, "sh", append([]string{"-ec", script, "sh"}, args...)...).CombinedOutput()
		if err != nil {
			return 0, fmt.Errorf("%s: %w: %s", script, err, out)
		}
		return figure(time.Since(start).Seconds()), nil
	}
}

func (b *bench) curl(name string) func(context.Context) (figure, error) {
	return func(ctx context.Context) (figure, error) {
		return b.shell(`curl -sf "$1" | tee "$2" | sha512sum; sync "$2"`, b.url+name, filepath.Join(b.work, "rival"))(ctx)
	}
}

func (b *bench) decompress(name, tool string) func(context.Context) (figure, error) {
	return func(ctx context.Context) (figure, error) {
		return b.shell(`curl -sf "$1" | "$3" -dc > "$2"; sync "$2"`, b.url+name, filepath.Join(b.work, "rival"), tool)(ctx)
	}
}

func (b *bench) qemu(name string) func(context.Context) (figure, error) {
	return b.shell(`qemu-img convert -f qcow2 -O raw "$1" "$2"; sync "$2"`, filepath.Join(b.files, name), filepath.Join(b.work, "rival"))
}

func (b *bench) sha512(name string) func(context.Context) (figure, error) {
	return b.shell(`sha512sum "$1"`, filepath.Join(b.files, name))
}
