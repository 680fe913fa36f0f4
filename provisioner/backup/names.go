package backup

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"regexp"
	"strings"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/provisioner/backup/object"
)

// folders of the objects that are named by their content.
var folders = map[byte]string{kindBlock: blocksFolder, kindPage: pagesFolder}

// nameOf is an object's usual name: folder, two digits, the ID.
func nameOf(kind byte, id ID) string {
	text := id.String()
	return folders[kind] + text[:2] + "/" + text
}

// otherName is a new name for a content whose usual one is condemned.
func otherName(kind byte, id ID) string { return nameOf(kind, id) + "." + token() }

// token is what no one else has.
func token() string {
	var random [8]byte
	rand.Read(random[:])
	return hex.EncodeToString(random[:])
}

// parseName is the inverse of nameOf and otherName. Anything else in the folder is not ours.
func parseName(kind byte, name string) (ID, bool) {
	rest, ok := strings.CutPrefix(name, folders[kind])
	if !ok || len(rest) < 3 || rest[2] != '/' {
		return ID{}, false
	}
	text, suffix, other := strings.Cut(rest[3:], ".")
	id, ok := parseID(text)
	return id, ok && text[:2] == rest[:2] && (!other || tokens.MatchString(suffix))
}

var (
	tokens    = regexp.MustCompile(`^[0-9a-f]{16}$`)
	backupIDs = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)
)

// fetch reads and proves the content of an object that is named by it, after what is in to. NotFound, Corrupt and the rest name the object.
func (r *Repository) fetch(ctx context.Context, kind byte, id ID, to []byte) ([]byte, error) {
	content, err := r.fetchName(ctx, kind, id, nameOf(kind, id), to)
	if backingimage.Is(err, backingimage.Corrupt) { // on its way, perhaps
		content, err = r.fetchName(ctx, kind, id, nameOf(kind, id), to)
	}
	if !backingimage.Is(err, backingimage.NotFound) && !backingimage.Is(err, backingimage.Corrupt) {
		return content, err
	}
	var other []byte
	found := false
	lerr := r.others(ctx, kind, id, func(o object.Object) error {
		if c, err := r.fetchName(ctx, kind, id, o.Name, to); err == nil {
			other, found = c, true
			return errEnough
		}
		return nil
	})
	switch {
	case found:
		return other, nil
	case lerr != nil:
		return nil, lerr
	case backingimage.Is(err, backingimage.NotFound):
		return nil, backingimage.Errorf(backingimage.Corrupt, "%s is missing in %s", nameOf(kind, id), r.store)
	}
	return nil, err
}

func (r *Repository) fetchName(ctx context.Context, kind byte, id ID, name string, to []byte) ([]byte, error) {
	stored, err := r.store.Get(ctx, name, storedLimit(kind))
	if err != nil {
		return nil, err
	}
	content, err := r.keys.disclose(to, kind, id.String(), stored)
	if err == nil && r.keys.sum(content[len(to):]) != id {
		err = corrupt("its content is another than its name says")
	}
	if err != nil {
		return nil, backingimage.Errorf(backingimage.KindOf(err), "%s in %s: %w", name, r.store, err)
	}
	return content, nil
}

// others calls each with the objects that have an ID's content under another name than the usual one, until it fails.
func (r *Repository) others(ctx context.Context, kind byte, id ID, each func(object.Object) error) error {
	err := r.store.List(ctx, nameOf(kind, id)+".", func(o object.Object) error {
		if found, ok := parseName(kind, o.Name); !ok || found != id {
			return nil
		}
		return each(o)
	})
	if err == errEnough {
		return nil
	}
	return err
}

// isTemporary tells what a write to a directory has before it is an object, or left when it was killed.
func isTemporary(name string) bool { return strings.HasSuffix(name, ".tmp") }

// errEnough ends a list early.
var errEnough = backingimage.Errorf(backingimage.Internal, "enough")

// isThere reports whether an object is, whole as far as its header and its size tell: a power loss may have cut one in a directory.
func (r *Repository) isThere(ctx context.Context, kind byte, name string) (bool, error) {
	first, size, err := r.store.Head(ctx, name, headerBytes)
	if backingimage.Is(err, backingimage.NotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	_, err = r.keys.parseHeader(kind, first, size)
	if backingimage.Is(err, backingimage.Unsupported) {
		return false, backingimage.Errorf(backingimage.Unsupported, "%s in %s: %w", name, r.store, err)
	}
	return err == nil, nil
}
