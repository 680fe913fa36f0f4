package csi

import (
	"context"
	"encoding/base64"
	"sort"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// ListVolumes pages by ID: a token names the volume that the next page begins with, so volumes that come and go
// between two pages make neither a gap nor a repetition among those that stay.
func (c *controller) ListVolumes(ctx context.Context, r *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	if r.GetMaxEntries() < 0 {
		return nil, invalid("max_entries", "%d is negative", r.GetMaxEntries())
	}
	first, err := decodeToken(r.GetStartingToken())
	if err != nil {
		return nil, err
	}
	volumes, err := c.volumes.List(ctx)
	if err != nil {
		return nil, err
	}
	page, next := pageOf(volumes, volumeID, first, int(r.GetMaxEntries()))
	answer := &csi.ListVolumesResponse{NextToken: next}
	for _, v := range page {
		answer.Entries = append(answer.Entries, &csi.ListVolumesResponse_Entry{
			Volume: volumeAnswer(v),
			Status: &csi.ListVolumesResponse_VolumeStatus{VolumeCondition: conditionOf(v)},
		})
	}
	return answer, nil
}

func volumeID(v *v1alpha1.Volume) string { return v.Name }

// pageOf cuts a page of at most size things, 0 for all, out of a list sorted by ID, and the token of the next page.
func pageOf[T any](list []T, id func(T) string, first string, size int) (page []T, next string) {
	start := sort.Search(len(list), func(i int) bool { return id(list[i]) >= first })
	page = list[start:]
	if size == 0 || size >= len(page) {
		return page, ""
	}
	return page[:size], encodeToken(id(page[size]))
}

// tokenPrefix tells our tokens from anything else that happens to decode.
const tokenPrefix = "from:"

func encodeToken(id string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(tokenPrefix + id))
}

// decodeToken returns the ID that a page begins with. Busy, which is Aborted, when it is no token of ours: the
// specification has the caller begin anew then.
func decodeToken(token string) (id string, err error) {
	if token == "" {
		return "", nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	id, ours := strings.CutPrefix(string(raw), tokenPrefix)
	if err != nil || !ours {
		return "", backingimage.Errorf(backingimage.Busy, "starting_token: %q is no token of this driver; begin again without one", token)
	}
	return id, nil
}
