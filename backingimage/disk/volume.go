package disk

// VolumeIDs are the volumes on the disk, sorted, whoever made them.
func (d *Disk) VolumeIDs() ([]string, error) { return names(d.layout.Volumes(), "") }
