package doctor_test

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/provisioner/doctor"
)

var now = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) metav1.Time { return metav1.NewTime(now.Add(-d)) }

func named(name string, age time.Duration) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name), CreationTimestamp: ago(age)}
}

func condition(kind string, status metav1.ConditionStatus, reason, message string, since time.Duration) metav1.Condition {
	return metav1.Condition{Type: kind, Status: status, Reason: reason, Message: message, LastTransitionTime: ago(since)}
}

// well is a cluster with which nothing is wrong: a node, a disk, an image with its copy, a volume, a class and a claim.
func well() *doctor.Snapshot {
	const gib = 1 << 30
	node := &v1alpha1.StorageNode{ObjectMeta: named("n1", time.Hour)}
	node.Status = v1alpha1.StorageNodeStatus{Version: "v1", LastHeartbeatTime: ago(10 * time.Second), Conditions: []metav1.Condition{condition(v1alpha1.ConditionReady, "True", "AgentRuns", "", time.Hour)}}
	disk := &v1alpha1.Disk{ObjectMeta: named("d1", time.Hour), Spec: v1alpha1.DiskSpec{NodeName: "n1", Path: "/srv/disk"}}
	disk.Status = v1alpha1.DiskStatus{CapacityBytes: 100 * gib, AvailableBytes: 50 * gib, Conditions: []metav1.Condition{condition(v1alpha1.ConditionReady, "True", "Usable", "", time.Hour)}}
	image := &v1alpha1.BackingImage{ObjectMeta: named("fedora", time.Hour), Spec: v1alpha1.BackingImageSpec{SourceType: v1alpha1.SourceDownload, Checksum: strings.Repeat("a", 64),
		SourceParameters: map[string]v1alpha1.SourceParameter{"url": "https://example.org/fedora.qcow2"}}}
	image.Status = v1alpha1.BackingImageStatus{State: v1alpha1.CopyReady, Conditions: []metav1.Condition{condition(v1alpha1.ConditionReady, "True", "CopyReady", "", time.Hour), condition(v1alpha1.ConditionHealthy, "True", "EnoughCopies", "", time.Hour)}}
	copy := &v1alpha1.BackingImageCopy{ObjectMeta: named("uid-fedora.d1", time.Hour), Spec: v1alpha1.BackingImageCopySpec{Image: "fedora", ImageUID: "uid-fedora", DiskUUID: "d1", NodeName: "n1", Origin: true}}
	copy.Status.State = v1alpha1.CopyReady
	volume := &v1alpha1.Volume{ObjectMeta: named("pvc-1", time.Hour), Spec: v1alpha1.VolumeSpec{Name: "pvc-1", NodeName: "n1", DiskUUID: "d1", Image: &v1alpha1.VolumeImage{Name: "fedora", UID: "uid-fedora"}, Claim: &v1alpha1.VolumeClaim{Namespace: "shop", Name: "data"}}}
	volume.Status.State = v1alpha1.VolumeReady
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: named("data", time.Hour), Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: ptr.To("fedora")}, Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound}}
	claim.Namespace = "shop"
	return &doctor.Snapshot{
		Nodes: []*v1alpha1.StorageNode{node}, Disks: []*v1alpha1.Disk{disk}, Images: []*v1alpha1.BackingImage{image}, Copies: []*v1alpha1.BackingImageCopy{copy}, Volumes: []*v1alpha1.Volume{volume},
		Kubernetes: &doctor.Kubernetes{
			Driver:  &storagev1.CSIDriver{ObjectMeta: named("csi.plinth.dev", time.Hour), Spec: storagev1.CSIDriverSpec{AttachRequired: ptr.To(false), StorageCapacity: ptr.To(true)}},
			Classes: []*storagev1.StorageClass{{ObjectMeta: named("fedora", time.Hour), Provisioner: "csi.plinth.dev", Parameters: map[string]string{"backingImage": "fedora", "csi.storage.k8s.io/fstype": "ext4"}}},
			Claims:  []*corev1.PersistentVolumeClaim{claim},
		},
		Driver: "csi.plinth.dev", Version: "v1", Now: now,
	}
}

