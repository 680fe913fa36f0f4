package control

import (
	"time"

	"github.com/spf13/pflag"

	"plinth.dev/plinth/backingimage/controller"
	"plinth.dev/plinth/cmd/internal/program"
	"plinth.dev/plinth/provisioner"
)

// Flags of a process with the controllers, as they are written.
type Flags struct {
	overProvisioning int64
	minimalAvailable int64
	cleanupWait      time.Duration
	recoveryWait     time.Duration
	nodeSilence      time.Duration
}

// AddTo adds the flags to a command's.
func (f *Flags) AddTo(flags *pflag.FlagSet) {
	flags.Int64Var(&f.overProvisioning, "over-provisioning", 200, "`percent` of a disk's capacity that may be promised to volumes, snapshots and images")
	flags.Int64Var(&f.minimalAvailable, "minimal-available", 10, "`percent` of a disk's capacity that must be free for it to get new volumes and copies")
	flags.DurationVar(&f.cleanupWait, "cleanup-wait", time.Hour, "time after its last use for which a copy stays that nothing wants; 0: for ever")
	flags.DurationVar(&f.recoveryWait, "recovery-wait", 5*time.Minute, "time for which a copy that cannot be reached counts as there, before another is made")
	flags.DurationVar(&f.nodeSilence, "node-silence", time.Minute, "time without a heartbeat after which a node counts as silent")
}

// Config is what the flags mean.
type Config struct {
	Provisioner provisioner.Options
	Loops       controller.Options
}

// Config checks the flags. What it refuses is Invalid and names the flag.
func (f *Flags) Config() (Config, error) {
	switch {
	case f.overProvisioning < 1:
		return Config{}, program.FlagError("over-provisioning", "%d %% of a disk hold no volume; give at least 1, e.g. 200", f.overProvisioning)
	case f.minimalAvailable < 0 || f.minimalAvailable > 99:
		return Config{}, program.FlagError("minimal-available", "%d is no percentage of a disk to keep free; give 0 to 99", f.minimalAvailable)
	case f.cleanupWait < 0:
		return Config{}, program.FlagError("cleanup-wait", "%s is before the last use; give 0 to keep copies for ever, or e.g. 60m", f.cleanupWait)
	case f.recoveryWait < time.Second:
		return Config{}, program.FlagError("recovery-wait", "%s is no time to come back in; give at least 1s, e.g. 5m", f.recoveryWait)
	case f.nodeSilence < leastSilence:
		return Config{}, program.FlagError("node-silence", "in %s no node says much; give at least %s, e.g. 1m", f.nodeSilence, leastSilence)
	}
	s := controller.Settings{CleanupWait: f.cleanupWait, RecoveryWait: f.recoveryWait, NodeSilence: f.nodeSilence}
	if f.cleanupWait == 0 {
		s.CleanupWait = -1
	}
	s.Limits.OverProvisioningPercent, s.Limits.MinimalAvailablePercent = f.overProvisioning, f.minimalAvailable
	p := provisioner.Options{OverProvisioningPercent: f.overProvisioning, MinimalAvailablePercent: f.minimalAvailable}
	return Config{Provisioner: p, Loops: controller.Options{Settings: s}}, nil
}

// leastSilence leaves room for three heartbeats of a second.
const leastSilence = 3 * time.Second
