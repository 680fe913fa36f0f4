package event

import (
	"context"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// Fact is something about an object that people want to hear of when it changes.
type Fact struct {
	Aspect, Value string
	Warning       bool
	Reason        string // "": not worth telling
	Message       string
}

// Condition is the facts that a condition stands for; one that is not as it should be is a warning. what is the object, for people.
func Condition(conditions []metav1.Condition, kind, what string, should metav1.ConditionStatus) []Fact {
	c := meta.FindStatusCondition(conditions, kind)
	if c == nil {
		return nil
	}
	return []Fact{{Aspect: kind, Value: string(c.Status) + c.Reason, Warning: c.Status != should, Reason: c.Reason, Message: Because(what, c.Message)}}
}

// Because joins a sentence and its cause, if one is known.
func Because(sentence, cause string) string {
	if cause == "" {
		return sentence
	}
	return sentence + ": " + cause
}

// Changes tells of the facts that changed, whoever changed them, so that only who looks on needs leave to write Events. What an object is
// like when it is first seen is not news.
type Changes struct {
	recorder Recorder

	mu   sync.Mutex
	last map[types.UID]map[string]string // values of facts, by object
}

// NewChanges makes Changes that know of no object yet.
func NewChanges(r Recorder) *Changes {
	return &Changes{recorder: r, last: map[types.UID]map[string]string{}}
}

// Note remembers an object's facts, and tells of those that changed. That something is as it should be from the first is not news.
func (c *Changes) Note(ctx context.Context, about Object, exists bool, facts []Fact) {
	c.mu.Lock()
	before, known := c.last[about.UID]
	delete(c.last, about.UID)
	if exists {
		now := make(map[string]string, len(facts))
		for _, f := range facts {
			now[f.Aspect] = f.Value
		}
		c.last[about.UID] = now
	}
	c.mu.Unlock()
	for _, f := range facts {
		was, had := before[f.Aspect]
		if exists && known && f.Reason != "" && was != f.Value && (had || f.Warning || f.Aspect == v1alpha1.ConditionReady) {
			c.recorder.Record(ctx, Event{About: about, Warning: f.Warning, Reason: f.Reason, Message: f.Message})
		}
	}
}
