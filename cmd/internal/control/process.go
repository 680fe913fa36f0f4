package control

import (
	"os"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/pflag"
	"golang.org/x/net/http/httpproxy"
	"k8s.io/apimachinery/pkg/util/validation"

	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/cmd/internal/process"
	"plinth.dev/plinth/cmd/internal/program"
	"plinth.dev/plinth/provisioner/backup/object"
)

// ProcessFlags are those of `plinth controller`.
type ProcessFlags struct {
	Flags
	httpListen    string
	leaderElect   bool
	namespace     string
	leaseDuration time.Duration
	removalWait   time.Duration
}

// AddTo adds the flags to a command's.
func (f *ProcessFlags) AddTo(flags *pflag.FlagSet) {
	f.Flags.AddTo(flags)
	flags.StringVar(&f.httpListen, "http-listen", "", process.HTTPListenHelp)
	flags.BoolVar(&f.leaderElect, "leader-elect", true, "run the loops only while this process holds the Lease "+leaseName+"; without, no other controller may run")
	flags.StringVar(&f.namespace, "namespace", "", "`namespace` of the Lease, and of the secrets that come with StorageClasses (default: that of the pod; outside of one "+credential.OwnNamespace+")")
	flags.DurationVar(&f.leaseDuration, "lease-duration", 15*time.Second, "time for which a leader that is not heard of stays the leader")
	flags.DurationVar(&f.removalWait, "removal-wait", time.Hour, "time after which a node whose Kubernetes Node was removed, and whose agent is silent, is forgotten with its disks; 0: never")
}

// ProcessConfig is what the flags of `plinth controller` mean.
type ProcessConfig struct {
	Config
	CSIEndpoint string
	HTTPListen  string
	Election    Election
	Identity    string // of this process
	Backups     object.Openers
	Source      source.Options // how the servers of backup targets are asked
}

// leastLease leaves time for a renewal that is tried again.
const leastLease = 3 * time.Second

// Config checks the flags. What it refuses is Invalid and names the flag.
func (f *ProcessFlags) Config() (ProcessConfig, error) {
	shared, err := f.Flags.Config()
	if err != nil {
		return ProcessConfig{}, err
	}
	if err := process.CheckHTTPListen(f.httpListen); err != nil {
		return ProcessConfig{}, err
	}
	if f.removalWait < 0 {
		return ProcessConfig{}, program.FlagError("removal-wait", "%s is before the removal; give 0 to forget no node, or e.g. 1h", f.removalWait)
	}
	if shared.Loops.Settings.RemovalWait = f.removalWait; f.removalWait == 0 {
		shared.Loops.Settings.RemovalWait = -1
	}
	if f.namespace == "" {
		f.namespace = podNamespace()
	}
	if problems := validation.IsDNS1123Label(f.namespace); len(problems) > 0 {
		return ProcessConfig{}, program.FlagError("namespace", "%q cannot be the name of a namespace: %s", f.namespace, problems[0])
	}
	shared.Provisioner.Namespace, shared.Loops.Namespace = f.namespace, f.namespace
	cfg := ProcessConfig{Config: shared, HTTPListen: f.httpListen, Identity: identity()}
	cfg.Source.Proxy = httpproxy.FromEnvironment().ProxyFunc()
	if !f.leaderElect {
		return cfg, nil
	}
	cfg.Election = Election{Identity: cfg.Identity, Namespace: f.namespace, Duration: f.leaseDuration}
	if f.leaseDuration < leastLease {
		return cfg, program.FlagError("lease-duration", "%s is too short to be renewed in; give at least %s", f.leaseDuration, leastLease)
	}
	return cfg, nil
}

// identity is a name that no other process has: a pod's name may be given again, to a process that starts while the last of that name still ends.
func identity() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return host + "_" + uuid.NewString()
}

// podNamespaceFile is where a pod's service account tells its namespace.
const podNamespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

func podNamespace() string {
	if text, err := os.ReadFile(podNamespaceFile); err == nil && len(text) > 0 {
		return strings.TrimSpace(string(text))
	}
	return credential.OwnNamespace
}
