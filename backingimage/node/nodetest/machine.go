// Package nodetest runs an agent and the image controller for tests, over a real API and real disks, and a web server
// that can misbehave.
package nodetest

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/controller"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/node"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/backingimage/store/embedded/embeddedtest"
)

// PoolBytes is the size of a disk that holds what the tests make.
const PoolBytes = 512 << 20

// Wait bounds waiting for what takes milliseconds.
const Wait = time.Minute

// NodeName of a Machine that has no other.
const NodeName = "n1"

// Heartbeat of a Machine.
const Heartbeat = 200 * time.Millisecond

// Part is something that runs until its context ends.
type Part interface{ Run(context.Context) error }

// Machine is an agent, the controllers of images and nodes, and their store. Several may share an API; then one is enough to run the controllers.
type Machine struct {
	API      *rest.Config
	NodeName string
	Disks    []*disk.Disk // that were opened for it
	Paths    []string     // of disks that the agent shall open
	Set      *disk.Set    // what is open; a new one after each Start
	Store    *store.Store // a new one after each Start
	Agent    *node.Agent  // a new one after each Start
	// AgentOnly leaves the controllers to another Machine, and sees no more than its own node's objects.
	AgentOnly bool
	// TakeOverAfter is node.Options.TakeOverAfter.
	TakeOverAfter time.Duration
	// Credentials of images, from the next Start on; may be nil.
	Credentials credential.Store
	// Tune changes the agent's options, from the next Start on; may be nil.
	Tune func(*node.Options)
	// Exporter makes what exports volumes of the disks that are open, from the next Start on; may be nil.
	Exporter func(*disk.Set) node.Exporter
	// Openers of sources, from the next Start on; may be nil.
	Openers map[string]node.Opener
	// Peering lets the agent give images to the others and get them from there; nil when it does not.
	Peering *Peering
	// More makes further parts to run beside them; may be nil.
	More func(*store.Store) []Part

	tb   testing.TB
	logs []klog.Logger // of each Start
	stop func()
}

// MustStart runs a Machine over a new API until the test ends.
func MustStart(tb testing.TB, disks ...*disk.Disk) *Machine {
	tb.Helper()
	m := New(tb, embeddedtest.MustStart(tb), NodeName)
	m.Disks = disks
	m.Start()
	return m
}

// New makes a Machine on an API that runs; it starts nothing.
func New(tb testing.TB, api *rest.Config, name string) *Machine {
	return &Machine{tb: tb, API: api, NodeName: name, stop: func() {}}
}

// Start runs the parts, as a process that starts would.
func (m *Machine) Start() {
	m.tb.Helper()
	a, ended := m.start()
	registered := make(chan error, 1)
	go func() { registered <- a.Registered(context.Background()) }()
	select {
	case <-registered:
	case err := <-ended:
		m.tb.Fatalf("the agent ended: %v", err)
	}
}

// Failing starts the parts and returns the error with which the agent ends.
func (m *Machine) Failing() error {
	m.tb.Helper()
	_, ended := m.start()
	defer m.Stop()
	select {
	case err := <-ended:
		return err
	case <-time.After(Wait):
		m.tb.Fatal("the agent did not end")
		return nil
	}
}

