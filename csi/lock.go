package csi

import (
	"context"
	"fmt"
	"path"
	"sync"
	"time"

	"google.golang.org/grpc"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
)

// locks admits one call at a time for each key. A call that finds its key taken does not wait.
type locks struct {
	clock clock.PassiveClock
	mu    sync.Mutex
	held  map[string]holder
}

// holder is the call that has a key.
type holder struct {
	method string
	since  time.Time
}

func newLocks(c clock.PassiveClock) *locks {
	return &locks{clock: c, held: map[string]holder{}}
}

// try takes a key and returns what gives it back, or Busy with the call that has it.
func (l *locks) try(key, method string) (release func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h, taken := l.held[key]; taken {
		return nil, backingimage.Errorf(backingimage.Busy, "%s: %s has been at work on it for %s; try again later",
			key, h.method, l.clock.Since(h.since).Round(time.Millisecond))
	}
	l.held[key] = holder{method, l.clock.Now()}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.held, key)
	}, nil
}

// readOnly methods name a volume or a snapshot and leave it as it is, so they exclude nobody.
var readOnly = map[string]bool{
	"ValidateVolumeCapabilities": true,
	"ControllerGetVolume":        true,
	"NodeGetVolumeStats":         true,
	"GetSnapshot":                true,
	"ListSnapshots":              true,
}

// exclude is the interceptor that admits one call at a time for each volume and snapshot of a service. Controller and Node do not
// exclude each other: they are two processes in a cluster, and one here is no different.
func (l *locks) exclude(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	service, method := path.Split(info.FullMethod)
	subject := subjectOf(req)
	if subject == "" || readOnly[method] {
		return next(ctx, req)
	}
	release, err := l.try(fmt.Sprintf("%s (%s)", subject, path.Base(service)), method)
	if err != nil {
		return nil, err
	}
	defer release()
	return next(ctx, req)
}

// subjectOf names the volume or snapshot that a request is about; "" for none. One that is being created has only a name.
func subjectOf(req any) string {
	switch r := req.(type) {
	case interface{ GetSnapshotId() string }:
		if id := r.GetSnapshotId(); id != "" {
			return "snapshot " + id
		}
	case interface {
		GetName() string
		GetSourceVolumeId() string
	}:
		if name := r.GetName(); name != "" {
			return "snapshot named " + name
		}
	case interface{ GetVolumeId() string }:
		if id := r.GetVolumeId(); id != "" {
			return "volume " + id
		}
	case interface{ GetName() string }:
		if name := r.GetName(); name != "" {
			return "volume named " + name
		}
	}
	return ""
}