func TestExamine(t *testing.T) {
	type s = *doctor.Snapshot
	ready := func(status metav1.ConditionStatus, reason, message string) []metav1.Condition {
		return []metav1.Condition{condition(v1alpha1.ConditionReady, status, reason, message, time.Hour)}
	}
	failed := func(s s, next *metav1.Time) {
		s.Images[0].Status.State, s.Images[0].Status.Message = v1alpha1.CopyFailed, "404"
		s.Copies[0].Status.State, s.Copies[0].Status.NextTryTime = v1alpha1.CopyFailed, next
	}
	later := metav1.NewTime(now.Add(time.Minute))
	old := ago(time.Hour)
	pending := func(s s, annotations map[string]string) {
		s.Kubernetes.Claims[0].Status.Phase, s.Kubernetes.Claims[0].Annotations = corev1.ClaimPending, annotations
	}
	wish := map[string]string{v1alpha1.ImageAnnotation: "debian"}
	source := func(image string) *corev1.TypedObjectReference {
		return &corev1.TypedObjectReference{APIGroup: ptr.To(v1alpha1.GroupVersion.Group), Kind: "BackingImage", Name: image}
	}
	for name, tc := range map[string]struct {
		with func(s)
		want string // "severity kind/name problem", one after the other; "" for nothing
		says string
	}{
		"a cluster that is well":      {with: func(s) {}},
		"an API that is no cluster's": {with: func(s s) { s.Kubernetes = nil }},
		"nothing is registered":       {func(s s) { s.Nodes, s.Disks, s.Volumes, s.Copies = nil, nil, nil, nil }, "error StorageNode/ NoNodes", "plinth node"},
		"a node without a disk":       {func(s s) { s.Disks = nil }, "error Disk/ NoDisks", "plinth disk add"},
		"a silent node is said once, not at each disk": {func(s s) {
			s.Nodes[0].Status.Conditions = ready("False", "Silent", "nothing was heard")
			s.Disks[0].Status.Conditions = ready("False", "Gone", "")
		}, "error StorageNode/n1 Silent", "nothing was heard"},
		"a node that never said anything": {func(s s) { s.Nodes[0].Status.Conditions = nil }, "error StorageNode/n1 NeverHeard", "plinth node"},
		"nobody listens to the nodes":     {func(s s) { s.Nodes[0].Status.LastHeartbeatTime = ago(time.Hour) }, "error StorageNode/n1 NobodyListens", "plinth controller"},
		"a node whose machine was removed": {func(s s) {
			s.Nodes[0].Status.Conditions = append(s.Nodes[0].Status.Conditions, condition("Removed", "True", "MachineRemoved", "forgotten at noon", 0))
		}, "warning StorageNode/n1 Removed", "forgotten at noon"},
		"a node that cannot be drained yet": {func(s s) {
			s.Nodes[0].Status.Conditions = append(s.Nodes[0].Status.Conditions, condition("Drained", "False", "LastCopies", "fedora", 0))
		}, "warning StorageNode/n1 NotDrained", "kubectl wait"},
		"a disk that could not be opened": {func(s s) {
			s.Nodes[0].Status.Disks = []v1alpha1.NodeDisk{{Path: "/srv/new", Reason: "Invalid", Message: "is a file"}}
		}, "error StorageNode/n1 DiskNotOpen", "/srv/new is not open: is a file"},
		"agents of two versions": {func(s s) {
			n := s.Nodes[0].DeepCopy()
			n.Name, n.Status.Version = "n2", "v2"
			s.Nodes = append(s.Nodes, n)
		}, "warning StorageNode/ VersionSkew", "v1 on n1; v2 on n2"},
		"a program of another version": {func(s s) { s.Version = "v2" }, "note StorageNode/ VersionSkew", "version v1, this program is v2"},
		"a disk that is not ready":     {func(s s) { s.Disks[0].Status.Conditions = ready("False", "ReadOnly", "remount it") }, "error Disk/d1 ReadOnly", "remount it"},
		"a full disk": {func(s s) {
			s.Disks[0].Status.Conditions = append(s.Disks[0].Status.Conditions, condition("Full", "True", "NoRoom", "1 MiB is free", 0))
		}, "error Disk/d1 Full", "plinth disk evict d1"},
		"a disk that is nearly full": {func(s s) { s.Disks[0].Status.AvailableBytes = 12 << 30 }, "warning Disk/d1 NearlyFull", "12 GiB of 100 GiB"},
		"volumes that no object knows": {func(s s) {
			s.Disks[0].Status.Orphans = []v1alpha1.Orphan{{Kind: v1alpha1.OrphanVolume, UsedBytes: 1 << 30}, {Kind: v1alpha1.OrphanImage}}
		}, "warning Disk/d1 Orphans", "1 volumes (1 GiB)"},
		"an image that failed for good": {func(s s) { failed(s, nil) }, "error BackingImage/fedora Failed", "plinth image rm fedora"},
		"an image that is tried again":  {func(s s) { failed(s, &later) }, "warning BackingImage/fedora FetchFails", "404"},
		"an image that is lost": {func(s s) {
			s.Images[0].Status.State = v1alpha1.CopyFailed
			s.Images[0].Status.Conditions = ready("False", "Lost", "every copy is lost")
		}, "error BackingImage/fedora Lost", "every copy is lost"},
		"an image that nothing can reach": {func(s s) { s.Images[0].Status.State = v1alpha1.CopyUnknown }, "error BackingImage/fedora Unreachable", "start the agents"},
		"an image below its minimum, for long": {func(s s) {
			s.Images[0].Status.Conditions[1] = condition("Healthy", "False", "TooFewCopies", "1 of 3", time.Hour)
		}, "warning BackingImage/fedora TooFewCopies", "1 of 3"},
		"an image below its minimum, a moment ago": {with: func(s s) {
			s.Images[0].Status.Conditions[1] = condition("Healthy", "False", "TooFewCopies", "1 of 3", time.Minute)
		}},
		"an image that nobody looked at":                {func(s s) { s.Images[0].Status = v1alpha1.BackingImageStatus{} }, "error BackingImage/fedora Ignored", "plinth controller"},
		"an image that does not go":                     {func(s s) { s.Images[0].DeletionTimestamp = &old }, "warning BackingImage/fedora Deleting", ""},
		"an image without a checksum":                   {func(s s) { s.Images[0].Spec.Checksum, s.Images[0].Status.Checksum = "", "ff" }, "note BackingImage/fedora NoChecksum", "sha512:ff"},
		"an image without a checksum that never came":   {with: func(s s) { s.Images[0].Spec.Checksum, s.Images[0].Status.Checksum = "", "" }},
		"a damaged copy":                                {func(s s) { s.Copies[0].Status.BadChunks = []int64{7} }, "error BackingImageCopy/uid-fedora.d1 Damaged", "image fedora on node n1"},
		"a copy that failed for good beside a good one": {func(s s) { s.Copies[0].Status.State, s.Copies[0].Spec.Origin = v1alpha1.CopyFailed, false }, "warning BackingImageCopy/uid-fedora.d1 Failed", "made anew"},
		"a copy that gets no bytes": {func(s s) {
			s.Copies[0].Status.State, s.Copies[0].Status.LastStateTransitionTime = v1alpha1.CopyInProgress, old
		}, "warning BackingImageCopy/uid-fedora.d1 Stalled", ""},
		"a volume that failed": {func(s s) {
			s.Volumes[0].Status.State, s.Volumes[0].Status.Message = v1alpha1.VolumeFailed, "its file is gone"
		}, "error Volume/pvc-1 Failed", "its file is gone (claim shop/data)"},
		"a volume that is left behind":               {func(s s) { s.Volumes[0].Status.Reason = v1alpha1.VolumeAbandoned }, "error Volume/pvc-1 Abandoned", "machine n1"},
		"a volume in trouble":                        {func(s s) { s.Volumes[0].Status.Reason, s.Volumes[0].Status.Message = "NotReady", "disk gone" }, "error Volume/pvc-1 NotReady", "disk gone"},
		"a volume that waits for long":               {func(s s) { s.Volumes[0].Status.State = v1alpha1.VolumePending }, "warning Volume/pvc-1 Waits", "plinth image show fedora"},
		"a volume that does not go":                  {func(s s) { s.Volumes[0].DeletionTimestamp = &old }, "warning Volume/pvc-1 Deleting", "node n1"},
		"no CSIDriver":                               {func(s s) { s.Kubernetes.Driver = nil }, "error CSIDriver/csi.plinth.dev Missing", "deploy/kubernetes"},
		"a CSIDriver that may not be read":           {func(s s) { s.Kubernetes.Driver, s.Kubernetes.Unread = nil, map[string]string{"CSIDriver": "forbidden"} }, "note CSIDriver/ Unread", "forbidden"},
		"a CSIDriver that wants attachments":         {func(s s) { s.Kubernetes.Driver.Spec.AttachRequired = nil }, "error CSIDriver/csi.plinth.dev AttachRequired", ""},
		"a CSIDriver without storage capacity":       {func(s s) { s.Kubernetes.Driver.Spec.StorageCapacity = nil }, "warning CSIDriver/csi.plinth.dev NoStorageCapacity", "--enable-capacity"},
		"a class with a parameter that there is not": {func(s s) { s.Kubernetes.Classes[0].Parameters["backingimage"] = "x" }, "error StorageClass/fedora InvalidParameters", "backingImage"},
		"another driver's class is not ours to judge": {with: func(s s) {
			s.Kubernetes.Classes[0].Provisioner, s.Kubernetes.Classes[0].Parameters = "x", map[string]string{"y": "z"}
		}},
		"a class whose image there is not":     {func(s s) { s.Kubernetes.Classes[0].Parameters["backingImage"] = "debian" }, "error StorageClass/fedora NoImage", `"debian"`},
		"a class that describes another image": {func(s s) { s.Kubernetes.Classes[0].Parameters["backingImageDataSourceType"] = "upload" }, "error StorageClass/fedora ImageDiffers", "backingImageDataSourceType"},
		"a claim that is pending for long":     {func(s s) { pending(s, nil) }, "warning PersistentVolumeClaim/data Pending", "kubectl describe pvc -n shop data"},
		"a claim that waits for a pod": {func(s s) {
			pending(s, nil)
			s.Kubernetes.Classes[0].VolumeBindingMode = ptr.To(storagev1.VolumeBindingWaitForFirstConsumer)
		}, "note PersistentVolumeClaim/data WaitsForPod", "pod"},
		"a claim's wish that its class does not grant": {func(s s) { pending(s, wish) }, "error PersistentVolumeClaim/data OverrideNotAllowed", "debian"},
		"a claim's wish for what there is not":         {func(s s) { pending(s, wish); s.Kubernetes.Classes[0].Parameters["allowBackingImageOverride"] = "true" }, "error PersistentVolumeClaim/data NoImage", "debian"},
		"a claim whose namespace the image does not list": {func(s s) {
			pending(s, wish)
			s.Kubernetes.Classes[0].Parameters = map[string]string{"allowBackingImageOverride": "true"}
			s.Images[0].Name = "debian"
		}, "error PersistentVolumeClaim/data NamespaceNotAllowed", "namespace shop"},
		"a claim whose source is an image of which its class lets it not choose": {func(s s) { pending(s, nil); s.Kubernetes.Claims[0].Spec.DataSourceRef = source("debian") }, "error PersistentVolumeClaim/data OverrideNotAllowed", "spec.dataSourceRef"},
		"a claim that asks for two images":                                       {func(s s) { pending(s, wish); s.Kubernetes.Claims[0].Spec.DataSourceRef = source("fedora") }, "error PersistentVolumeClaim/data TwoImages", "remove the annotation"},
	} {
		t.Run(name, func(t *testing.T) {
			s := well()
			tc.with(s)
			var got []string
			text := ""
			for _, f := range doctor.Examine(*s) {
				got = append(got, string(f.Severity)+" "+f.Kind+"/"+f.Name+" "+f.Problem)
				text += f.Message + "\n" + f.Remedy + "\n"
				if f.Remedy == "" {
					t.Errorf("has no remedy: %+v", f)
				}
			}
			if strings.Join(got, "; ") != tc.want || !strings.Contains(text, tc.says) {
				t.Errorf("found %q, want %q, saying %q:\n%s", got, tc.want, tc.says, text)
			}
		})
	}
}

