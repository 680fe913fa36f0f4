package csi_test

import (
	"encoding/json"
	"path/filepath"
	"regexp"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"plinth.dev/plinth/test/plinthtest"
)

// unclaimed matches the reasons for which specifications may be left out: what Plinth does not claim to do.
var unclaimed = regexp.MustCompile(`(?i)^(.*snapshots?|modify volume|ControllerModifyVolume|Controller(Unp|P)ublish.*|Controller Publish, UnpublishVolume|GroupControllerService) not supported$`)

// TestSanity runs csi-sanity over the real server, engine, pool and API, once for each sort of volume.
func TestSanity(t *testing.T) {
	s := plinthtest.Start(t, plinthtest.Options{})
	image := imageOnDemand(t)
	for _, sort := range []struct {
		name       string
		bytes      int64
		parameters map[string]string
		access     string
	}{
		{"empty", 64 * mib, nil, "mount"},
		{"empty-xfs", 320 * mib, map[string]string{"fsType": "xfs", "mkfsParams": "-m reflink=0"}, "mount"},
		{"empty-block", 64 * mib, nil, "block"},
		{"image", 96 * mib, image, "mount"},
		{"image-block", 96 * mib, image, "block"},
	} {
		config := sanityConfig(s, sort.name, sort.bytes)
		config.TestVolumeParameters, config.TestVolumeAccessType = sort.parameters, sort.access
		ginkgo.Describe(sort.name, func() { sanity.GinkgoTest(config) })
	}
	ginkgo.ReportAfterSuite("nothing that is claimed was left out", func(report types.Report) { reportSkipped(t, report) })
	gomega.RegisterFailHandler(ginkgo.Fail)
	ginkgo.RunSpecs(t, "csi-sanity")
	if left := volumesLeft(t, s); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func sanityConfig(s *plinthtest.Standalone, name string, bytes int64) *sanity.TestConfig {
	config := sanity.NewTestConfig()
	config.Address = "unix://" + s.Socket
	config.DialOptions = []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost")}
	config.ControllerDialOptions = config.DialOptions
	config.TargetPath = filepath.Join(s.Dir, name+"-target")
	config.StagingPath = filepath.Join(s.Dir, name+"-staging")
	config.TestVolumeSize = bytes
	config.TestVolumeExpandSize = 2 * bytes
	config.IdempotentCount = 3
	return &config
}

// imageOnDemand is a class whose image is fetched when the first volume asks for it.
func imageOnDemand(t *testing.T) map[string]string {
	dir := t.TempDir()
	image := plinthtest.MustImage(t, dir, "sanity.qcow2", plinthtest.Image{Files: map[string]string{"hello": "from the image"}})
	source, err := json.Marshal(map[string]string{"url": plinthtest.Serve(t, dir) + "/sanity.qcow2"})
	must(t, err)
	return map[string]string{
		"backingImage":                     "sanity",
		"backingImageDataSourceType":       "download",
		"backingImageDataSourceParameters": string(source),
		"backingImageChecksum":             image.SHA256,
	}
}

func reportSkipped(t *testing.T, report types.Report) {
	for _, r := range report.SpecReports {
		if r.State == types.SpecStateSkipped && !unclaimed.MatchString(r.Failure.Message) {
			t.Errorf("left out: %s: %s", r.FullText(), r.Failure.Message)
		}
	}
}

func volumesLeft(t *testing.T, s *plinthtest.Standalone) []*spec.ListVolumesResponse_Entry {
	conn, err := grpc.NewClient("unix://"+s.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer conn.Close()
	answer, err := spec.NewControllerClient(conn).ListVolumes(t.Context(), &spec.ListVolumesRequest{})
	must(t, err)
	return answer.GetEntries()
}
