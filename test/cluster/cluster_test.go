// Package cluster holds the acceptance cases about copies and nodes in which a process matters: agents that are killed, stopped, cut
// off or join late, and a control plane that is killed again and again. What needs none is tested where it is: backingimage/node has
// real agents in one process, backingimage/controller the plan.
package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/test/linktest"
	"plinth.dev/plinth/test/plinthtest"
)

// wait bounds waiting for what takes seconds.
const wait = 2 * time.Minute

// imageBytes of every image here: chunks without zeros.
const imageBytes = 32 << 20

// TestCluster is a standalone on node n1, and nodes n2 to n4, that all the cases share.
func TestCluster(t *testing.T) {
	owner := plinthtest.Start(t, plinthtest.Options{NodeName: "n1", Pool: "1Gi", Args: []string{
		"--api-listen", "0.0.0.0:0", "--advertise-address", "127.0.0.2", "--peer-listen", "127.0.0.2:0", "--node-silence", "5s", "--recovery-wait", "4s",
	}})
	c := &cluster{Standalone: owner, t: t, nodes: map[string]*node{}, sources: map[string]*source{}}
	c.join("n2")
	c.join("n3")
	slow := c.fetchSlowly()
	for _, step := range []struct {
		name string
		test func(*testing.T, *cluster)
	}{
		{"a node that joins during a download gets a copy, and the source is asked once", joinsLate},
		{"the origin's agent dies, another's is silent: others take over, and they stand down when they return", originsGo},
		{"two agents are cut off from each other in the middle of a transfer", cutOff},
		{"two of three nodes are down: the third serves, and their files are used when they are back", twoDown},
		{"a fetch of ten seconds costs a dozen writes", func(t *testing.T, _ *cluster) { fewWritesPerCopy(t, slow) }},
		{"an eviction moves the only copy first, and keeps it when it has nowhere to go", evicted},
		{"a disk is evicted and removed, its copies go elsewhere first", diskRemoved},
		{"ten kills of the control plane fetch nothing", controlPlaneDies},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.test(t, c) }) {
			return
		}
	}
}

// cluster is what the cases share.
type cluster struct {
	*plinthtest.Standalone
	t       *testing.T // lasts longer than a case
	nodes   map[string]*node
	sources map[string]*source
}

// node is an agent of its own, which the others reach through a link.
type node struct {
	*plinthtest.Node
	link *linktest.Link
}

// join starts a node.
func (c *cluster) join(name string) *node {
	c.t.Helper()
	listen := plinthtest.MustFreeAddress(c.t)
	n := &node{link: linktest.New(c.t, func() string { return listen })}
	n.Node = c.StartNode(plinthtest.Options{NodeName: name, Pool: "1Gi", Args: []string{"--heartbeat", "1s", "--peer-listen", listen, "--advertise-address", n.link.Address}})
	c.nodes[name] = n
	return n
}

// counter is the sum of a counter of a node's process.
func (n *node) counter(t *testing.T, name string) (sum int64) {
	t.Helper()
	resp, err := http.Get("http://" + n.HTTP + "/metrics")
	must(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	must(t, err)
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if metric, _, _ := strings.Cut(f[0], "{"); metric == name {
			value, err := strconv.ParseFloat(f[len(f)-1], 64)
			must(t, err)
			sum += int64(value)
		}
	}
	return sum
}

// mustHold checks a node's file of an image.
func (n *node) mustHold(t *testing.T, i *image, content []byte) {
	t.Helper()
	if got, err := os.ReadFile(filepath.Join(n.DataDir, "disk", "pool", "images", i.Metadata.UID, "image.raw")); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the copy of %s on %s differs (%v)", i.Metadata.Name, n.NodeName, err)
	}
}

// untilNothingOf waits until a node's disk has nothing of an image.
func (n *node) untilNothingOf(t *testing.T, i *image) {
	t.Helper()
	until(t, fmt.Sprintf("%s has nothing of image %s", n.NodeName, i.Metadata.Name), func() (bool, any) {
		left, err := filepath.Glob(filepath.Join(n.DataDir, "disk", "pool", "*", i.Metadata.UID))
		return err == nil && len(left) == 0, left
	})
}

// source is a server with one image, behind a link.
type source struct {
	*linktest.Link
	content []byte
}

// newSource serves an image; the link lets so many bytes of it through, all when that is negative.
func (c *cluster) newSource(image string, pass int64) *source {
	content := make([]byte, imageBytes)
	_, _ = rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32s", image)))).Read(content)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"1"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	c.t.Cleanup(server.Close)
	s := &source{linktest.New(c.t, func() string { return server.Listener.Addr().String() }), content}
	s.Pass(pass)
	c.sources[image] = s
	return s
}

