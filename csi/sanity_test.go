package csi_test

import (
	"path/filepath"
	"regexp"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"

	"plinth.dev/plinth/test/plinthtest"
)

// unclaimed matches the reasons for which specifications may be left out: what Plinth does not claim to do.
var unclaimed = regexp.MustCompile(`(?i)^(modify volume|ControllerModifyVolume|Controller(Unp|P)ublish.*|Controller Publish, UnpublishVolume|GroupControllerService) not supported$`)

// TestSanity runs csi-sanity over the real server, engine, pool and API, once for each sort of volume.
func TestSanity(t *testing.T) {
	o := mustOrchestrator(t)
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
		config := sanityConfig(o.Dir, sort.name, sort.bytes)
		config.TestVolumeParameters, config.TestVolumeAccessType = sort.parameters, sort.access
		ginkgo.Describe(sort.name, func() {
			// The suite's own way to connect misses a connection that is there at once, and then waits for a minute.
			c := sanity.GinkgoTest(config)
			c.Conn, c.ControllerConn = o.conn, o.conn
		})
	}
	ginkgo.ReportAfterSuite("nothing that is claimed was left out", func(report types.Report) { reportSkipped(t, report) })
	gomega.RegisterFailHandler(ginkgo.Fail)
	ginkgo.RunSpecs(t, "csi-sanity")
	left, err := o.ListVolumes(t.Context(), &spec.ListVolumesRequest{})
	if err != nil || len(left.GetEntries()) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	snapshots, err := o.ListSnapshots(t.Context(), &spec.ListSnapshotsRequest{})
	if err != nil || len(snapshots.GetEntries()) > 0 {
		t.Errorf("left behind: %v, %v", snapshots, err)
	}
}

func sanityConfig(dir, name string, bytes int64) *sanity.TestConfig {
	config := sanity.NewTestConfig()
	config.TargetPath = filepath.Join(dir, name+"-target")
	config.StagingPath = filepath.Join(dir, name+"-staging")
	config.TestVolumeSize = bytes
	config.TestVolumeExpandSize = 2 * bytes
	config.IdempotentCount = 3
	return &config
}

// imageOnDemand is a class whose image is fetched when the first volume asks for it.
func imageOnDemand(t *testing.T) map[string]string {
	dir := t.TempDir()
	image := plinthtest.MustImage(t, dir, "sanity.qcow2", plinthtest.Image{Files: map[string]string{"hello": "from the image"}})
	return class(t, "sanity", plinthtest.Serve(t, dir)+"/sanity.qcow2", "backingImageChecksum", image.SHA256)
}

func reportSkipped(t *testing.T, report types.Report) {
	for _, r := range report.SpecReports {
		if r.State == types.SpecStateSkipped && !unclaimed.MatchString(r.Failure.Message) {
			t.Errorf("left out: %s: %s", r.FullText(), r.Failure.Message)
		}
	}
}
