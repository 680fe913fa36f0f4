package provisioner

import (
	"maps"
	"slices"
)

// SnapshotParameters is what a VolumeSnapshotClass asks for, checked.
type SnapshotParameters struct {
	Type         string   // TypeSnap unless the class says another
	ExportType   string   // of TypeImage: raw or qcow2
	NodeSelector []string // of TypeImage: where copies of the image may be
	DiskSelector []string
	BackupTarget string // of TypeBackup: name of the BackupTarget; "" for the only one
}

// Keys of a VolumeSnapshotClass. The selectors' are those of a StorageClass.
const (
	keyType           = "type"
	keyExportType     = "exportType"
	keyExportTypeDash = "export-type"
	keyBackupTarget   = "backupTargetName"
)

// snapshotMetadataKeys are added by the snapshotter sidecar's --extra-create-metadata.
var snapshotMetadataKeys = []string{"csi.storage.k8s.io/volumesnapshot/name", "csi.storage.k8s.io/volumesnapshot/namespace", "csi.storage.k8s.io/volumesnapshotcontent/name"}

// snapshotParsers read one key's value each. An empty value means "not given" for every key.
var snapshotParsers = map[string]func(p *SnapshotParameters, value string) error{
	keyType:           parseType,
	keyExportType:     func(p *SnapshotParameters, v string) error { return p.setExportType(keyExportType, v) },
	keyExportTypeDash: func(p *SnapshotParameters, v string) error { return p.setExportType(keyExportTypeDash, v) },
	keyNodes:          func(p *SnapshotParameters, v string) error { p.NodeSelector = list(v); return nil },
	keyDisks:          func(p *SnapshotParameters, v string) error { p.DiskSelector = list(v); return nil },
	keyBackupTarget:   func(p *SnapshotParameters, v string) error { p.BackupTarget = v; return nil },
}

// ParseSnapshotParameters reads a VolumeSnapshotClass's parameters. Everything it refuses is Invalid, by key, with the value and the
// remedy; a key it does not know is refused with the nearest one it does.
func ParseSnapshotParameters(raw map[string]string) (SnapshotParameters, error) {
	p := SnapshotParameters{}
	for _, key := range slices.Sorted(maps.Keys(raw)) {
		parse, known := snapshotParsers[key]
		switch {
		case slices.Contains(snapshotMetadataKeys, key):
		case !known:
			return p, unknownKey(key, slices.Sorted(maps.Keys(snapshotParsers)))
		case raw[key] != "":
			if err := parse(&p, raw[key]); err != nil {
				return p, err
			}
		}
	}
	return p, p.validate()
}

// validate fills the defaults, and refuses what the type has no use for.
func (p *SnapshotParameters) validate() error {
	if p.Type == "" {
		p.Type = TypeSnap
	}
	if p.Type != TypeBackup && p.BackupTarget != "" {
		return invalid(keyBackupTarget, "is for snapshots of type %s, and this class's type is %s: remove it, or set type to %s", TypeBackup, p.Type, TypeBackup)
	}
	if p.Type == TypeImage {
		if p.ExportType == "" {
			p.ExportType = "raw"
		}
		return nil
	}
	for key, given := range map[string]bool{keyExportType: p.ExportType != "", keyNodes: p.NodeSelector != nil, keyDisks: p.DiskSelector != nil} {
		if given {
			return invalid(key, "is for snapshots of type %s, which are images; this class's type is %s: remove %s, or set type to %s", TypeImage, p.Type, key, TypeImage)
		}
	}
	return nil
}

func parseType(p *SnapshotParameters, v string) error {
	if v == "bs" { // what Longhorn called it before
		v = TypeBackup
	}
	if snapshotTypes[v] == nil {
		return invalid(keyType, "%q is no type of snapshots; use snap (a file on the volume's disk), bak (a backup) or bi (a backing image)", v)
	}
	p.Type = v
	return nil
}

func (p *SnapshotParameters) setExportType(key, v string) error {
	switch {
	case v != "raw" && v != "qcow2":
		return invalid(key, "%q is no format that Plinth exports; use raw or qcow2", v)
	case p.ExportType != "" && p.ExportType != v:
		return invalid(key, "%q contradicts the other spelling's %q; keep one of %s and %s", v, p.ExportType, keyExportType, keyExportTypeDash)
	}
	p.ExportType = v
	return nil
}
