package controller

import (
	"cmp"
	"fmt"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// stranded says why the source cannot give an image's bytes again that was ready once, "" when it can. What it then gives
// is held against status.contentDigest, so that nothing else takes the image's place.
func (p *planner) stranded() string {
	if p.Image.Status.ContentDigest == "" {
		return ""
	}
	switch p.Image.Spec.SourceType {
	case v1alpha1.SourceUpload:
		return "what was uploaded cannot be fetched again; upload the same file once more"
	case v1alpha1.SourceExport, v1alpha1.SourceClone:
		if p.Near.Gone != "" {
			return p.Near.Gone + ", which it was made of, is gone"
		}
	}
	return ""
}

// lost says why an image that was ready cannot come back by itself, with what to do; "" when it can. It can while a copy is
// ready, or is waited for, or is being made. A damaged one that can be reached says itself which bytes are lost.
func (p *planner) lost() string {
	why := p.stranded()
	if why == "" {
		return ""
	}
	where := ""
	for _, c := range p.copies {
		switch {
		case c.standing == sound, c.standing == uncertain, c.standing == coming && c.Status.BytesDone > 0, c.standing <= stuck && c.damaged():
			return ""
		}
		if c.wasReady() {
			where = cmp.Or(where, c.away)
		}
	}
	if where != "" {
		where = " (" + where + ")"
	}
	return fmt.Sprintf("every copy is lost%s, and %s; bring back a node or disk that holds a copy, or delete the image and create it anew", where, why)
}
