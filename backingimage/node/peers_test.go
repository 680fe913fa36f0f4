package node_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/disk/disktest"
	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/node/nodetest"
	"plinth.dev/plinth/backingimage/store/embedded/embeddedtest"
	"plinth.dev/plinth/backingimage/transfer"
	"plinth.dev/plinth/test/linktest"
)

// mustCluster makes Machines n1, n2 …, of which the first is started.
func mustCluster(t *testing.T, count int) []*nodetest.Machine {
	t.Helper()
	disktest.NeedRoot(t)
	var names []string
	for i := range count {
		names = append(names, fmt.Sprintf("n%d", i+1))
	}
	list := nodetest.Cluster(t, embeddedtest.MustStart(t), names...)
	for _, m := range list {
		m.Disks = append(m.Disks, disktest.MustPool(t, nodetest.PoolBytes))
	}
	list[0].Start()
	return list
}

// wants changes how many copies an image is to have.
func wants(t *testing.T, m *nodetest.Machine, name string, copies int32) {
	t.Helper()
	_, err := m.Store.Images.Modify(context.Background(), name, func(i *v1alpha1.BackingImage) { i.Spec.MinNumberOfCopies = copies })
	must(t, err)
}

// sameContent checks that every machine has an image's content.
func sameContent(t *testing.T, i *v1alpha1.BackingImage, content []byte, machines ...*nodetest.Machine) {
	t.Helper()
	for _, m := range machines {
		got, err := os.ReadFile(m.Path(0, i))
		must(t, err)
		if !bytes.Equal(got, content) {
			t.Errorf("the copy on %s differs", m.NodeName)
		}
	}
}

// dataBytes is how much of a content is in chunks that are not zero.
func dataBytes(content []byte) float64 {
	total := 0
	for at := 0; at < len(content); at += manifest.ChunkBytes {
		if chunk := content[at:min(at+manifest.ChunkBytes, len(content))]; !manifest.AllZero(chunk) {
			total += len(chunk)
		}
	}
	return float64(total)
}

func TestCopiesComeFromOtherNodes(t *testing.T) {
	c := mustCluster(t, 5)
	for _, m := range c { // slow enough that all receive at the same time
		m.Peering.BytesPerSecond = 12 << 20
	}
	c[0].Stop()
	c[0].Start()
	w := nodetest.NewWeb(t, 64<<20)
	c[0].CreateImage("image", w.URL, w.SHA512(), 1)
	c[0].UntilReady("image", "1/1")
	for _, m := range c[1:] {
		m.Start()
	}
	wants(t, c[0], "image", 5)
	i := c[0].UntilReady("image", "5/5")
	sameContent(t, i, w.Content, c...)
	if n := w.Served.Load(); n > 96<<20 { // connections that are closed early count a little more
		t.Errorf("the source gave %d bytes of %d: the image crosses the internet once", n, 64<<20)
	}
	data := dataBytes(w.Content)
	sent := c[0].Peering.Count(t, "plinth_peer_served_bytes_total")
	t.Logf("the first copy's node sent %.2f times the image to %d others", sent/data, len(c)-1)
	if sent > 2.5*data {
		t.Errorf("the first copy's node sent %.0f bytes, %.2f times the image: the receivers do not give to each other", sent, sent/data)
	}
	for _, m := range c[1:] {
		if got := m.Peering.Count(t, "plinth_peer_bytes_total"); got != data {
			t.Errorf("%s got %.0f bytes of %.0f", m.NodeName, got, data)
		}
	}
	for _, copy := range copiesOf(t, c[0], i) {
		if s := copy.Status; s.Checksum != w.SHA512() || s.Size != 64<<20 || s.Format != "raw" || s.ContentDigest != i.Status.ContentDigest || s.RealSize == 0 {
			t.Errorf("copy on %s is %+v", copy.Spec.NodeName, s)
		}
	}
}

func copiesOf(t *testing.T, m *nodetest.Machine, i *v1alpha1.BackingImage) []*v1alpha1.BackingImageCopy {
	t.Helper()
	list, err := m.Store.Copies.LiveSelect(context.Background(), "spec.image="+i.Name)
	must(t, err)
	return list
}

// until waits for something to be true.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(nodetest.Wait); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it did not come about: %s", what)
		}
	}
}

