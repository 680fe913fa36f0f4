package csi_test

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"plinth.dev/plinth/test/plinthtest"
)

// backups is the VolumeSnapshotClass of backups.
var backups = map[string]string{"type": "bak", "backupTargetName": "nas"}

func (o *orchestrator) backUp(t *testing.T, volume, name string) (*spec.Snapshot, error) {
	t.Helper()
	answer, err := o.CreateSnapshot(t.Context(), &spec.CreateSnapshotRequest{SourceVolumeId: volume, Name: name, Parameters: backups}, grpc.WaitForReady(true))
	return answer.GetSnapshot(), err
}

// listed are the snapshots of a handle, as the snapshotter looks for one.
func (o *orchestrator) listed(t *testing.T, r *spec.ListSnapshotsRequest) []*spec.Snapshot {
	t.Helper()
	answer, err := o.ListSnapshots(t.Context(), r, grpc.WaitForReady(true))
	must(t, err)
	var list []*spec.Snapshot
	for _, e := range answer.GetEntries() {
		list = append(list, e.GetSnapshot())
	}
	return list
}

// restored makes a volume of a snapshot.
func (o *orchestrator) restored(t *testing.T, name, handle string, parameters map[string]string) error {
	t.Helper()
	r := createVolume(name)
	r.Secrets, r.Parameters = nil, parameters
	if handle != "" {
		r.VolumeContentSource = &spec.VolumeContentSource{Type: &spec.VolumeContentSource_Snapshot{Snapshot: &spec.VolumeContentSource_SnapshotSource{SnapshotId: handle}}}
	}
	_, err := o.CreateVolume(t.Context(), r, grpc.WaitForReady(true))
	return err
}

// holds stages a volume and compares a file of it.
func (o *orchestrator) holds(t *testing.T, volume string, want []byte) {
	t.Helper()
	if got, err := os.ReadFile(filepath.Join(o.mustStage(t, volume), "data")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("volume %s holds %d bytes, or other ones than were backed up (%v)", volume, len(got), err)
	}
}

// wholeWhenReady asks until a backup is ready, and checks that it is in the target whenever that is said.
func (o *orchestrator) wholeWhenReady(t *testing.T, handle, place string) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		list := o.listed(t, &spec.ListSnapshotsRequest{SnapshotId: handle})
		manifests, err := filepath.Glob(filepath.Join(place, "backups", "*"))
		must(t, err)
		switch {
		case len(list) == 1 && list[0].GetReadyToUse():
			if len(manifests) == 0 {
				t.Errorf("%s is ready and not in the target", handle)
			}
			return
		case time.Now().After(deadline):
			t.Fatalf("%s is not ready: %v, and the target has %v", handle, list, manifests)
		}
	}
}

