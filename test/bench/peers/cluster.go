package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/controller"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/node"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/backingimage/store/embedded"
	"plinth.dev/plinth/backingimage/transfer"
	"plinth.dev/plinth/deploy"
	"plinth.dev/plinth/provisioner"
	"plinth.dev/plinth/provisioner/engine"
	"plinth.dev/plinth/provisioner/engine/reflink"
)

// cluster is an API, the controller and some agents, whose disks are directories of one filesystem that can reflink.
type cluster struct {
	dir     string
	root    *disk.Disk
	api     *embedded.Server
	store   *store.Store // of the controller
	agents  []*agent
	volumes bool // the agents make volumes
	stop    context.CancelFunc
	parts   sync.WaitGroup
}

// agent is one of them.
type agent struct {
	name     string
	disk     *disk.Disk
	registry *prometheus.Registry
	volume   func(path string) error // makes the content that is exported
	engine   engine.Engine
}

// newCluster starts an API with the controller, and so many agents.
func newCluster(ctx context.Context, parent string, poolBytes, bytesPerSecond int64, agents int, volumes bool) (c *cluster, err error) {
	c = &cluster{stop: func() {}, volumes: volumes}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if c.dir, err = emptied(parent, "cluster"); err != nil {
		return c, err
	}
	if c.root, err = disk.Open(ctx, filepath.Join(c.dir, "disk"), disk.Options{PoolBytes: poolBytes}); err != nil {
		return c, err
	}
	api, err := embedded.New(embedded.Options{Dir: filepath.Join(c.dir, "api"), CRDs: deploy.CRDs})
	if err != nil {
		return c, err
	}
	if err = api.Start(ctx); err != nil {
		return c, err
	}
	c.api = api
	ctx, c.stop = context.WithCancel(ctx)
	if c.store, err = store.New(api.RESTConfig(), store.Options{}); err != nil {
		return c, err
	}
	c.run(ctx, c.store, controller.NewImages(c.store, controller.Options{}), controller.NewNodes(c.store, controller.Options{}), provisioner.NewPoints(c.store))
	for i := range agents {
		a := &agent{name: fmt.Sprintf("n%02d", i), registry: prometheus.NewRegistry()}
		c.agents = append(c.agents, a)
		if err = c.start(ctx, a, bytesPerSecond); err != nil {
			return c, err
		}
	}
	return c, c.store.Synced(ctx)
}

func (c *cluster) run(ctx context.Context, parts ...interface{ Run(context.Context) error }) {
	for _, part := range parts {
		c.parts.Go(func() { _ = part.Run(ctx) })
	}
}

// start starts an agent.
func (c *cluster) start(ctx context.Context, a *agent, bytesPerSecond int64) (err error) {
	if a.disk, err = disk.Open(ctx, filepath.Join(string(c.root.Layout()), a.name), disk.Options{}); err != nil {
		return err
	}
	set, err := disk.NewSet(a.disk)
	if err != nil {
		return err
	}
	cfg := rest.CopyConfig(c.api.RESTConfig())
	s, err := store.New(cfg, store.Options{NodeName: a.name})
	if err != nil {
		return err
	}
	id, err := transfer.OpenIdentity(filepath.Join(c.dir, "key-"+a.name))
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	shares, uploads := fetch.NewShares(), transfer.NewUploads(0, 0, clock.RealClock{})
	a.engine = reflink.New(a.disk.Layout(), reflink.Options{Capacity: a.disk.Capacity})
	engines := provisioner.NewEngines(set, func(*disk.Disk) engine.Engine { return a.engine })
	offers := provisioner.NewOffers(a.name, engines, clock.RealClock{})
	server, err := transfer.NewServer(l, id, s, set, uploads, transfer.Options{BytesPerSecond: bytesPerSecond, Shares: shares, Snapshots: offers, Metrics: transfer.NewMetrics(a.registry)})
	if err != nil {
		return err
	}
	n := node.New(a.name, s, set, node.Options{
		Version: "bench", Uploads: uploads, Address: l.Addr().String(), PublicKeyHash: id.PublicKeyHash(), Identity: id, Shares: shares, Exporter: a,
	})
	c.run(ctx, s, server, n)
	if c.volumes {
		c.run(ctx, provisioner.NewVolumeLoop(s, engines, provisioner.VolumeSources{Offers: offers, Identity: id}), provisioner.NewSnapshotLoop(s, engines))
	}
	return n.Registered(ctx)
}

