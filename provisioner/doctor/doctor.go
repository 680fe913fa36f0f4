// Package doctor looks at all of Plinth's objects at one moment (a Snapshot) and says what is wrong and what to do about it (Findings).
// Examine is a pure function: what it says depends on the objects and the clock alone, and each of its checks is about one kind.
//
// A finding is one of three: an Error will not mend by itself; a Warning may, or will be an error when nothing is done; a Note is something
// that people may want to know, and no reason to call a cluster unwell.
package doctor

import (
	"cmp"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// Severity says how bad a finding is.
type Severity string

const (
	Error   Severity = "error"
	Warning Severity = "warning"
	Note    Severity = "note"
)

// Finding is one thing that is wrong.
type Finding struct {
	Severity  Severity `json:"severity"`
	Kind      string   `json:"kind"` // of the object, as in the API
	Namespace string   `json:"namespace,omitempty"`
	Name      string   `json:"name,omitempty"`
	Problem   string   `json:"problem"` // one word, for machines
	Message   string   `json:"message"` // what is wrong
	Remedy    string   `json:"remedy"`  // what to do
}

// Snapshot is what there is at one moment.
type Snapshot struct {
	Images  []*v1alpha1.BackingImage
	Copies  []*v1alpha1.BackingImageCopy
	Nodes   []*v1alpha1.StorageNode
	Disks   []*v1alpha1.Disk
	Volumes []*v1alpha1.Volume

	// Kubernetes is what a whole cluster has beside them; nil for an API that is not a cluster's.
	Kubernetes *Kubernetes

	Driver  string // name of the CSI driver
	Version string // of this program
	Now     time.Time
}

// Kubernetes is what a whole cluster has beside Plinth's objects. Of what may not be read, Unread has the reasons.
type Kubernetes struct {
	Driver  *storagev1.CSIDriver // nil: there is none
	Classes []*storagev1.StorageClass
	Claims  []*corev1.PersistentVolumeClaim
	Unread  map[string]string // by what was to be read
}

// Times after which something takes too long, and how little room is little.
const (
	patience      = 10 * time.Minute // for what usually takes seconds
	heartbeatAge  = 2 * time.Minute
	littlePercent = 15
)

// Examine says what is wrong: errors first, then warnings, then notes, each by kind and name.
func Examine(s Snapshot) []Finding {
	x := &examination{Snapshot: s}
	for _, check := range []func(){x.nodes, x.disks, x.images, x.copies, x.volumes, x.kubernetes} {
		check()
	}
	slices.SortStableFunc(x.findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(rank(a.Severity), rank(b.Severity)), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return x.findings
}

// Worst is the worst severity among findings, "" when there are none.
func Worst(findings []Finding) Severity {
	worst := Severity("")
	for _, f := range findings {
		if worst == "" || rank(f.Severity) < rank(worst) {
			worst = f.Severity
		}
	}
	return worst
}

func rank(s Severity) int { return slices.Index([]Severity{Error, Warning, Note}, s) }

// examination is the findings in the making.
type examination struct {
	Snapshot
	findings []Finding
}

// find adds a finding.
func (x *examination) find(severity Severity, kind, name, problem, message, remedy string) {
	x.findings = append(x.findings, Finding{Severity: severity, Kind: kind, Name: name, Problem: problem, Message: message, Remedy: remedy})
}

// longAgo reports whether something has lasted for longer than usual.
func (x *examination) longAgo(since metav1.Time) bool {
	return !since.IsZero() && x.Now.Sub(since.Time) > patience
}
