package provisioner

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/provisioner/backup"
)

// Parameters is what a StorageClass asks for, checked.
type Parameters struct {
	Image             string // name of the backing image; "" for an empty volume
	SourceType        v1alpha1.SourceType
	SourceParameters  map[string]string
	Checksum          string
	MinNumberOfCopies int32 // 0 when the class does not say
	ImageNodeSelector []string
	ImageDiskSelector []string
	NodeSelector      []string // of the volume
	DiskSelector      []string
	MkfsParams        string
	FromBackup        string   // URL of the backup that the volume's content is restored from
	RestoreImageFrom  string   // see v1alpha1.ParameterRestoreFrom
	AllowOverride     bool     // a claim may name another image
	Partition         int32    // 0: the whole device
	Ignored           []string // keys of Longhorn's that mean nothing here, for one warning
}

// Keys that Plinth reads. The backingImage… names are Longhorn's, so that its classes carry over.
const (
	keyImage            = "backingImage"
	keyImageName        = "backingImageName" // what Longhorn's documentation says; its code never read it
	keySourceType       = "backingImageDataSourceType"
	keySourceParameters = "backingImageDataSourceParameters"
	keyChecksum         = "backingImageChecksum"
	keyMinCopies        = "backingImageMinNumberOfCopies"
	keyImageNodes       = "backingImageNodeSelector"
	keyImageDisks       = "backingImageDiskSelector"
	keyNodes            = "nodeSelector"
	keyDisks            = "diskSelector"
	keyFSType           = "fsType"
	keyCSIFSType        = "csi.storage.k8s.io/fstype"
	keyMkfs             = "mkfsParams"
	keyPartition        = "partition"
	keyAllowOverride    = "allowBackingImageOverride"
	keyBackup           = "fromBackup"
	keyRestoreImage     = "restoreImageFrom"
	keyReplicas         = "numberOfReplicas"
	keyEngine           = "dataEngine"
	keyEncrypted        = "encrypted"
	keyMigratable       = "migratable"
)

// Keys that the provisioner sidecar's --extra-create-metadata adds; they describe the claim.
const (
	keyClaimName      = "csi.storage.k8s.io/pvc/name"
	keyClaimNamespace = "csi.storage.k8s.io/pvc/namespace"
	keyVolumeName     = "csi.storage.k8s.io/pv/name"
)

// DriverParameters are a StorageClass's parameters without those that are the provisioner sidecar's own. It takes them out for CreateVolume, and leaves
// them in for GetCapacity.
func DriverParameters(class map[string]string) map[string]string {
	parameters := maps.Clone(class)
	maps.DeleteFunc(parameters, func(key, _ string) bool { return strings.HasPrefix(key, "csi.storage.k8s.io/") })
	return parameters
}

var metadataKeys = []string{keyClaimName, keyClaimNamespace, keyVolumeName}

// ignoredKeys are Longhorn's knobs for replicas, snapshots and shares: accepted so that its classes carry over.
var ignoredKeys = []string{
	"staleReplicaTimeout", "replicaAutoBalance", "dataLocality", "recurringJobs", "recurringJobSelector", "backupTargetName", "backupBlockSize",
	"replicaSoftAntiAffinity", "replicaZoneSoftAntiAffinity", "replicaDiskSoftAntiAffinity", "replicaRebuildingBandwidthLimit",
	"unmapMarkSnapChainRemoved", "disableRevisionCounter", "freezeFilesystemForSnapshot", "snapshotDataIntegrity",
	"snapshotMaxCount", "snapshotMaxSize", "offlineRebuild", "rebuildConcurrentSyncLimit", "nfsOptions", "exclusive", "share",
}

// parser reads one key's value into Parameters. An empty value means "not given" for every key.
type parser func(p *Parameters, value string) error

