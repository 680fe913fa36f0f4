package csi_test

import (
	"maps"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/csi"
	"plinth.dev/plinth/provisioner"
)

func volumeNamed(name string) *v1alpha1.Volume {
	v := &v1alpha1.Volume{}
	v.Name = name
	v.Spec = v1alpha1.VolumeSpec{CapacityBytes: 1 << 30, NodeName: "node-1", Image: &v1alpha1.VolumeImage{Name: "fedora"}, Parameters: map[string]string{"backingImage": "fedora"}}
	return v
}

func mustController(t *testing.T, names ...string) spec.ControllerClient {
	t.Helper()
	v := &volumes{create: func(r provisioner.CreateRequest) (*v1alpha1.Volume, error) { return volumeNamed(r.Name), nil }}
	for _, name := range names {
		v.list = append(v.list, volumeNamed(name))
	}
	return spec.NewControllerClient(mustServe(t, csi.Options{Controller: v}))
}

func capability(mode spec.VolumeCapability_AccessMode_Mode, block bool) *spec.VolumeCapability {
	c := &spec.VolumeCapability{AccessMode: &spec.VolumeCapability_AccessMode{Mode: mode}}
	if block {
		c.AccessType = &spec.VolumeCapability_Block{Block: &spec.VolumeCapability_BlockVolume{}}
	} else {
		c.AccessType = &spec.VolumeCapability_Mount{Mount: &spec.VolumeCapability_MountVolume{}}
	}
	return c
}

const (
	singleWriter = spec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	multiWriter  = spec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
	readerOnly   = spec.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY
	manyNodes    = spec.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
)

func TestCreatedVolumeSaysWhereItIs(t *testing.T) {
	answer, err := mustController(t).CreateVolume(t.Context(), createVolume("pvc-1"))
	if err != nil {
		t.Fatal(err)
	}
	if got := answer.GetVolume().GetAccessibleTopology()[0].GetSegments(); !maps.Equal(got, map[string]string{"topology.plinth.dev/node": "node-1"}) {
		t.Errorf("topology %v", got)
	}
}

func TestDeletingWhatIsNotThereSucceeds(t *testing.T) {
	client := mustController(t)
	if _, err := client.DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{VolumeId: "missing"}); err != nil {
		t.Error(err)
	}
	_, err := client.DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{})
	wantCode(t, err, codes.InvalidArgument, "volume_id")
}

func TestExpandSaysWhetherTheNodeHasToAct(t *testing.T) {
	client := mustController(t, "v")
	for _, c := range []struct {
		capability *spec.VolumeCapability
		want       bool
	}{{nil, true}, {capability(singleWriter, false), true}, {capability(singleWriter, true), false}} {
		answer, err := client.ControllerExpandVolume(t.Context(), &spec.ControllerExpandVolumeRequest{VolumeId: "v", CapacityRange: &spec.CapacityRange{RequiredBytes: 2 << 30}, VolumeCapability: c.capability})
		if err != nil || answer.GetNodeExpansionRequired() != c.want || answer.GetCapacityBytes() != 2<<30 {
			t.Errorf("%v: %v, %v", c.capability, answer, err)
		}
	}
	_, err := client.ControllerExpandVolume(t.Context(), &spec.ControllerExpandVolumeRequest{VolumeId: "v"})
	wantCode(t, err, codes.InvalidArgument, "capacity_range")
}

func TestCapacity(t *testing.T) {
	client := mustController(t)
	t.Run("is that of the disks", func(t *testing.T) {
		answer, err := client.GetCapacity(t.Context(), &spec.GetCapacityRequest{AccessibleTopology: &spec.Topology{Segments: map[string]string{"topology.plinth.dev/node": "node-1"}}})
		if err != nil || answer.GetAvailableCapacity() != 100 || answer.GetMaximumVolumeSize().GetValue() != 50 || answer.GetMinimumVolumeSize().GetValue() != 512 {
			t.Errorf("%v, %v", answer, err)
		}
	})
	t.Run("is none for what cannot be", func(t *testing.T) {
		answer, err := client.GetCapacity(t.Context(), &spec.GetCapacityRequest{VolumeCapabilities: []*spec.VolumeCapability{capability(manyNodes, false)}})
		if err != nil || answer.GetAvailableCapacity() != 0 {
			t.Errorf("%v, %v", answer, err)
		}
	})
	t.Run("of a zone is refused", func(t *testing.T) {
		_, err := client.GetCapacity(t.Context(), &spec.GetCapacityRequest{AccessibleTopology: &spec.Topology{Segments: map[string]string{"zone": "z"}}})
		wantCode(t, err, codes.InvalidArgument, "topology.plinth.dev/node")
	})
}

