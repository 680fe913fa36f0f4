package fetch

import (
	"io"

	"plinth.dev/plinth/backingimage/manifest"
)

// holeBytes is the size and the alignment of the blocks that are left out of a file when they are zeros: small enough to
// find most of what is empty in an image, large enough that extents stay few.
const holeBytes = 64 << 10

// writeSparse writes p at an offset that is a multiple of holeBytes, into a file that has no data there yet. Blocks
// of zeros are skipped, the others written in as few calls as possible.
func writeSparse(f io.WriterAt, p []byte, offset int64) error {
	for len(p) > 0 {
		zeros := span(p, true)
		p, offset = p[zeros:], offset+int64(zeros)
		data := span(p, false)
		if data > 0 {
			if _, err := f.WriteAt(p[:data], offset); err != nil {
				return err
			}
		}
		p, offset = p[data:], offset+int64(data)
	}
	return nil
}

// span returns how many bytes at p's beginning are blocks of zeros, or of anything else.
func span(p []byte, zero bool) int {
	n := 0
	for n < len(p) {
		end := min(n+holeBytes, len(p))
		if manifest.AllZero(p[n:end]) != zero {
			break
		}
		n = end
	}
	return n
}
