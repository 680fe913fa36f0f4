package placement_test

import (
	"math"
	"strings"
	"testing"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/placement"
)

func TestLacks(t *testing.T) {
	const gib = 1 << 30
	limits := placement.Limits{OverProvisioningPercent: 200, MinimalAvailablePercent: 10}
	for name, tc := range map[string]struct {
		capacity, available, promised, volume, image int64
		says                                         string
	}{
		"there is room": {capacity: 10 * gib, available: 5 * gib, promised: 10 * gib, volume: 10 * gib},
		"a byte more than may be promised is too much":   {capacity: 10 * gib, available: 5 * gib, promised: 10 * gib, volume: 10*gib + 1, says: "200 % of 10 GiB"},
		"an image takes of what may be promised, too":    {capacity: 10 * gib, available: 5 * gib, promised: 19 * gib, image: 2 * gib, says: "may be promised"},
		"an image takes of what is free":                 {capacity: 10 * gib, available: 2 * gib, image: 3 * gib / 2, says: "after the image's 1.5 GiB"},
		"what must stay free is not given to volumes":    {capacity: 10 * gib, available: gib - 1, volume: 1, says: "must stay free (10 %)"},
		"a disk of absurd size does not overflow":        {capacity: math.MaxInt64, available: math.MaxInt64, volume: gib},
		"a volume of absurd size does not overflow":      {capacity: 10 * gib, available: 5 * gib, promised: 10 * gib, volume: math.MaxInt64 - gib, says: "200 % of 10 GiB"},
		"what is promised does not overflow either":      {capacity: 10 * gib, available: 5 * gib, promised: math.MaxInt64, volume: 1, image: 1, says: "200 % of 10 GiB"},
		"a disk that was not measured yet takes nothing": {volume: 1, says: "may be promised"},
	} {
		t.Run(name, func(t *testing.T) {
			d := &v1alpha1.Disk{Status: v1alpha1.DiskStatus{CapacityBytes: tc.capacity, AvailableBytes: tc.available}}
			got := limits.Lacks(d, tc.promised, tc.volume, tc.image)
			if !strings.Contains(got, tc.says) || (got == "") != (tc.says == "") {
				t.Errorf("says %q, want %q in it", got, tc.says)
			}
		})
	}
}

func TestLedger(t *testing.T) {
	var l placement.Ledger
	l.Drop("nothing")
	l.Set("copy/a", "d1", 10)
	l.Set("copy/b", "d1", 5)
	l.Set("copy/a", "d2", 7) // moved and grown
	if p := l.Promised(); p["d1"] != 5 || p["d2"] != 7 || len(p) != 2 {
		t.Errorf("promised %v", p)
	}
	l.Drop("copy/b")
	l.Drop("copy/b")
	if p := l.Promised(); len(p) != 1 {
		t.Errorf("promised %v", p)
	}
}
