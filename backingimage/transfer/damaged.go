package transfer

import (
	"slices"
	"strconv"
	"strings"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/manifest"
)

// intact refuses a request, by its Range header, for bytes that are known to be damaged: Conflict, until they are repaired.
func (h holding) intact(header string) error {
	first, last := span(header, h.record.VirtualBytes)
	if slices.ContainsFunc(h.bad, func(chunk int64) bool {
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
