package csi

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/csi/mount"
	"plinth.dev/plinth/provisioner"
)

const (
	// defaultWait is how long staging waits for a volume when the caller gives no deadline; kubelet's is two minutes.
	defaultWait = 110 * time.Second
	// answerMargin is the most of a caller's deadline that is kept for the answer to reach it.
	answerMargin = 3 * time.Second
)

// staging is a NodeStageVolume call, parsed.
type staging struct {
	volume   string
	path     string
	block    bool
	fsType   string // "": what is found, or the default
	readOnly bool
	options  []string
}

func stageRequest(r *csi.NodeStageVolumeRequest) (staging, error) {
	c := r.GetVolumeCapability()
	s := staging{
		volume:   r.GetVolumeId(),
		path:     r.GetStagingTargetPath(),
		block:    c.GetBlock() != nil,
		fsType:   c.GetMount().GetFsType(),
		readOnly: readerOnly(c),
	}
	for _, flag := range c.GetMount().GetMountFlags() {
		s.options = append(s.options, strings.Split(flag, ",")...)
	}
	if slices.Contains(s.options, "ro") {
		s.readOnly = true
	} else if s.readOnly {
		s.options = append(s.options, "ro")
	}
	return s, firstError(required("volume_id", s.volume), requiredPath("staging_target_path", s.path), checkCapability(c))
}

// NodeStageVolume waits for the volume, attaches it and, in Filesystem mode, mounts its filesystem. A volume that is not
// ready in time is Unavailable, with its progress.
func (n *node) NodeStageVolume(ctx context.Context, r *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	s, err := stageRequest(r)
	if err != nil {
		return nil, err
	}
	attached, err := n.attach(ctx, s.volume)
	if err != nil {
		return nil, err
	}
	stage := s.filesystem
	if s.block {
		stage = s.device
	}
	if err = checkReaders(attached.Volume, r.GetVolumeCapability()); err == nil {
		err = stage(ctx, attached)
	}
	if err != nil {
		n.letGo(ctx, attached)
	}
	if err := firstError(err, attached.Recorded()); err != nil {
		return nil, err
	}
	return &csi.NodeStageVolumeResponse{}, nil
}

// letGo detaches a volume that could not be staged, unless it is at work elsewhere. A caller that is refused does not unstage, and what
// stays attached can never be deleted; one whose time is over does unstage, or comes again.
func (n *node) letGo(ctx context.Context, a provisioner.Attached) {
	_, points, err := atWork(a)
	if err == nil && len(points) == 0 && ctx.Err() == nil {
		err = n.volumes.Detach(ctx, a.Volume.Name)
	}
	if err != nil {
		klog.FromContext(ctx).Info("A volume that could not be staged stays attached", "volume", a.Volume.Name, "device", a.Device, "why", err)
	}
}

// attach waits for the volume, but lets go early enough that the caller still gets the reason for waiting.
func (n *node) attach(ctx context.Context, id string) (provisioner.Attached, error) {
	deadline, given := ctx.Deadline()
	ctx, cancel := context.WithDeadline(ctx, waitUntil(time.Now(), deadline, given))
	defer cancel()
	defer context.AfterFunc(n.stopping, cancel)()
	return n.volumes.Attach(ctx, id)
}

// waitUntil is when waiting ends, so that a tenth of the time given, up to answerMargin, is left for the answer.
func waitUntil(now, deadline time.Time, given bool) time.Time {
	if !given {
		return now.Add(defaultWait)
	}
	return deadline.Add(-min(answerMargin, max(0, deadline.Sub(now))/10))
}

// device stages a volume in Block mode: it is attached, and that is all.
func (s staging) device(_ context.Context, a provisioner.Attached) error {
	mounted, err := filesystemsOf(a)
	if err == nil && len(mounted) > 0 {
		err = backingimage.Errorf(backingimage.Conflict, "volume %s is in use as a filesystem on %s; unstage it there before it is used as a block device", s.volume, pathsOf(mounted))
	}
	return err
}

// NodeUnstageVolume undoes NodeStageVolume, however much of it was done.
func (n *node) NodeUnstageVolume(ctx context.Context, r *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	id, path := r.GetVolumeId(), r.GetStagingTargetPath()
	if err := firstError(required("volume_id", id), requiredPath("staging_target_path", path)); err != nil {
		return nil, err
	}
	attached, err := n.volumes.Attached(ctx, id)
	if err != nil && !absent(err) {
		return nil, err
	}
	if err == nil {
		if err := unstage(attached, path); err != nil {
			return nil, err
		}
	}
	if err := n.volumes.Detach(ctx, id); err != nil && !backingimage.Is(err, backingimage.NotFound) {
		return nil, err
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}

// absent says that there is no such volume, or that it is not attached.
func absent(err error) bool {
	return backingimage.Is(err, backingimage.NotFound) || backingimage.Is(err, backingimage.Precondition)
}

// unstage unmounts the volume's filesystem and leaves the device as Attach made it. InUse while it is published.
func unstage(a provisioner.Attached, path string) error {
	d, points, err := atWork(a)
	if err != nil {
		return err
	}
	elsewhere, err := without(points, path)
	if err != nil {
		return err
	}
	if len(elsewhere) > 0 {
		return backingimage.Errorf(backingimage.InUse, "volume %s is still published on %s; unpublish it there first", a.Volume.Name, pathsOf(elsewhere))
	}
	if len(points) > 0 {
		if err := mount.Unmount(path); err != nil {
			return err
		}
	}
	if d.ReadOnly && !a.ReadOnly {
		return mount.SetReadOnly(d.Path, false)
	}
	return nil
}

// atWork is the volume's device, and where that is bound or its filesystem mounted.
func atWork(a provisioner.Attached) (mount.Device, []mount.Point, error) {
	d, err := mount.Inspect(a.Device)
	if err != nil {
		return d, nil, err
	}
	bound, err := mount.Showing(d)
	if err != nil {
		return d, nil, err
	}
	mounted, err := filesystemsOf(a)
	return d, append(bound, mounted...), err
}
