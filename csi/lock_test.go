package csi

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	testclock "k8s.io/utils/clock/testing"

	"plinth.dev/plinth/backingimage"
)

// call runs a request through the interceptor and, while it is at work, another.
func call(l *locks, outer string, outerReq any, inner string, innerReq any) error {
	var err error
	_, _ = l.exclude(context.Background(), outerReq, &grpc.UnaryServerInfo{FullMethod: outer}, func(ctx context.Context, _ any) (any, error) {
		_, err = l.exclude(ctx, innerReq, &grpc.UnaryServerInfo{FullMethod: inner}, func(context.Context, any) (any, error) { return nil, nil })
		return nil, nil
	})
	return err
}

func TestExclusion(t *testing.T) {
	const create, remove = "/csi.v1.Controller/CreateVolume", "/csi.v1.Controller/DeleteVolume"
	const stage, unstage, stats = "/csi.v1.Node/NodeStageVolume", "/csi.v1.Node/NodeUnstageVolume", "/csi.v1.Node/NodeGetVolumeStats"
	named := func(n string) any { return &csi.CreateVolumeRequest{Name: n} }
	id := func(id string) any { return &csi.NodeStageVolumeRequest{VolumeId: id} }
	for name, c := range map[string]struct {
		outer    string
		outerReq any
		inner    string
		innerReq any
		busy     bool
	}{
		"the same volume is busy":                    {stage, id("a"), unstage, id("a"), true},
		"another volume is not":                      {stage, id("a"), unstage, id("b"), false},
		"the same name is busy":                      {create, named("a"), create, named("a"), true},
		"another name is not":                        {create, named("a"), create, named("b"), false},
		"the other service is not":                   {stage, id("a"), remove, id("a"), false},
		"reading a volume excludes nobody":           {stage, id("a"), stats, id("a"), false},
		"a request without a volume excludes nobody": {stage, id(""), stage, id(""), false},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLocks(testclock.NewFakePassiveClock(time.Now()))
			err := call(l, c.outer, c.outerReq, c.inner, c.innerReq)
			if backingimage.Is(err, backingimage.Busy) != c.busy {
				t.Errorf("got %v, want busy %t", err, c.busy)
			}
			if len(l.held) != 0 {
				t.Errorf("still held after the calls: %v", l.held)
			}
		})
	}
}

func TestBusySaysWithWhatAndForHowLong(t *testing.T) {
	clock := testclock.NewFakePassiveClock(time.Now())
	l := newLocks(clock)
	release, err := l.try("volume a (csi.v1.Node)", "NodeStageVolume")
	if err != nil {
		t.Fatal(err)
	}
	clock.SetTime(clock.Now().Add(90 * time.Second))
	_, err = l.try("volume a (csi.v1.Node)", "NodeUnstageVolume")
	for _, want := range []string{"volume a", "NodeStageVolume", "1m30s"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	release()
	if _, err := l.try("volume a (csi.v1.Node)", "NodeUnstageVolume"); err != nil {
		t.Errorf("after release: %v", err)
	}
}
