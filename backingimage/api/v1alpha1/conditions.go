package v1alpha1

// Types of conditions.
const (
	ConditionReady   = "Ready"   // of an image: a copy can be cloned; of a node: the agent runs; of a disk: it can be used
	ConditionFull    = "Full"    // of a disk: too little is free for anything new; what is on it can be used
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

// ImageLost is the reason of an image's Ready condition when every copy is lost and its source cannot give it again.
const ImageLost = "Lost"