// sent is how many bytes of contents an agent gave to others.
func (a *agent) sent() (int64, error) {
	families, err := a.registry.Gather()
	if err != nil {
		return 0, err
	}
	for _, f := range families {
		if f.GetName() == "plinth_peer_served_bytes_total" {
			return int64(f.GetMetric()[0].GetCounter().GetValue()), nil
		}
	}
	return 0, errors.New("the agent does not count what it sends")
}

// give makes an image of which the first agent has a copy, with so many bytes of data spread over it: it exports a volume
// that has no more than a name.
func (c *cluster) give(ctx context.Context, name string, bytes, data int64) (*v1alpha1.BackingImage, error) {
	first := c.agents[0]
	volume, err := c.store.Volumes.Create(ctx, &v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.VolumeSpec{
		Name: name, CapacityBytes: bytes, DiskUUID: first.disk.UUID(), NodeName: first.name,
	}})
	if err != nil {
		return nil, err
	}
	if _, err = c.store.Volumes.ModifyStatus(ctx, volume.Name, func(v *v1alpha1.Volume) { v.Status.State = v1alpha1.VolumeReady }); err != nil {
		return nil, err
	}
	first.volume = func(to string) error { return fill(to, bytes, data) }
	i, err := c.store.Images.Create(ctx, &v1alpha1.BackingImage{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.BackingImageSpec{
		SourceType: v1alpha1.SourceExport, MinNumberOfCopies: 1,
		SourceParameters: map[string]v1alpha1.SourceParameter{v1alpha1.ParameterVolumeName: v1alpha1.SourceParameter(name)},
	}})
	if err != nil {
		return nil, err
	}
	return i, c.untilReady(ctx, name, 1)
}

// Export implements node.Exporter.
func (a *agent) Export(_ context.Context, _, _, path string) error { return a.volume(path) }

// fill makes a file of random data in pieces of 2 MiB, spread evenly.
func fill(path string, bytes, data int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(bytes); err != nil {
		return err
	}
	random := rand.NewChaCha8([32]byte{1})
	piece := make([]byte, 2<<20)
	pieces := data / int64(len(piece))
	for i := range pieces {
		_, _ = random.Read(piece)
		if _, err := f.WriteAt(piece, i*(bytes/pieces)/int64(len(piece))*int64(len(piece))); err != nil {
			return err
		}
	}
	return f.Sync()
}

// copies asks for so many copies of an image, and returns the seconds until all are ready.
func (c *cluster) copies(ctx context.Context, i *v1alpha1.BackingImage, count int) (float64, error) {
	began := time.Now()
	_, err := c.store.Images.Modify(ctx, i.Name, func(i *v1alpha1.BackingImage) { i.Spec.MinNumberOfCopies = int32(count) })
	if err != nil {
		return 0, err
	}
	err = c.untilReady(ctx, i.Name, count)
	return since(began), err
}

func (c *cluster) untilReady(ctx context.Context, name string, count int) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	want := fmt.Sprintf("%d/%d", count, count)
	last := ""
	err := c.store.Images.Wait(ctx, name, func(i *v1alpha1.BackingImage) (bool, error) {
		if i == nil {
			return false, nil
		}
		last = i.Status.Copies + " " + i.Status.Message
		return i.Status.State == v1alpha1.CopyReady && i.Status.Copies == want, nil
	})
	if err != nil {
		return fmt.Errorf("image %s has copies %s, want %s: %w", name, last, want, err)
	}
	return nil
}

// close stops everything and removes the disks.
func (c *cluster) close() {
	c.stop()
	c.parts.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	for _, a := range c.agents {
		if a.disk == nil {
			continue
		}
		uids, err := a.disk.ImageUIDs()
		errs = append(errs, err)
		for _, uid := range uids {
			errs = append(errs, a.disk.RemoveImage(uid)) // some of its files are immutable
		}
		errs = append(errs, a.disk.Close(ctx))
	}
	if c.api != nil {
		errs = append(errs, c.api.Stop(ctx))
	}
	if c.root != nil {
		errs = append(errs, c.root.Close(ctx))
	}
	if err := errors.Join(append(errs, os.RemoveAll(c.dir))...); err != nil {
		fmt.Fprintln(os.Stderr, "bench: clean up:", err)
	}
}
