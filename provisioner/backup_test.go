package provisioner_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/node/nodetest"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/provisioner"
	"plinth.dev/plinth/provisioner/backup/object"
)

// backupKey is the key of the encrypted targets.
const backupKey = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

// target makes a backup target with the key and waits until its Ready condition says what it must.
func (w *world) target(t *testing.T, name, url string, key string, want metav1.ConditionStatus) *v1alpha1.BackupTarget {
	t.Helper()
	ctx := context.Background()
	spec := v1alpha1.BackupTargetSpec{URL: url}
	if key != "" {
		must(t, w.secrets.Put(ctx, credential.Ref{Namespace: "default", Name: name}, map[string][]byte{credential.KeyBackup: []byte(key)}))
		spec.Secret = name
	}
	_, err := w.Store.Targets.Create(ctx, &v1alpha1.BackupTarget{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec})
	must(t, err)
	var now *v1alpha1.BackupTarget
	w.eventually(t, "target "+name, func() (string, bool) {
		now, err = w.Store.Targets.Live(ctx, name)
		must(t, err)
		c := meta.FindStatusCondition(now.Status.Conditions, v1alpha1.ConditionReady)
		if c == nil {
			return "not looked at", false
		}
		return c.Message, c.Status == want
	})
	return now
}

// eventually waits for a state and prints the last one when it does not come.
func (w *world) eventually(t *testing.T, what string, is func() (string, bool)) {
	t.Helper()
	last := ""
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		var ok bool
		if last, ok = is(); ok {
			return
		}
	}
	t.Fatalf("%s: the last state is %s", what, last)
}

// backedUp takes a backup of a volume through CSI's words and waits until it is complete.
func (w *world) backedUp(t *testing.T, name, volume string) (provisioner.Snapshot, *v1alpha1.Backup) {
	t.Helper()
	s := w.snapshot(t, provisioner.SnapshotRequest{Name: name, Volume: volume, Parameters: map[string]string{"type": "bak"}})
	if !s.Taken || s.Volume != volume {
		t.Errorf("the point in time is not taken: %+v", s)
	}
	w.eventually(t, "backup "+name, func() (string, bool) {
		now, err := w.volumes.GetSnapshot(context.Background(), s.Handle)
		must(t, err)
		s = now
		return now.Message, now.Ready
	})
	b, err := w.Store.Backups.Live(context.Background(), name)
	must(t, err)
	return s, b
}

// holds checks the content of a volume.
func (w *world) holds(t *testing.T, id string, want []byte) {
	t.Helper()
	content, err := os.ReadFile(w.attach(t, id).Device)
	must(t, err)
	if !bytes.Equal(content, want) {
		t.Errorf("volume %s has other content: %d bytes, want %d", id, len(content), len(want))
	}
}

func TestBackups(t *testing.T) {
	for name, key := range map[string]string{"plain": "", "encrypted": backupKey} {
		t.Run(name, func(t *testing.T) { testBackups(t, key) })
	}
}

// slowTarget holds up nobody for longer than they want to wait.
func slowTarget(t *testing.T, w *world) {
	_, err := w.Store.Targets.Create(t.Context(), &v1alpha1.BackupTarget{ObjectMeta: metav1.ObjectMeta{Name: "slow"}, Spec: v1alpha1.BackupTargetSpec{URL: "s3://slow"}})
	must(t, err)
	opening := make(chan struct{})
	all := provisioner.NewRepositories(w.Store, object.Openers{"s3": func(ctx context.Context, _ object.Location, _ source.Options) (object.Bucket, error) {
		close(opening)
		<-ctx.Done()
		return object.Bucket{}, ctx.Err()
	}}, source.Options{}, nil)
	first, end := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = all.Open(first, "slow")
	}()
	<-opening
	impatient, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := all.Open(impatient, "slow"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	end()
	<-ended
	must(t, w.Store.Targets.Delete(t.Context(), "slow"))
}