// create asks for an image that only nodes may hold that have a tag of its name.
func (c *cluster) create(t *testing.T, name string, pass int64, args ...string) (*image, *source) {
	t.Helper()
	s := c.newSource(name, pass)
	c.MustCLI(append([]string{"image", "create", name, "--url", "http://" + s.Address + "/disk", "--node-selector", name}, args...)...)
	return c.image(t, name), s
}

// tag lets a node hold images of those names.
func (c *cluster) tag(node string, images ...string) {
	c.MustCLI(append([]string{"node", "tag", node}, images...)...)
}

// image is what the cases need of an image's object.
type image struct {
	Metadata struct{ Name, UID string }
	Status   v1alpha1.BackingImageStatus
}

func (c *cluster) image(t *testing.T, name string) *image {
	t.Helper()
	i := new(image)
	must(t, json.Unmarshal([]byte(c.MustCLI("image", "show", name, "-o", "json")), i))
	return i
}

// copies are those of an image, by node.
func (c *cluster) copies(t *testing.T, name string) map[string]*v1alpha1.BackingImageCopy {
	t.Helper()
	list, err := c.Client(t).Copies.List(context.Background(), metav1.ListOptions{FieldSelector: "spec.image=" + name})
	must(t, err)
	all := map[string]*v1alpha1.BackingImageCopy{}
	for i := range list.Items {
		all[list.Items[i].Spec.NodeName] = &list.Items[i]
	}
	return all
}

// untilCopy waits for the copy of an image on a node to be as wanted; is sees nil while there is none.
func (c *cluster) untilCopy(t *testing.T, name, node, what string, is func(*v1alpha1.BackingImageCopy) bool) {
	t.Helper()
	until(t, fmt.Sprintf("the copy of %s on %s is %s", name, node, what), func() (bool, any) {
		b := c.copies(t, name)[node]
		return is(b), b
	})
}

// untilCopies waits for an image to have so many ready copies, as "ready/wanted".
func (c *cluster) untilCopies(t *testing.T, name, copies string) *image {
	t.Helper()
	var i *image
	until(t, fmt.Sprintf("image %s has copies %s", name, copies), func() (bool, any) {
		i = c.image(t, name)
		return i.Status.Copies == copies && i.Status.State == v1alpha1.CopyReady, i.Status
	})
	return i
}

// untilShown waits for an image to say that its copy on a node is in a state.
func (c *cluster) untilShown(t *testing.T, name, node string, state v1alpha1.CopyState) v1alpha1.DiskFileStatus {
	t.Helper()
	var shown v1alpha1.DiskFileStatus
	until(t, fmt.Sprintf("image %s shows its copy on %s as %s", name, node, state), func() (bool, any) {
		b, all := c.copies(t, name)[node], c.image(t, name).Status.DiskFileStatusMap
		if b != nil {
			shown = all[b.Spec.DiskUUID]
		}
		return shown.State == state, all
	})
	return shown
}

// mustDelete deletes an image, and checks that neither it nor a copy is left.
func (c *cluster) mustDelete(t *testing.T, i *image) {
	t.Helper()
	c.MustCLI("image", "rm", i.Metadata.Name, "--timeout", wait.String())
	until(t, "its copies are gone", func() (bool, any) {
		left := c.copies(t, i.Metadata.Name)
		return len(left) == 0, left
	})
}

// mustBeFetched checks that the source gave no more than so many times its image. A connection that is closed early costs what
// was on its way, which on a busy machine is up to a piece of a parallel download; fetching anew would cost the whole.
func (s *source) mustBeFetched(t *testing.T, times float64) {
	t.Helper()
	if n := s.Passed(); float64(n) > times*imageBytes+imageBytes/2 {
		t.Errorf("the source gave %d bytes of %d, want at most %.2f times the image", n, imageBytes, times)
	}
}

// until waits for a state, and tells the last one when it does not come.
func until(t *testing.T, what string, is func() (bool, any)) {
	t.Helper()
	for deadline := time.Now().Add(wait); ; time.Sleep(50 * time.Millisecond) {
		done, last := is()
		if done {
			return
		}
		if time.Now().After(deadline) {
			text, _ := json.MarshalIndent(last, "", " ")
			t.Fatalf("it did not come about: %s; it is\n%s", what, text)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
