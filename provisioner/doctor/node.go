package doctor

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

func (x *examination) nodes() {
	if len(x.Nodes) == 0 {
		x.find(Error, "StorageNode", "", "NoNodes", "no node is registered, so nothing can be stored", "run plinth standalone, or plinth node on each machine; in Kubernetes, look at the DaemonSet's pods")
		return
	}
	for _, n := range x.Nodes {
		x.node(n)
	}
	x.versions()
}

func (x *examination) node(n *v1alpha1.StorageNode) {
	const kind = "StorageNode"
	ready := meta.FindStatusCondition(n.Status.Conditions, v1alpha1.ConditionReady)
	age := x.Now.Sub(n.Status.LastHeartbeatTime.Time)
	switch {
	case meta.IsStatusConditionTrue(n.Status.Conditions, v1alpha1.ConditionRemoved):
		c := meta.FindStatusCondition(n.Status.Conditions, v1alpha1.ConditionRemoved)
		x.find(Warning, kind, n.Name, "Removed", c.Message, "bring the machine back, or let it go: its volumes stay, and say where their data is")
	case ready == nil:
		x.find(Error, kind, n.Name, "NeverHeard", "nothing was heard of its agent yet", "start plinth node on it, or delete the StorageNode")
	case ready.Status != metav1.ConditionTrue:
		x.find(Error, kind, n.Name, "Silent", ready.Message, "start its agent and see that it reaches the API; if the machine is gone for good, see plinth disk rm --lost")
	case age > heartbeatAge:
		x.find(Error, kind, n.Name, "NobodyListens", fmt.Sprintf("its last heartbeat is %s old, and nobody has noticed", duration.HumanDuration(age)), "start plinth controller (or plinth standalone); if it runs, set the clocks right")
	}
	for _, d := range n.Status.Disks {
		if d.Reason != "" && !x.registered(d.UUID) {
			x.find(Error, kind, n.Name, "DiskNotOpen", fmt.Sprintf("disk %s is not open: %s", d.Path, d.Message), "do what the message says, or take the disk back with plinth disk rm")
		}
	}
	if c := meta.FindStatusCondition(n.Status.Conditions, v1alpha1.ConditionDrained); c != nil && c.Status == metav1.ConditionFalse {
		x.find(Warning, kind, n.Name, "NotDrained", c.Message, "wait before the machine goes: kubectl wait storagenode/"+n.Name+" --for=condition=Drained")
	}
}

// registered reports whether there is a disk of that UUID, whose own condition then says what is wrong.
func (x *examination) registered(uuid string) bool {
	return slices.ContainsFunc(x.Disks, func(d *v1alpha1.Disk) bool { return d.Name == uuid })
}

// versions tells of agents that are not of one version.
func (x *examination) versions() {
	of := map[string][]string{}
	for _, n := range x.Nodes {
		if n.Status.Version != "" {
			of[n.Status.Version] = append(of[n.Status.Version], n.Name)
		}
	}
	if len(of) > 1 {
		var parts []string
		for _, v := range slices.Sorted(maps.Keys(of)) {
			parts = append(parts, fmt.Sprintf("%s on %s", v, few(of[v])))
		}
		x.find(Warning, "StorageNode", "", "VersionSkew", "agents have different versions: "+strings.Join(parts, "; "), "finish the upgrade")
	} else if len(of) == 1 && of[x.Version] == nil {
		for v := range of {
			x.find(Note, "StorageNode", "", "VersionSkew", fmt.Sprintf("the agents are version %s, this program is %s", v, x.Version), "use the program of the agents' version")
		}
	}
}

// few names the first of many.
func few(names []string) string {
	if len(names) > 3 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:3], ", "), len(names)-3)
	}
	return strings.Join(names, ", ")
}

func (x *examination) disks() {
	if len(x.Disks) == 0 && len(x.Nodes) > 0 {
		x.find(Error, "Disk", "", "NoDisks", "no disk is registered, so nothing can be stored", "plinth disk add PATH, or start the agents with --disk")
	}
	for _, d := range x.Disks {
		x.disk(d)
	}
}

func (x *examination) disk(d *v1alpha1.Disk) {
	const kind = "Disk"
	what := fmt.Sprintf("%s on node %s", d.Spec.Path, d.Spec.NodeName)
	ready, full := meta.FindStatusCondition(d.Status.Conditions, v1alpha1.ConditionReady), meta.FindStatusCondition(d.Status.Conditions, v1alpha1.ConditionFull)
	room := fmt.Sprintf("add a disk, move copies away (plinth disk evict %s), or delete volumes", d.Name)
	switch {
	case ready == nil || x.silent(d.Spec.NodeName): // its node says what there is to say
	case ready.Status != metav1.ConditionTrue:
		x.find(Error, kind, d.Name, ready.Reason, ready.Message, "do what the message says; docs/reference/states.md has every reason")
	case full != nil && full.Status == metav1.ConditionTrue:
		x.find(Error, kind, d.Name, "Full", full.Message, room)
	case d.Status.CapacityBytes > 0 && d.Status.AvailableBytes < d.Status.CapacityBytes/100*littlePercent:
		x.find(Warning, kind, d.Name, "NearlyFull", fmt.Sprintf("%s: %s of %s are free; new volumes and copies are refused when less than --minimal-available is", what,
			backingimage.SizeText(d.Status.AvailableBytes), backingimage.SizeText(d.Status.CapacityBytes)), room)
	}
	var volumes int
	var bytes int64
	for _, o := range d.Status.Orphans {
		if o.Kind == v1alpha1.OrphanVolume {
			volumes, bytes = volumes+1, bytes+o.UsedBytes
		}
	}
	if volumes > 0 {
		x.find(Warning, kind, d.Name, "Orphans", fmt.Sprintf("%s: %d volumes (%s) lie there that no object knows", what, volumes, backingimage.SizeText(bytes)), "look at them with: plinth disk orphans "+d.Name+"; they are never removed by machine")
	}
}

// silent reports whether a node is not there or not heard.
func (x *examination) silent(node string) bool {
	return node != "" && !slices.ContainsFunc(x.Nodes, func(n *v1alpha1.StorageNode) bool {
		return n.Name == node && meta.IsStatusConditionTrue(n.Status.Conditions, v1alpha1.ConditionReady)
	})
}
