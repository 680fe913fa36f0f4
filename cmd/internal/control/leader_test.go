package control

import (
	"context"
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"

	"plinth.dev/plinth/backingimage/store/embedded"
	"plinth.dev/plinth/cmd/internal/process"
)

// within bounds a wait for what takes seconds.
const within = 2 * time.Minute

// leases is the kind Lease for an API server that has no kinds but those it is given.
const leases = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: leases.coordination.k8s.io
  annotations: {api-approved.kubernetes.io: "unapproved, for a test"}
spec:
  group: coordination.k8s.io
  scope: Namespaced
  names: {kind: Lease, listKind: LeaseList, plural: leases, singular: lease}
  versions:
    - name: v1
      served: true
      storage: true
      schema:
        openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}
`

func mustStartAPI(t *testing.T) *rest.Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "plinth")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	server, err := embedded.New(embedded.Options{Dir: dir, CRDs: fstest.MapFS{"leases.yaml": {Data: []byte(leases)}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	t.Cleanup(cancel)
	if err := server.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	api := rest.CopyConfig(server.RESTConfig())
	api.ContentType = "application/json" // which is all that a custom resource understands
	return api
}

// turns notes who runs loops, and that two never do at once.
type turns struct {
	t  *testing.T
	mu sync.Mutex
	// begun are the names of those whose loops began, running of those that run now.
	begun, running []string
}

// playedLoops are those of a candidate. They end when their context has ended and hold is closed; or with fail, when they begin.
type playedLoops struct {
	turns *turns
	name  string
	hold  chan struct{}
	fail  error
}

func (l playedLoops) Run(ctx context.Context) error {
	l.turns.change(func(t *turns) {
		t.begun, t.running = append(t.begun, l.name), append(t.running, l.name)
		if len(t.running) > 1 {
			t.t.Errorf("%v run loops at once", t.running)
		}
	})
	defer l.turns.change(func(t *turns) { t.running = slices.DeleteFunc(t.running, func(n string) bool { return n == l.name }) })
	if l.fail != nil {
		return l.fail
	}
	<-ctx.Done()
	<-l.hold
	return nil
}

func (t *turns) change(f func(*turns)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f(t)
}

// until waits for a list of those who began.
func (t *turns) until(tb testing.TB, want ...string) {
	tb.Helper()
	var got []string
	for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		t.change(func(t *turns) { got = slices.Clone(t.begun) })
		if slices.Equal(got, want) {
			return
		}
	}
	tb.Fatalf("loops began of %v, want %v", got, want)
}

// candidate is a running leader.
type candidate struct {
	*leader
	stop  context.CancelFunc
	ended chan error
	hold  chan struct{} // closed: its loops end when they are told
	cut   atomic.Bool   // from the API
}

// stand makes a candidate stand for election until the test ends.
func (t *turns) stand(api *rest.Config, name string, duration time.Duration, fail error) *candidate {
	t.t.Helper()
	c := &candidate{ended: make(chan error, 1), hold: make(chan struct{})}
	api = rest.CopyConfig(api)
	api.Wrap(func(rt http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if c.cut.Load() {
				return nil, errors.New("the network is cut")
			}
			return rt.RoundTrip(r)
		})
	})
	var err error
	c.leader, err = newLeader(Election{Identity: name, Namespace: "plinth", Duration: duration}, api, func() process.Part {
		return playedLoops{t, name, c.hold, fail}
	})
	if err != nil {
		t.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	go func() { c.ended <- c.Run(ctx) }()
	t.t.Cleanup(func() {
		stop()
		select {
		case <-c.hold:
		default:
			close(c.hold)
		}
	})
	return c
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// end waits for a candidate's end.
func (c *candidate) end(t *testing.T) error {
	t.Helper()
	select {
	case err := <-c.ended:
		return err
	case <-time.After(within):
		t.Fatal("it does not end")
		return nil
	}
}

func holder(t *testing.T, api *rest.Config) string {
	t.Helper()
	client, err := coordination.NewForConfig(api)
	if err != nil {
		t.Fatal(err)
	}
	lease, err := client.Leases("plinth").Get(context.Background(), leaseName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return *lease.Spec.HolderIdentity
}

func TestLeader(t *testing.T) {
	api := mustStartAPI(t)
	turns := &turns{t: t}
	var a, b *candidate

	t.Run("who stops keeps the lease until its loops have ended, and then gives it back", func(t *testing.T) {
		a = turns.stand(api, "a", 30*time.Second, nil)
		turns.until(t, "a")
		a.stop()
		if got := holder(t, api); got != "a" || !a.Leading() {
			t.Errorf("while its loops end the lease is %q's, and it leads: %t", got, a.Leading())
		}
		close(a.hold)
		if err := a.end(t); err != nil {
			t.Error(err)
		}
		if got := holder(t, api); got != "" || a.Leading() {
			t.Errorf("then the lease is %q's, and it leads: %t", got, a.Leading())
		}
	})
	t.Run("who is cut off stops before another begins, and takes its turn again later", func(t *testing.T) {
		a = turns.stand(api, "a", 6*time.Second, nil)
		close(a.hold)
		turns.until(t, "a", "a")
		b = turns.stand(api, "b", 6*time.Second, nil)
		close(b.hold)
		a.cut.Store(true)
		turns.until(t, "a", "a", "b")
		a.cut.Store(false)
		b.stop()
		turns.until(t, "a", "a", "b", "a")
		a.stop()
		if err := errors.Join(a.end(t), b.end(t)); err != nil {
			t.Error(err)
		}
	})
	t.Run("loops that fail end the process, which gives the lease back", func(t *testing.T) {
		cause := errors.New("broken")
		if err := turns.stand(api, "c", 30*time.Second, cause).end(t); !errors.Is(err, cause) {
			t.Errorf("got %v", err)
		}
		if got := holder(t, api); got != "" {
			t.Errorf("the lease is %q's", got)
		}
	})
}

func TestWithoutElectionTheLoopsRun(t *testing.T) {
	turns := &turns{t: t}
	hold := make(chan struct{})
	close(hold)
	l, err := newLeader(Election{}, nil, func() process.Part { return playedLoops{turns, "only", hold, nil} })
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	turns.until(t, "only")
	if !l.Leading() {
		t.Error("it does not lead")
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestProcessFlags(t *testing.T) {
	for args, refused := range map[string]string{
		"":                        "",
		"--leader-elect=false":    "",
		"--http-listen=:9280":     "",
		"--lease-duration=3s":     "",
		"--lease-duration=2s":     "--lease-duration: ",
		"--namespace=No_Such":     "--namespace: ",
		"--http-listen=nowhere":   "--http-listen: ",
		"--cleanup-wait=-1s":      "--cleanup-wait: ",
		"--minimal-available=100": "--minimal-available: ",
		"--namespace=plinth-test": "",
	} {
		cfg, err := parse(t, strings.Fields(args)...)
		if refused == "" && err != nil || refused != "" && (err == nil || !strings.HasPrefix(err.Error(), refused)) {
			t.Errorf("%q: got %v", args, err)
		}
		if elects := !strings.Contains(args, "leader-elect"); err == nil && elects != (cfg.Election != Election{}) {
			t.Errorf("%q: elects by %+v", args, cfg.Election)
		}
	}
}

func parse(t *testing.T, args ...string) (ProcessConfig, error) {
	t.Helper()
	var f ProcessFlags
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	f.AddTo(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return f.Config()
}
