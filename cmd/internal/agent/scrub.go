package agent

import (
	"time"

	"github.com/spf13/pflag"

	"plinth.dev/plinth/backingimage/node"
	"plinth.dev/plinth/cmd/internal/program"
)

// scrubFlags say how copies are read again.
type scrubFlags struct {
	interval time.Duration
	rate     string
}

func (f *scrubFlags) add(flags *pflag.FlagSet) {
	flags.DurationVar(&f.interval, "scrub-interval", 7*24*time.Hour, "how often every ready copy is read again and compared with its manifest")
	flags.StringVar(&f.rate, "scrub-rate", "50M", "`bytes` per second that this reads of each disk at the most, e.g. 50M or 1Gi")
}

// apply checks the flags and writes what they mean into an agent's options.
func (f *scrubFlags) apply(o *node.Options) (err error) {
	if f.interval <= 0 {
		return program.FlagError("scrub-interval", "%s is no interval; give e.g. 168h", f.interval)
	}
	o.ScrubInterval = f.interval
	o.ScrubRate, err = program.Size("scrub-rate", f.rate, 1)
	return err
}
