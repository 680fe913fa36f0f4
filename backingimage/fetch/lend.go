package fetch

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/source"
)

// A source may be a file of this machine, as an upload is. Where the filesystem can share its blocks, its bytes are read for
// their digests alone, and the file is cloned in the end: one call, instead of a write of every block. Sharing block by block
// would wait for the disk at each.

// cloneFile is replaced in tests.
var cloneFile = unix.IoctlFileClone

// localFile is the file of this machine that a source's bytes are in, at their offsets; nil when there is none.
func localFile(s source.Source) *os.File {
	if local, ok := s.(interface{ LocalFile() *os.File }); ok {
		return local.LocalFile()
	}
	return nil
}

// borrow finds out whether the source's file can be cloned, by doing it with what is there of it.
func (d *download) borrow() {
	d.lent = nil
	if local := localFile(d.job.Source); local != nil && cloneFile(int(d.file.Fd()), int(local.Fd())) == nil {
		d.lent = local
	}
}

// bytesFile is the file that has the bytes which have come.
func (d *download) bytesFile() *os.File {
	if d.lent != nil {
		return d.lent
	}
	return d.file
}

// takeLent makes the file that was to be written one with the source's, which is complete.
func (d *download) takeLent() error {
	if d.lent == nil || d.info.Packed() { // what is packed was read from there
		return nil
	}
	if err := cloneFile(int(d.file.Fd()), int(d.lent.Fd())); err != nil {
		return fmt.Errorf("clone %s: %w", d.lent.Name(), err)
	}
	return nil
}

// lentStage is for blocks that are in the source's own file.
type lentStage struct {
	content *contentFile // whose digests are taken; of a raw source
	tail    *tail        // reads what is there; of a packed one
}

func (s *lentStage) work(b *block) error {
	if s.content != nil {
		padded := format.Padded(int64(b.length))
		clear(b.buffer[b.length:padded])
		s.content.digests.Add(b.index, b.buffer[:padded])
	}
	s.tail.grow(b.offset() + int64(b.length))
	return nil
}

func (s *lentStage) note(int64) (any, error) { return nil, nil }
