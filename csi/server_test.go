package csi_test

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2/ktesting"
	"k8s.io/klog/v2/textlogger"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/csi"
	"plinth.dev/plinth/provisioner"
)

// mustSocket returns the path of a socket that does not exist, short enough to be one, in a directory that neither does.
func mustSocket(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "csi")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "run", "csi.sock")
}

// mustServe runs a server until the test ends and returns a connection to it.
func mustServe(tb testing.TB, o csi.Options) *grpc.ClientConn {
	tb.Helper()
	socket := mustSocket(tb)
	o.Endpoint, o.Version = "unix://"+socket, "v0"
	if o.Logger.IsZero() {
		o.Logger = ktesting.NewLogger(tb, ktesting.NewConfig())
	}
	server, err := csi.New(o)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	tb.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			tb.Error(err)
		}
	})
	if err := server.Serving(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() })
	return conn
}

// volumes is a provisioner.Controller that answers what a test says; what it is not told panics.
type volumes struct {
	provisioner.Controller
	create func(provisioner.CreateRequest) (*v1alpha1.Volume, error)
	list   []*v1alpha1.Volume
}

func (v *volumes) Create(_ context.Context, r provisioner.CreateRequest) (*v1alpha1.Volume, error) {
	return v.create(r)
}

func (v *volumes) Get(_ context.Context, id string) (*v1alpha1.Volume, error) {
	for _, volume := range v.list {
		if volume.Name == id {
			return volume, nil
		}
	}
	return nil, backingimage.Errorf(backingimage.NotFound, "there is no volume %s", id)
}

func (v *volumes) List(context.Context) ([]*v1alpha1.Volume, error) { return v.list, nil }

func (v *volumes) Delete(_ context.Context, id string) error {
	_, err := v.Get(context.Background(), id)
	return err
}

func (v *volumes) Expand(_ context.Context, _ string, required, _ int64) (int64, error) {
	return required, nil
}

func (v *volumes) Capacity(context.Context, map[string]string, string) (int64, int64, error) {
	return 100, 50, nil
}

func wantCode(tb testing.TB, err error, want codes.Code, says ...string) {
	tb.Helper()
	if status.Code(err) != want {
		tb.Fatalf("got %v, want %s", err, want)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			tb.Errorf("%q is not in: %v", s, err)
		}
	}
}

func TestSocketIsForThisUserAlone(t *testing.T) {
	conn := mustServe(t, csi.Options{Controller: &volumes{}})
	socket := strings.TrimPrefix(conn.Target(), "unix://")
	for path, want := range map[string]os.FileMode{socket: 0o600, filepath.Dir(socket): 0o700} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
}

