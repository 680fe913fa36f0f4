package csi

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/csi/mount"
	"plinth.dev/plinth/provisioner"
)

// invalid is a field that no retry can mend: its name, then what is wrong and the remedy.
func invalid(field, format string, args ...any) error {
	return backingimage.Errorf(backingimage.Invalid, field+": "+format, args...)
}

// required refuses a required field that is empty.
func required(field, value string) error {
	if value == "" {
		return invalid(field, "is required and empty")
	}
	return nil
}

// requiredPath refuses a path that is empty or not absolute.
func requiredPath(field, value string) error {
	if err := required(field, value); err != nil {
		return err
	}
	if !filepath.IsAbs(value) || filepath.Clean(value) == "/" {
		return invalid(field, "%q is not an absolute path below /", value)
	}
	return nil
}

// firstError returns the first error of a list of checks.
func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// createRequest parses a CreateVolume call.
func createRequest(r *csi.CreateVolumeRequest) (provisioner.CreateRequest, error) {
	size, err := parseRange(r.GetCapacityRange())
	volume, snapshot, serr := parseSource(r.GetVolumeContentSource())
	nodes, nerr := parseRequirement(r.GetAccessibilityRequirements())
	err = firstError(checkName(r.GetName()), checkCapabilities(r.GetVolumeCapabilities()), err, serr, nerr, checkMutable(r.GetMutableParameters()))
	if err != nil {
		return provisioner.CreateRequest{}, err
	}
	return provisioner.CreateRequest{
		Name:          r.GetName(),
		RequiredBytes: size.required,
		LimitBytes:    size.limit,
		Parameters:    r.GetParameters(),
		SourceVolume:  volume,
		SourceHandle:  snapshot,
		Nodes:         nodes,
		ReadOnlyMany:  forManyReaders(r.GetVolumeCapabilities()[0]),
		Secrets:       parseSecrets(r.GetSecrets()),
	}, nil
}

// parseSecrets takes the secrets out of the reach of whoever prints a request.
func parseSecrets(secrets map[string]string) map[string]credential.Secret {
	hidden := make(map[string]credential.Secret, len(secrets))
	for key, value := range secrets {
		hidden[key] = credential.Secret(value)
	}
	return hidden
}

// checkName refuses what the specification bans: control characters, except the usual blanks.
func checkName(name string) error {
	if i := strings.IndexFunc(name, banned); i >= 0 {
		return invalid("name", "%q has a control character at byte %d", name, i)
	}
	return required("name", name)
}

func banned(c rune) bool {
	return c < 0x20 && c != '\t' && c != '\n' && c != '\r' || c >= 0x7f && c <= 0x9f
}

func checkMutable(parameters map[string]string) error {
	if len(parameters) > 0 {
		return invalid("mutable_parameters", "Plinth's volumes have none; use a class without a VolumeAttributesClass")
	}
	return nil
}

// parseSource returns the volume to clone, or the snapshot to start from; "" for none.
func parseSource(s *csi.VolumeContentSource) (volume, snapshot string, err error) {
	switch {
	case s == nil:
		return "", "", nil
	case s.GetSnapshot() != nil:
		snapshot = s.GetSnapshot().GetSnapshotId()
		return "", snapshot, required("volume_content_source.snapshot.snapshot_id", snapshot)
	case s.GetVolume() != nil:
		volume = s.GetVolume().GetVolumeId()
		return volume, "", required("volume_content_source.volume.volume_id", volume)
	}
	return "", "", invalid("volume_content_source", "names neither a volume nor a snapshot")
}

// sizes is a capacity range in bytes; 0 means not given.
type sizes struct{ required, limit int64 }

func parseRange(r *csi.CapacityRange) (sizes, error) {
	s := sizes{required: r.GetRequiredBytes(), limit: r.GetLimitBytes()}
	switch {
	case s.required < 0:
		return s, invalid("capacity_range.required_bytes", "%d is negative", s.required)
	case s.limit < 0:
		return s, invalid("capacity_range.limit_bytes", "%d is negative", s.limit)
	case s.limit > 0 && s.required > s.limit:
		return s, backingimage.Errorf(backingimage.OutOfRange, "capacity_range: required_bytes %d is more than limit_bytes %d; no size fits both", s.required, s.limit)
	}
	return s, nil
}

