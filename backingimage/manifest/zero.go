package manifest

import "bytes"

// zeros is what AllZero compares with; comparing memory is what the machine does fastest.
var zeros [64 << 10]byte

// AllZero reports whether p holds zeros only.
func AllZero(p []byte) bool {
	for len(p) > len(zeros) {
		if !bytes.Equal(p[:len(zeros)], zeros[:]) {
			return false
		}
		p = p[len(zeros):]
	}
	return bytes.Equal(p, zeros[:len(p)])
}
