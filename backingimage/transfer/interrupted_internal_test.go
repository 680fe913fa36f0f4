package transfer

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/manifest"
)

// killedReceiver is how this test's binary is told to be the process that is killed.
const killedReceiver = "PLINTH_TEST_RECEIVER"

func TestMain(m *testing.M) {
	if text := os.Getenv(killedReceiver); text != "" {
		var g struct{ Dir, Address, Hash, ContentDigest, Identity string }
		if err := json.Unmarshal([]byte(text), &g); err != nil {
			panic(err)
		}
		id, err := OpenIdentity(g.Identity)
		if err != nil {
			panic(err)
		}
		_, err = fetch.FromPeers(context.Background(), fetch.PeerJob{
			Dir: g.Dir, Image: "image", ImageUID: swarmUID, ContentDigest: g.ContentDigest,
			Peers: func(context.Context) ([]fetch.Peer, error) {
				return []fetch.Peer{NewPeer(id, "node", g.Address, g.Hash, swarmUID)}, nil
			},
		}, nil)
		fmt.Println(err)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestAKilledReceiverGoesOn(t *testing.T) {
	content := swarmContent(32)
	most := int64(len(content)) / 3
	var killing atomic.Bool
	killing.Store(true)
	var gave *atomic.Int64
	g, gave := mustSwarmGiver(t, content, nil, func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/data") && killing.Load() && gave.Load() > most {
			<-r.Context().Done()
			return true
		}
		return false
	})
	dir := filepath.Join(t.TempDir(), "image")
	text, err := json.Marshal(map[string]string{"Dir": dir, "Address": g.address, "Hash": g.hash, "ContentDigest": manifestOf(content).ContentDigest(), "Identity": t.TempDir()})
	must(t, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), killedReceiver+"="+string(text))
	must(t, cmd.Start())
	deadline := time.Now().Add(time.Minute)
	for gave.Load() <= most && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(300 * time.Millisecond) // what was given is written
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // killed
	before := gave.Load()
	killing.Store(false)
	job := swarmJob(t, dir, content, g)
	var received atomic.Int64
	job.Received = func(n int64) { received.Add(n) }
	_, err = fetch.FromPeers(t.Context(), job, nil)
	must(t, err)
	mustHold(t, dir, content)
	data := manifestOf(content).DataBytes()
	if again := gave.Load() - before; before < most || again+before > data+2*manifest.ChunkBytes || received.Load() != again {
		t.Errorf("before the kill %d bytes came, after it %d, of %d; %d were counted", before, again, data, received.Load())
	}
}

// cut is a link to an address that can be cut.
type cut struct {
	listener net.Listener
	to       string
	down     atomic.Bool
	passed   atomic.Int64
}

func mustCut(t *testing.T, to string) *cut {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	c := &cut{listener: l, to: to}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go c.pass(in)
		}
	}()
	return c
}

func (c *cut) pass(in net.Conn) {
	defer in.Close()
	out, err := net.Dial("tcp", c.to)
	if err != nil || c.down.Load() {
		return
	}
	defer out.Close()
	go func() { _, _ = io.Copy(out, in); out.Close() }()
	buffer := make([]byte, 32<<10)
	for !c.down.Load() {
		n, err := out.Read(buffer)
		if err != nil {
			return
		}
		c.passed.Add(int64(n))
		if _, err := in.Write(buffer[:n]); err != nil {
			return
		}
	}
}

func TestALinkThatIsCutForAWhile(t *testing.T) {
	content := swarmContent(24)
	g, gave := mustSwarmGiver(t, content, nil, nil)
	link := mustCut(t, g.address)
	dir := filepath.Join(t.TempDir(), "image")
	far := *g
	far.address = link.listener.Addr().String()
	job := swarmJob(t, dir, content, &far)
	job.Patience = time.Minute
	go func() {
		for link.passed.Load() < int64(len(content))/3 {
			time.Sleep(time.Millisecond)
		}
		link.down.Store(true)
		time.Sleep(2500 * time.Millisecond)
		link.down.Store(false)
	}()
	var told atomic.Bool
	_, err := fetch.FromPeers(t.Context(), job, func(p fetch.Progress) {
		if strings.Contains(p.Trouble, "waits for a peer: node-0 is silent") {
			told.Store(true)
		}
	})
	must(t, err)
	mustHold(t, dir, content)
	if !told.Load() {
		t.Error("nobody was told why nothing came")
	}
	if extra := gave.Load() - manifestOf(content).DataBytes(); extra > 8*manifest.ChunkBytes*4 {
		t.Errorf("%d bytes came twice", extra)
	}
}
