package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"plinth.dev/plinth/test/plinthtest"
)

// TestJoin is a cluster of three agents on one host: a standalone, and two nodes that joined it.
func TestJoin(t *testing.T) {
	owner := plinthtest.Start(t, plinthtest.Options{NodeName: "n1", Pool: "1Gi", Args: []string{"--api-listen", "0.0.0.0:0", "--advertise-address", "127.0.0.2", "--peer-listen", "127.0.0.2:0", "--node-silence", "3s"}})
	heartbeat := []string{"--heartbeat", "1s"}
	n2 := owner.StartNode(plinthtest.Options{NodeName: "n2", Pool: "1Gi", Args: heartbeat})
	n3 := owner.StartNode(plinthtest.Options{NodeName: "n3", Pool: "1Gi", Args: heartbeat})
	web := t.TempDir()
	image := plinthtest.MustImage(t, web, "golden.qcow2", plinthtest.Image{Size: "32M", Files: map[string]string{"hello": "from the image\n"}})
	url := plinthtest.Serve(t, web) + "/golden.qcow2"

	t.Run("each has registered itself and its disk", func(t *testing.T) {
		nodes, disks := owner.MustCLI("node", "ls"), owner.MustCLI("disk", "ls")
		for _, name := range []string{"n1", "n2", "n3"} {
			if !strings.Contains(nodes, name+" ") || !strings.Contains(disks, " "+name+" ") {
				t.Errorf("no %s in\n%s%s", name, nodes, disks)
			}
		}
	})
	t.Run("the kubeconfig of a node has the address for others", func(t *testing.T) {
		text, err := os.ReadFile(n2.Kubeconfig)
		if err != nil || !strings.Contains(string(text), "https://127.0.0.2:") {
			t.Errorf("it is not there (%v)", err)
		}
	})
	for _, at := range []*plinthtest.Node{n2, n3} {
		t.Run("a volume of an image is made and mounted on "+at.NodeName, func(t *testing.T) {
			mounts(t, owner, at, url, image.SHA256)
		})
	}
	t.Run("a second agent of a name is refused", func(t *testing.T) {
		refusedNode(t, owner, 4, "another agent runs under this name", "--kubeconfig", n2.Kubeconfig, "--node-name", "n2")
	})
	t.Run("an agent with another node's token is refused", func(t *testing.T) {
		refusedNode(t, owner, 1, `the token is node "n2"'s`, "--kubeconfig", n2.Kubeconfig, "--node-name", "n4")
	})
	t.Run("a node that is killed finds its volume mounted when it is back", func(t *testing.T) {
		n3.Kill()
		untilReady(t, owner, "n3", "no")
		mustHave(t, target(n3), "from the image")
		n3.Restart()
		untilReady(t, owner, "n3", "yes")
		n3.MustCLI("volume", "unmount", target(n3), "--staging-dir", n3.Dir)
	})
	t.Run("while the API is away a node goes on, and it is there again when the API is", func(t *testing.T) {
		owner.Kill()
		mustHave(t, target(n2), "from the image")
		owner.Restart()
		untilReady(t, owner, "n2", "yes")
		n2.MustCLI("volume", "unmount", target(n2), "--staging-dir", n2.Dir)
	})
	t.Run("a node whose token is taken back is silent", func(t *testing.T) {
		owner.MustCLI("node", "revoke", "n3")
		untilReady(t, owner, "n3", "no")
		untilReady(t, owner, "n2", "yes")
	})
}

// refusedNode starts a further agent that must end with an exit code and a message.
func refusedNode(t *testing.T, owner *plinthtest.Standalone, code int, says string, args ...string) {
	t.Helper()
	dir, err := os.MkdirTemp(owner.Dir, "refused-")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	args = slices.Concat([]string{"node", "--data-dir", dir, "--csi-endpoint", "unix://" + filepath.Join(dir, "csi.sock"), "--pool-size", "1Gi", "--heartbeat", "1s"}, args)
	cmd := exec.CommandContext(ctx, owner.Binary, args...)
	out, err := cmd.CombinedOutput()
	if got := cmd.ProcessState.ExitCode(); got != code || !strings.Contains(string(out), says) {
		t.Errorf("exit code %d, want %d with %q (%v)\n%s", got, code, says, err, out)
	}
}

// mounts makes a volume on a node through the controller's socket, and mounts it through the node's own.
func mounts(t *testing.T, owner *plinthtest.Standalone, at *plinthtest.Node, url, sum string) {
	t.Helper()
	name := "on-" + at.NodeName
	owner.MustCLI("node", "tag", at.NodeName, name)
	owner.MustCLI("image", "create", name, "--url", url, "--checksum", "sha256:"+sum, "--node-selector", name)
	owner.MustCLI("volume", "create", name, "--image", name, "--node", at.NodeName)
	at.MustCLI("volume", "mount", name, target(at), "--staging-dir", at.Dir, "--timeout", "60s")
	mustHave(t, target(at), "from the image")
}

func target(n *plinthtest.Node) string { return filepath.Join(n.Dir, "mnt") }

// mustHave reads what the image brought.
func mustHave(t *testing.T, dir, want string) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(dir, "hello"))
	if err != nil || strings.TrimSpace(string(got)) != want {
		t.Fatalf("got %q (%v)", got, err)
	}
}

// untilReady waits for a node to be as wanted.
func untilReady(t *testing.T, owner *plinthtest.Standalone, node, want string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		line := owner.MustCLI("node", "ls")
		for row := range strings.Lines(line) {
			if f := strings.Fields(row); len(f) > 1 && f[0] == node && strings.TrimSuffix(f[1], ":") == want {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("node %s is not ready=%s:\n%s", node, want, line)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
