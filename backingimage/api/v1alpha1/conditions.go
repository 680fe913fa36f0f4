package v1alpha1

// Types of conditions.
const (
	ConditionReady   = "Ready"   // of an image: a copy can be cloned; of a node: the agent runs; of a disk: it can be used
	ConditionFull    = "Full"    // of a disk: too little is free for anything new; what is on it can be used
	ConditionDrained = "Drained" // of a node that is cordoned or evicted: no image would be lost with it
	ConditionRemoved = "Removed" // of a node: its machine was removed from the cluster
	ConditionHealthy = "Healthy" // of an image: at least the wanted copies are ready
)

// Reasons of a disk's Ready condition beside those of disk.Problem.
const (
	DiskUsable    = "Usable"
	DiskNotWanted = "NotWanted"    // neither a --disk flag nor spec.disks of its node names it
	DiskTwin      = "TwoDisks"     // two disks have its UUID
	DiskSilent    = "NotAnswering" // reading or writing it does not end
)

// NodeSilent is the reason of a node's Ready condition while nothing is heard of its agent.
const NodeSilent = "Silent"

// NodeRemoved is the reason of a node's Removed condition.
const NodeRemoved = "MachineRemoved"

// VolumeAbandoned is the reason in the status of a volume whose disk and node are gone from the cluster.
const VolumeAbandoned = "Abandoned"

// ImageLost is the reason of an image's Ready condition when every copy is lost and its source cannot give it again.
const ImageLost = "Lost"
