package embedded_test

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
)

func testChange(t *testing.T, c *store.Client) {
	ctx := testContext(t)
	const anew = "delete the image and create it anew, or use another name"
	base := image("change")
	base.Spec.Checksum = strings.Repeat("a", 64)
	if _, err := c.Images.Create(ctx, base, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change  func(*v1alpha1.BackingImageSpec)
		message string
	}{
		"of sourceType is refused":             {source("upload", base.Spec.SourceParameters), "sourceType is immutable: " + anew},
		"of the URL is refused":                {url("https://example.com/other"), "sourceParameters are immutable: " + anew},
		"that removes parameters is refused":   {source("download", nil), "sourceParameters are immutable: " + anew},
		"of the checksum is refused":           {checksum(strings.Repeat("b", 64)), "checksum is immutable: " + anew},
		"that removes the checksum is refused": {checksum(""), "checksum is immutable: " + anew},
		"of the number of copies is accepted":  {func(s *v1alpha1.BackingImageSpec) { s.MinNumberOfCopies = 3 }, ""},
		"of the selectors is accepted":         {func(s *v1alpha1.BackingImageSpec) { s.DiskSelector = []string{"ssd"} }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			i, err := c.Images.Get(ctx, base.Name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			test.change(&i.Spec)
			_, err = c.Images.Update(ctx, i, metav1.UpdateOptions{})
			mustRefuse(t, err, test.message)
		})
	}
	t.Run("of a volume", func(t *testing.T) { testVolumeChange(t, c) })
	t.Run("of a copy", func(t *testing.T) { testCopyChange(t, c) })
	t.Run("of a snapshot", func(t *testing.T) { testSnapshotChange(t, c) })
}

func testVolumeChange(t *testing.T, c *store.Client) {
	ctx := testContext(t)
	v := &v1alpha1.Volume{Spec: v1alpha1.VolumeSpec{Name: "pvc-1", CapacityBytes: 10, DiskUUID: "d", Image: &v1alpha1.VolumeImage{Name: "i", UID: "u"}}}
	v.Name = "v"
	if _, err := c.Volumes.Create(ctx, v, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change  func(*v1alpha1.VolumeSpec)
		message string
	}{
		"of its disk is refused":       {func(s *v1alpha1.VolumeSpec) { s.DiskUUID = "e" }, "a volume's disk and name are immutable"},
		"of its name is refused":       {func(s *v1alpha1.VolumeSpec) { s.Name = "pvc-2" }, "a volume's disk and name are immutable"},
		"of its image is refused":      {func(s *v1alpha1.VolumeSpec) { s.Image.UID = "w" }, "a volume's image is immutable"},
		"that drops image is refused":  {func(s *v1alpha1.VolumeSpec) { s.Image = nil }, "a volume's image is immutable"},
		"that shrinks it is refused":   {func(s *v1alpha1.VolumeSpec) { s.CapacityBytes = 9 }, "capacityBytes: a volume cannot shrink"},
		"that enlarges it is accepted": {func(s *v1alpha1.VolumeSpec) { s.CapacityBytes = 11 }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			v, err := c.Volumes.Get(ctx, "v", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			test.change(&v.Spec)
			_, err = c.Volumes.Update(ctx, v, metav1.UpdateOptions{DryRun: []string{metav1.DryRunAll}})
			mustRefuse(t, err, test.message)
		})
	}
}

func testSnapshotChange(t *testing.T, c *store.Client) {
	ctx := testContext(t)
	taken := &v1alpha1.Snapshot{Spec: v1alpha1.SnapshotSpec{Name: "snapshot-1", Volume: "v", Type: v1alpha1.SnapshotSnap, DiskUUID: "d", NodeName: "n"}}
	taken.Name = "s"
	for name, test := range map[string]struct {
		change  func(*v1alpha1.SnapshotSpec)
		message string
	}{
		"of another type is refused":        {func(s *v1alpha1.SnapshotSpec) { s.Type = "bi" }, `Unsupported value: "bi"`},
		"of no volume is refused":           {func(s *v1alpha1.SnapshotSpec) { s.Volume = "" }, "spec.volume"},
		"on no disk is refused":             {func(s *v1alpha1.SnapshotSpec) { s.DiskUUID = "" }, "spec.diskUUID"},
		"for a volume is refused":           {func(s *v1alpha1.SnapshotSpec) { s.TargetVolume = "w" }, "targetVolume: is for snapshots of type clone"},
		"of type clone for none is refused": {func(s *v1alpha1.SnapshotSpec) { s.Type = v1alpha1.SnapshotClone }, "targetVolume: is for snapshots of type clone"},
		"of type clone is accepted":         {func(s *v1alpha1.SnapshotSpec) { s.Type, s.TargetVolume = v1alpha1.SnapshotClone, "w" }, ""},
		"for a backup is accepted":          {func(s *v1alpha1.SnapshotSpec) { s.Type = v1alpha1.SnapshotBackup }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			other := taken.DeepCopy()
			test.change(&other.Spec)
			_, err := c.Snapshots.Create(ctx, other, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			mustRefuse(t, err, test.message)
		})
	}
	taken, err := c.Snapshots.Create(ctx, taken, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Run("that changes its spec is refused", func(t *testing.T) {
		taken.Spec.Volume = "w"
		_, err := c.Snapshots.Update(ctx, taken, metav1.UpdateOptions{})
		mustRefuse(t, err, "a snapshot is immutable")
	})
}

func testCopyChange(t *testing.T, c *store.Client) {
	ctx := testContext(t)
	copied := &v1alpha1.BackingImageCopy{Spec: v1alpha1.BackingImageCopySpec{Image: "i", ImageUID: "u", DiskUUID: "d", NodeName: "n"}}
	copied.Name = "c"
	copied, err := c.Copies.Create(ctx, copied, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Run("of its disk is refused", func(t *testing.T) {
		other := copied.DeepCopy()
		other.Spec.DiskUUID = "e"
		_, err := c.Copies.Update(ctx, other, metav1.UpdateOptions{})
		mustRefuse(t, err, "a copy's image and disk are immutable")
	})
	t.Run("that makes it the origin is accepted", func(t *testing.T) {
		other := copied.DeepCopy()
		other.Spec.Origin = true
		_, err := c.Copies.Update(ctx, other, metav1.UpdateOptions{})
		mustRefuse(t, err, "")
	})
}
