package object

import (
	"context"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"gocloud.dev/blob"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/source"
)

// Schemes of the URLs of stores.
const (
	SchemeFile  = "file"
	SchemeS3    = "s3"
	SchemeGCS   = "gs"
	SchemeAzure = "azblob"
)

// Location is where a store is: a URL, taken apart.
type Location struct {
	Scheme string
	Bucket string // bucket or container; "" of a directory
	Region string // of an S3 bucket, when the URL says it as s3://bucket@region/; of a container, what the names of its cloud's hosts end with
	Path   string // of a directory, absolute; else the prefix in the bucket, without slashes around it
}

// ParseLocation reads a store's URL: s3://bucket/prefix, s3://bucket@region/prefix, gs://bucket/prefix, azblob://container/prefix,
// azblob://container@core.windows.net/prefix or file:///directory. Invalid, with the field's name, for anything else.
func ParseLocation(field, raw string) (Location, error) {
	invalid := func(what string) (Location, error) {
		return Location{}, backingimage.Errorf(backingimage.Invalid, "%s: %q %s", field, source.RedactURL(raw), what)
	}
	if strings.ContainsFunc(raw, unicode.IsControl) || strings.TrimSpace(raw) != raw || strings.ContainsAny(raw, "\\?#%") {
		return invalid("has a space, a control character, or one of \\ ? # %, which the URL of a backup target cannot have; remove it")
	}
	u, err := url.Parse(raw)
	if err != nil || u.Scheme == "" || u.Opaque != "" {
		return invalid("is not a URL; write it as s3://bucket/prefix, gs://bucket/prefix, azblob://container/prefix or file:///directory")
	}
	if climbs(u.Path) {
		return invalid("has a path with .. or an empty part in it; write it plainly")
	}
	l := Location{Scheme: strings.ToLower(u.Scheme), Bucket: u.Host, Path: strings.Trim(u.Path, "/")}
	switch l.Scheme {
	case SchemeFile:
		if l.Bucket != "" || l.Path == "" {
			return invalid("names no directory; write it with three slashes, as file:///mnt/backups")
		}
		l.Path = "/" + l.Path
	case SchemeS3, SchemeGCS, SchemeAzure:
		if u.User != nil { // Longhorn's form
			if _, secret := u.User.Password(); secret {
				return invalid("holds a password, which everyone who can read the target could read too; put the keys into a secret and name that")
			}
			l.Bucket, l.Region = u.User.Username(), u.Host
		}
		if l.Scheme == SchemeS3 {
			return l, source.ValidateBucket(l.Bucket)
		}
		if what := l.misnamed(); what != "" {
			return invalid(what)
		}
	default:
		return invalid("has a scheme that no backup target has; use s3, gs, azblob or file")
	}
	return l, nil
}

// Names of buckets and containers, and of the hosts of Azure's clouds, as far as they become part of a URL.
var (
	gcsBucket      = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$`)
	azureContainer = regexp.MustCompile(`^[a-z0-9](-?[a-z0-9]){2,62}$`)
	azureSuffix    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+$`)
)

// misnamed says what is wrong with the names in a location in a public cloud, "" for nothing.
func (l Location) misnamed() string {
	switch {
	case l.Scheme == SchemeGCS && l.Region != "":
		return "has an @; write it as gs://bucket/prefix"
	case l.Scheme == SchemeGCS && !gcsBucket.MatchString(l.Bucket):
		return "does not name a bucket, which has 3 to 222 lower-case letters, digits, hyphens, underscores and dots; write it as gs://bucket/prefix"
	case l.Scheme == SchemeAzure && !azureContainer.MatchString(l.Bucket):
		return "does not name a container, which has 3 to 63 lower-case letters, digits and single hyphens; write it as azblob://container/prefix"
	case l.Scheme == SchemeAzure && l.Region != "" && !azureSuffix.MatchString(l.Region):
		return "names no cloud behind the @; write it as azblob://container@core.windows.net/prefix, or leave that out"
	}
	return ""
}

func climbs(p string) bool {
	parts := strings.Split(strings.Trim(p, "/"), "/")
	return strings.Trim(p, "/") != "" && slices.ContainsFunc(parts, func(part string) bool { return strings.Trim(part, ".") == "" })
}

// String is the URL in its one form.
func (l Location) String() string {
	if l.Scheme == SchemeFile {
		return "file://" + l.Path
	}
	bucket := l.Bucket
	if l.Region != "" {
		bucket += "@" + l.Region
	}
	return l.Scheme + "://" + path.Join(bucket, l.Path)
}

// Opener opens the bucket of a location with what the options say of who asks and how. Nothing is asked of the bucket yet. Invalid;
// Precondition.
type Opener func(ctx context.Context, l Location, o source.Options) (Bucket, error)

// Openers are by the scheme. A program has those that it links.
type Openers map[string]Opener

// Open opens the store at a location.
func (all Openers) Open(ctx context.Context, l Location, access source.Options, o Options) (*Store, error) {
	open, ok := all[l.Scheme]
	if l.Scheme == SchemeFile {
		open, ok = openDirectory, true
	}
	if !ok {
		return nil, backingimage.Errorf(backingimage.Unsupported, "backup target %s: this program keeps no backups in %s://", l, l.Scheme)
	}
	b, err := open(ctx, l, access)
	if err != nil {
		return nil, err
	}
	if l.Scheme != SchemeFile && l.Path != "" {
		b.Bucket = blob.PrefixedBucket(b.Bucket, l.Path+"/")
	}
	return New(b, l.String(), o), nil
}
