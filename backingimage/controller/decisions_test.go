package controller_test

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/controller"
)

// decision is what a case looks at.
type decision struct {
	create  string // disks, the origin's marked with *
	delete  string // disks
	origin  string // disk
	demote  string // disks
	unknown string // disks
	refused string // part of the first sentence
	says    string // part of what is shown of any copy, of Short or of Lost
	state   v1alpha1.CopyState
}

// Each case is one of what users do to copies, nodes and disks, and what the plan does then. Every copy was ready two hours ago
// and not used since, unless it says otherwise.
func TestDecisions(t *testing.T) {
	for name, tc := range map[string]struct {
		state controller.State
		want  decision
	}{
		"a raised minimum makes the missing copies, on other nodes first": {
			then(copies(3), disks("d1/n1/10", "d2/n1/90", "d3/n2/20", "d4/n3/10"), ready("d1")),
			decision{create: "d3 d4", state: v1alpha1.CopyReady},
		},
		"a lowered minimum removes what is unused, and keeps the spread": {
			then(copies(2), disks("d1/n1/10", "d2/n1/90", "d3/n2/20"), ready("d1", "d2", "d3")),
			decision{delete: "d2", state: v1alpha1.CopyReady},
		},
		"what was used within the wait stays": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1", "d2"), used("d1", 59*time.Minute), used("d2", 50*time.Minute)),
			decision{state: v1alpha1.CopyReady},
		},
		"the copy that was used last is the one that stays": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1", "d2"), used("d2", 90*time.Minute)),
			decision{delete: "d1", state: v1alpha1.CopyReady},
		},
		"cleanup stops at the floor": {
			then(copies(2), disks("d1/n1/10", "d2/n2/90", "d3/n3/1"), ready("d1"), ready("d2"), copyOf("a", "d3", v1alpha1.CopyInProgress)),
			decision{delete: "d3", state: v1alpha1.CopyReady},
		},
		"nothing is cleaned up where the wait is endless": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1", "d2"), func(s *controller.State) { s.Settings.CleanupWait = -1 }),
			decision{state: v1alpha1.CopyReady},
		},
		"a cleanup that is asked for does not wait": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1", "d2"), used("d1", time.Minute), cleanupOf("d1")),
			decision{delete: "d1", state: v1alpha1.CopyReady},
		},
		"a cleanup below the floor is refused with the figures": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1"), cleanupOf("d1")),
			decision{refused: "the image needs 1 ready copies, and without this one it has 0", state: v1alpha1.CopyReady},
		},
		"a cleanup of a copy that a volume waits for is refused with its name": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1", "d2"), used("d2", 0), waiting("v", "a", "d1"), cleanupOf("d1")),
			decision{refused: "volume v waits for it", state: v1alpha1.CopyReady},
		},
		"a cleanup of a copy in the map is refused with the field": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1", "d2"), used("d2", 0), mapped("d1", false), cleanupOf("d1")),
			decision{refused: "spec.diskFileSpecMap", state: v1alpha1.CopyReady},
		},
		"tags that one node satisfies move the copy there; the old one stays until the new one is ready": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90/fast"), ready("d1"), selector("fast")),
			decision{create: "d2", state: v1alpha1.CopyReady},
		},
		"and goes when it is": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90/fast"), ready("d1", "d2"), selector("fast")),
			decision{delete: "d1", state: v1alpha1.CopyReady},
		},
		"eviction of a disk makes the replacement first": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1"), evictDisk("d1")),
			decision{create: "d2", says: "its disk's evictionRequested is set; it stays until 1 copies are ready elsewhere, 0 are", state: v1alpha1.CopyReady},
		},
		"eviction of a disk waits while the replacement is coming": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1"), copyOf("a", "d2", v1alpha1.CopyInProgress), evictDisk("d1")),
			decision{says: "evicting", state: v1alpha1.CopyReady},
		},
		"and then removes, however lately it was used": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1", "d2"), used("d1", time.Second), evictDisk("d1")),
			decision{delete: "d1", state: v1alpha1.CopyReady},
		},
		"eviction of a node moves the copies of all its disks": {
			then(copies(2), disks("d1/n1/10", "d2/n1/90", "d3/n2/1", "d4/n3/1"), ready("d1", "d2"), evictNode("n1")),
			decision{create: "d3 d4", state: v1alpha1.CopyReady},
		},
		"the last copy on a cordoned Kubernetes node is made elsewhere": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1"), cordon("n1")),
			decision{create: "d2", says: "evicting: node n1 is cordoned; it stays until 1 copies are ready elsewhere, 0 are", state: v1alpha1.CopyReady},
		},
		"a copy on a cordoned node stays, for most often the node comes back": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1", "d2"), used("d1", time.Minute), used("d2", time.Minute), cordon("n1")),
			decision{state: v1alpha1.CopyReady},
		},
		"and goes like any that is not needed when the node stays cordoned": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1", "d2"), used("d1", 2*time.Hour), used("d2", 2*time.Hour), cordon("n1")),
			decision{delete: "d1", state: v1alpha1.CopyReady},
		},
		"prefetch keeps the copy on a cordoned node, and makes none there": {
			then(copies(1), prefetch, disks("d1/n1/10", "d2/n1/90", "d3/n2/90"), ready("d1", "d3"), used("d1", 2*time.Hour), cordon("n1")),
			decision{state: v1alpha1.CopyReady},
		},
		"who is asked to leave a cordoned node leaves": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1", "d2"), used("d1", time.Minute), cordon("n1"), evictNode("n1")),
			decision{delete: "d1", state: v1alpha1.CopyReady},
		},
		"eviction of an entry moves that copy only": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1", "d2"), mapped("d1", true)),
			decision{delete: "d1", state: v1alpha1.CopyReady},
		},
		"no copy is made where an entry asks for eviction": {
			then(copies(1), disks("d1/n1/90", "d2/n2/10"), mapped("d1", true)),
			decision{create: "d2*", state: v1alpha1.CopyPending},
		},
		"eviction with nowhere to go keeps the copy and says why": {
			then(copies(1), disks("d1/n1/10"), ready("d1"), evictDisk("d1")),
			decision{says: "only 0 of 1 copies can be placed", state: v1alpha1.CopyReady},
		},
		"eviction does not take a copy from a volume that waits for it": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1", "d2"), waiting("v", "a", "d1"), evictDisk("d1")),
			decision{state: v1alpha1.CopyReady},
		},
		"eviction outranks the map": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1", "d2"), mapped("d1", false), evictDisk("d1")),
			decision{delete: "d1", state: v1alpha1.CopyReady},
		},
		"the only copy on a disk that was removed is not forgotten, and another is made": {
			then(copies(1), disks("d2/n2/90"), ready("d1"), known),
			decision{create: "d2*", unknown: "d1", says: "not registered any more", state: v1alpha1.CopyUnknown},
		},
		"a copy on a disk that was removed goes when enough others are ready": {
			then(copies(1), disks("d2/n2/90"), ready("d1", "d2")),
			decision{delete: "d1", unknown: "d1", state: v1alpha1.CopyReady},
		},
		"a disk whose identity is gone has its copy unknown, and waits before another is made": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1"), diskAway("d1", time.Minute)),
			decision{unknown: "d1", says: "disk d1: is not ready", state: v1alpha1.CopyUnknown},
		},
		"a silent node's copy counts as there within the grace": {
			then(copies(2), disks("d1/n1/10", "d2/n2/90", "d3/n3/5"), ready("d1", "d2"), nodeAway("n1", 299*time.Second)),
			decision{unknown: "d1", state: v1alpha1.CopyReady},
		},
		"past the grace another is made, and the silent one is not forgotten": {
			then(copies(2), disks("d1/n1/10", "d2/n2/90", "d3/n3/5"), ready("d1", "d2"), nodeAway("n1", 301*time.Second)),
			decision{create: "d3", unknown: "d1", state: v1alpha1.CopyReady},
		},
		"two of three nodes down leave the third's copy alone": {
			then(copies(3), disks("d1/n1/10", "d2/n2/90", "d3/n3/5"), ready("d1", "d2", "d3"), nodeAway("n1", time.Hour), nodeAway("n2", time.Hour)),
			decision{unknown: "d1 d2", says: "only 1 of 3 copies can be placed", state: v1alpha1.CopyReady},
		},
		"a node that is back has its copies back, and the surplus goes after the wait": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1", "d2"), used("d1", time.Second)),
			decision{delete: "d2", state: v1alpha1.CopyReady},
		},
		"an origin whose node is silent for a moment stays the origin": {
			then(copies(2), disks("d1/n1/10", "d2/n2/90"), originOf("a", "d1"), copyOf("a", "d2", v1alpha1.CopyPending), nodeAway("n1", 20*time.Second)),
			decision{unknown: "d1", state: v1alpha1.CopyPending},
		},
		"an origin whose node is silent is replaced, and stands down": {
			then(copies(2), disks("d1/n1/10", "d2/n2/90"), originOf("a", "d1"), copyOf("a", "d2", v1alpha1.CopyPending), nodeAway("n1", 40*time.Second)),
			decision{unknown: "d1", origin: "d2", demote: "d1", state: v1alpha1.CopyPending},
		},
		"an origin that is alone is replaced on another node": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), originOf("a", "d1"), nodeAway("n1", 40*time.Second)),
			decision{unknown: "d1", create: "d2*", demote: "d1", state: v1alpha1.CopyUnknown},
		},
		"an origin that holds a part of an upload is waited for longer": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), originOf("a", "d1"), arrived(1), from(v1alpha1.SourceUpload), nodeAway("n1", 299*time.Second)),
			decision{unknown: "d1", state: v1alpha1.CopyUnknown},
		},
		"an origin that is back after another took over is a receiver": {
			then(copies(2), disks("d1/n1/10", "d2/n2/90"), originOf("a", "d1"), ready("d2")),
			decision{demote: "d1", state: v1alpha1.CopyReady},
		},
		"an origin whose disk is full is replaced on another disk": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), originOf("a", "d1"), full),
			decision{create: "d2*", demote: "d1", state: v1alpha1.CopyFailed},
		},
		"an origin whose disk is full, with no other, stays and says so": {
			then(copies(1), disks("d1/n1/10"), originOf("a", "d1"), full),
			decision{says: "no space; it failed here", state: v1alpha1.CopyFailed},
		},
		"an origin whose source fails for good fails the image, once": {
			then(copies(2), disks("d1/n1/10", "d2/n2/90", "d3/n3/1"), originOf("a", "d1"), failed, copyOf("a", "d2", v1alpha1.CopyPending)),
			decision{state: v1alpha1.CopyFailed},
		},
		"a copy with another content than the image's goes, though a volume waits for it, and is made anew": {
			then(copies(2), disks("d1/n1/10", "d2/n2/90"), ready("d1", "d2"), known, contentOf("d2", "other"), waiting("v", "a", "d2")),
			decision{delete: "d2", state: v1alpha1.CopyReady},
		},
		"a receiver whose disk is full is made elsewhere": {
			then(copies(2), disks("d1/n1/10", "d2/n2/90", "d3/n3/1"), ready("d1"), copyOf("a", "d2", v1alpha1.CopyFailed), full),
			decision{create: "d3", state: v1alpha1.CopyReady},
		},
		"and goes from the full disk once enough others are ready": {
			then(copies(2), disks("d1/n1/10", "d2/n2/90", "d3/n3/1"), ready("d1", "d3"), copyOf("a", "d2", v1alpha1.CopyFailed), full),
			decision{delete: "d2", state: v1alpha1.CopyReady},
		},
		"of a ready copy and one that is coming the ready one is kept": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), copyOf("a", "d1", v1alpha1.CopyInProgress), ready("d2")),
			decision{delete: "d1", state: v1alpha1.CopyReady},
		},
		"while a copy may come back nobody asks the source again": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1"), known, nodeAway("n1", time.Minute), waiting("v", "a", "d2")),
			decision{create: "d2", unknown: "d1", state: v1alpha1.CopyUnknown},
		},
		"all copies lost: a download is fetched again": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1"), known, nodeAway("n1", time.Hour)),
			decision{create: "d2*", unknown: "d1", state: v1alpha1.CopyUnknown},
		},
		"all copies lost: a clone whose source exists is made again": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1"), known, from(v1alpha1.SourceClone), near(false, "d2"), nodeAway("n1", time.Hour)),
			decision{create: "d2*", unknown: "d1", state: v1alpha1.CopyUnknown},
		},
		"all copies lost: an export whose volume is gone has failed, and says what to do": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1"), known, from(v1alpha1.SourceExport), vanished("volume v"), nodeAway("n1", time.Hour)),
			decision{unknown: "d1", says: "volume v, which it was made of, is gone; bring back a node or disk", state: v1alpha1.CopyFailed},
		},
		"all copies lost: an upload has failed, and waits for the same file": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1"), known, from(v1alpha1.SourceUpload), nodeAway("n1", time.Hour)),
			decision{create: "d2*", unknown: "d1", says: "upload the same file once more", state: v1alpha1.CopyFailed},
		},
		"an upload whose node is back is whole again": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1"), known, from(v1alpha1.SourceUpload), originOf("a", "d2"), used("d2", 0)),
			decision{demote: "d2", state: v1alpha1.CopyReady},
		},
		"a copy that is being repaired is waited for": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1"), known, rotten("d1", v1alpha1.CopyInProgress)),
			decision{says: "chunk 3 is damaged", state: v1alpha1.CopyInProgress},
		},
		"an upload whose only copy is being repaired is not lost": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1"), known, from(v1alpha1.SourceUpload), rotten("d1", v1alpha1.CopyInProgress)),
			decision{says: "chunk 3 is damaged", state: v1alpha1.CopyInProgress},
		},
		"an upload whose only copy nobody can repair says which bytes are lost, and keeps the rest": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1"), known, from(v1alpha1.SourceUpload), rotten("d1", v1alpha1.CopyFailed)),
			decision{says: "chunk 3 is damaged", state: v1alpha1.CopyFailed},
		},
		"with another that is ready a damaged copy is repaired, and is the origin no more": {
			then(copies(2), disks("d1/n1/10", "d2/n2/90"), ready("d1", "d2"), known, rotten("d1", v1alpha1.CopyInProgress)),
			decision{demote: "d1", state: v1alpha1.CopyReady},
		},
		"with another that is ready a copy that nobody can repair is made anew": {
			then(copies(2), disks("d1/n1/10", "d2/n2/90"), ready("d1", "d2"), known, rotten("d1", v1alpha1.CopyFailed)),
			decision{delete: "d1", state: v1alpha1.CopyReady},
		},
		"a damaged copy that is the only one is not evicted before another is ready": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1"), known, rotten("d1", v1alpha1.CopyInProgress), evictDisk("d1")),
			decision{create: "d2", state: v1alpha1.CopyEvicting},
		},
		"a disk with too little room gets no copy": {
			then(copies(2), disks("d1/n1/10", "d2/n2/90"), ready("d1"), room("d2", 100, 15), imageBytes(10)),
			decision{says: "no room on disk d2: 15 B are free, 10 B must stay free (10 %) after the image's 10 B", state: v1alpha1.CopyReady},
		},
		"a disk of which too much is promised gets no copy": {
			then(copies(2), disks("d1/n1/10", "d2/n2/90"), ready("d1"), room("d2", 100, 90), imageBytes(10), promised("d2", 191)),
			decision{says: "191 B of 200 B that may be promised", state: v1alpha1.CopyReady},
		},
		"a volume that waits on a full disk gets its copy all the same": {
			then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1"), room("d2", 100, 0), imageBytes(10), waiting("v", "a", "d2")),
			decision{create: "d2", state: v1alpha1.CopyReady},
		},
		"an image that is deleted goes though its nodes are dead": {
			then(copies(2), disks("d1/n1/10", "d2/n2/90"), ready("d1", "d2"), nodeAway("n1", time.Hour), nodeAway("n2", time.Hour), func(s *controller.State) { deleting(s.Image) }),
			decision{delete: "d1 d2", state: v1alpha1.CopyPending},
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := controller.Plan(tc.state)
			var status v1alpha1.BackingImageStatus
			controller.Summarize(tc.state, d, &status)
			got := decision{create: created(d), delete: onDisks(d.Delete), origin: onDisks([]string{d.Origin}), demote: onDisks(d.Demote), unknown: onDisks(copiesIn(d.Unknown)), state: status.State}
			want := tc.want
			want.says, want.refused = "", ""
			if got != want {
				t.Errorf("decides %+v\nwants   %+v", got, want)
			}
			if said := everything(d, status); !strings.Contains(said, tc.want.says) {
				t.Errorf("says %q, want %q in it", said, tc.want.says)
			}
			if len(d.Refused) > 0 != (tc.want.refused != "") || len(d.Refused) > 0 && !strings.Contains(d.Refused[0].Message, tc.want.refused) {
				t.Errorf("refuses %v, want %q", d.Refused, tc.want.refused)
			}
		})
	}
}