func testBackups(t *testing.T, key string) {
	w, ctx, place := newWorld(t), context.Background(), t.TempDir()
	slowTarget(t, w)
	url := "file://" + place
	w.target(t, "lost", "file://"+place+"/not-mounted", "", metav1.ConditionFalse)
	must(t, w.Store.Targets.Delete(ctx, "lost"))
	if made := w.target(t, "nas", url, key, metav1.ConditionTrue); made.Status.Encrypted != (key != "") {
		t.Errorf("the target is %+v", made.Status)
	}
	web := nodetest.NewWeb(t, 6<<20)
	class := download("golden", web.URL, web.SHA512())
	w.create(t, provisioner.CreateRequest{Name: "db", RequiredBytes: 32 << 20, Parameters: class})
	want := append(bytes.Clone(web.Content), make([]byte, 26<<20)...)
	change := func(at int, b byte) {
		f, err := os.OpenFile(w.attach(t, "db").Device, os.O_RDWR, 0)
		must(t, err)
		part := bytes.Repeat([]byte{b}, 1<<20)
		_, err = f.WriteAt(part, int64(at))
		must(t, err)
		must(t, f.Close()) // and no sync
		copy(want[at:], part)
	}
	change(10<<20, 1)
	first, b := w.backedUp(t, "first", "db")
	if first.Handle != "bak://db/first" || first.Bytes != 32<<20 || b.Status.Progress != 100 || b.Status.URL == "" || b.Status.Base != "" {
		t.Errorf("the first is %+v, %+v", first, b.Status)
	}
	before := bytes.Clone(want)
	change(20<<20, 2)
	second, b := w.backedUp(t, "second", "db")
	if b.Status.ReadBytes > 4<<20 || b.Status.Base == "" {
		t.Errorf("unchanged parts were read again: %+v", b.Status)
	}
	w.eventually(t, "the snapshot of the first", func() (string, bool) {
		list, err := w.Store.Snapshots.LiveList(ctx)
		must(t, err)
		return "", len(list) == 1
	})
	t.Run("both come back after the volume is gone", func(t *testing.T) {
		must(t, w.node.Detach(ctx, "db"))
		must(t, w.volumes.Delete(ctx, "db"))
		w.create(t, provisioner.CreateRequest{Name: "old", SourceHandle: first.Handle})
		w.holds(t, "old", before)
		larger := w.create(t, provisioner.CreateRequest{Name: "new", RequiredBytes: 40 << 20, SourceHandle: second.Handle})
		w.holds(t, "new", append(bytes.Clone(want), make([]byte, 8<<20)...))
		if larger.Spec.Image == nil || larger.Spec.Image.Name != "golden" {
			t.Errorf("it lies on %+v", larger.Spec.Image)
		}
		if again := w.create(t, provisioner.CreateRequest{Name: "new", RequiredBytes: 40 << 20, SourceHandle: second.Handle}); again.UID != larger.UID {
			t.Error("the same call made another volume")
		}
	})
	t.Run("an image of another content is refused, by its digest", func(t *testing.T) {
		other := nodetest.NewWeb(t, 1<<20)
		w.create(t, provisioner.CreateRequest{Name: "o", Parameters: download("other", other.URL, other.SHA512())})
		w.attach(t, "o")
		w.refused(t, provisioner.CreateRequest{Name: "wrong", Parameters: map[string]string{"fromBackup": b.Status.URL, "backingImage": "other"}}, backingimage.Precondition, "content digest", "other")
		w.refused(t, provisioner.CreateRequest{Name: "small", RequiredBytes: 1 << 20, Parameters: map[string]string{"fromBackup": b.Status.URL}}, backingimage.OutOfRange)
		w.refused(t, provisioner.CreateRequest{Name: "none", Parameters: map[string]string{"fromBackup": url + "?backup=nothing"}}, backingimage.NotFound)
		w.refused(t, provisioner.CreateRequest{Name: "none", Parameters: map[string]string{"fromBackup": "file:///elsewhere?backup=x"}}, backingimage.Precondition, "plinth target add")
	})
	t.Run("in a new cluster nothing but the target is needed", func(t *testing.T) {
		fresh := newWorld(t)
		fresh.target(t, "there", url, key, metav1.ConditionTrue)
		v := fresh.create(t, provisioner.CreateRequest{Name: "db", Parameters: map[string]string{"fromBackup": url + "?backup=second&volume=db"}})
		fresh.holds(t, "db", want)
		image, err := fresh.Store.Images.Live(ctx, "golden")
		must(t, err)
		if image.Spec.SourceType != v1alpha1.SourceRestore || v.Spec.Image.UID != string(image.UID) {
			t.Errorf("the image is %+v, the volume's %+v", image.Spec, v.Spec.Image)
		}
		got, err := fresh.volumes.GetSnapshot(ctx, "bak://db/"+string(b.UID))
		if err != nil || !got.Ready || got.Bytes != 32<<20 {
			t.Errorf("a handle that was written by hand: %+v, %v", got, err)
		}
	})
	t.Run("damage is told and gives no volume", func(t *testing.T) {
		object := mustMatch(t, filepath.Join(place, "blocks", "*", "*"))
		content, err := os.ReadFile(object)
		must(t, err)
		must(t, os.WriteFile(object, content[:len(content)-1], 0o600))
		failed := 0
		for _, s := range []provisioner.Snapshot{first, second} {
			id := "damaged-" + strings.TrimPrefix(s.Handle, "bak://db/")
			w.create(t, provisioner.CreateRequest{Name: id, SourceHandle: s.Handle})
			w.eventually(t, "volume "+id, func() (string, bool) {
				v, err := w.Store.Volumes.Live(ctx, id)
				must(t, err)
				if v.Status.State == v1alpha1.VolumeFailed {
					failed++
					if !strings.Contains(v.Status.Message, filepath.Base(object)) || v.Status.Reason != backingimage.Corrupt.String() {
						t.Errorf("it fails with %s", v.Status.Message)
					}
				}
				return v.Status.Message, v.Status.State == v1alpha1.VolumeFailed || v.Status.State == v1alpha1.VolumeReady
			})
		}
		if _, image, _ := strings.Cut(object, place); failed == 0 && w.isOfVolume(t, content) {
			t.Errorf("%s was damaged and nothing failed", image)
		}
		must(t, os.WriteFile(object, content, 0o600))
	})
	t.Run("what is deleted leaves the target", func(t *testing.T) {
		for _, handle := range []string{first.Handle, first.Handle, second.Handle} {
			must(t, w.volumes.DeleteSnapshot(ctx, handle))
		}
		if left, err := filepath.Glob(filepath.Join(place, "backups", "*")); err != nil || len(left) > 0 {
			t.Errorf("left are %v, %v", left, err)
		}
		w.eventually(t, "snapshots", func() (string, bool) {
			list, err := w.Store.Snapshots.LiveList(ctx)
			must(t, err)
			return "", len(list) == 0
		})
	})
}

