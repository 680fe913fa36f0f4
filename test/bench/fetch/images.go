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
)

// prepare makes the images: a dense raw one, and compressed ones of real files.
func (b *bench) prepare(ctx context.Context) error {
	if err := b.dense(b.files + "/raw.img"); err != nil {
		return fmt.Errorf("make the raw image: %w", err)
	}
	if b.only != "" && !strings.Contains("decompress-zstd decompress-gzip convert-qcow2-zlib convert-qcow2-zstd convert-qcow2-plain", b.only) {
		return nil
	}
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

func (b *bench) dense(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, io.LimitReader(random(2), b.bytes), make([]byte, 1<<20))
	return errors.Join(err, f.Sync())
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
