package source

import (
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// Formats that an export may be asked to yield when it is downloaded; ExportRaw when nothing is said.
const (
	ExportRaw   = "raw"
	ExportQCOW2 = "qcow2"
)

// encryptionIgnore is the one value of a clone's parameter encryption that can be had: the clone is as its source.
const encryptionIgnore = "ignore"

// kinds are the source parameters that each source type has, and what is checked of them. The names are Longhorn's.
var kinds = map[v1alpha1.SourceType]struct {
	parameters []string
	check      func(parameters map[string]string) error
}{
	v1alpha1.SourceUpload: {nil, func(map[string]string) error { return nil }},
	v1alpha1.SourceExport: {[]string{v1alpha1.ParameterVolumeName, v1alpha1.ParameterExportType}, validateExport},
	v1alpha1.SourceClone: {
		[]string{v1alpha1.ParameterBackingImage, v1alpha1.ParameterEncryption, v1alpha1.ParameterSecret, v1alpha1.ParameterSecretNamespace}, validateClone,
	},
	v1alpha1.SourceRestore: {
		[]string{v1alpha1.ParameterBackupURL, v1alpha1.ParameterBackupTargetName, v1alpha1.ParameterConcurrentLimit, v1alpha1.ParameterRestoreFrom}, validateRestore,
	},
}

// ValidateSource checks a source type and its parameters, whoever gave them, as far as that is possible without asking
// anyone. A fault is Invalid, or Unsupported when it asks for what this version cannot do, and names the parameter.
func ValidateSource(t v1alpha1.SourceType, parameters map[string]string) error {
	if t == v1alpha1.SourceDownload {
		return ValidateParameters(parameters)
	}
	kind, known := kinds[t]
	if !known {
		return backingimage.Errorf(backingimage.Invalid, "%q is no source type; use download, upload, export-from-volume or clone", t)
	}
	for _, key := range slices.Sorted(maps.Keys(parameters)) {
		if !slices.Contains(kind.parameters, key) {
			return backingimage.Errorf(backingimage.Invalid, "source parameter %q is not one that source type %s has; %s", key, t, has(kind.parameters))
		}
	}
	return kind.check(parameters)
}

func has(parameters []string) string {
	if len(parameters) == 0 {
		return "it has none"
	}
	return "it has " + strings.Join(parameters, ", ")
}

func validateExport(p map[string]string) error {
	if p[v1alpha1.ParameterVolumeName] == "" {
		return backingimage.Errorf(backingimage.Invalid, "%s is missing: give the ID or the name of the volume to export", v1alpha1.ParameterVolumeName)
	}
	switch t := p[v1alpha1.ParameterExportType]; t {
	case "", ExportRaw, ExportQCOW2:
		return nil
	default:
		return backingimage.Errorf(backingimage.Invalid, "%s: %q is no format of an export; use %s or %s", v1alpha1.ParameterExportType, t, ExportRaw, ExportQCOW2)
	}
}

func validateClone(p map[string]string) error {
	name := p[v1alpha1.ParameterBackingImage]
	if name == "" {
		return backingimage.Errorf(backingimage.Invalid, "%s is missing: give the name of the image to clone", v1alpha1.ParameterBackingImage)
	}
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
		return backingimage.Errorf(backingimage.Invalid, "%s: %q is not a name that an image can have: %s", v1alpha1.ParameterBackingImage, name, problems[0])
	}
	if e := p[v1alpha1.ParameterEncryption]; e != "" && e != encryptionIgnore {
		return backingimage.Errorf(backingimage.Unsupported, "%s: %q cannot be had: images are not encrypted in this version; remove it, or set it to %q", v1alpha1.ParameterEncryption, e, encryptionIgnore)
	}
	return nil
}

func validateRestore(p map[string]string) error {
	if p[v1alpha1.ParameterBackupURL] == "" {
		return backingimage.Errorf(backingimage.Invalid, "%s is missing: give the URL of the backup", v1alpha1.ParameterBackupURL)
	}
	switch from := p[v1alpha1.ParameterRestoreFrom]; from {
	case "", v1alpha1.RestoreFromBackup, v1alpha1.RestoreFromSource:
		return nil
	default:
		return backingimage.Errorf(backingimage.Invalid, "%s: %q is nothing that an image can be restored from; use %s, or %s for where the image was downloaded from",
			v1alpha1.ParameterRestoreFrom, from, v1alpha1.RestoreFromBackup, v1alpha1.RestoreFromSource)
	}
}

// defaults are the values that say no more than their absence.
var defaults = map[string]string{
	v1alpha1.ParameterExportType: ExportRaw, v1alpha1.ParameterEncryption: encryptionIgnore,
	v1alpha1.ParameterSecretNamespace: "default", v1alpha1.ParameterRestoreFrom: v1alpha1.RestoreFromBackup,
}

// Canonical returns source parameters in the one form in which two can be compared: without empty values, without values
// that are the defaults, and without what means nothing beside the rest.
func Canonical(t v1alpha1.SourceType, parameters map[string]string) map[string]string {
	canonical := maps.Clone(parameters)
	maps.DeleteFunc(canonical, func(key, value string) bool { return value == "" || value == defaults[key] })
	if t == v1alpha1.SourceClone || canonical[v1alpha1.ParameterSecret] == "" {
		delete(canonical, v1alpha1.ParameterSecret)
		delete(canonical, v1alpha1.ParameterSecretNamespace)
	}
	return canonical
}
