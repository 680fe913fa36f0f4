package credential

import (
	"crypto/sha256"
	"encoding/hex"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// ImageNamespace is the namespace of the secrets that Plinth keeps by itself. It makes and removes what is in it.
const ImageNamespace = "plinth"

// ProvisionerAnnotation is on an image whose secret comes with a StorageClass (the CSI provisioner secret) and goes with the
// image: SecretAwaited until it was kept for the first time, then SecretKept.
const (
	ProvisionerAnnotation = "plinth.dev/provisioner-secret"
	SecretAwaited         = "awaited"
	SecretKept            = "kept"
)

// maxImageName is the longest name of an image that a secret's name is made of unchanged; a hash is no longer.
const maxImageName = 180

// ImageRef is where the secret is kept that came with an image's StorageClass.
func ImageRef(image string) Ref {
	if len(image) > maxImageName {
		sum := sha256.Sum256([]byte(image))
		image = "sha256." + hex.EncodeToString(sum[:])
	}
	return Ref{Namespace: ImageNamespace, Name: "image-" + image}
}

// Kept reports whether the image's secret is one that Plinth keeps for it, and not one that users named.
func Kept(i *v1alpha1.BackingImage) bool {
	ref := ImageRef(i.Name)
	return i.Annotations[ProvisionerAnnotation] != "" && string(i.Spec.SourceParameters[v1alpha1.ParameterSecret]) == ref.Name &&
		string(i.Spec.SourceParameters[v1alpha1.ParameterSecretNamespace]) == ref.Namespace
}