func TestGetVolume(t *testing.T) {
	client := mustController(t, "v")
	answer, err := client.ControllerGetVolume(t.Context(), &spec.ControllerGetVolumeRequest{VolumeId: "v"})
	if err != nil || answer.GetVolume().GetVolumeId() != "v" || answer.GetStatus().GetVolumeCondition().GetMessage() == "" {
		t.Errorf("%v, %v", answer, err)
	}
	_, err = client.ControllerGetVolume(t.Context(), &spec.ControllerGetVolumeRequest{VolumeId: "missing"})
	wantCode(t, err, codes.NotFound)
}

func TestValidateConfirmsOrSaysWhyNot(t *testing.T) {
	client := mustController(t, "v")
	for name, c := range map[string]struct {
		request   *spec.ValidateVolumeCapabilitiesRequest
		confirmed bool
	}{
		"what it can do":            {&spec.ValidateVolumeCapabilitiesRequest{VolumeCapabilities: []*spec.VolumeCapability{capability(multiWriter, true)}}, true},
		"its own context and class": {&spec.ValidateVolumeCapabilitiesRequest{VolumeCapabilities: []*spec.VolumeCapability{capability(multiWriter, true)}, VolumeContext: map[string]string{"backingImage": "fedora"}, Parameters: map[string]string{"backingImage": "fedora"}}, true},
		"many nodes":                {&spec.ValidateVolumeCapabilitiesRequest{VolumeCapabilities: []*spec.VolumeCapability{capability(manyNodes, true)}}, false},
		"another image":             {&spec.ValidateVolumeCapabilitiesRequest{VolumeCapabilities: []*spec.VolumeCapability{capability(multiWriter, true)}, VolumeContext: map[string]string{"backingImage": "debian"}}, false},
		"another class":             {&spec.ValidateVolumeCapabilitiesRequest{VolumeCapabilities: []*spec.VolumeCapability{capability(multiWriter, true)}, Parameters: map[string]string{"backingImage": "debian"}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			c.request.VolumeId = "v"
			answer, err := client.ValidateVolumeCapabilities(t.Context(), c.request)
			if err != nil || (answer.GetConfirmed() != nil) != c.confirmed || (answer.GetMessage() == "") != c.confirmed {
				t.Errorf("%v, %v", answer, err)
			}
		})
	}
	_, err := client.ValidateVolumeCapabilities(t.Context(), &spec.ValidateVolumeCapabilitiesRequest{VolumeId: "v"})
	wantCode(t, err, codes.InvalidArgument, "volume_capabilities")
	_, err = client.ValidateVolumeCapabilities(t.Context(), &spec.ValidateVolumeCapabilitiesRequest{VolumeId: "missing", VolumeCapabilities: []*spec.VolumeCapability{capability(multiWriter, true)}})
	wantCode(t, err, codes.NotFound)
}

func TestListPagesOverTheWire(t *testing.T) {
	client := mustController(t, "a", "b", "c")
	first, err := client.ListVolumes(t.Context(), &spec.ListVolumesRequest{MaxEntries: 2})
	if err != nil || len(first.GetEntries()) != 2 || first.GetNextToken() == "" {
		t.Fatalf("%v, %v", first, err)
	}
	rest, err := client.ListVolumes(t.Context(), &spec.ListVolumesRequest{StartingToken: first.GetNextToken()})
	if err != nil || len(rest.GetEntries()) != 1 || rest.GetNextToken() != "" {
		t.Fatalf("%v, %v", rest, err)
	}
	if rest.GetEntries()[0].GetStatus().GetVolumeCondition() == nil {
		t.Error("an entry has no condition")
	}
	_, err = client.ListVolumes(t.Context(), &spec.ListVolumesRequest{MaxEntries: -1})
	wantCode(t, err, codes.InvalidArgument, "max_entries")
	_, err = client.ListVolumes(t.Context(), &spec.ListVolumesRequest{StartingToken: "x"})
	wantCode(t, err, codes.Aborted, "starting_token")
}

func TestWhatIsNotClaimedIsUnimplemented(t *testing.T) {
	client := mustController(t, "v")
	_, err := client.ControllerPublishVolume(t.Context(), &spec.ControllerPublishVolumeRequest{VolumeId: "v"})
	wantCode(t, err, codes.Unimplemented)
	_, err = client.ControllerModifyVolume(t.Context(), &spec.ControllerModifyVolumeRequest{VolumeId: "v"})
	wantCode(t, err, codes.Unimplemented)
}
