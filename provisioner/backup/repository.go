package backup

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/provisioner/backup/object"
)

// Names of objects and folders of a repository.
const (
	descriptionName = "plinth-backup.json"
	blocksFolder    = "blocks/"
	pagesFolder     = "pages/"
	backupsFolder   = "backups/"
	garbageFolder   = "garbage/"
	listsFolder     = garbageFolder + "condemned/"
	sweptFolder     = garbageFolder + "swept/"
	clockFolder     = garbageFolder + "clock/"
	probeFolder     = "probe/"
)

// DefaultGrace is the grace time of repositories that are made now: see the package comment.
const DefaultGrace = 24 * time.Hour

// description is the content of plinth-backup.json. It is the same for everyone who makes a repository with the same key.
type description struct {
	Version      int    `json:"version"`
	BlockBytes   int64  `json:"blockBytes"`
	Digest       string `json:"digest"`               // how IDs are made: blake3, or blake3-keyed
	Encryption   string `json:"encryption,omitempty"` // aes-256-gcm, or nothing
	KeyCheck     string `json:"keyCheck,omitempty"`   // hexadecimal
	GraceSeconds int64  `json:"graceSeconds"`
}

const descriptionBytes = 64 << 10

// Options of a Repository.
type Options struct {
	// Key that contents are encrypted with; "" for none.
	Key credential.Secret
	// Grace of a repository that Open makes; DefaultGrace when 0. One that is there keeps its own.
	Grace time.Duration
	// Concurrency is how many blocks are worked on at once; 4 by default.
	Concurrency int
}

// Repository is the backups in one place. It is safe for concurrent use, by any number of processes and machines.
type Repository struct {
	store *object.Store
	keys  *keys
	grace time.Duration
	width int // blocks at once
}

// Open opens the repository in a store. NotFound when there is none; Precondition when the key is not the one that it was made with;
// Unsupported when a newer program made it; Invalid when the key is none.
func Open(ctx context.Context, s *object.Store, o Options) (*Repository, error) {
	r, err := prepare(s, o)
	if err != nil {
		return nil, err
	}
	text, err := s.Get(ctx, descriptionName, descriptionBytes)
	if backingimage.Is(err, backingimage.NotFound) {
		return nil, backingimage.Errorf(backingimage.NotFound, "there are no backups in %s: it has no %s", s, descriptionName)
	}
	if err != nil {
		return nil, err
	}
	s.Anchor(descriptionName)
	return r, r.read(text)
}

// OpenOrMake is Open, and makes a repository where there is none.
func OpenOrMake(ctx context.Context, s *object.Store, o Options) (*Repository, error) {
	r, err := Open(ctx, s, o)
	if !backingimage.Is(err, backingimage.NotFound) {
		return r, err
	}
	if r, err = prepare(s, o); err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(r.description(), "", "  ")
	if err != nil {
		return nil, fmt.Errorf("describe the repository: %w", err)
	}
	if err := s.PutNew(ctx, descriptionName, append(text, '\n')); err != nil && !backingimage.Is(err, backingimage.Conflict) {
		return nil, err
	}
	return Open(ctx, s, o) // whoever was first decides
}

func prepare(s *object.Store, o Options) (*Repository, error) {
	k, err := parseKey(o.Key)
	if err != nil {
		return nil, err
	}
	r := &Repository{store: s, keys: k, grace: o.Grace, width: o.Concurrency}
	if r.grace <= 0 {
		r.grace = DefaultGrace
	}
	if r.width <= 0 {
		r.width = 4
	}
	return r, nil
}

func (r *Repository) description() description {
	d := description{Version: version, BlockBytes: BlockBytes, Digest: "blake3", GraceSeconds: int64((r.grace + time.Second - 1) / time.Second)}
	if r.keys != nil {
		d.Digest, d.Encryption, d.KeyCheck = "blake3-keyed", "aes-256-gcm", hex.EncodeToString(r.keys.check[:])
	}
	return d
}

// read takes over what a description says, if this program and this key fit it.
func (r *Repository) read(text []byte) error {
	var d description
	refuse := func(kind backingimage.Kind, format string, args ...any) error {
		return backingimage.Errorf(kind, "%s in %s: %s", descriptionName, r.store, fmt.Sprintf(format, args...))
	}
	if err := json.Unmarshal(text, &d); err != nil || d.Version < 1 {
		return refuse(backingimage.Corrupt, "it is no description of a repository; restore it from elsewhere: docs/reference/backup-format.md says what it holds")
	}
	if d.Version > version {
		return refuse(backingimage.Unsupported, "the backups have format version %d, and this program knows version %d: use a newer Plinth", d.Version, version)
	}
	grace := r.grace
	r.grace = time.Duration(d.GraceSeconds) * time.Second
	is := r.description()
	switch {
	case d.BlockBytes != BlockBytes || d.GraceSeconds < 1 || d.GraceSeconds > 1<<31:
		return refuse(backingimage.Corrupt, "it has blocks of %d bytes and a grace time of %d s, which cannot be", d.BlockBytes, d.GraceSeconds)
	case d.Encryption != "" && r.keys == nil:
		return refuse(backingimage.Precondition, "the backups are encrypted; put the key into the target's secret, as %s", credential.KeyBackup)
	case d.Encryption == "" && r.keys != nil:
		return refuse(backingimage.Precondition, "the backups are not encrypted, and the target's secret has a key; remove %s from it, or use another place", credential.KeyBackup)
	case d.Encryption != is.Encryption || d.Digest != is.Digest:
		return refuse(backingimage.Unsupported, "this program does not know the encryption %q with the digest %q: use a newer Plinth", d.Encryption, d.Digest)
	case r.keys != nil && !r.keys.checks(d.KeyCheck):
		r.grace = grace
		return refuse(backingimage.Precondition, "the backups were encrypted with another key than %s of the target's secret; use that one", credential.KeyBackup)
	}
	return nil
}

// String is the URL of the repository.
func (r *Repository) String() string { return r.store.String() }

// Encrypted reports whether contents are encrypted.
func (r *Repository) Encrypted() bool { return r.keys != nil }

// Close closes the store.
func (r *Repository) Close() error { return r.store.Close() }

// Probe is Probe of the repository's store.
func (r *Repository) Probe(ctx context.Context) error { return Probe(ctx, r.store) }

// Probe writes an object, reads it back and deletes it: it is nil when the store can be read and written.
func Probe(ctx context.Context, s *object.Store) error {
	name := probeFolder + token()
	content := []byte("Plinth was here to see whether it can write; remove this if it stays.\n")
	if err := s.Put(ctx, name, content); err != nil {
		return err
	}
	back, err := s.Get(ctx, name, descriptionBytes)
	if err == nil && string(back) != string(content) {
		err = backingimage.Errorf(backingimage.Corrupt, "%s gives other bytes for %s than were written", s, name)
	}
	if derr := s.Delete(ctx, name); err == nil {
		err = derr
	}
	return err
}