// TestStatusTells checks what the image's conditions and map say.
func TestStatusTells(t *testing.T) {
	s := then(copies(2), disks("d1/n1/10", "d2/n2/90"), ready("d1", "d2"), nodeAway("n2", time.Minute))
	var status v1alpha1.BackingImageStatus
	controller.Summarize(s, controller.Plan(s), &status)
	if status.Copies != "1/2" || status.State != v1alpha1.CopyReady || status.DiskFileStatusMap["d2"].State != v1alpha1.CopyUnknown {
		t.Errorf("status is %+v", status)
	}
	for _, c := range status.Conditions {
		if want := map[string]metav1.ConditionStatus{"Ready": "True", "Healthy": "False"}[c.Type]; c.Status != want {
			t.Errorf("condition %s is %s", c.Type, c.Status)
		}
	}
}

// TestWhatGoesReliesOnWhatStays checks that a decision names the copies that must be ready for others to go, and only then.
func TestWhatGoesReliesOnWhatStays(t *testing.T) {
	evicted := controller.Plan(then(copies(1), disks("d1/n1/10", "d2/n2/90"), ready("d1", "d2"), evictDisk("d1")))
	if onDisks(evicted.Delete) != "d1" || onDisks(evicted.Safe) != "d2" {
		t.Errorf("deletes %v and relies on %v", evicted.Delete, evicted.Safe)
	}
	former := controller.Plan(then(copies(2), disks("d1/n1/10", "d2/n2/90"), ready("d1"), foreignCopy("a", "d2")))
	if len(former.Delete) != 1 || len(former.Safe) != 0 || len(former.Create) != 1 {
		t.Errorf("deletes %v, relies on %v and creates %v", former.Delete, former.Safe, former.Create)
	}
}

