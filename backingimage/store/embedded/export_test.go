package embedded

import (
	"context"
	"time"

	"k8s.io/klog/v2"
)

// SetCompaction must be called before Start.
func (s *Server) SetCompaction(every time.Duration) { s.compactEvery = every }

// EtcdEndpoint is where only this process and its owner's others can reach etcd.
func (s *Server) EtcdEndpoint() string { return "unix://" + s.dir.socket }

// StartEtcdOnly starts what lies below the API server.
func (s *Server) StartEtcdOnly(ctx context.Context) error {
	if err := s.prepare(ctx); err != nil {
		return err
	}
	return s.startEtcd(ctx)
}

// SetRestTime replaces restTime, and returns how to put it back.
func SetRestTime(d time.Duration) (undo func()) {
	before := restTime
	restTime = d
	return func() { restTime = before }
}

// Unfinished is the mark of a first start, Etcd the directory that it speaks of.
func (s *Server) Unfinished() string { return s.dir.unfinished }
func (s *Server) Etcd() string       { return s.dir.etcd }

// CloseEtcd takes etcd away from under the API server.
func (s *Server) CloseEtcd(ctx context.Context) error {
	for _, u := range s.undo {
		if u.what == closeEtcd {
			return u.end(ctx)
		}
	}
	return nil
}

// NewEtcdLogger makes the logger that etcd gets.
func NewEtcdLogger(logger klog.Logger, died func(error)) etcdLogger {
	return newEtcdLogger(logger, died)
}
