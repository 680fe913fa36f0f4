package fetch

import (
	"fmt"
	"hash"
	"os"

	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/source"
)

// hashStage feeds one hash.
type hashStage struct {
	algorithm source.Algorithm
	hashes    hashes
	hash      hash.Hash
}

// hashState is what a hashStage notes.
type hashState struct {
	algorithm source.Algorithm
	state     []byte
}

func (s *hashStage) work(b *block) error {
	s.hash.Write(b.data())
	return nil
}

func (s *hashStage) note(int64) (any, error) {
	state, err := s.hashes.save(s.algorithm)
	return hashState{s.algorithm, state}, err
}

// contentStage writes raw content.
type contentStage struct{ content *contentFile }

func (s *contentStage) work(b *block) error {
	padded := format.Padded(int64(b.length))
	clear(b.buffer[b.length:padded])
	if err := s.content.grow(b.offset() + padded); err != nil {
		return err
	}
	return s.content.store(format.Chunk{Index: b.index, Data: b.buffer[:padded]})
}

func (s *contentStage) note(offset int64) (any, error) { return nil, extend(s.content.file, offset) }

// sourceStage keeps a file as it comes.
type sourceStage struct {
	file *os.File
	tail *tail // reads what was written; nil when nobody does
}

func (s *sourceStage) work(b *block) error {
	if _, err := s.file.WriteAt(b.data(), b.offset()); err != nil {
		return err
	}
	s.tail.grow(b.offset() + int64(b.length))
	return nil
}

func (s *sourceStage) note(offset int64) (any, error) { return nil, extend(s.file, offset) }

// extend makes a file at least so many bytes long: one that ends in a hole would be shorter otherwise.
func extend(f *os.File, bytes int64) error {
	info, err := f.Stat()
	if err == nil && info.Size() < bytes {
		err = f.Truncate(bytes)
	}
	if err != nil {
		return fmt.Errorf("extend %s: %w", f.Name(), err)
	}
	return nil
}
