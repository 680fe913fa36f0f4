package main_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage/disk/disktest"
	"plinth.dev/plinth/backingimage/disk/loop"
	"plinth.dev/plinth/test/plinthtest"
)

// TestDisks uses the commands about disks and nodes as a person does.
func TestDisks(t *testing.T) {
	mount := disktest.MustFilesystem(t, "xfs", 512<<20)
	s := plinthtest.Start(t, plinthtest.Options{})
	www := t.TempDir()
	image := plinthtest.MustImage(t, www, "image.qcow2", plinthtest.Image{Files: map[string]string{"hello": "from the image\n"}})
	u := &user{Standalone: s, staging: filepath.Join(s.Dir, "staging"), url: plinthtest.Serve(t, www), image: image}
	o := &owner{user: u, mount: mount, path: filepath.Join(mount, "disk")}
	for _, step := range []struct {
		name string
		test func(*testing.T, *owner)
	}{
		{"what cannot be a disk is refused, and nothing is left of the wish", addRefused},
		{"a directory becomes a disk, with tags, and adding it again is no change", diskAdded},
		{"tags are given and taken away", diskTagged},
		{"a disk is found by its UUID, the beginning of it, or its path", diskFound},
		{"a cordoned disk gets nothing, and an uncordoned one does", diskCordoned},
		{"a disk with the last copy of an image is not removed", lastCopy},
		{"a disk with a volume is not removed", volumeOnDisk},
		{"a disk of a flag is not removed", flagDisk},
		{"orphans are listed with what to do", orphansListed},
		{"a disk is removed, keeps its files, and is the same when it is added again", removedAndAdded},
		{"a disk that is lost is forgotten with what was on it", lostDisk},
		{"nodes are tagged, cordoned and evicted", nodePlacing},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.test(t, o) }) {
			return
		}
	}
}

// owner is a user with one more disk.
type owner struct {
	*user
	mount, path string
	uuid        string // of the disk, once it is one
	flags       string // UUID of the disk that the server was started with
}

// object is what a test needs of an object's JSON.
type object struct {
	Metadata struct{ Name string }
	Spec     struct {
		NodeName, Path    string
		Tags              []string
		AllowScheduling   *bool
		EvictionRequested bool
		Disks             []struct{ Path string }
	}
}

func (o *owner) object(t *testing.T, args ...string) object {
	t.Helper()
	var got object
	if err := json.Unmarshal([]byte(o.MustCLI(append(args, "-o", "json")...)), &got); err != nil {
		t.Fatal(err)
	}
	return got
}

// says checks what a command that succeeds prints.
func (o *owner) says(t *testing.T, words []string, args ...string) {
	t.Helper()
	out := o.MustCLI(args...)
	for _, w := range words {
		if !strings.Contains(out, w) {
			t.Errorf("plinth %s does not say %q:\n%s", strings.Join(args, " "), w, out)
		}
	}
}

