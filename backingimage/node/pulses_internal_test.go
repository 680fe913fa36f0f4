package node

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

func TestANodeIsSilentByOurOwnClock(t *testing.T) {
	clock := clocktesting.NewFakeClock(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	p := pulses{clock: clock, seen: map[string]pulse{}}
	n := &v1alpha1.StorageNode{ObjectMeta: metav1.ObjectMeta{Name: "n2"}}
	for _, step := range []struct {
		what   string
		pass   time.Duration
		beat   time.Time // by n2's own clock, which is years behind
		silent bool
	}{
		{"seen for the first time, however old its heartbeat", 0, time.Unix(1000, 0), false},
		{"the same heartbeat within the time", time.Minute, time.Unix(1000, 0), false},
		{"the same heartbeat beyond the time", time.Second, time.Unix(1000, 0), true},
		{"a new heartbeat", 0, time.Unix(1020, 0), false},
		{"no newer one within the time", 59 * time.Second, time.Unix(1020, 0), false},
		{"a heartbeat that goes back, as after its clock was set", time.Hour, time.Unix(900, 0), false},
		{"nothing after it", 61 * time.Second, time.Unix(900, 0), true},
	} {
		clock.Step(step.pass)
		n.Status.LastHeartbeatTime = metav1.NewTime(step.beat)
		if got := p.silent(n, time.Minute); got != step.silent {
			t.Errorf("%s: silent is %t", step.what, got)
		}
	}
}
