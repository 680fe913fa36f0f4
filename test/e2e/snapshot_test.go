package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// snapshotClass makes a VolumeSnapshotClass of the test and returns its name; parameters are lines of YAML.
func (s *space) snapshotClass(name string, parameters ...string) string {
	s.Helper()
	name = s.name + "-" + name
	text := fmt.Sprintf("apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshotClass\nmetadata: {name: %s}\ndriver: csi.plinth.dev\ndeletionPolicy: Delete\nparameters:\n  %s\n",
		name, strings.Join(parameters, "\n  "))
	mustKubectl(s, text, "create", "-f", "-")
	s.Cleanup(func() {
		if _, err := kubectl(context.Background(), "", "delete", "volumesnapshotclass", name); err != nil {
			s.Error(err)
		}
	})
	return name
}

// snapshot makes a VolumeSnapshot of a claim and waits until it can be used. It is removed with the test.
func (s *space) snapshot(name, class, claim string) string {
	s.Helper()
	text := fmt.Sprintf("apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {name: %s}\nspec:\n  volumeSnapshotClassName: %s\n  source: {persistentVolumeClaimName: %s}\n", name, class, claim)
	mustKubectl(s, text, "create", "-n", s.name, "-f", "-")
	s.Cleanup(func() {
		if _, err := kubectl(context.Background(), "", "delete", "volumesnapshot", "-n", s.name, name, "--ignore-not-found", "--timeout=1m"); err != nil {
			s.Error(err)
		}
	})
	must(s, "snapshot "+name+" to be ready", func(ctx context.Context) error {
		status, err := kubectl(ctx, "", "get", "volumesnapshot", "-n", s.name, name, "-o", "jsonpath={.status}")
		if err == nil && !strings.Contains(status, `"readyToUse":true`) {
			err = fmt.Errorf("its status is %s; %s", status, s.lastEvent(ctx, name))
		}
		return err
	})
	return name
}

// forget deletes a snapshot, and waits until what it stood for is gone too.
func (s *space) forget(snapshot string) {
	s.Helper()
	content := mustKubectl(s, "", "get", "volumesnapshot", "-n", s.name, snapshot, "-o", "jsonpath={.status.boundVolumeSnapshotContentName}")
	mustKubectl(s, "", "delete", "volumesnapshot", "-n", s.name, snapshot, "--wait", "--timeout=3m")
	must(s, "the content of snapshot "+snapshot+" to go", func(ctx context.Context) error {
		out, err := kubectl(ctx, "", "get", "volumesnapshotcontent", content, "--ignore-not-found", "-o", "jsonpath={.status.error.message}{.metadata.finalizers}")
		if err == nil && out != "" {
			err = errors.New(out)
		}
		return err
	})
}

// restoredFrom has a claim begin as a snapshot, or as another claim is.
func restoredFrom(kind, name string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		c.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: kind, Name: name}
		if kind == "VolumeSnapshot" {
			group := "snapshot.storage.k8s.io"
			c.Spec.DataSource.APIGroup = &group
		}
	}
}

const (
	ofSnapshot = "VolumeSnapshot"
	ofClaim    = "PersistentVolumeClaim"
)

// A volume is taken back to where it was, on its node and on another; what it has become since stays.
func TestSnapshotIsRestored(t *testing.T) {
	s := newSpace(t)
	image := mustImage(t, xfsImage)
	class := s.class("c", late, s.onDemand("golden", image))
	pod := s.pod("source", []string{s.claim("source", class, "400Mi")})
	node := s.running(pod)
	s.exec(pod, "echo before > /data/said") // that the snapshot has it though nothing was synced is the driver's part
	snapshot := s.snapshot("monday", s.snapshotClass("snap", "type: snap"), "source")
	s.exec(pod, "echo after > /data/said && sync")
	near := s.pod("near", []string{s.claim("near", class, "400Mi", restoredFrom(ofSnapshot, snapshot))}, onNode(node))
	far := s.pod("far", []string{s.claim("far", class, "800Mi", restoredFrom(ofSnapshot, snapshot))}, awayFrom(node))
	for _, p := range []string{near, far} {
		s.running(p)
		s.mustHold(p, image)
		if got := s.exec(p, "cat /data/said"); got != "before" {
			t.Errorf("pod %s reads %q, which was not when the snapshot was taken", p, got)
		}
	}
	if got := s.exec(pod, "cat /data/said"); got != "after" {
		t.Errorf("the source reads %q", got)
	}
	if has, had := s.blocks(far), s.blocks(near); has < had+300<<10 {
		t.Errorf("the larger claim has %d KiB, the other %d", has, had)
	}
	s.forget(snapshot)
	if out := mustKubectl(t, "", "get", "snapshots.plinth.dev", "--no-headers", "--ignore-not-found"); out != "" {
		t.Errorf("snapshots are there still:\n%s", out)
	}
	s.mustHold(near, image)
}

