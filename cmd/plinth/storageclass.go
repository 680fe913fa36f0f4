package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strings"

	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"plinth.dev/plinth/backingimage"
)

// driverName is what a StorageClass's provisioner must be.
const driverName = "csi.plinth.dev"

// Parameters of a StorageClass that the provisioner sidecar takes for itself begin with this.
const (
	sidecarPrefix    = "csi.storage.k8s.io/"
	sidecarFSType    = sidecarPrefix + "fstype"
	parameterFSType  = "fsType"
	parameterImage   = "backingImage"
	storageClassKind = "StorageClass"
)

// storageClass is what the CLI reads of Kubernetes's StorageClass.
type storageClass struct {
	APIVersion  string            `json:"apiVersion"`
	Kind        string            `json:"kind"`
	Provisioner string            `json:"provisioner"`
	Parameters  map[string]string `json:"parameters"`
}

// readStorageClass reads the one StorageClass in a file of YAML or JSON documents.
func readStorageClass(path string) (storageClass, error) {
	bad := func(format string, args ...any) (storageClass, error) {
		return storageClass{}, backingimage.Errorf(backingimage.Invalid, "--storage-class %s: "+format, append([]any{path}, args...)...)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return bad("%w", err)
	}
	var found []storageClass
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(content)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return bad("%w", err)
		}
		var class storageClass
		if err := yaml.Unmarshal(document, &class); err != nil {
			return bad("%w", err)
		}
		if class.Kind == storageClassKind {
			found = append(found, class)
		}
	}
	switch {
	case len(found) != 1:
		return bad("it has %d StorageClasses; it must have one", len(found))
	case found[0].Provisioner != driverName:
		return bad("its provisioner is %q; volumes of %s are not made by Plinth, whose name is %q", found[0].Provisioner, path, driverName)
	}
	return found[0], nil
}

// classParameters joins a class's parameters with those of the command line, which win, and takes out, as the
// provisioner sidecar does, what is meant for the sidecar. The filesystem type stays with the volume as fsType, because a
// later mount has no PersistentVolume to read it from.
func classParameters(class, flags map[string]string) (parameters map[string]string, fsType string, err error) {
	parameters = maps.Clone(class)
	if parameters == nil {
		parameters = map[string]string{}
	}
	maps.Copy(parameters, flags)
	fsType = parameters[sidecarFSType]
	maps.DeleteFunc(parameters, func(key, _ string) bool { return strings.HasPrefix(key, sidecarPrefix) })
	if own := parameters[parameterFSType]; own != "" && fsType != "" && own != fsType {
		return nil, "", backingimage.Errorf(backingimage.Invalid, "parameter %s %q contradicts %s %q; they mean the same, keep one", parameterFSType, own, sidecarFSType, fsType)
	}
	if fsType != "" {
		parameters[parameterFSType] = fsType
	}
	return parameters, parameters[parameterFSType], nil
}

// parseParameters reads flags of the form key=value.
func parseParameters(flags []string) (map[string]string, error) {
	parameters := map[string]string{}
	for _, f := range flags {
		key, value, ok := strings.Cut(f, "=")
		if !ok || key == "" {
			return nil, backingimage.Errorf(backingimage.Invalid, "--parameter: %q is not of the form key=value", f)
		}
		if _, twice := parameters[key]; twice {
			return nil, backingimage.Errorf(backingimage.Invalid, "--parameter: %s is given twice", key)
		}
		parameters[key] = value
	}
	return parameters, nil
}

// setParameter adds what a flag of its own says, unless another flag says otherwise.
func setParameter(parameters map[string]string, flag, key, value string) error {
	if value == "" {
		return nil
	}
	if other, ok := parameters[key]; ok && other != value {
		return fmt.Errorf("%s: %w", flag, backingimage.Errorf(backingimage.Invalid, "%q contradicts --parameter %s=%s; keep one", value, key, other))
	}
	parameters[key] = value
	return nil
}