func TestSocketOfAKilledProcessIsReplaced(t *testing.T) {
	socket := mustSocket(t)
	if err := os.Mkdir(filepath.Dir(socket), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	server, err := csi.New(csi.Options{Endpoint: "unix://" + socket, Version: "v0", Controller: &volumes{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	if err := server.Serving(t.Context()); err != nil {
		t.Error(err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestSocketOfALiveProcessIsBusy(t *testing.T) {
	conn := mustServe(t, csi.Options{Controller: &volumes{}})
	second, err := csi.New(csi.Options{Endpoint: conn.Target(), Version: "v0", Controller: &volumes{}})
	if err != nil {
		t.Fatal(err)
	}
	err = second.Run(t.Context())
	if !backingimage.Is(err, backingimage.Busy) || !strings.Contains(err.Error(), strings.TrimPrefix(conn.Target(), "unix://")) {
		t.Errorf("got %v, want Busy with the socket's path", err)
	}
	if _, err := spec.NewIdentityClient(conn).Probe(t.Context(), &spec.ProbeRequest{}); err != nil {
		t.Errorf("the first server was disturbed: %v", err)
	}
}

func TestFileInTheSocketsPlaceIsLeftAlone(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(socket, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	server, err := csi.New(csi.Options{Endpoint: "unix://" + socket, Version: "v0", Controller: &volumes{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Run(t.Context()); !backingimage.Is(err, backingimage.Precondition) {
		t.Errorf("got %v, want Precondition", err)
	}
	if data, err := os.ReadFile(socket); err != nil || string(data) != "data" {
		t.Errorf("the file was touched: %q, %v", data, err)
	}
}

func TestEndpointsThatAreNoSocketsAreRefused(t *testing.T) {
	for _, endpoint := range []string{"", "tcp://0.0.0.0:1", "unix://relative", "unix:///", "/run/csi.sock", "unix:///" + strings.Repeat("x", 120)} {
		_, err := csi.New(csi.Options{Endpoint: endpoint, Version: "v0", Controller: &volumes{}})
		if !backingimage.Is(err, backingimage.Invalid) || !strings.Contains(err.Error(), "use") {
			t.Errorf("%q: got %v, want Invalid with a remedy", endpoint, err)
		}
	}
}

func TestServicesThatAreNotGivenAreNotServed(t *testing.T) {
	conn := mustServe(t, csi.Options{Controller: &volumes{}})
	_, err := spec.NewNodeClient(conn).NodeGetInfo(t.Context(), &spec.NodeGetInfoRequest{})
	wantCode(t, err, codes.Unimplemented)
	if _, err := csi.New(csi.Options{Endpoint: "unix:///x", Version: "v0"}); err == nil {
		t.Error("a server of nothing was made")
	}
}

func TestIdentity(t *testing.T) {
	var ready error
	conn := mustServe(t, csi.Options{Controller: &volumes{}, Ready: func() error { return ready }})
	client := spec.NewIdentityClient(conn)
	info, err := client.GetPluginInfo(t.Context(), &spec.GetPluginInfoRequest{})
	if err != nil || info.GetName() != csi.DefaultDriverName || info.GetVendorVersion() != "v0" {
		t.Errorf("info %v, %v", info, err)
	}
	probe := func() (bool, error) {
		answer, err := client.Probe(t.Context(), &spec.ProbeRequest{})
		return answer.GetReady().GetValue(), err
	}
	if ok, err := probe(); !ok || err != nil {
		t.Errorf("ready: %t, %v", ok, err)
	}
	ready = backingimage.Errorf(backingimage.NotReady, "starting")
	if ok, err := probe(); ok || err != nil {
		t.Errorf("starting: %t, %v", ok, err)
	}
	ready = context.Canceled
	_, err = probe()
	wantCode(t, err, codes.FailedPrecondition, "not healthy")
}

func TestPanicIsAnInternalErrorAndTheServerGoesOn(t *testing.T) {
	conn := mustServe(t, csi.Options{Controller: &volumes{create: func(provisioner.CreateRequest) (*v1alpha1.Volume, error) { panic("oh") }}})
	client := spec.NewControllerClient(conn)
	for range 2 { // the second shows that the name is not locked any more
		_, err := client.CreateVolume(t.Context(), createVolume("a"))
		wantCode(t, err, codes.Internal, "oh")
	}
}

func createVolume(name string) *spec.CreateVolumeRequest {
	return &spec.CreateVolumeRequest{
		Name:    name,
		Secrets: map[string]string{"username": "me", "password": "hunter2"},
		VolumeCapabilities: []*spec.VolumeCapability{{
			AccessMode: &spec.VolumeCapability_AccessMode{Mode: spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
			AccessType: &spec.VolumeCapability_Mount{Mount: &spec.VolumeCapability_MountVolume{}},
		}},
	}
}

func TestCallsAreLoggedWithoutSecretsAndMeasured(t *testing.T) {
	var log bytes.Buffer
	durations := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "rpc"}, []string{"method", "code"})
	t.Run("calls", func(t *testing.T) {
		conn := mustServe(t, csi.Options{
			Controller: &volumes{create: func(provisioner.CreateRequest) (*v1alpha1.Volume, error) {
				return nil, backingimage.Errorf(backingimage.Full, "no room")
			}},
			Durations: durations,
			Logger:    textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(&log), textlogger.Verbosity(5))),
		})
		_, err := spec.NewControllerClient(conn).CreateVolume(t.Context(), createVolume("pvc-1"))
		wantCode(t, err, codes.ResourceExhausted, "no room")
	})
	for _, want := range []string{"CreateVolume", "pvc-1", "ResourceExhausted", "no room", "***"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("%q is not in the log:\n%s", want, &log)
		}
	}
	if strings.Contains(log.String(), "hunter2") {
		t.Errorf("the secret is in the log:\n%s", &log)
	}
	if n := testutil.CollectAndCount(durations); n != 1 {
		t.Errorf("%d series were measured, want 1", n)
	}
}

func TestStopLetsACallFinishAndRefusesNewOnes(t *testing.T) {
	began, finish := make(chan struct{}), make(chan struct{})
	socket := mustSocket(t)
	server, err := csi.New(csi.Options{Endpoint: "unix://" + socket, Version: "v0", Controller: &volumes{create: func(provisioner.CreateRequest) (*v1alpha1.Volume, error) {
		close(began)
		<-finish
		return &v1alpha1.Volume{}, nil
	}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answered := make(chan error, 1)
	go func() {
		_, err := spec.NewControllerClient(conn).CreateVolume(t.Context(), createVolume("a"), grpc.WaitForReady(true))
		answered <- err
	}()
	<-began
	stop()
	select {
	case err := <-ended:
		t.Fatalf("Run ended before the call: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(finish)
	if err := <-answered; err != nil {
		t.Errorf("the call in flight: %v", err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestStopIsBounded(t *testing.T) {
	began, finish := make(chan struct{}), make(chan struct{})
	defer close(finish)
	socket := mustSocket(t)
	server, err := csi.New(csi.Options{Endpoint: "unix://" + socket, Version: "v0", StopTimeout: 10 * time.Millisecond, Controller: &volumes{create: func(provisioner.CreateRequest) (*v1alpha1.Volume, error) {
		close(began)
		<-finish
		return nil, context.Canceled
	}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		_, _ = spec.NewControllerClient(conn).CreateVolume(context.Background(), createVolume("a"), grpc.WaitForReady(true))
	}()
	<-began
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
