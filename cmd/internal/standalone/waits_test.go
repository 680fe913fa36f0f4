package standalone

import (
	"strings"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage"
)

func TestWaitsAsFlags(t *testing.T) {
	for name, tc := range map[string]struct {
		args    []string
		refused string // the flag
		check   func(c Config) bool
	}{
		"the defaults are an hour, five minutes and a minute": {check: func(c Config) bool {
			s := c.control.Loops.Settings
			return s.CleanupWait == time.Hour && s.RecoveryWait == 5*time.Minute && s.NodeSilence == time.Minute && c.agent.Node.Heartbeat == 20*time.Second
		}},
		"a cleanup wait of nothing is for ever": {args: []string{"--cleanup-wait", "0"}, check: func(c Config) bool { return c.control.Loops.Settings.CleanupWait < 0 }},
		"heartbeats keep to a short silence":    {args: []string{"--node-silence", "6s"}, check: func(c Config) bool { return c.agent.Node.Heartbeat == 2*time.Second }},
		"room is the same for images and volumes": {args: []string{"--over-provisioning", "150", "--minimal-available", "5"}, check: func(c Config) bool {
			l := c.control.Loops.Settings.Limits
			return l.OverProvisioningPercent == 150 && l.MinimalAvailablePercent == 5 && c.control.Provisioner.OverProvisioningPercent == 150
		}},
		"a cleanup before the last use":         {args: []string{"--cleanup-wait", "-1s"}, refused: "--cleanup-wait"},
		"a recovery wait of nothing":            {args: []string{"--recovery-wait", "0"}, refused: "--recovery-wait"},
		"a silence shorter than any heartbeats": {args: []string{"--node-silence", "1s"}, refused: "--node-silence"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parse(tc.args...)
			switch {
			case tc.refused != "" && (!backingimage.Is(err, backingimage.Invalid) || !strings.Contains(err.Error(), tc.refused)):
				t.Errorf("got %v, want it to be refused", err)
			case tc.refused == "" && (err != nil || !tc.check(got)):
				t.Errorf("got %v and %+v", err, got.control.Loops.Settings)
			}
		})
	}
}
