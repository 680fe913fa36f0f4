package csi_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"plinth.dev/plinth/csi/mount/mounttest"
	"plinth.dev/plinth/test/plinthtest"
)

// orchestrator drives a real plinth as Kubernetes would.
type orchestrator struct {
	*plinthtest.Standalone
	spec.ControllerClient
	spec.NodeClient
	conn *grpc.ClientConn
}

func mustOrchestrator(t *testing.T) *orchestrator {
	t.Helper()
	s := plinthtest.Start(t, plinthtest.Options{})
	conn, err := grpc.NewClient("unix://"+s.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return &orchestrator{s, spec.NewControllerClient(conn), spec.NewNodeClient(conn), conn}
}

// class is the StorageClass of an image at a URL.
func class(t *testing.T, image, url string, more ...string) map[string]string {
	t.Helper()
	source, err := json.Marshal(map[string]string{"url": url})
	must(t, err)
	parameters := map[string]string{"backingImage": image, "backingImageDataSourceType": "download", "backingImageDataSourceParameters": string(source)}
	for i := 0; i+1 < len(more); i += 2 {
		parameters[more[i]] = more[i+1]
	}
	return parameters
}

func (o *orchestrator) mustCreate(t *testing.T, name string, parameters map[string]string) string {
	t.Helper()
	request := createVolume(name)
	request.Parameters = parameters
	answer, err := o.CreateVolume(t.Context(), request, grpc.WaitForReady(true))
	must(t, err)
	return answer.GetVolume().GetVolumeId()
}

// stage stages a volume at a path of its own, which it returns.
func (o *orchestrator) stage(t *testing.T, id string, within time.Duration) (string, error) {
	t.Helper()
	path := filepath.Join(o.Dir, "stage-"+id)
	must(t, os.MkdirAll(path, 0o755))
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	_, err := o.NodeStageVolume(ctx, &spec.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: path, VolumeCapability: capability(multiWriter, false)}, grpc.WaitForReady(true))
	return path, err
}

func (o *orchestrator) mustStage(t *testing.T, id string) string {
	t.Helper()
	path, err := o.stage(t, id, time.Minute)
	must(t, err)
	return path
}

// mustRemove unstages and deletes a volume.
func (o *orchestrator) mustRemove(t *testing.T, id string) {
	t.Helper()
	_, err := o.NodeUnstageVolume(t.Context(), &spec.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: filepath.Join(o.Dir, "stage-"+id)}, grpc.WaitForReady(true))
	must(t, err)
	o.mustDelete(t, id)
}

func (o *orchestrator) mustDelete(t *testing.T, id string) {
	t.Helper()
	_, err := o.DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{VolumeId: id})
	must(t, err)
}

func TestVolumesOfAnImage(t *testing.T) {
	o := mustOrchestrator(t)
	dir := t.TempDir()
	plinthtest.MustImage(t, dir, "golden.qcow2", plinthtest.Image{Files: map[string]string{"hello": "from the image"}})
	partitioned := filepath.Join(dir, "partitioned.raw")
	mounttest.MustTruncate(t, partitioned, 96*mib)
	mounttest.MustPartition(t, partitioned, mounttest.Partition{Start: 2048, Sectors: 8192}, mounttest.Partition{Start: 16384, Sectors: 131072})
	mounttest.MustRun(t, "mkfs.ext4", "-q", "-F", "-E", "offset=8388608", partitioned, "64M")
	url := plinthtest.Serve(t, dir)

	t.Run("hold its files, each its own", func(t *testing.T) {
		first := o.mustCreate(t, "first", class(t, "golden", url+"/golden.qcow2"))
		second := o.mustCreate(t, "second", class(t, "golden", url+"/golden.qcow2"))
		one, two := o.mustStage(t, first), o.mustStage(t, second)
		must(t, os.WriteFile(one+"/hello", []byte("changed"), 0o600))
		if data, err := os.ReadFile(two + "/hello"); err != nil || string(data) != "from the image" {
			t.Errorf("the second volume has %q, %v", data, err)
		}
		o.mustRemove(t, first)
		o.mustRemove(t, second)
	})
	t.Run("of a partitioned disk are refused with its partitions", func(t *testing.T) {
		id := o.mustCreate(t, "whole", class(t, "partitioned", url+"/partitioned.raw"))
		_, err := o.stage(t, id, time.Minute)
		wantCode(t, err, codes.FailedPrecondition, "image partitioned", "dos partition table", "1 (no filesystem, 4 MiB)", "2 (ext4, 64 MiB)")
		o.mustDelete(t, id) // whoever was refused does not unstage
	})
	t.Run("of a partition hold that partition's files", func(t *testing.T) {
		id := o.mustCreate(t, "part", class(t, "partitioned", url+"/partitioned.raw", "partition", "2"))
		path := o.mustStage(t, id)
		if _, err := os.Stat(path + "/lost+found"); err != nil {
			t.Error(err)
		}
		o.mustRemove(t, id)
	})
	t.Run("of a partition that is not there are refused", func(t *testing.T) {
		id := o.mustCreate(t, "nopart", class(t, "partitioned", url+"/partitioned.raw", "partition", "7"))
		_, err := o.stage(t, id, time.Minute)
		wantCode(t, err, codes.FailedPrecondition, "partition 7", "2 (ext4, 64 MiB)")
		o.mustDelete(t, id)
	})
	t.Run("are found again after kill -9", func(t *testing.T) {
		id := o.mustCreate(t, "survivor", class(t, "golden", url+"/golden.qcow2"))
		path := o.mustStage(t, id)
		must(t, os.WriteFile(path+"/mine", []byte("kept"), 0o600))
		o.Kill()
		o.Restart()
		o.mustStage(t, id)
		if data, err := os.ReadFile(path + "/mine"); err != nil || string(data) != "kept" {
			t.Errorf("after the kill: %q, %v", data, err)
		}
		o.mustRemove(t, id)
	})
}

// A source that serves the beginning and then nothing: staging says how far it is, before its caller gives up.
func TestStagingSaysWhatItWaitsFor(t *testing.T) {
	o := mustOrchestrator(t)
	dir := t.TempDir()
	plinthtest.MustImage(t, dir, "slow.raw", plinthtest.Image{Format: "raw"})
	data, err := os.ReadFile(filepath.Join(dir, "slow.raw"))
	must(t, err)
	finish := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "67108864")
		if r.Method == http.MethodHead {
			return
		}
		_, _ = w.Write(data[:8*mib])
		w.(http.Flusher).Flush()
		select {
		case <-finish:
			_, _ = w.Write(data[8*mib:])
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(server.Close)
	id := o.mustCreate(t, "slow", class(t, "slow", server.URL))
	_, err = o.stage(t, id, 3*time.Second)
	wantCode(t, err, codes.Unavailable, "backing image slow", "test-node")
	close(finish)
	o.mustStage(t, id)
	o.mustRemove(t, id)
}
