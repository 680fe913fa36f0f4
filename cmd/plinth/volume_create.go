package main

import (
	"context"
	"fmt"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/spf13/cobra"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/cmd/internal/program"
	"plinth.dev/plinth/csi"
)

// volumeRequest is what the flags of `volume create` ask for.
type volumeRequest struct {
	name, image, size, class, fsType, node string
	parameters                             []string
	block                                  bool
}

func newVolumeCreateCommand(c *cli) *cobra.Command {
	var r volumeRequest
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a volume from an image, or an empty one",
		Long: "Create asks the driver for a volume and does not wait for the image's download; mounting does.\n" +
			"The same command again finds the volume it made.",
		Example: "  plinth volume create web-1 --image fedora-42 --size 20Gi\n" +
			"  plinth volume create web-1 --storage-class deploy/examples/storageclass.yaml\n" +
			"  plinth volume create scratch --size 10Gi --fs-type xfs",
		Args: program.Exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.name = args[0]
			return c.createVolume(cmd.Context(), r)
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.image, "image", "", "backing `image` that the volume starts from (default: an empty volume)")
	f.StringVar(&r.size, "size", "", "`size`, like 10Gi (default: the image's)")
	f.StringVar(&r.class, "storage-class", "", "`file` with a Kubernetes StorageClass whose parameters to use")
	f.StringArrayVar(&r.parameters, "parameter", nil, "StorageClass parameter `key=value`; may be repeated; wins over the file's")
	f.StringVar(&r.fsType, "fs-type", "", "filesystem `type` of an empty volume: ext4 (the default) or xfs")
	f.StringVar(&r.node, "node", "", "`node` that the volume is on and is mounted at (default: the driver chooses)")
	f.BoolVar(&r.block, "block", false, "the volume will be used as a block device, without a filesystem")
	_ = cmd.RegisterFlagCompletionFunc("image", images.complete(c)) // fails only for a flag that is not there
	_ = cmd.RegisterFlagCompletionFunc("node", nodes.complete(c))
	return cmd
}

func (c *cli) createVolume(ctx context.Context, r volumeRequest) error {
	request, err := r.csi()
	if err != nil {
		return err
	}
	driver, err := c.dialCSI(ctx)
	if err != nil {
		return err
	}
	defer driver.close()
	answer, err := driver.controller.CreateVolume(ctx, request)
	if err != nil {
		return csiError(ctx, err)
	}
	v := answer.GetVolume()
	fmt.Fprintf(c.out, "volume %s created (%s)\n", r.name, sizeText(v.GetCapacityBytes()))
	fmt.Fprintf(c.err, "Mount it with: plinth volume mount %s DIRECTORY\n", r.name)
	return nil
}

// csi checks the request and is the CSI message that it stands for.
func (r volumeRequest) csi() (*csispec.CreateVolumeRequest, error) {
	if err := validateName("a volume", r.name); err != nil {
		return nil, err
	}
	if r.block && r.fsType != "" {
		return nil, backingimage.Errorf(backingimage.Invalid, "--fs-type: a volume with --block has no filesystem; give one of the two")
	}
	bytes, err := parseSize("--size", r.size)
	if err != nil {
		return nil, err
	}
	parameters, fsType, err := r.classParameters()
	if err != nil {
		return nil, err
	}
	request := &csispec.CreateVolumeRequest{
		Name:               r.name,
		Parameters:         parameters,
		VolumeCapabilities: []*csispec.VolumeCapability{capability(r.block, fsType, csispec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)},
	}
	if bytes > 0 {
		request.CapacityRange = &csispec.CapacityRange{RequiredBytes: bytes}
	}
	if r.node != "" {
		there := []*csispec.Topology{{Segments: map[string]string{csi.TopologyKey: r.node}}}
		request.AccessibilityRequirements = &csispec.TopologyRequirement{Requisite: there, Preferred: there}
	}
	return request, nil
}

// classParameters are the StorageClass parameters that the file and the flags give, and the filesystem type.
func (r volumeRequest) classParameters() (map[string]string, string, error) {
	flags, err := parseParameters(r.parameters)
	if err != nil {
		return nil, "", err
	}
	if err := setParameter(flags, "--image", parameterImage, r.image); err != nil {
		return nil, "", err
	}
	if err := setParameter(flags, "--fs-type", parameterFSType, r.fsType); err != nil {
		return nil, "", err
	}
	var class storageClass
	if r.class != "" {
		if class, err = readStorageClass(r.class); err != nil {
			return nil, "", err
		}
	}
	return classParameters(class.Parameters, flags)
}
