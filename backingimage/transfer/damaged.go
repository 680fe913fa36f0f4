package transfer

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/manifest"
)

// Bad returns the chunks of an image that this node has and must not give to others, because they are known to be damaged. A copy whose
// damage cannot be told is an error of Kind Corrupt: nothing of it may be given.
func (s *Server) Bad(uid string) ([]int64, error) {
	dir, _, err := s.readyCopy(uid)
	if err != nil {
		return nil, err
	}
	return fetch.Damage(dir)
}

// intact refuses a request for bytes that are known to be damaged: Conflict, until they are repaired.
func intact(r *http.Request, dir string, bytes int64) error {
	bad, err := fetch.Damage(dir)
	if err != nil || len(bad) == 0 {
		return err
	}
	first, last := span(r.Header.Get("Range"), bytes)
	if slices.ContainsFunc(bad, func(chunk int64) bool {
		return chunk*manifest.ChunkBytes <= last && (chunk+1)*manifest.ChunkBytes > first
	}) {
		return backingimage.Errorf(backingimage.Conflict, "bytes of this copy in the range are damaged, and are being repaired; ask another node, or later")
	}
	return nil
}

// span is what a Range header of one range with both ends asks for; of any other, everything is taken to be asked for.
func span(header string, bytes int64) (first, last int64) {
	from, to, ok := strings.Cut(strings.TrimPrefix(header, "bytes="), "-")
	first, err := strconv.ParseInt(from, 10, 64)
	last, lerr := strconv.ParseInt(to, 10, 64)
	if !ok || err != nil || lerr != nil || first < 0 || last < first {
		return 0, bytes
	}
	return first, last
}
