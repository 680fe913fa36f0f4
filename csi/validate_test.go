package csi

import (
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/provisioner"
)

func mounted(mode csi.VolumeCapability_AccessMode_Mode, fsType string, flags ...string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType, MountFlags: flags}},
	}
}

const writer = csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER

// valid is a request with everything in it.
func valid() *csi.CreateVolumeRequest {
	return &csi.CreateVolumeRequest{
		Name:               "pvc-1",
		CapacityRange:      &csi.CapacityRange{RequiredBytes: 1 << 30, LimitBytes: 2 << 30},
		VolumeCapabilities: []*csi.VolumeCapability{mounted(writer, "xfs", "noatime,discard")},
		Parameters:         map[string]string{"backingImage": "fedora"},
		Secrets:            map[string]string{"token": "t"},
		VolumeContentSource: &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
			Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: "pvc-0"},
		}},
		AccessibilityRequirements: &csi.TopologyRequirement{
			Requisite: []*csi.Topology{topologyOf("a"), topologyOf("b"), topologyOf("c")},
			Preferred: []*csi.Topology{topologyOf("b"), topologyOf("a"), topologyOf("gone")},
		},
	}
}

func TestCreateRequestIsTranslated(t *testing.T) {
	got, err := createRequest(valid())
	want := provisioner.CreateRequest{
		Name: "pvc-1", RequiredBytes: 1 << 30, LimitBytes: 2 << 30,
		Parameters: map[string]string{"backingImage": "fedora"}, SourceVolume: "pvc-0", Nodes: []string{"b", "a", "c"},
		Secrets: map[string]credential.Secret{"token": "t"},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}

func TestCreateRequestRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(r *csi.CreateVolumeRequest)
		want   backingimage.Kind
		says   string
	}{
		"no name":                     {func(r *csi.CreateVolumeRequest) { r.Name = "" }, backingimage.Invalid, "name"},
		"a control character":         {func(r *csi.CreateVolumeRequest) { r.Name = "a\x01" }, backingimage.Invalid, `"a\x01"`},
		"no capabilities":             {func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = nil }, backingimage.Invalid, "volume_capabilities"},
		"a capability without a mode": {func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities[0].AccessMode = nil }, backingimage.Invalid, "access_mode"},
		"a capability without a type": {func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities[0].AccessType = nil }, backingimage.Invalid, "block or mount"},
		"a multi-node mode": {func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities = append(r.VolumeCapabilities, mounted(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER, ""))
		}, backingimage.Invalid, "one node's disk"},
		"reading on many nodes and using on one": {func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities = append(r.VolumeCapabilities, mounted(csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY, ""))
		}, backingimage.Invalid, "one of the two"},
		"an unknown filesystem":       {func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities[0] = mounted(writer, "zfs") }, backingimage.Invalid, `"zfs"`},
		"a mount option that is none": {func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities[0] = mounted(writer, "", "noatime,bind") }, backingimage.Invalid, `"bind"`},
		"a mount option for mount itself": {func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities[0] = mounted(writer, "", "X-mount.mkdir=/etc/x")
		}, backingimage.Invalid, `"X-mount.mkdir"`},
		"two mount options in one": {func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities[0] = mounted(writer, "", "noatime discard") }, backingimage.Invalid, "mount_flags"},
		"a mount group": {func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities[0].GetMount().VolumeMountGroup = "100"
		}, backingimage.Invalid, "volume_mount_group"},
		"a negative size":        {func(r *csi.CreateVolumeRequest) { r.CapacityRange.RequiredBytes = -1 }, backingimage.Invalid, "required_bytes: -1"},
		"a negative limit":       {func(r *csi.CreateVolumeRequest) { r.CapacityRange.LimitBytes = -1 }, backingimage.Invalid, "limit_bytes: -1"},
		"a limit below the size": {func(r *csi.CreateVolumeRequest) { r.CapacityRange.LimitBytes = 1 }, backingimage.OutOfRange, "limit_bytes 1"},
		"a snapshot without an ID": {func(r *csi.CreateVolumeRequest) {
			r.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{}}}
		}, backingimage.Invalid, "snapshot_id"},
		"a source that names nothing":   {func(r *csi.CreateVolumeRequest) { r.VolumeContentSource = &csi.VolumeContentSource{} }, backingimage.Invalid, "volume_content_source"},
		"a source volume without an ID": {func(r *csi.CreateVolumeRequest) { r.VolumeContentSource.GetVolume().VolumeId = "" }, backingimage.Invalid, "volume_id"},
		"a topology of someone else's": {func(r *csi.CreateVolumeRequest) {
			r.AccessibilityRequirements.Requisite = []*csi.Topology{{Segments: map[string]string{"zone": "z1"}}}
		}, backingimage.Invalid, "requisite"},
		"mutable parameters": {func(r *csi.CreateVolumeRequest) { r.MutableParameters = map[string]string{"a": "b"} }, backingimage.Invalid, "mutable_parameters"},
	} {
		t.Run(name, func(t *testing.T) {
			r := valid()
			c.change(r)
			_, err := createRequest(r)
			if !backingimage.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v; want %s that says %q", err, c.want, c.says)
			}
		})
	}
}

