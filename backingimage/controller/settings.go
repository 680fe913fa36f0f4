package controller

import (
	"time"

	"plinth.dev/plinth/backingimage/placement"
)

// Settings of the loops, the same for every image.
type Settings struct {
	// CleanupWait is how long a copy that nothing wants stays after its last use; default 60 min; negative: for ever.
	CleanupWait time.Duration
	// RecoveryWait is how long a copy that was ready and cannot be reached counts as there; default 300 s. Then another is made.
	RecoveryWait time.Duration
	// OriginWait is the same for a copy that never was ready, and with it how long an origin stays the origin; default 30 s.
	OriginWait time.Duration
	// NodeSilence is how long a node's heartbeat may stay the same before the node counts as silent; default 60 s.
	NodeSilence time.Duration
	// RemovalWait is how long a node whose machine was removed from the cluster is remembered; default 1 h; negative: for ever.
	RemovalWait time.Duration
	// Limits of what may be put on disks; default 200 and 10 percent.
	Limits placement.Limits
}

// WithDefaults returns the settings with those filled in that are zero.
func (s Settings) WithDefaults() Settings {
	fill := func(d *time.Duration, by time.Duration) {
		if *d == 0 {
			*d = by
		}
	}
	fill(&s.CleanupWait, time.Hour)
	fill(&s.RecoveryWait, 300*time.Second)
	fill(&s.OriginWait, 30*time.Second)
	fill(&s.NodeSilence, time.Minute)
	fill(&s.RemovalWait, time.Hour)
	if s.Limits.OverProvisioningPercent == 0 {
		s.Limits.OverProvisioningPercent = 200
	}
	if s.Limits.MinimalAvailablePercent == 0 {
		s.Limits.MinimalAvailablePercent = 10
	}
	return s
}

// useStep is how exactly a copy's last use is kept: writing down every use would cost a write per volume.
func (s Settings) useStep() time.Duration { return min(max(s.CleanupWait, 0)/12, 5*time.Minute) }
