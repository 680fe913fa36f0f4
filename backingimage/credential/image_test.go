package credential_test

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/credential"
)

func TestKeptSecretsOfImages(t *testing.T) {
	image := func(name, annotation, secret, namespace string) *v1alpha1.BackingImage {
		return &v1alpha1.BackingImage{
			ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{credential.ProvisionerAnnotation: annotation}},
			Spec: v1alpha1.BackingImageSpec{SourceParameters: map[string]v1alpha1.SourceParameter{
				v1alpha1.ParameterSecret: v1alpha1.SourceParameter(secret), v1alpha1.ParameterSecretNamespace: v1alpha1.SourceParameter(namespace)}},
		}
	}
	long := strings.Repeat("i", 200)
	for says, tc := range map[string]struct {
		image *v1alpha1.BackingImage
		kept  bool
	}{
		"kept in Plinth's namespace":        {image("i", credential.SecretKept, "image-i", credential.OwnNamespace), true},
		"awaited, in another namespace":     {image("i", credential.SecretAwaited, "image-i", "storage"), true},
		"of an image with a long name":      {image(long, credential.SecretKept, credential.ImageRef("", long).Name, "storage"), true},
		"named by a user, of the same name": {image("i", "", "image-i", credential.OwnNamespace), false},
		"another image's":                   {image("i", credential.SecretKept, "image-j", credential.OwnNamespace), false},
		"in no namespace":                   {image("i", credential.SecretKept, "image-i", ""), false},
	} {
		ref, kept := credential.Kept(tc.image)
		if p := tc.image.Spec.Parameters(); kept != tc.kept || kept && (ref.Name != p[v1alpha1.ParameterSecret] || ref.Namespace != p[v1alpha1.ParameterSecretNamespace]) {
			t.Errorf("%s: got %v, %t", says, ref, kept)
		}
	}
}