// isOfVolume reports whether an object is one that a volume's own content needs; restoring over an image does not read the image's.
func (w *world) isOfVolume(t *testing.T, object []byte) bool { return len(object) < 1<<20 }

func mustMatch(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) == 0 {
		t.Fatalf("nothing is %s (%v)", pattern, err)
	}
	smallest := found[0]
	for _, path := range found {
		info, err := os.Stat(path)
		must(t, err)
		if is, err := os.Stat(smallest); err == nil && info.Size() < is.Size() {
			smallest = path
		}
	}
	return smallest
}

func TestABackupGoesOnAfterARestart(t *testing.T) {
	w, ctx, place := newWorld(t), context.Background(), t.TempDir()
	w.target(t, "nas", "file://"+place, "", metav1.ConditionTrue)
	w.create(t, provisioner.CreateRequest{Name: "db", RequiredBytes: 64 << 20})
	w.write(t, "db", 7)
	must(t, os.Chmod(place, 0o700))
	for n := range 3 { // the loops end wherever they are
		name := string(rune('a' + n))
		w.snapshot(t, provisioner.SnapshotRequest{Name: name, Volume: "db", Parameters: map[string]string{"type": "bak"}})
		w.Stop()
		w.Start()
		w.eventually(t, "backup "+name, func() (string, bool) {
			b, err := w.Store.Backups.Live(ctx, name)
			must(t, err)
			return string(b.Status.State), b.Status.State == v1alpha1.BackupReady
		})
	}
	w.Stop()
	left := w.Disks[0].Layout().StagedFill("gone") // of a volume whose object was removed by force
	must(t, os.MkdirAll(left, 0o700))
	w.Start()
	w.eventually(t, "what a restore left", func() (string, bool) { _, err := os.Stat(left); return left, os.IsNotExist(err) })
	w.create(t, provisioner.CreateRequest{Name: "back", SourceHandle: "bak://db/c"})
	w.begins(t, "back", 7, 64<<20)
}