// TestBackupsAreSnapshots makes backups and restores them in the words of orchestrators, over the socket of a real process.
func TestBackupsAreSnapshots(t *testing.T) {
	o, dir, place := mustOrchestrator(t), t.TempDir(), filepath.Join(t.TempDir(), "place")
	must(t, os.Mkdir(place, 0o700))
	// Slow enough for what happens meanwhile.
	o.MustCLI("target", "add", "nas", "--url", "file://"+place, "--upload-limit", "2Mi", "--download-limit", "1Mi")
	o.MustCLI("target", "add", "fast", "--url", "file://"+place) // the first one that has a URL is taken
	plinthtest.MustImage(t, dir, "golden.qcow2", plinthtest.Image{})
	plinthtest.MustImage(t, dir, "other.qcow2", plinthtest.Image{Files: map[string]string{"other": "content"}})
	server := plinthtest.Serve(t, dir)
	golden := class(t, "golden", server+"/golden.qcow2")
	path := o.mustStage(t, o.mustCreate(t, "db", golden))
	data := make([]byte, 10*mib)
	random := rand.NewChaCha8([32]byte{6})
	_, _ = random.Read(data)
	must(t, os.WriteFile(path+"/data", data, 0o600)) // and no sync
	s, err := o.backUp(t, "db", "first")
	must(t, err)

	t.Run("one is ready when it is whole, whatever happened meanwhile", func(t *testing.T) {
		if s.GetReadyToUse() || s.GetSnapshotId() != "bak://db/first" || s.GetSourceVolumeId() != "db" || !s.GetCreationTime().IsValid() {
			t.Errorf("at first it is %v", s)
		}
		wantCode(t, o.restored(t, "early", s.GetSnapshotId(), nil), codes.Unavailable, "backup first", "not complete")
		o.Kill()
		must(t, os.WriteFile(path+"/data", nil, 0o600)) // the point in time is taken
		o.Restart()
		o.wholeWhenReady(t, s.GetSnapshotId(), place)
		again, err := o.backUp(t, "db", "first")
		if err != nil || !again.GetReadyToUse() || !again.GetCreationTime().AsTime().Equal(s.GetCreationTime().AsTime()) || again.GetSizeBytes() == 0 {
			t.Errorf("the same call gives %v, %v, and gave %v", again, err, s)
		}
		_, err = o.CreateSnapshot(t.Context(), &spec.CreateSnapshotRequest{SourceVolumeId: "db", Name: "first"})
		wantCode(t, err, codes.AlreadyExists, "type is bak, not snap")
	})
	t.Run("they are in lists, and found by their handle", func(t *testing.T) {
		for n, r := range []*spec.ListSnapshotsRequest{{}, {SourceVolumeId: "db"}, {SnapshotId: "bak://db/first"}, {SourceVolumeId: "db", SnapshotId: "bak://db/first"}} {
			if list := o.listed(t, r); len(list) != 1 || list[0].GetSnapshotId() != "bak://db/first" || !list[0].GetReadyToUse() {
				t.Errorf("list %d has %v", n, list)
			}
		}
		for n, r := range []*spec.ListSnapshotsRequest{{SourceVolumeId: "other"}, {SnapshotId: "bak://other/first"}, {SnapshotId: "bak://db/second"}, {SnapshotId: "bak:first"}} {
			if list := o.listed(t, r); len(list) != 0 {
				t.Errorf("list %d has %v", n, list)
			}
		}
	})
	t.Run("a volume is made of one, which stays until that is done", func(t *testing.T) {
		must(t, o.restored(t, "restored", s.GetSnapshotId(), nil))
		_, err := o.DeleteSnapshot(t.Context(), &spec.DeleteSnapshotRequest{SnapshotId: s.GetSnapshotId()})
		wantCode(t, err, codes.FailedPrecondition, "volumes: restored")
		o.holds(t, "restored", data)
		o.mustRemove(t, "restored")
	})
	t.Run("a class names one, and the image is compared by its content", func(t *testing.T) {
		var shown struct{ Status struct{ URL string } }
		must(t, json.Unmarshal([]byte(o.MustCLI("backup", "show", "first", "-o", "json")), &shown))
		url := shown.Status.URL
		must(t, o.restored(t, "of-class", "", map[string]string{"fromBackup": url}))
		o.holds(t, "of-class", data)
		o.mustRemove(t, "of-class")
		for name, file := range map[string]string{"same": "golden.qcow2", "golden-2": "other.qcow2"} {
			o.MustCLI("image", "create", name, "--url", server+"/"+file, "--wait")
		}
		wantCode(t, o.restored(t, "wrong", "", map[string]string{"fromBackup": url, "backingImage": "golden-2"}), codes.FailedPrecondition, "backingImage", "golden-2", "content digest")
		if r := o.CLI("backup", "restore", "first", "--as", "wrong", "--image", "golden-2"); r.Code == 0 || !strings.Contains(r.Stderr, "content digest") {
			t.Errorf("the command says %+v", r)
		}
		o.MustCLI("backup", "restore", "first", "--as", "over-same", "--image", "same")
		if shown := o.MustCLI("volume", "show", "over-same"); !strings.Contains(shown, "same") {
			t.Errorf("it lies on another image: %s", shown)
		}
		o.holds(t, "over-same", data)
		o.mustRemove(t, "over-same")
	})
	t.Run("one that failed says so until it is deleted, and is not taken anew behind one's back", func(t *testing.T) {
		_, _ = random.Read(data)
		must(t, os.WriteFile(path+"/data", data, 0o600))
		_, err := o.backUp(t, "db", "second")
		must(t, err)
		must(t, os.Rename(place, place+".away"))
		for deadline := time.Now().Add(2 * time.Minute); err == nil && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			s, err = o.backUp(t, "db", "second")
		}
		for range 2 {
			wantCode(t, err, codes.FailedPrecondition, "backup second failed", "mount what belongs there")
			_, err = o.backUp(t, "db", "second")
		}
		must(t, os.Rename(place+".away", place))
		_, err = o.DeleteSnapshot(t.Context(), &spec.DeleteSnapshotRequest{SnapshotId: "bak://db/second"})
		must(t, err)
		_, err = o.backUp(t, "db", "second")
		must(t, err)
		o.wholeWhenReady(t, "bak://db/second", place)
	})
	o.mustRemove(t, "db")
	t.Run("another cluster restores by a handle that was written by hand", func(t *testing.T) {
		fresh := mustOrchestrator(t)
		fresh.MustCLI("target", "add", "anywhere", "--url", "file://"+place)
		if list := fresh.listed(t, &spec.ListSnapshotsRequest{SnapshotId: "bak://db/second"}); len(list) != 1 || !list[0].GetReadyToUse() {
			t.Errorf("it is %v", list)
		}
		must(t, fresh.restored(t, "back", "bak://db/second", nil))
		fresh.holds(t, "back", data)
		fresh.mustRemove(t, "back")
		wantCode(t, fresh.restored(t, "none", "bak://db/third", nil), codes.NotFound, "bak://db/third")
		_, err := fresh.DeleteSnapshot(t.Context(), &spec.DeleteSnapshotRequest{SnapshotId: "bak://db/second"}) // it is the other cluster's
		must(t, err)
	})
	for _, handle := range []string{"bak://db/first", "bak://db/second", "bak://db/second", "bak://db/third", "bak:nothing"} {
		_, err := o.DeleteSnapshot(t.Context(), &spec.DeleteSnapshotRequest{SnapshotId: handle})
		must(t, err)
	}
	if left, err := filepath.Glob(filepath.Join(place, "backups", "*")); err != nil || len(left)+len(o.listed(t, &spec.ListSnapshotsRequest{})) > 0 {
		t.Errorf("left in the target are %v, %v", left, err)
	}
}