// A claim that begins as another is at that moment, on its node and on another, as files and as a device.
func TestClaimIsCloned(t *testing.T) {
	s := newSpace(t)
	image := mustImage(t, ext4Image)
	class := s.class("c", late, s.onDemand("golden", image))
	pod := s.pod("source", []string{s.claim("source", class, "100Mi"), s.claim("disk", class, "100Mi", asBlock)})
	node := s.running(pod)
	s.exec(pod, "echo one > /data/said && sync; echo two | dd of=/dev/volume1 bs=4096 seek=16384 conv=fsync,notrunc 2>/dev/null")
	for name, where := range map[string]func(*corev1.Pod){"near": onNode(node), "far": awayFrom(node)} {
		clone := s.pod(name, []string{
			s.claim(name, class, "100Mi", restoredFrom(ofClaim, "source")), s.claim(name+"-disk", class, "100Mi", asBlock, restoredFrom(ofClaim, "disk")),
		}, where)
		s.running(clone)
		s.mustHold(clone, image)
		if got := s.exec(clone, "cat /data/said; dd if=/dev/volume1 bs=4096 skip=16384 count=1 2>/dev/null | head -c 3"); got != "one\ntwo" {
			t.Errorf("the clone on %s reads %q", name, got)
		}
	}
	s.exec(pod, "echo three > /data/said && sync")
	if got := s.exec("near", "cat /data/said"); got != "one" {
		t.Errorf("what is written to the source is in its clone: %q", got)
	}
}

// A snapshot that is an image: volumes on any node start from it, and it is there as long as one of them is.
func TestSnapshotIsAnImage(t *testing.T) {
	s := newSpace(t)
	image := mustImage(t, xfsImage)
	class := s.class("c", late, s.onDemand("golden", image))
	pod := s.pod("source", []string{s.claim("source", class, "400Mi")})
	node := s.running(pod)
	s.exec(pod, "echo installed > /data/said && sync")
	snapshot := s.snapshot("set-up", s.snapshotClass("bi", "type: bi"), "source")
	s.deletePod(pod)
	mustKubectl(t, "", "delete", "pvc", "-n", s.name, "source", "--wait", "--timeout=60s")
	empty := s.class("any", late, nil)
	next := s.pod("next", []string{s.claim("next", empty, "400Mi", restoredFrom(ofSnapshot, snapshot))}, awayFrom(node))
	s.running(next)
	s.mustHold(next, image)
	if got := s.exec(next, "cat /data/said"); got != "installed" {
		t.Errorf("the volume of the image reads %q", got)
	}
	content := mustKubectl(t, "", "get", "volumesnapshot", "-n", s.name, snapshot, "-o", "jsonpath={.status.boundVolumeSnapshotContentName}")
	mustKubectl(t, "", "delete", "volumesnapshot", "-n", s.name, snapshot, "--wait=false")
	must(t, "the snapshot's deletion to be refused while a volume is made from it", func(ctx context.Context) error {
		out, err := kubectl(ctx, "", "get", "events", "-A", "--field-selector", "involvedObject.name="+content, "-o", "jsonpath={.items[*].reason}")
		if err == nil && !strings.Contains(out, "SnapshotDeleteError") {
			err = fmt.Errorf("what is said of it is %q", out)
		}
		return err
	})
	s.deletePod(next)
	mustKubectl(t, "", "delete", "pvc", "-n", s.name, "next", "--wait", "--timeout=60s")
	mustKubectl(t, "", "wait", "volumesnapshotcontent/"+content, "--for=delete", "--timeout=5m")
}

// A backup outlives its volume and is restored on another node, with the image that it was made over.
func TestBackupOutlivesItsVolume(t *testing.T) {
	s := newSpace(t)
	target := s.target()
	image := mustImage(t, xfsImage)
	class := s.class("c", late, s.onDemand("golden", image))
	pod := s.pod("source", []string{s.claim("source", class, "400Mi")})
	node := s.running(pod)
	s.exec(pod, "echo kept > /data/said && sync")
	snapshot := s.snapshot("nightly", s.snapshotClass("bak", "type: bak", "backupTargetName: "+target), "source")
	s.deletePod(pod)
	mustKubectl(t, "", "delete", "pvc", "-n", s.name, "source", "--wait", "--timeout=60s")
	next := s.pod("next", []string{s.claim("next", s.class("any", late, nil), "400Mi", restoredFrom(ofSnapshot, snapshot))}, awayFrom(node))
	s.running(next)
	s.mustHold(next, image)
	if got := s.exec(next, "cat /data/said"); got != "kept" {
		t.Errorf("the restored volume reads %q", got)
	}
	s.forget(snapshot)
	if out := mustKubectl(t, "", "get", "backups.plinth.dev", "--no-headers", "--ignore-not-found"); out != "" {
		t.Errorf("backups are there still:\n%s", out)
	}
}

// target is a BackupTarget of the test.
func (s *space) target() string {
	s.Helper()
	text := fmt.Sprintf("apiVersion: plinth.dev/v1alpha1\nkind: BackupTarget\nmetadata: {name: %s}\nspec: {url: %q}\n", s.name, s.backups())
	mustKubectl(s, text, "create", "-f", "-")
	s.Cleanup(func() { mustKubectl(s, "", "delete", "backuptarget", s.name, "--timeout=60s") })
	must(s, "the target to be ready", func(ctx context.Context) error {
		ready, err := kubectl(ctx, "", "get", "backuptarget", s.name, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")]}`)
		if err == nil && !strings.Contains(ready, `"status":"True"`) {
			err = errors.New(ready)
		}
		return err
	})
	return s.name
}

// backups is the URL of a directory of the test's that all nodes share. The controllers' user may use it as the agents do, as
// docs/how-to/backup-and-restore.md says.
func (s *space) backups() string {
	s.Helper()
	if the.rig == nil {
		s.Skip("left out: this cluster's machines have no directory in common that the tests know of")
	}
	const controllers = 65532
	dir := filepath.Join(the.rig.Shared(), s.name)
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, 0, controllers), os.Chmod(dir, os.ModeSetgid|0o770)); err != nil {
		s.Fatal(err)
	}
	return "file://" + backupsAt + "/" + s.name
}
