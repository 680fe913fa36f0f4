package provisioner

import (
	"testing"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/provisioner/backup"
)

func TestABackupChoosesNobodyWhoIsShownASecret(t *testing.T) {
	for _, tc := range []struct {
		name, sourceType string
		parameters       map[string]string
		known            bool
	}{
		{"a download", "download", map[string]string{v1alpha1.ParameterURL: "https://example.org/a"}, true},
		{"a download with a secret", "download", map[string]string{v1alpha1.ParameterURL: "https://evil.example.org/a", v1alpha1.ParameterSecret: "mine"}, false},
		{"an upload", "upload", nil, false},
	} {
		f := &found{manifest: &backup.Manifest{Image: &backup.Image{SourceType: tc.sourceType, SourceParameters: tc.parameters}}}
		if got := f.origin(); (got != nil) != tc.known {
			t.Errorf("%s: comes again from %v", tc.name, got)
		}
	}
}
