package source

import (
	"maps"
	"slices"
	"strings"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// downloadParameters are the source parameters of a download.
var downloadParameters = []string{
	v1alpha1.ParameterURL, v1alpha1.ParameterSecret, v1alpha1.ParameterSecretNamespace, v1alpha1.ParameterProxy,
	v1alpha1.ParameterEndpoint, v1alpha1.ParameterRegion, v1alpha1.ParameterPathStyle,
}

// ValidateParameters checks the source parameters of a download as far as that is possible without asking anyone. Every
// fault is Invalid and names the parameter.
func ValidateParameters(parameters map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(parameters)) {
		if !slices.Contains(downloadParameters, key) {
			return backingimage.Errorf(backingimage.Invalid, "source parameter %q is not one that a download has; it has %s", key, strings.Join(downloadParameters, ", "))
		}
	}
	return ValidateURL(parameters[v1alpha1.ParameterURL])
}