var parsers = map[string]parser{
	keyImage:            func(p *Parameters, v string) error { return p.setImage(keyImage, v) },
	keyImageName:        func(p *Parameters, v string) error { return p.setImage(keyImageName, v) },
	keySourceType:       parseSourceType,
	keySourceParameters: parseSourceParameters,
	keyChecksum:         parseChecksum,
	keyMinCopies:        parseMinCopies,
	keyImageNodes:       func(p *Parameters, v string) error { p.ImageNodeSelector = list(v); return nil },
	keyImageDisks:       func(p *Parameters, v string) error { p.ImageDiskSelector = list(v); return nil },
	keyNodes:            func(p *Parameters, v string) error { p.NodeSelector = list(v); return nil },
	keyDisks:            func(p *Parameters, v string) error { p.DiskSelector = list(v); return nil },
	keyFSType:           checkFSType(keyFSType),
	keyCSIFSType:        checkFSType(keyCSIFSType),
	keyMkfs:             func(p *Parameters, v string) error { p.MkfsParams = v; return nil },
	keyPartition:        parsePartition,
	keyAllowOverride:    parseAllowOverride,
	keyBackup:           parseFromBackup,
	keyRestoreImage:     parseRestoreImage,
	keyReplicas:         only(keyReplicas, "1", "a volume is one file on one node's disk; remove the key or set it to 1, and keep copies of its data with backups"),
	keyEngine:           only(keyEngine, "v1", "there is one engine here, which answers to v1; remove the key or set it to v1"),
	keyEncrypted:        only(keyEncrypted, "false", "volumes are not encrypted by Plinth; put the disk on an encrypted device and remove the key"),
	keyMigratable:       only(keyMigratable, "false", "a volume cannot be attached to two nodes at once; remove the key"),
}

// ParseParameters reads a StorageClass's parameters. Everything it refuses is Invalid (Unsupported where another version might
// do it), by key, with the value and the remedy; a key it does not know is refused with the nearest one it does.
func ParseParameters(raw map[string]string) (Parameters, error) {
	var p Parameters
	for _, key := range slices.Sorted(maps.Keys(raw)) {
		value := raw[key]
		parse, known := parsers[key]
		switch {
		case slices.Contains(metadataKeys, key):
		case slices.Contains(ignoredKeys, key):
			p.Ignored = append(p.Ignored, key)
		case !known:
			return p, unknownKey(key, slices.Sorted(maps.Keys(parsers)))
		case value != "":
			if err := parse(&p, value); err != nil {
				return p, err
			}
		}
	}
	return p, p.validate()
}

// validate checks what involves more than one key.
func (p *Parameters) validate() error {
	if p.Image == "" {
		if key := p.imageKeyWithoutImage(); key != "" {
			return invalid(key, "is given, but no image: set %s to the name of the image, or remove %s", keyImage, key)
		}
		return nil
	}
	if p.SourceType == "" && len(p.SourceParameters) > 0 {
		return invalid(keySourceParameters, "is given without %s; set %s, e.g. to download", keySourceType, keySourceType)
	}
	if p.SourceType == "" {
		return nil
	}
	if err := source.ValidateSource(p.SourceType, p.SourceParameters); err != nil {
		return backingimage.Errorf(backingimage.KindOf(err), "parameter %s: %w", keySourceParameters, err)
	}
	if p.SourceType == v1alpha1.SourceClone && p.SourceParameters[v1alpha1.ParameterBackingImage] == p.Image {
		return invalid(keySourceParameters, "%s: image %q cannot be a clone of itself; name another image", v1alpha1.ParameterBackingImage, p.Image)
	}
	return nil
}

func (p *Parameters) imageKeyWithoutImage() string {
	switch {
	case p.SourceType != "":
		return keySourceType
	case p.SourceParameters != nil:
		return keySourceParameters
	case p.Checksum != "":
		return keyChecksum
	case p.MinNumberOfCopies != 0:
		return keyMinCopies
	case p.ImageNodeSelector != nil:
		return keyImageNodes
	case p.ImageDiskSelector != nil:
		return keyImageDisks
	}
	return ""
}

func (p *Parameters) setImage(key, name string) error {
	if p.Image != "" && p.Image != name {
		return invalid(key, "%q contradicts %s %q; they mean the same, keep one", name, keyImage, p.Image)
	}
	if err := ValidateName(name); err != nil {
		return backingimage.Errorf(backingimage.Invalid, "parameter %s: %w", key, err)
	}
	p.Image = name
	return nil
}