// modes that can be honoured: those of one node, and reading on many, which volumes are made for that begin as an image and stay it.
var modes = []csi.VolumeCapability_AccessMode_Mode{
	csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER,
	csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
	csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
	csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER,
	csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY,
}

func checkCapabilities(list []*csi.VolumeCapability) error {
	if len(list) == 0 {
		return invalid("volume_capabilities", "is required and empty")
	}
	for _, c := range list {
		if err := checkCapability(c); err != nil {
			return err
		}
		if forManyReaders(c) != forManyReaders(list[0]) {
			return invalid("volume_capabilities", "a volume is read on many nodes (ReadOnlyMany) or used on one, and not both; ask for one of the two")
		}
	}
	return nil
}

// forManyReaders reports whether a capability is that of a volume which many nodes read.
func forManyReaders(c *csi.VolumeCapability) bool {
	return c.GetAccessMode().GetMode() == csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
}

// checkReaders refuses a capability that a volume was not made for.
func checkReaders(v *v1alpha1.Volume, list ...*csi.VolumeCapability) error {
	for _, c := range list {
		if forManyReaders(c) == v.Spec.ReadOnlyMany {
			continue
		}
		if v.Spec.ReadOnlyMany {
			return invalid("volume_capability.access_mode", "volume %s is for reading on many nodes; use it with ReadOnlyMany (multi-node-reader-only)", v.Name)
		}
		return invalid("volume_capability.access_mode", "volume %s is on one node; use a mode of one node", v.Name)
	}
	return nil
}

func checkCapability(c *csi.VolumeCapability) error {
	if c == nil {
		return invalid("volume_capability", "is required and missing")
	}
	mode := c.GetAccessMode().GetMode()
	switch {
	case mode == csi.VolumeCapability_AccessMode_UNKNOWN:
		return invalid("volume_capability.access_mode", "is required and missing")
	case !slices.Contains(modes, mode):
		return invalid("volume_capability.access_mode", "%s: a volume's data is on one node's disk, so only that node can use it; "+
			"use ReadWriteOnce or ReadWriteOncePod (single-node-writer, single-node-reader-only), or, for reading an image on many nodes, ReadOnlyMany (multi-node-reader-only)", mode)
	case c.GetBlock() != nil:
		return nil
	case c.GetMount() == nil:
		return invalid("volume_capability.access_type", "is required: block or mount")
	}
	return checkMount(c.GetMount())
}

func checkMount(m *csi.VolumeCapability_MountVolume) error {
	if fs := m.GetFsType(); fs != "" && fs != mount.Ext4 && fs != mount.XFS {
		return invalid("volume_capability.mount.fs_type", "%q: Plinth makes and mounts ext4 and xfs; use one of them, or volumeMode Block", fs)
	}
	if m.GetVolumeMountGroup() != "" {
		return invalid("volume_capability.mount.volume_mount_group", "is not supported; leave the group to the orchestrator (fsGroup)")
	}
	for _, flag := range m.GetMountFlags() {
		for option := range strings.SplitSeq(flag, ",") {
			if err := checkOption(option); err != nil {
				return err
			}
		}
	}
	return nil
}

// notMountOptions do not say how to mount a device but do something else to the node.
var notMountOptions = []string{"bind", "rbind", "move", "remount", "loop", "offset", "sizelimit", "helper", "uhelper", "logdev", "rtdev", "journal_path", "journal_dev"}

// checkOption names in its error only the option, because its value may be a secret.
func checkOption(option string) error {
	const field = "volume_capability.mount.mount_flags"
	name, _, _ := strings.Cut(option, "=")
	lower := strings.ToLower(name)
	switch {
	case option == "" || strings.ContainsFunc(option, func(c rune) bool { return c <= ' ' || banned(c) }):
		return invalid(field, "an option is empty or has a blank or a control character in it; give one option each")
	case slices.Contains(notMountOptions, lower) || strings.HasPrefix(lower, "x-") || strings.HasPrefix(lower, "make-"):
		return invalid(field, "option %q is not passed on; remove it", name)
	}
	return nil
}
