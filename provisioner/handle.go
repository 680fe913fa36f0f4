package provisioner

import (
	"encoding/json"
	"net/url"
	"slices"
	"strings"

	"plinth.dev/plinth/backingimage"
)

// Handle names a snapshot. As text it is, by its type,
//
//	snap://volume/snapshot
//	bak://volume/backup
//	bi://backing?backingImage=NAME&backingImageDataSourceType=TYPE&KEY=VALUE…
//
// The last is the description of an image as a StorageClass has it, its source parameters beside the other keys. A handle that
// was written by hand may describe an image that is only made when a volume needs it.
type Handle struct {
	Type   string
	Volume string            // ID of the volume, of TypeSnap and TypeBackup
	Name   string            // of the snapshot or backup
	Image  map[string]string // of TypeImage: parameters of a StorageClass
}

// imageHost is where an image's handle has the host of a URL.
const imageHost = "backing"

// imageKeys are the keys of an image's handle that are not source parameters.
var imageKeys = []string{keyImage, keyImageName, keySourceType, keySourceParameters, keyChecksum, keyMinCopies, keyImageNodes, keyImageDisks}

// schemes of handles. Longhorn wrote bs before bak.
var schemes = map[string]string{TypeSnap: TypeSnap, TypeBackup: TypeBackup, "bs": TypeBackup, TypeImage: TypeImage}

// ParseHandle reads a handle. Invalid when it is none.
func ParseHandle(text string) (Handle, error) {
	u, err := url.Parse(text)
	if err != nil || schemes[u.Scheme] == "" {
		return Handle{}, refuseHandle(text, "it begins with none of snap://, bak:// and bi://")
	}
	h := Handle{Type: schemes[u.Scheme]}
	if u.User != nil || u.Fragment != "" {
		return Handle{}, refuseHandle(text, "it has a login or a fragment")
	}
	if h.Type == TypeImage {
		return h.parseImage(text, u)
	}
	h.Volume, h.Name = u.Host, strings.TrimPrefix(u.Path, "/")
	if ValidateName(h.Volume) != nil || ValidateName(h.Name) != nil || u.RawQuery != "" {
		return Handle{}, refuseHandle(text, "it is not "+h.Type+"://VOLUME/NAME")
	}
	return h, nil
}

func (h Handle) parseImage(text string, u *url.URL) (Handle, error) {
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil || u.Host != imageHost || strings.Trim(u.Path, "/") != "" {
		return Handle{}, refuseHandle(text, "it is not bi://"+imageHost+"?"+keyImage+"=NAME&…, each value escaped as in a URL")
	}
	class, source := map[string]string{}, map[string]string{}
	for key, values := range query {
		if len(values) != 1 {
			return Handle{}, refuseHandle(text, "it has "+key+" more than once")
		}
		if slices.Contains(imageKeys, key) {
			class[key] = values[0]
		} else {
			source[key] = values[0]
		}
	}
	if len(source) > 0 {
		if class[keySourceParameters] != "" {
			return Handle{}, refuseHandle(text, "it has source parameters by themselves and in "+keySourceParameters)
		}
		all, err := json.Marshal(source)
		if err != nil {
			return Handle{}, err
		}
		class[keySourceParameters] = string(all)
	}
	h.Image = class
	if p, err := ParseParameters(class); err != nil {
		return Handle{}, backingimage.Errorf(backingimage.KindOf(err), "snapshot handle %s: %w", shortened(text), err)
	} else if p.Image == "" {
		return Handle{}, refuseHandle(text, "it names no "+keyImage)
	}
	return h, nil
}

// String is the handle as text.
func (h Handle) String() string {
	if h.Type != TypeImage {
		return h.Type + "://" + h.Volume + "/" + h.Name
	}
	query := url.Values{}
	for key, value := range h.Image {
		if key != keySourceParameters {
			query.Set(key, value)
		}
	}
	var source map[string]string
	_ = json.Unmarshal([]byte(h.Image[keySourceParameters]), &source) // it was marshalled, or parsed, before
	for key, value := range source {
		query.Set(key, value)
	}
	return TypeImage + "://" + imageHost + "?" + query.Encode()
}

func refuseHandle(text, why string) error {
	return backingimage.Errorf(backingimage.Invalid, "snapshot handle %s names no snapshot: %s", shortened(text), why)
}
