package v1alpha1

// Types of conditions.
const (
	ConditionReady   = "Ready"   // of an image: a copy can be cloned; of a node: the agent runs; of a disk: it can be used
	ConditionHealthy = "Healthy" // of an image: at least the wanted copies are ready
)