// TestAReceiverGoesOnWithWhoHasAPart cuts the only complete copy off after so many bytes, so that first one of two others has a
// part that it can give, then the other.
func TestAReceiverGoesOnWithWhoHasAPart(t *testing.T) {
	c := mustCluster(t, 3)
	c[0].Stop()
	link := linktest.New(t, func() string { return c[0].Peering.Address })
	c[0].Peering.Advertise = func(string) string { return link.Address }
	c[0].Start()
	w := nodetest.NewWeb(t, 64<<20)
	c[0].CreateImage("image", w.URL, "", 1)
	c[0].UntilReady("image", "1/1")
	data := dataBytes(w.Content)
	received := func(of int) float64 { return c[of].Peering.Count(t, "plinth_peer_bytes_total") }

	link.Pass(int64(data / 2)) // of which what is in buffers may be lost
	c[1].Start()
	wants(t, c[0], "image", 2)
	until(t, "n1 is cut off", link.Cut)
	untilSays(t, c[0], "n2", "n1 is silent")
	first := received(1)
	if first == 0 || first >= data/2 {
		t.Fatalf("n2 has %.0f bytes of the %.0f that came through", first, data/2)
	}
	c[2].Start()
	wants(t, c[0], "image", 3)
	until(t, "n3 has what n2 has", func() bool { return received(2) == first })
	for _, name := range []string{"n2", "n3"} { // what one of them has, the other gets; for the rest they wait, and say so
		untilSays(t, c[0], name, "n1 is silent", " of 16 chunks")
	}

	c[1].Stop()
	link.Pass(int64(data * 3 / 8))
	until(t, "n1 is cut off again", link.Cut)
	c[1].Start() // its counters begin at 0
	until(t, "n2 has what n3 has", func() bool { return received(1) > 0 && first+received(1) == received(2) })

	link.Pass(-1)
	i := c[0].UntilReady("image", "3/3")
	sameContent(t, i, w.Content, c...)
	for of, got := range map[int]float64{1: first + received(1), 2: received(2)} {
		if got != data {
			t.Errorf("%s received %.0f bytes for a copy of %.0f", c[of].NodeName, got, data)
		}
	}
}

// untilSays waits for the copy on a node to say all of some words at once.
func untilSays(t *testing.T, m *nodetest.Machine, node string, words ...string) {
	t.Helper()
	until(t, fmt.Sprintf("the copy on %s says %q", node, words), func() bool {
		return slices.ContainsFunc(copiesOf(t, m, m.UntilState("image", v1alpha1.CopyReady)), func(c *v1alpha1.BackingImageCopy) bool {
			return c.Spec.NodeName == node && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(c.Status.Message, w) })
		})
	})
}

func TestABitThatFlippedOnAPeerIsNotTaken(t *testing.T) {
	c := mustCluster(t, 3)
	w := nodetest.NewWeb(t, 32<<20)
	c[0].CreateImage("image", w.URL, "", 1)
	i := c[0].UntilReady("image", "1/1")
	c[1].Start()
	wants(t, c[0], "image", 2)
	c[0].UntilReady("image", "2/2")
	for chunk := range int64(8) {
		flip(t, c[0].Path(0, i), chunk*manifest.ChunkBytes+99)
	}
	c[2].Start()
	wants(t, c[0], "image", 3)
	c[0].UntilReady("image", "3/3")
	sameContent(t, i, w.Content, c[1], c[2])
	if n := c[2].Peering.Count(t, "plinth_chunk_retries_total", "reason", "wrong"); n == 0 {
		t.Log("the damaged peer was not asked for anything")
	} else if !strings.Contains(c[2].Logs(), "A peer sent wrong bytes") {
		t.Error("the log does not name the peer that sent wrong bytes")
	}
}

// flip flips a bit of a sealed file.
func flip(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	must(t, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0))
	out, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer out.Close()
	one := make([]byte, 1)
	_, err = out.ReadAt(one, at)
	must(t, err)
	one[0] ^= 1
	_, err = out.WriteAt(one, at)
	must(t, err)
}

func TestACopyThatIsLostComesBackFromAPeer(t *testing.T) {
	c := mustCluster(t, 2)
	c[1].Start()
	w := nodetest.NewWeb(t, 16<<20)
	c[0].CreateImage("image", w.URL, "", 2)
	i := c[0].UntilReady("image", "2/2")
	sameContent(t, i, w.Content, c...)
	w.Fail.Store(true) // the source has gone
	for _, copy := range copiesOf(t, c[0], i) {
		if !copy.Spec.Origin {
			continue
		}
		for _, m := range c {
			if m.NodeName == copy.Spec.NodeName {
				m.Stop()
				must(t, m.Disks[0].RemoveImage(string(i.UID)))
				_, err := m.Store.Copies.ModifyStatus(context.Background(), copy.Name, func(c *v1alpha1.BackingImageCopy) { c.Status.State = v1alpha1.CopyPending })
				must(t, err)
				m.Start()
				until(t, "the copy is there again", func() bool { _, err := os.Stat(m.Path(0, i)); return err == nil })
			}
		}
	}
	sameContent(t, c[0].UntilReady("image", "2/2"), w.Content, c...)
	m := c[0]
	chunk, err := m.Agent.Chunk(context.Background(), string(i.UID), 1, manifest.Sum(w.Content[manifest.ChunkBytes:2*manifest.ChunkBytes]))
	must(t, err)
	if !bytes.Equal(chunk, w.Content[manifest.ChunkBytes:2*manifest.ChunkBytes]) {
		t.Error("one chunk differs")
	}
	for _, index := range []int64{-1, 8, 1 << 40} {
		if _, err := m.Agent.Chunk(context.Background(), string(i.UID), index, manifest.Digest{}); !backingimage.Is(err, backingimage.NotFound) {
			t.Errorf("chunk %d: %v", index, err)
		}
	}
}

