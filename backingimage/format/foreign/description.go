package foreign

import "encoding/json"

// description is what we read of qemu-img's description of an image.
type description struct {
	VirtualSize     uint64 `json:"virtual-size"`
	BackingFile     string `json:"backing-filename"`
	FullBackingFile string `json:"full-backing-filename"`
	Specific        struct {
		Data struct {
			ParentCID *uint32 `json:"parent-cid"` // VMDK
			Extents   []struct {
				Filename string `json:"filename"`
			} `json:"extents"`
		} `json:"data"`
	} `json:"format-specific"`
}

// noParent is the content ID of the parent of a VMDK that has none.
const noParent = 0xffffffff

func parse(text string) (d description, err error) {
	return d, json.Unmarshal([]byte(text), &d)
}

// namesAnotherFile reports whether the content is not all in the image's own file.
func (d description) namesAnotherFile() bool {
	if d.BackingFile != "" || d.FullBackingFile != "" {
		return true
	}
	if cid := d.Specific.Data.ParentCID; cid != nil && *cid != noParent {
		return true
	}
	for _, e := range d.Specific.Data.Extents {
		if e.Filename != sourcePath {
			return true
		}
	}
	return false
}
