package backup

import (
	"net/url"
	"strings"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/source"
)

// Keys of a backup's URL.
const (
	urlBackup = "backup"
	urlVolume = "volume"
	urlImage  = "image"
)

// URL names a backup: the target's URL, and behind it the backup's ID and what it is of, for people.
func URL(target, id, volume, image string) string {
	query := url.Values{urlBackup: {id}}
	if volume != "" {
		query.Set(urlVolume, volume)
	}
	if image != "" {
		query.Set(urlImage, image)
	}
	return strings.TrimRight(target, "/") + "?" + query.Encode()
}

// ParseURL takes a backup's URL apart. name is the backup's ID, or its name. Invalid.
func ParseURL(field, raw string) (target, name string, err error) {
	target, encoded, found := strings.Cut(raw, "?")
	query, perr := url.ParseQuery(encoded)
	if !found || perr != nil || query.Get(urlBackup) == "" || strings.ContainsAny(query.Get(urlBackup), "/ ") {
		return "", "", backingimage.Errorf(backingimage.Invalid, "%s: %q is not the URL of a backup; \"plinth backup ls -o json\" shows them: TARGET-URL?backup=ID&volume=NAME", field, source.RedactURL(raw))
	}
	return strings.TrimRight(target, "/"), query.Get(urlBackup), nil
}
