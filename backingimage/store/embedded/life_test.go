package embedded_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/backingimage/store/embedded"
)

func TestOptions(t *testing.T) {
	long := "/" + strings.Repeat("d", 120)
	for name, c := range map[string]struct {
		options embedded.Options
		message []string
	}{
		"no directory":                       {embedded.Options{}, []string{"data directory", "empty"}},
		"path too long for a socket":         {embedded.Options{Dir: long}, []string{long + "/control-plane/etcd.sock", "145 bytes", "107", "at most 83 bytes"}},
		"every address, and none for others": {embedded.Options{Dir: "/x", Listen: "0.0.0.0:6443"}, []string{`"0.0.0.0:6443"`, "every address", "others"}},
		"no host, and none for others":       {embedded.Options{Dir: "/x", Listen: ":6443"}, []string{`":6443"`, "every address"}},
		"a URL for others":                   {embedded.Options{Dir: "/x", Listen: ":6443", Advertise: "https://n1"}, []string{`"https://n1"`, "DNS name"}},
		"a name":                             {embedded.Options{Dir: "/x", Listen: "example.com:0"}, []string{`"example.com:0"`, "IP address"}},
		"no port":                            {embedded.Options{Dir: "/x", Listen: "127.0.0.1"}, []string{`"127.0.0.1"`, "host:port"}},
		"a port that is no number":           {embedded.Options{Dir: "/x", Listen: "127.0.0.1:http"}, []string{`"http"`, "port number"}},
		"a file that is no CRD":              {embedded.Options{Dir: "/x", CRDs: file("a.yaml", "kind: Secret\napiVersion: v1\n")}, []string{"a.yaml", "Secret", "CustomResourceDefinition"}},
		"a CRD with an unknown field":        {embedded.Options{Dir: "/x", CRDs: file("a.yaml", "kind: CustomResourceDefinition\nspek: {}\n")}, []string{"a.yaml", "spek"}},
	} {
		t.Run(name+" is refused", func(t *testing.T) {
			_, err := embedded.New(c.options)
			if !backingimage.Is(err, backingimage.Invalid) {
				t.Fatalf("got %v, want Invalid", err)
			}
			mustContain(t, err.Error(), c.message...)
		})
	}
}

func mustContain(t testing.TB, s string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(s, p) {
			t.Errorf("%q is missing in:\n%s", p, s)
		}
	}
}

func TestRestart(t *testing.T) {
	ctx := testContext(t)
	dir := tempDir(t)
	first := mustServe(t, embedded.Options{Dir: dir})
	kept, err := mustClient(t, first.RESTConfig()).Images.Create(ctx, image("kept"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig := mustRead(t, first.Kubeconfig())
	mustStop(t, first)

	t.Run("Wait returns nil after Stop", func(t *testing.T) {
		if err := first.Wait(); err != nil {
			t.Error(err)
		}
	})
	t.Run("a stopped server can be stopped again", func(t *testing.T) { mustStop(t, first) })
	t.Run("a stopped server cannot be started again", func(t *testing.T) {
		if err := first.Start(ctx); err == nil {
			t.Error("it started")
		}
	})
	second := mustServe(t, embedded.Options{Dir: dir})
	t.Run("objects are still there", func(t *testing.T) {
		got, err := mustClient(t, second.RESTConfig()).Images.Get(ctx, "kept", metav1.GetOptions{})
		if err != nil || got.UID != kept.UID || got.ResourceVersion != kept.ResourceVersion {
			t.Errorf("got %v, %v", got, err)
		}
	})
	t.Run("token, certificate and port are the same", func(t *testing.T) {
		if mustRead(t, second.Kubeconfig()) != kubeconfig {
			t.Error("the kubeconfig changed")
		}
	})
}

func TestStopWithOpenWatches(t *testing.T) {
	ctx := testContext(t)
	s := mustServe(t, embedded.Options{Dir: tempDir(t)})
	c := mustClient(t, s.RESTConfig())
	var ended []<-chan struct{}
	for range 20 {
		w, err := c.Images.Watch(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range w.ResultChan() {
			}
		}()
		ended = append(ended, done)
	}
	limited, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := s.Stop(limited); err != nil {
		t.Fatal(err)
	}
	for _, done := range ended {
		select {
		case <-done:
		case <-limited.Done():
			t.Fatal("a watch outlived the server")
		}
	}
}

func TestStartEnds(t *testing.T) {
	t.Run("at once, and cleanly, when its context has ended", func(t *testing.T) {
		dir := tempDir(t)
		s, err := embedded.New(embedded.Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := s.Start(ctx); err == nil {
			t.Fatal("it started")
		}
		mustServe(t, embedded.Options{Dir: dir}) // nothing is left of the first
	})
	t.Run("with InUse when the port is taken", func(t *testing.T) {
		first := mustServe(t, embedded.Options{Dir: tempDir(t)})
		taken := strings.TrimPrefix(first.RESTConfig().Host, "https://")
		s, err := embedded.New(embedded.Options{Dir: tempDir(t), Listen: taken})
		if err != nil {
			t.Fatal(err)
		}
		err = s.Start(testContext(t))
		if !backingimage.Is(err, backingimage.InUse) {
			t.Fatalf("got %v, want InUse", err)
		}
		mustContain(t, err.Error(), taken, "another program")
	})
	t.Run("with an error when a file is in the directory's place", func(t *testing.T) {
		dir := tempDir(t)
		if err := os.WriteFile(filepath.Join(dir, "control-plane"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := embedded.New(embedded.Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		mustContain(t, fmt.Sprint(s.Start(testContext(t))), filepath.Join(dir, "control-plane"), "not a directory")
	})
}

func TestSecondProcess(t *testing.T) {
	dir := tempDir(t)
	holder := mustSpawn(t, "write", dir)
	holder.lines.Scan() // the first write was acknowledged
	s, err := embedded.New(embedded.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Start(testContext(t))
	if !backingimage.Is(err, backingimage.InUse) {
		t.Fatalf("got %v, want InUse", err)
	}
	mustContain(t, err.Error(), dir, "process "+strconv.Itoa(holder.Process.Pid))
}

// startAndStop is a normal run of the program, with a client and a watch.
func startAndStop(ctx context.Context, dir string) error {
	s, err := serveAsMain(ctx, dir)
	if err != nil {
		return err
	}
	c, err := store.NewClient(s.RESTConfig())
	if err != nil {
		return err
	}
	if _, err := c.Images.Watch(ctx, metav1.ListOptions{}); err != nil {
		return err
	}
	if _, err := c.Images.List(ctx, metav1.ListOptions{}); err != nil {
		return err
	}
	return s.Stop(ctx)
}

func TestNormalRunSaysNothing(t *testing.T) {
	dir := tempDir(t)
	for _, run := range []string{"the first", "the second"} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childRole+"=start-stop", childDir+"="+dir)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s run: %v:\n%s", run, err, out)
		}
	}
}
