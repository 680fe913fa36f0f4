package reflink

import "testing"

// ReplaceClone puts f in FICLONE's place until the test ends; f may call the real one.
func ReplaceClone(tb testing.TB, f func(real func(target, source int) error, target, source int) error) {
	real := ficlone
	ficlone = func(target, source int) error { return f(real, target, source) }
	tb.Cleanup(func() { ficlone = real })
}

// ReplaceOrderedLog makes every filesystem one with, or without, an ordered log until the test ends.
func ReplaceOrderedLog(tb testing.TB, ordered bool) {
	real := orderedLog
	orderedLog = func(string) bool { return ordered }
	tb.Cleanup(func() { orderedLog = real })
}

// Mapping is a piece of a file for Difference.
type Mapping = mapping

// MappingAt makes one; known says that its address is to be relied on.
func MappingAt(offset, bytes, physical int64, known bool) Mapping {
	return mapping{offset, bytes, physical, known}
}

// Difference is the comparison behind Extents.
var Difference = difference