func TestWhoMayAskTheServer(t *testing.T) {
	c := mustCluster(t, 2)
	c[1].Start()
	w := nodetest.NewWeb(t, 8<<20)
	c[0].CreateImage("image", w.URL, "", 1)
	i := c[0].UntilReady("image", "1/1")
	uid := string(i.UID)
	stranger, err := transfer.OpenIdentity(filepath.Join(t.TempDir(), "stranger"))
	must(t, err)
	var holder *nodetest.Machine
	for _, m := range c {
		if _, err := os.Stat(filepath.Join(m.Disks[0].Layout().Image(uid), disk.ImageFile)); err == nil {
			holder = m
		}
	}
	other := c[0]
	if holder == c[0] {
		other = c[1]
	}
	for _, tc := range []struct {
		name, path, span string
		identity         *transfer.Identity
		status           int
		reason           string // of the refusal
	}{
		{"a peer reads the manifest", uid + "/manifest", "", other.Peering.Identity, 200, ""},
		{"a peer reads the record", uid + "/record", "", other.Peering.Identity, 200, ""},
		{"a peer asks what is there", uid + "/have", "", other.Peering.Identity, 200, ""},
		{"a peer reads data", uid + "/data", "bytes=0-2097151", other.Peering.Identity, 206, ""},
		{"beyond the file", uid + "/data", "bytes=8388608-8388609", other.Peering.Identity, 416, "outside"},
		{"backwards", uid + "/data", "bytes=9-1", other.Peering.Identity, 416, "outside"},
		{"another image", strings.Repeat("0", 8) + uid[8:] + "/data", "bytes=0-1", other.Peering.Identity, 404, "no-image"},
		{"no image", "..%2f..%2fetc/data", "bytes=0-1", other.Peering.Identity, 404, "no-image"},
		{"an unknown key", uid + "/data", "bytes=0-1", stranger, 401, "unknown-key"},
		{"an unknown key asks what is there", uid + "/have", "", stranger, 401, "unknown-key"},
		{"no key and no token", uid + "/data", "bytes=0-1", nil, 401, "no-token"},
		{"what only peers may ask", uid + "/have", "", nil, 401, "no-peer"},
		{"a peer uploads", "../uploads/" + uid, "", other.Peering.Identity, 401, "no-token"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := holder.Peering.Count(t, "plinth_transfer_refused_total", "reason", tc.reason)
			status, body := ask(t, holder, tc.identity, tc.path, tc.span)
			if status != tc.status {
				t.Errorf("answered %d, want %d: %s", status, tc.status, body)
			}
			after := holder.Peering.Count(t, "plinth_transfer_refused_total", "reason", tc.reason)
			if tc.reason != "" && after != before+1 {
				t.Errorf("refused %.0f times for %s, then %.0f", before, tc.reason, after)
			}
		})
	}
	// A node that is no longer there is a stranger.
	must(t, other.Store.Nodes.Delete(context.Background(), "n9"))
	gone := other.Peering.Identity
	other.Stop()
	must(t, holder.Store.Nodes.Delete(context.Background(), other.NodeName))
	until(t, "the node that was deleted is refused", func() bool {
		status, _ := ask(t, holder, gone, uid+"/manifest", "")
		return status == 401
	})
}

// ask asks a machine's server and returns the answer's status and the beginning of its text.
func ask(t *testing.T, m *nodetest.Machine, id *transfer.Identity, path, span string) (int, string) {
	t.Helper()
	config := &tls.Config{InsecureSkipVerify: true}
	if id != nil {
		config.Certificates = []tls.Certificate{id.Certificate()}
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
	req, err := http.NewRequest(http.MethodGet, "https://"+m.Peering.Address+"/v1/images/"+path, nil)
	must(t, err)
	if span != "" {
		req.Header.Set("Range", span)
	}
	resp, err := client.Do(req)
	must(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 200))
	must(t, err)
	return resp.StatusCode, string(text)
}

func TestTwoDisksOfANodeReceiveOnce(t *testing.T) {
	c := mustCluster(t, 2)
	w := nodetest.NewWeb(t, 32<<20)
	c[0].CreateImage("image", w.URL, "", 1)
	c[0].UntilReady("image", "1/1")
	c[1].Disks = append(c[1].Disks, disktest.MustPool(t, nodetest.PoolBytes))
	c[1].Start()
	wants(t, c[0], "image", 3)
	i := c[0].UntilReady("image", "3/3")
	sameContent(t, i, w.Content, c...)
	if n := c[1].Peering.Count(t, "plinth_peer_bytes_total"); n > 1.5*dataBytes(w.Content) {
		t.Errorf("a node with two disks received %.0f bytes of %.0f", n, dataBytes(w.Content))
	}
}
