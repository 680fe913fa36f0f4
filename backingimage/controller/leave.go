package controller

import (
	"cmp"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// leave decides which copies go. None goes before as many as the image needs are ready where they stay; one that has to
// wait for that is leaving.
func (p *planner) leave() {
	if p.Image.DeletionTimestamp != nil {
		return // all go together, once no volume waits
	}
	var stay []string
	for _, c := range p.copies {
		if isSafe(c) {
			stay = append(stay, c.Name)
		}
	}
	safe := len(stay)
	for _, c := range p.copies {
		why := p.mayGo(c)
		switch {
		case p.anew(c) != "":
			p.delete(c.Name, p.anew(c))
		case why != "" && safe >= p.minimum:
			p.delete(c.Name, why)
			p.Safe = stay
		case why != "" || c.cordoned != "" && safe < p.minimum:
			c.leaving = fmt.Sprintf("%s; it stays until %d copies are ready elsewhere, %d are", cmp.Or(c.evicting, c.cordoned, why), p.minimum, safe)
		}
		if c.Spec.CleanupRequested && (why == "" || safe < p.minimum) {
			p.refuse(c, safe)
		}
	}
}

// anew says why a copy is removed at once, to be made anew from its peers where it is still wanted; "" when it is not. Such
// a copy is not ready, or not a copy of this image.
func (p *planner) anew(c *placed) string {
	switch {
	case !p.anySound:
		return ""
	case c.foreign:
		return otherContent
	case c.Spec.Origin && c.Final():
		return "it failed as the origin"
	}
	return ""
}

const otherContent = "its content is not the image's; the source gave something else when it was fetched"

// mayGo says why a copy shall go once enough others are ready, "" when it stays, for now or for good.
func (p *planner) mayGo(c *placed) string {
	switch {
	case c.pinned:
		return ""
	case c.evicting != "":
		return c.evicting
	case c.standing == gone:
		return c.away
	case c.foreign:
		return otherContent
	case c.standing == stuck:
		return "it failed here, and is made on another disk"
	case c.keep:
		return ""
	case c.Spec.CleanupRequested:
		return "its cleanup was asked for"
	}
	return p.cleanup(c)
}

// cleanup says why a copy shall go that nothing wants, "" while it has not been unused for long enough. One that cannot be
// reached is not judged: when it was used last is not known.
func (p *planner) cleanup(c *placed) string {
	wait := p.Settings.CleanupWait
	if wait < 0 || c.standing > coming {
		return ""
	}
	if left := wait + p.Settings.useStep() - p.Now.Sub(p.lastUse(c)); left > 0 {
		p.again(left)
		return ""
	}
	return fmt.Sprintf("nothing wants it, and it was not used for %s", wait)
}

// refuse says why a copy whose cleanup was asked for stays.
func (p *planner) refuse(c *placed, safe int) {
	why := ""
	switch {
	case len(p.waiting[c.Spec.DiskUUID]) > 0:
		why = listed(p.waiting[c.Spec.DiskUUID]) + " waits for it"
	case c.pinned && p.Image.Spec.Prefetch:
		why = "spec.prefetch wants a copy on every disk that the selectors match"
	case c.pinned:
		why = "spec.diskFileSpecMap wants a copy on this disk"
	default:
		if isSafe(c) {
			safe--
		}
		why = fmt.Sprintf("the image needs %d ready copies, and without this one it has %d; lower spec.minNumberOfCopies, or add a disk", p.minimum, safe)
	}
	p.Refused = append(p.Refused, Note{c.Name, "was not removed when that was asked for at " + p.Now.UTC().Format(time.RFC3339) + ": " + why})
}

// isSafe reports whether a copy is ready where it stays.
func isSafe(c *placed) bool { return c.standing == sound && c.keep && c.counts() }

// use writes down a ready copy's last use, coarsely. While a volume waits for it, it is in use, and that is written down
// again and again: when the volume is made at last is not told.
func (p *planner) use(c *placed) {
	if c.standing != sound || p.Settings.CleanupWait < 0 {
		return
	}
	used, step := p.made[c.Spec.DiskUUID], p.Settings.useStep()
	if used.After(p.Now) {
		used = p.Now
	}
	if len(p.waiting[c.Spec.DiskUUID]) > 0 {
		used = p.Now
		p.again(step)
	}
	if !used.IsZero() && used.Sub(p.known(c)) > step {
		p.Used = append(p.Used, Used{c.Name, used})
	}
}

// known is the last time of which the copy itself says that it was in use, or began to be of use.
func (p *planner) known(c *placed) time.Time {
	return p.latest(&c.CreationTimestamp, &c.Status.LastStateTransitionTime, c.Status.LastUsedTime)
}

// lastUse is when a copy was last used.
func (p *planner) lastUse(c *placed) time.Time {
	made := metav1.NewTime(p.made[c.Spec.DiskUUID])
	if last := p.latest(&made); last.After(p.known(c)) {
		return last
	}
	return p.known(c)
}