// start runs the parts; ended gets the agent's error when it ends.
func (m *Machine) start() (a *node.Agent, ended chan error) {
	m.tb.Helper()
	s, err := store.New(m.API, m.storeOptions())
	must(m.tb, err)
	m.Store = s
	m.Set, err = disk.NewSet(m.Disks...)
	must(m.tb, err)
	var exporter node.Exporter
	if m.Exporter != nil {
		exporter = m.Exporter(m.Set)
	}
	options := node.Options{
		Version: "test", Source: source.Options{AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
		Credentials: m.Credentials, Exporter: exporter, Openers: m.Openers,
		Disks: m.Paths, PoolBytes: PoolBytes, Heartbeat: Heartbeat, DiskAnswer: time.Second, TakeOverAfter: m.TakeOverAfter,
		ProgressInterval: 50 * time.Millisecond, RetryBase: 200 * time.Millisecond, RetryMax: time.Second,
	}
	parts := []Part{s}
	if m.Peering != nil {
		parts = append(parts, m.Peering.start(m, s, &options))
	}
	if m.Tune != nil {
		m.Tune(&options)
	}
	a = node.New(m.NodeName, s, m.Set, options)
	m.Agent = a
	if !m.AgentOnly {
		o := controller.Options{Credentials: m.Credentials}
		parts = append(parts, controller.NewImages(s, o), controller.NewNodes(s, o))
	}
	if m.More != nil {
		parts = append(parts, m.More(s)...)
	}
	logger := ktesting.NewLogger(m.tb, ktesting.NewConfig(ktesting.BufferLogs(true), ktesting.Verbosity(5)))
	m.logs = append(m.logs, logger)
	ctx, cancel := context.WithCancel(klog.NewContext(context.Background(), logger))
	var wg sync.WaitGroup
	for _, part := range parts {
		wg.Go(func() { _ = part.Run(ctx) })
	}
	ended = make(chan error, 1)
	wg.Go(func() { ended <- a.Run(ctx) })
	m.stop = sync.OnceFunc(func() { cancel(); wg.Wait(); m.closeOwn() })
	m.tb.Cleanup(m.stop)
	return a, ended
}

// Stop ends the parts, as a process that stops would.
func (m *Machine) Stop() { m.stop() }

func (m *Machine) storeOptions() store.Options {
	if m.AgentOnly {
		return store.Options{NodeName: m.NodeName}
	}
	return store.Options{}
}

// closeOwn closes the disks that the agent has opened.
func (m *Machine) closeOwn() {
	for _, d := range m.Set.List() {
		if m.Set.Remove(d); !slices.Contains(m.Disks, d) {
			must(m.tb, d.Close(context.Background()))
		}
	}
}

// Logs are all that the parts logged.
func (m *Machine) Logs() string {
	var text strings.Builder
	for _, logger := range m.logs {
		text.WriteString(logger.GetSink().(ktesting.Underlier).GetBuffer().String())
	}
	return text.String()
}

// CreateImage creates an image that is downloaded.
func (m *Machine) CreateImage(name, url, checksum string, minCopies int32) *v1alpha1.BackingImage {
	m.tb.Helper()
	return m.Create(name, v1alpha1.BackingImageSpec{
		SourceType: v1alpha1.SourceDownload, SourceParameters: map[string]v1alpha1.SourceParameter{"url": v1alpha1.SourceParameter(url)},
		Checksum: checksum, MinNumberOfCopies: minCopies,
	})
}

// Create creates an image.
func (m *Machine) Create(name string, spec v1alpha1.BackingImageSpec) *v1alpha1.BackingImage {
	m.tb.Helper()
	i, err := m.Store.Images.Create(context.Background(), &v1alpha1.BackingImage{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec})
	must(m.tb, err)
	return i
}

// UntilImage waits for an image to be as wanted, and returns it; is sees nil while there is none.
func (m *Machine) UntilImage(name, what string, is func(*v1alpha1.BackingImage) bool) *v1alpha1.BackingImage {
	m.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Wait)
	defer cancel()
	var last *v1alpha1.BackingImage
	if err := m.Store.Images.Wait(ctx, name, func(i *v1alpha1.BackingImage) (bool, error) { last = i; return is(i), nil }); err != nil {
		m.tb.Fatalf("image %s is not %s: %v; it is %+v", name, what, err, last)
	}
	return last
}

// UntilReady waits for an image to be ready with its copies as "ready/wanted".
func (m *Machine) UntilReady(name, copies string) *v1alpha1.BackingImage {
	m.tb.Helper()
	return m.UntilImage(name, "ready on "+copies, func(i *v1alpha1.BackingImage) bool {
		return i != nil && i.Status.State == v1alpha1.CopyReady && i.Status.Copies == copies
	})
}

// UntilState waits for an image to be in a state.
func (m *Machine) UntilState(name string, state v1alpha1.CopyState) *v1alpha1.BackingImage {
	m.tb.Helper()
	return m.UntilImage(name, string(state), func(i *v1alpha1.BackingImage) bool { return i != nil && i.Status.State == state })
}

// UntilGone waits for an image's object to be gone.
func (m *Machine) UntilGone(name string) {
	m.tb.Helper()
	m.UntilImage(name, "gone", func(i *v1alpha1.BackingImage) bool { return i == nil })
}

// Path of an image's content on a disk.
func (m *Machine) Path(d int, i *v1alpha1.BackingImage) string {
	return filepath.Join(m.Disks[d].Layout().Image(string(i.UID)), disk.ImageFile)
}

// UntilNoFiles waits until nothing of an image is on any disk.
func (m *Machine) UntilNoFiles(i *v1alpha1.BackingImage) {
	m.tb.Helper()
	deadline := time.Now().Add(Wait)
	for _, d := range m.Disks {
		for _, dir := range []string{d.Layout().Image(string(i.UID)), d.Layout().StagedImage(string(i.UID))} {
			for {
				if _, err := os.Lstat(dir); os.IsNotExist(err) {
					break
				}
				if time.Now().After(deadline) {
					m.tb.Fatalf("%s is still there", dir)
				}
				time.Sleep(20 * time.Millisecond)
			}
		}
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