func TestErrorsComeFirst(t *testing.T) {
	s := well()
	s.Version = "v2"
	s.Kubernetes.Driver = nil
	s.Disks[0].Status.AvailableBytes = 1
	findings := doctor.Examine(*s)
	if len(findings) != 3 || findings[0].Severity != doctor.Error || findings[2].Severity != doctor.Note || doctor.Worst(findings) != doctor.Error {
		t.Errorf("found %+v", findings)
	}
	if doctor.Worst(nil) != "" {
		t.Error("nothing is not well")
	}
}

// TestExamineIsTotal gives it objects that say nothing at all.
func TestExamineIsTotal(t *testing.T) {
	s := doctor.Snapshot{
		Images: []*v1alpha1.BackingImage{{}}, Copies: []*v1alpha1.BackingImageCopy{{}}, Nodes: []*v1alpha1.StorageNode{{}}, Disks: []*v1alpha1.Disk{{}}, Volumes: []*v1alpha1.Volume{{}},
		Kubernetes: &doctor.Kubernetes{Driver: &storagev1.CSIDriver{}, Classes: []*storagev1.StorageClass{{}}, Claims: []*corev1.PersistentVolumeClaim{{}}}, Now: now,
	}
	if doctor.Worst(doctor.Examine(s)) != doctor.Error {
		t.Error("nothing is wrong with nothing")
	}
}
