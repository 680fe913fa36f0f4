package main

import (
	"context"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/cmd/internal/program"
	"plinth.dev/plinth/cmd/internal/standalone"
)

// standaloneBinary has what `plinth standalone` runs. It is a binary of its own because it links an API server and etcd,
// whose initialisation would cost every other command, and every agent, 45 MB and 60 ms.
const standaloneBinary = "plinth-standalone"

// execStandalone becomes the other binary, with the same command line, which has been checked.
func execStandalone(_ context.Context, _ standalone.Config, _ io.Writer) error {
	path, err := program.FindBeside(standaloneBinary)
	if err != nil {
		return err
	}
	if err := unix.Exec(path, os.Args, os.Environ()); err != nil {
		return backingimage.Errorf(backingimage.Unsupported, "run %s: %w", path, err)
	}
	return nil
}