func TestValuesOfMountOptionsAreNotInErrors(t *testing.T) {
	err := checkCapability(mounted(writer, "", "helper=secret"))
	if err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
}

func TestPreferredTopologyAloneIsEnough(t *testing.T) {
	got, err := parseRequirement(&csi.TopologyRequirement{Preferred: []*csi.Topology{topologyOf("b"), topologyOf("a"), topologyOf("b")}})
	if diff := cmp.Diff([]string{"b", "a"}, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}

func TestVolumeIsTranslated(t *testing.T) {
	v := &v1alpha1.Volume{}
	v.Name = "pvc-1"
	v.Spec = v1alpha1.VolumeSpec{CapacityBytes: 7, NodeName: "a", Image: &v1alpha1.VolumeImage{Name: "fedora"}, SourceVolume: "pvc-0"}
	want := &csi.Volume{
		VolumeId: "pvc-1", CapacityBytes: 7, VolumeContext: map[string]string{"backingImage": "fedora"},
		ContentSource:      valid().GetVolumeContentSource(),
		AccessibleTopology: []*csi.Topology{{Segments: map[string]string{"topology.plinth.dev/node": "a"}}},
	}
	if got := volumeAnswer(v); !proto.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestConditionIsAbnormalOnlyWhenSomethingIsWrong(t *testing.T) {
	for name, c := range map[string]struct {
		status   v1alpha1.VolumeStatus
		abnormal bool
		message  string
	}{
		"nothing reported yet":  {v1alpha1.VolumeStatus{}, false, "the volume is pending"},
		"waiting for its image": {v1alpha1.VolumeStatus{State: v1alpha1.VolumePending, Reason: "NotReady", Message: "43 %"}, false, "43 %"},
		"ready":                 {v1alpha1.VolumeStatus{State: v1alpha1.VolumeReady}, false, "the volume is ready"},
		"ready, and ill since":  {v1alpha1.VolumeStatus{State: v1alpha1.VolumeReady, Reason: "Corrupt", Message: "file is gone"}, true, "file is gone"},
		"failed":                {v1alpha1.VolumeStatus{State: v1alpha1.VolumeFailed, Reason: "Full", Message: "no room"}, true, "no room"},
	} {
		t.Run(name, func(t *testing.T) {
			got := conditionOf(&v1alpha1.Volume{Status: c.status})
			if got.GetAbnormal() != c.abnormal || got.GetMessage() != c.message {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestWaitingLeavesTimeForTheAnswer(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		left  time.Duration
		given bool
		want  time.Duration
	}{
		"no deadline":            {0, false, 110 * time.Second},
		"kubelet's two minutes":  {2 * time.Minute, true, 117 * time.Second},
		"ten seconds":            {10 * time.Second, true, 9 * time.Second},
		"a deadline that passed": {-time.Second, true, -time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			if got := waitUntil(now, now.Add(c.left), c.given).Sub(now); got != c.want {
				t.Errorf("waits %s, want %s", got, c.want)
			}
		})
	}
}

// TestMountOptionsStayWhole has what a kubelet gives where the driver's seLinuxMount is true: a value with a comma in quotes.
func TestMountOptionsStayWhole(t *testing.T) {
	flags := []string{"noatime", `context="system_u:object_r:container_file_t:s0:c10,c20"`}
	s, err := stageRequest(&csi.NodeStageVolumeRequest{VolumeId: "v", StagingTargetPath: "/staging", VolumeCapability: mounted(writer, "ext4", flags...)})
	if err != nil || strings.Join(s.options, ",") != strings.Join(flags, ",") {
		t.Errorf("options are %q (%v)", s.options, err)
	}
}
