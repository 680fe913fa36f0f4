package provisioner

import (
	"strings"

	"plinth.dev/plinth/backingimage"
)

// unknownKey refuses a key and names the known one, of a sorted list, that was probably meant.
func unknownKey(key string, all []string) error {
	best, distance := "", len(key)/2+1
	for _, known := range all {
		if d := editDistance(strings.ToLower(key), strings.ToLower(known)); d < distance {
			best, distance = known, d
		}
	}
	if best == "" {
		return backingimage.Errorf(backingimage.Invalid, "parameter %q is not known; see the reference of class parameters", key)
	}
	return backingimage.Errorf(backingimage.Invalid, "parameter %q is not known; did you mean %q?", key, best)
}

// editDistance is Levenshtein's: the insertions, deletions and replacements that turn a into b.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
