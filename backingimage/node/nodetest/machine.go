// Package nodetest runs an agent and the image controller for tests, over a real API and real disks, and a web server
// that can misbehave.
package nodetest

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
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

// NodeName of the Machine.
const NodeName = "n1"

// Part is something that runs until its context ends.
type Part interface{ Run(context.Context) error }

// Machine is an agent, the image controller and their store.
type Machine struct {
	API   *rest.Config
	Disks []*disk.Disk
	Store *store.Store // a new one after each Start
	// Credentials of images, and Exporter of volumes, from the next Start on; may be nil.
	Credentials credential.Store
	Exporter    node.Exporter
	Openers     map[string]node.Opener // of sources, from the next Start on; may be nil
	// Tune changes the agent's options, from the next Start on; may be nil.
	Tune func(*node.Options)
	// More makes further parts to run beside them; may be nil.
	More func(*store.Store) []Part

	tb   testing.TB
	logs []klog.Logger // of each Start
	stop func()
}

// MustStart runs a Machine over a new API until the test ends.
func MustStart(tb testing.TB, disks ...*disk.Disk) *Machine {
	tb.Helper()
	m := &Machine{tb: tb, API: embeddedtest.MustStart(tb), Disks: disks}
	m.Start()
	return m
}

// Start runs the parts, as a process that starts would.
func (m *Machine) Start() {
	m.tb.Helper()
	s, err := store.New(m.API, store.Options{})
	must(m.tb, err)
	options := node.Options{
		Version: "test", Source: source.Options{AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
		Credentials: m.Credentials, Exporter: m.Exporter, Openers: m.Openers,
		ProgressInterval: 50 * time.Millisecond, RetryBase: 200 * time.Millisecond, RetryMax: time.Second,
	}
	if m.Tune != nil {
		m.Tune(&options)
	}
	a, err := node.New(NodeName, s, m.Disks, options)
	must(m.tb, err)
	parts := []Part{s, a, controller.NewImages(s, controller.Options{Credentials: m.Credentials})}
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
	m.Store = s
	m.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	m.tb.Cleanup(m.stop)
	must(m.tb, a.Registered(ctx))
}

// Stop ends the parts, as a process that stops would.
func (m *Machine) Stop() { m.stop() }

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
