package csi

import (
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// TopologyKey is the one topological domain of Plinth: a volume is where its disk is.
const TopologyKey = "topology.plinth.dev/node"

// topologyOf is where a node's volumes can be reached; nothing for a volume that every node reaches.
func topologyOf(node string) *csi.Topology {
	if node == "" {
		return nil
	}
	return &csi.Topology{Segments: map[string]string{TopologyKey: node}}
}

// parseRequirement lists the nodes that a volume may be on, the preferred ones first; empty for any node.
func parseRequirement(r *csi.TopologyRequirement) ([]string, error) {
	requisite, err := parseTopologies("accessibility_requirements.requisite", r.GetRequisite())
	if err != nil {
		return nil, err
	}
	preferred, err := parseTopologies("accessibility_requirements.preferred", r.GetPreferred())
	if err != nil {
		return nil, err
	}
	nodes := preferred
	for _, node := range requisite {
		if !slices.Contains(nodes, node) {
			nodes = append(nodes, node)
		}
	}
	if len(requisite) > 0 {
		nodes = slices.DeleteFunc(nodes, func(node string) bool { return !slices.Contains(requisite, node) })
	}
	return nodes, nil
}

func parseTopologies(field string, list []*csi.Topology) ([]string, error) {
	var nodes []string
	for _, t := range list {
		node, err := parseTopology(field, t)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(nodes, node) {
			nodes = append(nodes, node)
		}
	}
	return nodes, nil
}

func parseTopology(field string, t *csi.Topology) (node string, err error) {
	node = t.GetSegments()[TopologyKey]
	if node == "" {
		return "", invalid(field, "%v has no segment %s, the only one that says where a volume is; remove the others from the class's allowedTopologies", t.GetSegments(), TopologyKey)
	}
	return node, nil
}
