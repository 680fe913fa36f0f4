// Package event is how people hear of what changes. Who sees a change makes an Event of it and hands that to a Recorder; where
// people then read it, in Kubernetes' Events or in a log, is the recorder's affair.
package event

import (
	"context"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// Object is what an event is about.
type Object struct {
	APIVersion, Kind string
	Namespace        string // "" for what has none
	Name             string
	UID              types.UID
}

// Ours names an object of one of Plinth's kinds, none of which has a namespace.
func Ours(kind, name string, uid types.UID) Object {
	return Object{APIVersion: v1alpha1.GroupVersion.String(), Kind: kind, Name: name, UID: uid}
}

// Event is a change that people want to hear of.
type Event struct {
	About   Object
	Warning bool   // something is worse than it should be
	Reason  string // one word, for machines
	Message string // a sentence
	// Latest is set where only the last event of its reason is worth reading, like progress: it takes the place of the one before.
	Latest bool
}

// Recorder tells people of events. Record does not block, and has no error: that something happened is true whether anybody
// hears of it or not.
type Recorder interface {
	Record(ctx context.Context, e Event)
}

// Log is the Recorder for where there is nothing but a log.
type Log struct{}

// Record implements Recorder.
func (Log) Record(ctx context.Context, e Event) {
	log := klog.FromContext(ctx)
	if e.Latest {
		log = log.V(2)
	}
	log.Info(e.Message, "kind", e.About.Kind, "namespace", e.About.Namespace, "name", e.About.Name, "reason", e.Reason, "warning", e.Warning)
}
