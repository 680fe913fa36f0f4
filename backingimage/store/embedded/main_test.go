package embedded_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/backingimage/store/embedded"
	"plinth.dev/plinth/deploy"
)

// A test that needs another process runs this test binary again with these variables set.
const (
	childRole = "PLINTH_TEST_CHILD"
	childDir  = "PLINTH_TEST_CHILD_DIR"
)

var childRoles = map[string]func(ctx context.Context, dir string) error{
	"start-stop": startAndStop,
	"write":      writeForEver,
}

func TestMain(m *testing.M) {
	role, ok := childRoles[os.Getenv(childRole)]
	if !ok {
		os.Exit(m.Run())
	}
	if err := role(context.Background(), os.Getenv(childDir)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// mustServe starts a server in dir that stops when the test ends.
func mustServe(t testing.TB, o embedded.Options) *embedded.Server {
	t.Helper()
	o.CRDs = deploy.CRDs
	s, err := embedded.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustStop(t, s) })
	return s
}

func mustStop(t testing.TB, s *embedded.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Error(err)
	}
}

// testContext ends with the test, or when something hangs.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func mustClient(t testing.TB, cfg *rest.Config) *store.Client {
	t.Helper()
	c, err := store.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// image is a valid BackingImage.
func image(name string) *v1alpha1.BackingImage {
	i := &v1alpha1.BackingImage{}
	i.Name = name
	i.Spec.SourceType = v1alpha1.SourceDownload
	i.Spec.SourceParameters = map[string]v1alpha1.SourceParameter{v1alpha1.ParameterURL: "https://example.com/" + v1alpha1.SourceParameter(name)}
	return i
}

// tempDir is not t.TempDir, whose path grows with the test's name past what a Unix socket can have.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "plinth")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// child is a process of this test binary.
type child struct {
	*exec.Cmd
	lines  *bufio.Scanner // its standard output
	stderr strings.Builder
}

func mustSpawn(t testing.TB, role, dir string) *child {
	t.Helper()
	c := &child{Cmd: exec.Command(os.Args[0])}
	c.Env = append(os.Environ(), childRole+"="+role, childDir+"="+dir)
	c.Stderr = &c.stderr
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.lines = bufio.NewScanner(out)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	return c
}

// serveAsMain starts a server as the program does.
func serveAsMain(ctx context.Context, dir string) (*embedded.Server, error) {
	klog.SetLoggerWithOptions(embedded.Quiet(textlogger.NewLogger(textlogger.NewConfig())), klog.ContextualLogger(true))
	s, err := embedded.New(embedded.Options{Dir: dir, CRDs: deploy.CRDs})
	if err != nil {
		return nil, err
	}
	return s, s.Start(ctx)
}