func TestAPolicyMakesBackupsAndKeepsSome(t *testing.T) {
	w, ctx := newWorld(t), context.Background()
	w.target(t, "nas", "file://"+t.TempDir(), "", metav1.ConditionTrue)
	w.create(t, provisioner.CreateRequest{Name: "db", RequiredBytes: 8 << 20})
	w.attach(t, "db")
	spec := v1alpha1.BackupPolicySpec{Target: "nas", Schedule: "@every 1s", Volumes: []string{"db"}, KeepLast: 2}
	_, err := w.Store.Policies.Create(ctx, &v1alpha1.BackupPolicy{ObjectMeta: metav1.ObjectMeta{Name: "often"}, Spec: spec})
	must(t, err)
	spec.Schedule = "whenever"
	_, err = w.Store.Policies.Create(ctx, &v1alpha1.BackupPolicy{ObjectMeta: metav1.ObjectMeta{Name: "wrong"}, Spec: spec})
	must(t, err)
	made := map[string]bool{}
	w.eventually(t, "backups", func() (string, bool) {
		list, err := w.Store.Backups.LiveList(ctx)
		must(t, err)
		ready := 0
		for _, b := range list {
			if made[b.Name] = true; b.Status.State == v1alpha1.BackupReady && b.DeletionTimestamp == nil {
				ready++
			}
		}
		return fmt.Sprint(made, " of which there are ", ready), len(made) > 4 && ready == 2
	})
	_, err = w.Store.Policies.Modify(ctx, "often", func(p *v1alpha1.BackupPolicy) { p.Spec.Suspend = true })
	must(t, err)
	w.eventually(t, "a schedule that is none", func() (string, bool) {
		p, err := w.Store.Policies.Live(ctx, "wrong")
		must(t, err)
		c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady)
		return fmt.Sprint(c), c != nil && c.Status == metav1.ConditionFalse && strings.Contains(c.Message, `"whenever"`)
	})
}

func TestARestoreWaitsForATargetThatIsMended(t *testing.T) {
	w, ctx, place := newWorld(t), context.Background(), filepath.Join(t.TempDir(), "place")
	must(t, os.Mkdir(place, 0o700))
	w.target(t, "nas", "file://"+place, "", metav1.ConditionTrue)
	w.create(t, provisioner.CreateRequest{Name: "db", RequiredBytes: 8 << 20})
	w.write(t, "db", 5)
	s, b := w.backedUp(t, "b", "db")
	spec := w.create(t, provisioner.CreateRequest{Name: "first", SourceHandle: s.Handle}).Spec
	w.begins(t, "first", 5, 8<<20)
	block := mustMatch(t, filepath.Join(place, "blocks", "*", "*"))
	must(t, os.Rename(place, place+".away"))
	_, err := w.Store.Volumes.Create(ctx, &v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{Name: "second", Finalizers: []string{v1alpha1.VolumeFinalizer}}, Spec: v1alpha1.VolumeSpec{
		Name: "second", CapacityBytes: 8 << 20, DiskUUID: spec.DiskUUID, NodeName: spec.NodeName, Restore: &v1alpha1.VolumeRestore{Target: "nas", Backup: string(b.UID)},
	}})
	must(t, err)
	w.eventually(t, "volume second", func() (string, bool) {
		v, err := w.Store.Volumes.Live(ctx, "second")
		must(t, err)
		return v.Status.Message, v.Status.State == v1alpha1.VolumePending && strings.Contains(v.Status.Message, "mount what belongs there")
	})
	waits, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	_, err = w.node.Attach(waits, "second")
	wantKind(t, err, backingimage.NotReady, "restore of backup", "interrupted")
	must(t, os.Rename(place+".away", place))
	w.begins(t, "second", 5, 8<<20)
	if _, err := os.Stat(block); err != nil {
		t.Error(err)
	}
}
