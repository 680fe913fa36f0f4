package csi

import (
	"fmt"
	"slices"
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

func volumesNamed(names ...string) []*v1alpha1.Volume {
	var list []*v1alpha1.Volume
	for _, name := range names {
		v := &v1alpha1.Volume{}
		v.Name = name
		list = append(list, v)
	}
	return list
}

func TestPagesHoldEachVolumeOnce(t *testing.T) {
	volumes := volumesNamed("a", "b", "c", "d", "e")
	for size := 0; size <= 6; size++ {
		t.Run(fmt.Sprintf("of %d", size), func(t *testing.T) {
			var seen []string
			for token, first := "", true; first || token != ""; first = false {
				from, err := decodeToken(token)
				if err != nil {
					t.Fatal(err)
				}
				page, next := pageOf(volumes, volumeID, from, size)
				if size > 0 && len(page) > size {
					t.Fatalf("a page of %d", len(page))
				}
				for _, v := range page {
					seen = append(seen, v.Name)
				}
				token = next
			}
			if !slices.Equal(seen, []string{"a", "b", "c", "d", "e"}) {
				t.Errorf("saw %v", seen)
			}
		})
	}
}

func TestTokenOutlivesItsVolume(t *testing.T) {
	_, token := pageOf(volumesNamed("a", "b", "c", "d"), volumeID, "", 2)
	from, err := decodeToken(token)
	if err != nil {
		t.Fatal(err)
	}
	page, _ := pageOf(volumesNamed("aa", "d"), volumeID, from, 0) // c, which the token names, is gone
	if len(page) != 1 || page[0].Name != "d" {
		t.Errorf("got %v", page)
	}
}

func TestForeignTokensAreRefused(t *testing.T) {
	for _, token := range []string{"invalid-token", "YWJj", "!", encodeToken("a") + "="} {
		if _, err := decodeToken(token); !backingimage.Is(err, backingimage.Busy) {
			t.Errorf("%q: got %v", token, err)
		}
	}
}