// TestUseIsWrittenDownCoarsely checks that a volume's making is kept on the copy, and that the next one's soon after is not.
func TestUseIsWrittenDownCoarsely(t *testing.T) {
	s := then(copies(1), disks("d1/n1/10"), ready("d1"), cloned("v", "a", "d1"))
	s.Volumes[0].CreationTimestamp = ago(time.Minute)
	d := controller.Plan(s)
	if len(d.Used) != 1 || !d.Used[0].At.Equal(s.Now.Add(-time.Minute)) {
		t.Fatalf("used: %v", d.Used)
	}
	apply(&s, d)
	cloned("w", "a", "d1")(&s)
	s.Volumes[1].CreationTimestamp = ago(0)
	if d := controller.Plan(s); len(d.Used) != 0 {
		t.Errorf("used: %v", d.Used)
	}
}

// TestPlanComesBackInTime checks that a plan which waits for time to pass says for how long.
func TestPlanComesBackInTime(t *testing.T) {
	for name, tc := range map[string]struct {
		state controller.State
		again time.Duration
	}{
		"for the grace":        {then(copies(1), disks("d1/n1/10", "d2/n2/9"), ready("d1", "d2"), used("d2", 0), nodeAway("n1", 200*time.Second)), 100 * time.Second},
		"for the cleanup wait": {then(copies(1), disks("d1/n1/10", "d2/n2/9"), ready("d1", "d2"), used("d1", 40*time.Minute), used("d2", 20*time.Minute)), 25 * time.Minute},
		"for room":             {then(copies(2), disks("d1/n1/10"), ready("d1")), time.Minute},
		"never":                {then(copies(1), disks("d1/n1/10"), ready("d1")), 0},
	} {
		t.Run(name, func(t *testing.T) {
			if d := controller.Plan(tc.state); d.Again != tc.again {
				t.Errorf("again in %s, want %s", d.Again, tc.again)
			}
		})
	}
}
