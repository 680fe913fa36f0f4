package credential

import (
	"crypto/sha256"
	"encoding/hex"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// OwnNamespace is that of the secrets which Plinth keeps by itself, where it is not told another, or runs in another.
const OwnNamespace = "plinth"

// ProvisionerAnnotation is on an image whose secret comes with a StorageClass (the CSI provisioner secret) and goes with the
// image: SecretAwaited until it was kept for the first time, then SecretKept.
const (
	ProvisionerAnnotation = "plinth.dev/provisioner-secret"
	SecretAwaited         = "awaited"
	SecretKept            = "kept"
)

// maxImageName is the longest name of an image that a secret's name is made of unchanged; a hash is no longer.
const maxImageName = 180

// ImageRef is where the secret is kept that came with an image's StorageClass, in a namespace of Plinth's.
func ImageRef(namespace, image string) Ref {
	if len(image) > maxImageName {
		sum := sha256.Sum256([]byte(image))
		image = "sha256." + hex.EncodeToString(sum[:])
	}
	return Ref{Namespace: namespace, Name: "image-" + image}
}

// Kept returns where the image's secret is, if it is one that Plinth keeps for it and not one that users named.
func Kept(i *v1alpha1.BackingImage) (ref Ref, kept bool) {
	ref = ImageRef(string(i.Spec.SourceParameters[v1alpha1.ParameterSecretNamespace]), i.Name)
	return ref, i.Annotations[ProvisionerAnnotation] != "" && ref.Namespace != "" && string(i.Spec.SourceParameters[v1alpha1.ParameterSecret]) == ref.Name
}
