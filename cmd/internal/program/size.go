package program

import (
	"math"

	"k8s.io/apimachinery/pkg/api/resource"
)

// Size reads the number of bytes that a flag gives, with or without a unit. Invalid, also when that is less than least.
func Size(flag, value string, least int64) (int64, error) {
	q, err := resource.ParseQuantity(value)
	switch {
	case err != nil:
		return 0, FlagError(flag, "%q is no size; write bytes, or a number with a unit such as 200Gi", value)
	case q.CmpInt64(math.MaxInt64) >= 0: // what is more is read as that, or cannot be read
		return 0, FlagError(flag, "%s is more than can be counted; give less than 8Ei", value)
	case q.CmpInt64(least) < 0:
		return 0, FlagError(flag, "%s is too little; give at least %d bytes", value, least)
	}
	return q.Value(), nil
}
