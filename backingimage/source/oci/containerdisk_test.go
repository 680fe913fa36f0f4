package oci_test

import (
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"plinth.dev/plinth/backingimage/source/servertest"
)

func TestContainerDisksAreFetched(t *testing.T) {
	registry := servertest.MustRegistry(t, t.TempDir(), "", "")
	content := servertest.Image(1, 9<<20)
	qcow2 := string(servertest.MustQCOW2(t, content))
	noise := archive(gzipped, types.OCILayer, "etc/passwd", "root")
	for name, disk := range map[string]v1.Layer{
		"raw in tar":          archive(plain, types.OCIUncompressedLayer, "disk/", "", "disk/fedora.img", string(content)),
		"raw in tar and gzip": archive(gzipped, types.DockerLayer, "disk/", "", "disk/fedora.img", string(content)),
		"qcow2 in tar":        archive(plain, types.OCIUncompressedLayer, "disk/fedora.qcow2", qcow2),
		"qcow2 in zstd":       archive(zstandard, types.OCILayerZStd, "./disk/fedora.qcow2", qcow2),
	} {
		t.Run(name, func(t *testing.T) {
			mustPush(t, registry+"/vm:1", mustContainer(t, noise, disk, noise), authn.Anonymous)
			network := servertest.MustCutter(t, registry)
			s := mustSource(t, network.Address+"/vm:1", options())
			job := servertest.Job(t, s)
			job.ArchiveFolder = s.ArchiveFolder()
			network.Cut(2, 1<<20)
			servertest.MustFetch(t, job, content)
		})
	}
}
