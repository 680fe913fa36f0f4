package reflink_test

import (
	"fmt"
	"testing"

	"plinth.dev/plinth/provisioner/engine/reflink"
)

func TestOnlyWhatIsSurelyEqualCountsAsEqual(t *testing.T) {
	at := reflink.MappingAt
	type list = []reflink.Mapping
	for name, tc := range map[string]struct {
		a, b list
		want string
	}{
		"nothing in either":                        {nil, nil, "[]"},
		"the same block":                           {list{at(0, 40, 1000, true)}, list{at(0, 40, 1000, true)}, "[]"},
		"another block":                            {list{at(0, 40, 1000, true)}, list{at(0, 40, 2000, true)}, "[{0 40}]"},
		"the same block, told in other pieces":     {list{at(0, 40, 1000, true)}, list{at(0, 10, 1000, true), at(10, 30, 1010, true)}, "[]"},
		"the same blocks, shifted":                 {list{at(0, 40, 1000, true)}, list{at(10, 40, 1000, true)}, "[{0 50}]"},
		"a piece replaced in the middle":           {list{at(0, 10, 1000, true), at(10, 10, 5000, true), at(20, 20, 1020, true)}, list{at(0, 40, 1000, true)}, "[{10 10}]"},
		"a hole where there was data":              {list{at(20, 20, 1020, true)}, list{at(0, 40, 1000, true)}, "[{0 20}]"},
		"data where there was a hole":              {list{at(0, 40, 1000, true)}, list{at(20, 20, 1020, true)}, "[{0 20}]"},
		"the same address, compressed in one":      {list{at(0, 40, 1000, false)}, list{at(0, 40, 1000, true)}, "[{0 40}]"},
		"the same address, compressed in both":     {list{at(0, 40, 1000, false)}, list{at(0, 40, 1000, false)}, "[{0 40}]"},
		"beyond the end of the base":               {list{at(0, 100, 1000, true)}, list{at(0, 40, 1000, true)}, "[{40 60}]"},
		"beyond the end of the content":            {list{at(0, 40, 1000, true)}, list{at(0, 40, 1000, true), at(100, 40, 2000, true)}, "[]"},
		"two differences apart, two adjacent ones": {list{at(0, 10, 1, true), at(10, 10, 2, false), at(30, 10, 3, true)}, nil, "[{0 20} {30 10}]"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := fmt.Sprint(reflink.Difference(tc.a, tc.b, 100)); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}
