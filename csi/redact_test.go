package csi

import (
	"fmt"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

func TestSecretsAreNotLogged(t *testing.T) {
	secrets := map[string]string{"user": "hunter2"}
	capability := &csi.VolumeCapability{AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: "ext4", MountFlags: []string{"password=hunter2"}}}}
	for name, m := range map[string]loggable{
		"create":   {&csi.CreateVolumeRequest{Name: "kept", Secrets: secrets, VolumeCapabilities: []*csi.VolumeCapability{capability}}},
		"stage":    {&csi.NodeStageVolumeRequest{VolumeId: "kept", Secrets: secrets, VolumeCapability: capability}},
		"expand":   {&csi.NodeExpandVolumeRequest{VolumeId: "kept", Secrets: secrets, VolumeCapability: capability}},
		"validate": {&csi.ValidateVolumeCapabilitiesRequest{VolumeId: "kept", Secrets: secrets}},
	} {
		t.Run(name, func(t *testing.T) {
			got := fmt.Sprint(m)
			if strings.Contains(got, "hunter2") {
				t.Errorf("the secret is in %s", got)
			}
			for _, want := range []string{"kept", "user", redacted} {
				if !strings.Contains(got, want) {
					t.Errorf("%q is not in %s", want, got)
				}
			}
		})
	}
}

func TestLoggingLeavesTheMessageAlone(t *testing.T) {
	m := &csi.DeleteVolumeRequest{Secrets: map[string]string{"user": "hunter2"}}
	_ = loggable{m}.String()
	if m.Secrets["user"] != "hunter2" {
		t.Error("the request itself was redacted")
	}
}