func addRefused(t *testing.T, o *owner) {
	o.flags = strings.TrimSpace(o.MustCLI("disk", "ls", "-o", "name"))
	file := filepath.Join(o.mount, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o.refused(t, 2, []string{file, "test-node"}, "disk", "add", file)
	o.refused(t, 2, []string{"absolute"}, "disk", "add", "relative")
	o.refused(t, 2, []string{"absolute"}, "disk", "add", "/")
	o.refused(t, 2, []string{"--pool-size"}, "disk", "add", o.path, "--pool-size", "1Mi")
	o.refused(t, 2, []string{"--tag"}, "disk", "add", o.path, "--tag", "a,b")
	o.refused(t, 3, []string{"nowhere"}, "disk", "add", o.path, "--node", "nowhere")
	if left := o.object(t, "node", "show", "test-node").Spec.Disks; len(left) > 0 {
		t.Errorf("left in spec.disks: %v", left)
	}
}

func diskAdded(t *testing.T, o *owner) {
	o.says(t, []string{o.path, "test-node", "xfs", "free"}, "disk", "add", o.path, "--tag", "fast")
	o.says(t, []string{o.path}, "disk", "add", o.path, "--tag", "fast", "--tag", "new")
	d := o.object(t, "disk", "show", o.path)
	o.uuid = d.Metadata.Name
	if strings.Join(d.Spec.Tags, ",") != "fast,new" || d.Spec.NodeName != "test-node" {
		t.Errorf("the disk is %+v", d)
	}
	if wishes := o.object(t, "node", "show", "test-node").Spec.Disks; len(wishes) != 1 || wishes[0].Path != o.path {
		t.Errorf("spec.disks is %v", wishes)
	}
	o.says(t, []string{"--disk", "disk add", o.uuid, "open"}, "node", "show", "test-node")
}

func diskTagged(t *testing.T, o *owner) {
	o.says(t, []string{"has the tags new, b"}, "disk", "tag", o.uuid, "fast-", "b")
	o.says(t, []string{"has no tags"}, "disk", "tag", o.uuid, "new-", "b-")
	o.refused(t, 2, []string{"TAG-"}, "disk", "tag", o.uuid)
	o.refused(t, 2, []string{`"a,b"`}, "disk", "tag", o.uuid, "a,b")
	o.MustCLI("disk", "tag", o.uuid, "second")
}

func diskFound(t *testing.T, o *owner) {
	for _, ref := range []string{o.uuid, o.uuid[:13], o.path, o.path + "/"} {
		if d := o.object(t, "disk", "show", ref); d.Metadata.Name != o.uuid {
			t.Errorf("%s is disk %s", ref, d.Metadata.Name)
		}
	}
	o.refused(t, 3, []string{"plinth disk ls"}, "disk", "show", "/nowhere")
	o.refused(t, 3, []string{"nowhere"}, "disk", "evict", o.path, "--node", "nowhere")
}

func diskCordoned(t *testing.T, o *owner) {
	o.says(t, []string{"gets nothing new", "uncordon"}, "disk", "cordon", o.path)
	o.refused(t, 7, []string{"allowScheduling"}, "volume", "create", "x", "--size", "10Mi", "--parameter", "diskSelector=second")
	o.says(t, []string{"may get new"}, "disk", "uncordon", o.path)
	o.says(t, []string{"gets nothing new", "no copies", "--undo"}, "disk", "evict", o.path)
	o.says(t, []string{"still gets nothing", "evict"}, "disk", "uncordon", o.path)
	o.says(t, []string{"keeps its copies"}, "disk", "evict", o.path, "--undo")
	if d := o.object(t, "disk", "show", o.path); d.Spec.EvictionRequested || !*d.Spec.AllowScheduling {
		t.Errorf("the disk is %+v", d.Spec)
	}
}

func lastCopy(t *testing.T, o *owner) {
	o.MustCLI("image", "create", "base", "--url", o.url+"/image.qcow2", "--disk-selector", "second", "--wait")
	o.says(t, []string{"ON IT", "copy", "base", "ready"}, "disk", "show", o.path)
	o.refused(t, 5, []string{"last ready copy", "base", "plinth disk evict " + o.uuid}, "disk", "rm", o.path)
	if o.object(t, "disk", "show", o.path).Spec.EvictionRequested {
		t.Error("a removal that was refused has changed the disk")
	}
	o.MustCLI("image", "rm", "base")
}

func volumeOnDisk(t *testing.T, o *owner) {
	o.MustCLI("volume", "create", "kept", "--size", "10Mi", "--parameter", "diskSelector=second")
	o.says(t, []string{"volume", "kept"}, "disk", "show", o.path)
	o.refused(t, 5, []string{"kept", "plinth volume rm"}, "disk", "rm", o.path)
	o.refused(t, 5, []string{"can be used"}, "disk", "rm", o.path, "--lost")
	o.MustCLI("volume", "rm", "kept")
}

func flagDisk(t *testing.T, o *owner) {
	o.refused(t, 5, []string{"--disk flag"}, "disk", "rm", o.flags)
}

func orphansListed(t *testing.T, o *owner) {
	dir := filepath.Join(o.path, "volumes", "nobodys")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if r := o.CLI("disk", "orphans"); r.Code != 0 || !strings.Contains(r.Stderr, "No orphans") {
		t.Errorf("orphans: %+v", r)
	}
	o.Restart() // looks at once, and not with the next heartbeat
	o.says(t, []string{o.uuid, "volume", "nobodys", dir}, "disk", "orphans", o.path)
	o.says(t, []string{"1; see: plinth disk orphans"}, "disk", "show", o.path)
	if out := o.MustCLI("disk", "orphans", "-o", "name"); out != "nobodys\n" {
		t.Errorf("orphans by name: %q", out)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
}

func removedAndAdded(t *testing.T, o *owner) {
	o.says(t, []string{"not used any more", "files stay", "plinth disk add " + o.path}, "disk", "rm", o.uuid)
	o.refused(t, 3, nil, "disk", "show", o.uuid)
	o.refused(t, 3, nil, "disk", "rm", o.path)
	o.says(t, []string{o.uuid}, "disk", "add", o.path, "--tag", "second")
}

func lostDisk(t *testing.T, o *owner) {
	o.MustCLI("volume", "create", "gone", "--size", "10Mi", "--parameter", "diskSelector=second")
	for deadline := time.Now().Add(time.Minute); !strings.Contains(o.MustCLI("volume", "show", "gone"), "ready"); {
		if time.Now().After(deadline) {
			t.Fatal("the volume is not made")
		}
	}
	o.Stop()
	device, found, err := loop.Find(o.mount + ".img")
	if err != nil || !found {
		t.Fatalf("find the filesystem's device: %v", err)
	}
	if err := unix.Unmount(o.mount, 0); err != nil {
		t.Fatal(err)
	}
	o.Restart()
	o.says(t, []string{"no: Gone"}, "disk", "ls")
	o.says(t, []string{"no: ", "mount it"}, "disk", "show", o.uuid)
	o.refused(t, 5, []string{"gone", "--lost"}, "disk", "rm", o.uuid)
	o.says(t, []string{"volume gone is lost", "is forgotten"}, "disk", "rm", o.uuid, "--lost")
	o.refused(t, 3, nil, "volume", "show", "gone")
	o.refused(t, 3, nil, "disk", "show", o.uuid)
	if err := unix.Mount(device.Path, o.mount, "xfs", unix.MS_NOATIME, ""); err != nil {
		t.Fatal(err)
	}
	o.says(t, []string{o.uuid}, "disk", "add", o.path)
	o.says(t, []string{"gone", filepath.Join(o.path, "volumes", "gone")}, "disk", "orphans")
	o.MustCLI("disk", "rm", o.uuid)
}

func nodePlacing(t *testing.T, o *owner) {
	o.says(t, []string{"node test-node has the tags ssd"}, "node", "tag", "test-node", "ssd")
	o.says(t, []string{"gets nothing new"}, "node", "cordon", "test-node")
	o.refused(t, 7, []string{"node"}, "volume", "create", "x", "--size", "10Mi")
	o.says(t, []string{"may get new"}, "node", "uncordon", "test-node")
	o.says(t, []string{"gets nothing new", "plinth node show test-node"}, "node", "evict", "test-node")
	o.says(t, []string{"keeps its copies"}, "node", "evict", "test-node", "--undo")
	o.refused(t, 3, []string{"nowhere"}, "node", "evict", "nowhere")
	if n := o.object(t, "node", "show", "test-node"); n.Spec.EvictionRequested || strings.Join(n.Spec.Tags, ",") != "ssd" {
		t.Errorf("the node is %+v", n.Spec)
	}
}
