// Command fetch measures making copies against the tools that a person would use instead, on the same machine, in the
// same run, turn and turn about. It prints one line for each case:
//
//	name <TAB> ours <TAB> rival <TAB> median ratio <TAB> bound
//
// and ends with exit code 1 when a ratio is over its bound. Times are medians in seconds, to the point at which the data
// is on disk; memory is in MiB. The rivals:
//
//   - a download: curl | tee FILE | sha512sum, then sync FILE. Ours also makes chunk digests and checkpoints.
//   - ranges: our own download over one connection, where ours has four, on a link with long round trips.
//   - a sparse download: sha512sum FILE of the same bytes.
//   - a compressed download: curl | zstd -d > FILE (or gzip), then sync FILE. Ours also keeps what it downloads to be able to go
//     on with it, hashes it, leaves out zeros, and makes chunk digests.
//   - a conversion: qemu-img convert -O raw, then sync FILE. Ours also makes chunk digests.
//   - memory: a budget over what the process needs anyway.
//
// Both sides work on a disk as Plinth makes it: the directory itself where it can reflink, else a pool in it. The server is a
// process of its own, the same for both sides, and so is each of our attempts.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"plinth.dev/plinth/backingimage/disk"
)

// Roles that the program has when it runs itself.
const (
	roleServe = "serve" // DIR
	roleFetch = "fetch" // URL DIR CONNECTIONS
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// config is what the flags say.
type config struct {
	dir         string
	bytes       int64
	memoryBytes int64
	runs        int
	only        string
}

func run(ctx context.Context) error {
	var c config
	role := flag.String("role", "", "internal: what a process that this one started is for")
	flag.StringVar(&c.dir, "dir", "", "directory for the files, 8 times -bytes large; a new one under the system's temporary directory by default")
	flag.Int64Var(&c.bytes, "bytes", 2<<30, "size of the raw image, in bytes; the compressed images hold half of it, the sparse one is five times as large and holds a quarter")
	flag.Int64Var(&c.memoryBytes, "memory-bytes", 0, "size of the import that memory is measured over, in bytes; 0 leaves that case out")
	flag.IntVar(&c.runs, "runs", 3, "measured runs of each side")
	flag.StringVar(&c.only, "only", "", "run only cases whose name contains this")
	flag.Parse()
	switch *role {
	case roleServe:
		return serve(ctx, flag.Arg(0))
	case roleFetch:
		return fetchOnce(ctx, flag.Arg(0), flag.Arg(1), flag.Arg(2))
	}
	dir, err := os.MkdirTemp(c.dir, "bench-fetch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	d, err := disk.Open(ctx, dir, disk.Options{PoolBytes: 10 * c.bytes})
	if err != nil {
		return err
	}
	root := string(d.Layout())
	b := &bench{config: c, files: filepath.Join(root, "files"), work: filepath.Join(root, "work")}
	err = b.run(ctx)
	return errors.Join(err, os.RemoveAll(b.files), os.RemoveAll(b.work), d.Close(context.WithoutCancel(ctx)))
}
