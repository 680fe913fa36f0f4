package csi

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"plinth.dev/plinth/backingimage"
)

// identity says what this plugin is. It is the same in every process, whichever services that process serves.
type identity struct {
	csi.UnimplementedIdentityServer
	name, version string
	ready         func() error
}

func (i *identity) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: i.name, VendorVersion: i.version}, nil
}

func (i *identity) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{Capabilities: pluginCapabilities()}, nil
}

// Probe answers "not ready" while the process is starting, and an error only when a restart may help.
func (i *identity) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	err := i.ready()
	if err != nil && !backingimage.Is(err, backingimage.NotReady) {
		return nil, backingimage.Errorf(backingimage.Precondition, "not healthy: %w", err)
	}
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(err == nil)}, nil
}
