package provisioner

import (
	"crypto/sha256"
	"encoding/hex"

	"k8s.io/apimachinery/pkg/util/validation"

	"plinth.dev/plinth/backingimage"
)

// maxPlainName is the longest name that is used as an ID unchanged; a hashed ID is longer, so the two never meet.
const maxPlainName = 63

// VolumeID derives the Volume object's name from the orchestrator's name for the volume: the name itself where it
// is a DNS-1123 label, as pvc-<uid> is, else the SHA-256 of the whole name.
func VolumeID(name string) string { return objectName("vol-", name) }

// SnapshotID derives the Snapshot object's name, or that of the image that stands for a snapshot, from the orchestrator's name for it,
// as VolumeID does.
func SnapshotID(name string) string { return objectName("snap-", name) }

func objectName(prefix, name string) string {
	if len(name) <= maxPlainName && len(validation.IsDNS1123Label(name)) == 0 {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return prefix + hex.EncodeToString(sum[:])
}

// ValidateName checks the name of an image: what the API server accepts as an object's name.
func ValidateName(name string) error {
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
		return backingimage.Errorf(backingimage.Invalid, "%s is not a name that an image can have: %s", shortened(name), problems[0])
	}
	return nil
}
