package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// prepare makes the images of the cases that are run: dense raw ones, a sparse one, and qcow2 ones of real files.
func (b *bench) prepare(ctx context.Context) error {
	for _, p := range []struct {
		cases string
		make  func() error
	}{
		{"download-raw", func() error { return b.dense("raw.img", b.bytes) }},
		{"download-ranges", func() error { return b.dense("ranges.img", b.bytes/8) }},
		{"download-sparse", func() error { return b.spread("sparse.img", 5*b.bytes, stretchBytes, 20*stretchBytes) }},
		{"convert-qcow2-zlib convert-qcow2-zstd convert-qcow2-plain decompress-zstd decompress-gzip", func() error { return b.compressed(ctx) }},
	} {
		if !strings.Contains(p.cases, b.only) {
			continue
		}
		if err := p.make(); err != nil {
			return fmt.Errorf("make the images of %s: %w", p.cases, err)
		}
	}
	return nil
}

// sparseData is how many bytes of the sparse image are not zero: one stretch in twenty of five times -bytes.
func (b *bench) sparseData() int64 { return b.bytes / 4 }

// compressed makes the images that are converted or decompressed.
func (b *bench) compressed(ctx context.Context) error {
	content := b.files + "/content"
	if err := b.realistic(ctx, content); err != nil {
		return fmt.Errorf("make the content of the compressed images: %w", err)
	}
	defer os.Remove(content)
	for _, tool := range []string{"zstd", "gzip"} {
		if out, err := exec.CommandContext(ctx, tool, "-kf", content).CombinedOutput(); err != nil {
			return fmt.Errorf("make the image for %s: %w: %s", tool, err, out)
		}
	}
	for name, options := range map[string][]string{
		"zlib.qcow2":  {"-c"},
		"zstd.qcow2":  {"-c", "-o", "compression_type=zstd"},
		"plain.qcow2": nil,
	} {
		args := append([]string{"convert", "-f", "raw", "-O", "qcow2"}, options...)
		if out, err := exec.CommandContext(ctx, "qemu-img", append(args, content, filepath.Join(b.files, name))...).CombinedOutput(); err != nil {
			return fmt.Errorf("make %s: %w: %s", name, err, out)
		}
	}
	return nil
}

// stretchBytes of data stand together in the sparse image.
const stretchBytes = 4 << 20

// dense makes a file of data.
func (b *bench) dense(name string, size int64) error { return b.spread(name, size, size, size) }

// spread makes a file of so many bytes in which a stretch of data stands at each step, and nothing between. It is old, so that
// its date is good as a name of its version.
func (b *bench) spread(name string, size, stretch, step int64) error {
	path := filepath.Join(b.files, name)
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	data := random(2)
	for at := int64(0); at < size; at += step {
		out := struct{ io.Writer }{io.NewOffsetWriter(f, at)}
		if _, err := io.CopyBuffer(out, io.LimitReader(data, stretch), make([]byte, 1<<20)); err != nil {
			return err
		}
	}
	old := time.Now().Add(-time.Hour)
	return errors.Join(f.Truncate(size), f.Sync(), os.Chtimes(path, old, old))
}

// realistic is half data, which compresses as files do: the Go toolchain's, again and again. The other half is a hole.
func (b *bench) realistic(ctx context.Context, path string) error {
	root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("find Go's files: %w", err)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	out := &quota{w: f, left: b.bytes / 2}
	for out.left > 0 {
		before := out.left
		if err := appendTree(out, strings.TrimSpace(string(root))); err != nil {
			return err
		}
		if out.left == before {
			return fmt.Errorf("%s has no files", root)
		}
	}
	return f.Truncate(b.bytes)
}

func appendTree(out *quota, root string) error {
	return filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() || out.left == 0 {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(out, f)
		return err
	})
}

// quota writes so many bytes and drops the rest.
type quota struct {
	w    io.Writer
	left int64
}

func (q *quota) Write(p []byte) (int, error) {
	n, err := q.w.Write(p[:min(int64(len(p)), q.left)])
	q.left -= int64(n)
	if err != nil {
		return n, err
	}
	return len(p), nil
}
