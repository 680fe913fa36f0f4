package controller

import (
	"context"

	"k8s.io/klog/v2"
)

// Event is a change that people want to hear of.
type Event struct {
	Kind, Name string // the object that it is about
	Warning    bool   // something is worse than it should be
	Reason     string // one word, for machines
	Message    string // a sentence
}

// Recorder tells people of events. Record must not block for long, and has no error: that something happened is true whether
// anybody hears of it or not.
type Recorder interface {
	Record(ctx context.Context, e Event)
}

// LogRecorder is the Recorder for where there is nothing but a log.
type LogRecorder struct{}

// Record implements Recorder.
func (LogRecorder) Record(ctx context.Context, e Event) {
	klog.FromContext(ctx).Info(e.Message, "kind", e.Kind, "name", e.Name, "reason", e.Reason, "warning", e.Warning)
}