func parseSourceType(p *Parameters, v string) error {
	switch t := v1alpha1.SourceType(v); t {
	case v1alpha1.SourceDownload, v1alpha1.SourceUpload, v1alpha1.SourceExport, v1alpha1.SourceClone, v1alpha1.SourceRestore:
		p.SourceType = t
		return nil
	}
	return invalid(keySourceType, "%q is no source type; use download, export-from-volume or clone, or, for an image that exists, upload", v)
}

func parseSourceParameters(p *Parameters, v string) error {
	var m map[string]string
	if err := json.Unmarshal([]byte(v), &m); err != nil {
		return invalid(keySourceParameters, `%s is not a JSON object of strings (%v); write it like {"url": "https://example.org/disk.qcow2"}`, shortened(v), err)
	}
	if m == nil {
		m = map[string]string{}
	}
	p.SourceParameters = m
	return nil
}

func parseChecksum(p *Parameters, v string) error {
	sum, err := source.ParseChecksum(v)
	if err != nil {
		return backingimage.Errorf(backingimage.Invalid, "parameter %s: %w", keyChecksum, err)
	}
	p.Checksum = sum.String()
	return nil
}

func parseMinCopies(p *Parameters, v string) error {
	n, err := strconv.ParseInt(v, 10, 32)
	if err != nil || n < 1 || n > 100 {
		return invalid(keyMinCopies, "%q is not a number of copies; use 1 to 100", v)
	}
	p.MinNumberOfCopies = int32(n)
	return nil
}

func parsePartition(p *Parameters, v string) error {
	n, err := strconv.ParseInt(v, 10, 32)
	if err != nil || n < 1 || n > 128 {
		return invalid(keyPartition, "%q is not the number of a partition; use 1 to 128, or remove the key to mount the whole device", v)
	}
	p.Partition = int32(n)
	return nil
}

func parseAllowOverride(p *Parameters, v string) error {
	if v != "true" && v != "false" {
		return invalid(keyAllowOverride, "%s: say \"true\" to let claims name another image, or \"false\"", shortened(v))
	}
	p.AllowOverride = v == "true"
	return nil
}

// checkFSType checks the file system's name; the value itself reaches the node in the volume capability.
func checkFSType(key string) parser {
	return func(_ *Parameters, v string) error {
		if v != "ext4" && v != "xfs" {
			return invalid(key, "%q is no file system that Plinth makes; use ext4 or xfs", v)
		}
		return nil
	}
}

func only(key, accepted, why string) parser {
	return func(_ *Parameters, v string) error {
		if v != accepted {
			return invalid(key, "%s: %s", shortened(v), why)
		}
		return nil
	}
}

// list splits a comma list; blanks around and empty entries mean nothing.
func list(v string) []string {
	var tags []string
	for t := range strings.SplitSeq(v, ",") {
		if t = strings.TrimSpace(t); t != "" {
			tags = append(tags, t)
		}
	}
	return tags
}

func invalid(key, format string, args ...any) error {
	return backingimage.Errorf(backingimage.Invalid, "parameter %s: %s", key, fmt.Sprintf(format, args...))
}

// shortened quotes a value for a message.
func shortened(v string) string {
	if len(v) > 80 {
		v = v[:77] + "..."
	}
	return strconv.Quote(v)
}

func parseFromBackup(p *Parameters, v string) error {
	_, _, err := backup.ParseURL(keyBackup, v)
	p.FromBackup = v
	return err
}

func parseRestoreImage(p *Parameters, v string) error {
	if v != v1alpha1.RestoreFromBackup && v != v1alpha1.RestoreFromSource {
		return invalid(keyRestoreImage, "%s: an image that is not here is restored from the %s, or from its %s, where it was downloaded from", shortened(v), v1alpha1.RestoreFromBackup, v1alpha1.RestoreFromSource)
	}
	p.RestoreImageFrom = v
	return nil
}
