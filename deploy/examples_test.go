package deploy_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"sigs.k8s.io/yaml"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/provisioner"
	"plinth.dev/plinth/provisioner/backup/object"
)

// TestExamplesAreAccepted holds every object of the examples against what would read it: no unknown field, and parameters that the driver
// takes. A real API server applies them in test/e2e.
func TestExamplesAreAccepted(t *testing.T) {
	paths, err := filepath.Glob("examples/*.yaml")
	if err != nil || len(paths) < 10 {
		t.Fatalf("there are only %v (%v)", paths, err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(text), "# ") {
			t.Errorf("%s does not begin with what it is for", path)
		}
		for document := range strings.SplitSeq(string(text), "\n---\n") {
			if err := accepted([]byte(document)); err != nil {
				t.Errorf("%s: %v in\n%s", path, err, document)
			}
		}
	}
}

func accepted(document []byte) error {
	var head struct{ APIVersion, Kind string }
	if err := yaml.Unmarshal(document, &head); err != nil {
		return err
	}
	switch head.Kind {
	case "StorageClass":
		return acceptedClass(document)
	case "BackingImage":
		return acceptedImage(document)
	case "VolumeSnapshotClass":
		var class struct {
			Driver     string
			Parameters map[string]string
		}
		if err := yaml.Unmarshal(document, &class); err != nil {
			return err
		}
		_, err := provisioner.ParseSnapshotParameters(class.Parameters)
		return err
	case "BackupTarget":
		var target v1alpha1.BackupTarget
		if err := yaml.UnmarshalStrict(document, &target); err != nil {
			return err
		}
		_, err := object.ParseLocation("spec.url", target.Spec.URL)
		return err
	case "BackupPolicy":
		return yaml.UnmarshalStrict(document, &v1alpha1.BackupPolicy{})
	case "PersistentVolumeClaim":
		return yaml.UnmarshalStrict(document, &corev1.PersistentVolumeClaim{})
	case "Pod":
		return yaml.UnmarshalStrict(document, &corev1.Pod{})
	case "Deployment":
		return yaml.UnmarshalStrict(document, &appsv1.Deployment{})
	}
	return nil // VolumeSnapshots, whose types are not at hand
}

func acceptedClass(document []byte) error {
	var class storagev1.StorageClass
	if err := yaml.UnmarshalStrict(document, &class); err != nil {
		return err
	}
	for key := range class.Parameters {
		if strings.HasPrefix(key, "csi.storage.k8s.io/") { // the sidecar takes these out
			delete(class.Parameters, key)
		}
	}
	_, err := provisioner.ParseParameters(class.Parameters)
	return err
}

func acceptedImage(document []byte) error {
	var image v1alpha1.BackingImage
	if err := yaml.UnmarshalStrict(document, &image); err != nil {
		return err
	}
	return source.ValidateSource(image.Spec.SourceType, image.Spec.Parameters())
}

func TestExamplesShowEachFeature(t *testing.T) {
	var all strings.Builder
	paths, err := filepath.Glob("examples/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		text, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
	}
	for _, feature := range []string{"volumeBindingMode: WaitForFirstConsumer", "volumeBindingMode: Immediate", "volumeMode: Block", "prefetch: true", "secret: mirror", "provisioner-secret-name",
		"plinth.dev/backing-image:", "dataSourceRef:\n    apiGroup: plinth.dev\n", "type: snap", "type: bi", "type: bak", "fromBackup:", "keepDaily", "accessModes: [ReadOnlyMany]", "ephemeral:", "kind: BackupTarget\n", "kind: BackupPolicy\n", "kind: VolumeSnapshot\n", "readOnly: true", "minNumberOfCopies", "allowVolumeExpansion: true"} {
		if !strings.Contains(all.String(), feature) {
			t.Errorf("no example has %q", feature)
		}
	}
}
