package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage/event"
)

// Bounds of what is written: in the long run eventsPerSecond; eventsWaiting of them wait at most, and eventsKnown are remembered.
// The log has what is not written.
const (
	eventsPerSecond = 10
	eventsAtOnce    = 50
	eventsWaiting   = 5000
	eventsKnown     = 5000
	maxEventMessage = 1024 // bytes, what the API allows
)

// Events is the Recorder that writes Kubernetes' Events. An Event's name follows from what is told: the same told again counts up one
// Event, and of events of which only the latest is worth reading, one Event for each reason is kept up to date. While the API
// does not answer they wait, and what is told meanwhile of the same Event is written at once. It takes "create" and "patch" on events.
type Events struct {
	in       In[*corev1.Event, *corev1.EventList]
	reporter string
	clock    clock.PassiveClock
	queue    workqueue.TypedRateLimitingInterface[eventKey]
	limiter  flowcontrol.RateLimiter

	mu      sync.Mutex
	waiting map[eventKey]*telling
	counts  map[eventKey]int32 // how often the Events were told that this process wrote
}

var _ event.Recorder = (*Events)(nil)

// eventKey names an Event.
type eventKey struct{ namespace, name string }

// telling is an event that waits to be written.
type telling struct {
	event.Event
	times       int32
	first, last time.Time
}

// NewEvents makes the Recorder of a cluster; reporter is the program's instance, as in a pod's name. It starts nothing.
func NewEvents(cfg *rest.Config, reporter string, c clock.PassiveClock) (*Events, error) {
	in, err := NewEventsClient(cfg)
	return &Events{
		in: in, reporter: reporter, clock: c,
		queue:   workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[eventKey](time.Second, time.Minute)),
		limiter: flowcontrol.NewTokenBucketRateLimiter(eventsPerSecond, eventsAtOnce),
		waiting: map[eventKey]*telling{}, counts: map[eventKey]int32{},
	}, err
}

// Record implements event.Recorder. The log gets the event, too: Kubernetes forgets its Events after an hour.
func (e *Events) Record(ctx context.Context, told event.Event) {
	event.Log{}.Record(ctx, told)
	key, now := keyOf(told), e.clock.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.waiting[key]
	switch {
	case t == nil && len(e.waiting) >= eventsWaiting:
		return
	case t == nil:
		t = &telling{first: now}
		e.waiting[key] = t
		e.queue.Add(key)
	}
	t.Event, t.last = told, now
	t.times++
}

// keyOf is the identity of an event: what is told of what, and, unless only the latest counts, in which words.
func keyOf(e event.Event) eventKey {
	identity := []string{string(e.About.UID), e.About.Kind, e.About.Namespace, e.About.Name, e.Reason, fmt.Sprint(e.Warning)}
	if !e.Latest {
		identity = append(identity, e.Message)
	}
	sum := sha256.Sum256([]byte(strings.Join(identity, "\x00")))
	namespace := e.About.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault // where the API wants Events about what has no namespace
	}
	return eventKey{namespace, strings.TrimRight(beginning(e.About.Name, 200), ".-") + "." + hex.EncodeToString(sum[:16])}
}

// Run writes what is recorded until ctx ends.
func (e *Events) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, e.queue.ShutDown)()
	for {
		key, shutdown := e.queue.Get()
		if shutdown {
			return nil
		}
		if e.limiter.Wait(ctx) == nil {
			e.writeNext(ctx, key)
		}
		e.queue.Done(key)
	}
}

// writeNext writes what waits under a key. What the API cannot take now waits longer, and what is told meanwhile joins it.
func (e *Events) writeNext(ctx context.Context, key eventKey) {
	e.mu.Lock()
	t, count := e.waiting[key], e.counts[key]
	delete(e.waiting, key)
	e.mu.Unlock()
	if t == nil {
		return
	}
	count, err := e.write(ctx, key, t, count)
	if passes(err) {
		e.putBack(key, t)
		e.queue.AddRateLimited(key)
		return
	}
	e.queue.Forget(key)
	if apierrors.IsNotFound(err) { // the namespace is gone, and with it who would read this; or the API has no Events
		klog.FromContext(ctx).V(4).Info("No Event is written", "event", klog.KRef(key.namespace, key.name), "why", err)
		return
	}
	if err != nil {
		klog.FromContext(ctx).Error(err, "Cannot write an Event", "event", klog.KRef(key.namespace, key.name))
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.counts) >= eventsKnown {
		clear(e.counts)
	}
	e.counts[key] = count
}

// passes reports whether an error may be gone the next time: the API did not answer, or said so.
func passes(err error) bool {
	switch apierrors.ReasonForError(err) {
	case metav1.StatusReasonUnknown, metav1.StatusReasonServiceUnavailable, metav1.StatusReasonInternalError, metav1.StatusReasonTooManyRequests,
		metav1.StatusReasonServerTimeout, metav1.StatusReasonTimeout, metav1.StatusReasonConflict:
		return err != nil
	}
	return false
}

func (e *Events) putBack(key eventKey, t *telling) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if newer := e.waiting[key]; newer != nil {
		newer.first, newer.times = t.first, newer.times+t.times
		return
	}
	e.waiting[key] = t
}

// write makes the Event, or counts up the one that is there; told is how often this process knows that to have been told. It returns
// the new count. Of an Event that another process made, the count is first learned, and written with what is told next.
func (e *Events) write(ctx context.Context, key eventKey, t *telling, told int32) (count int32, err error) {
	client := e.in(key.namespace)
	if told == 0 {
		_, err = client.Create(ctx, e.object(key, t), metav1.CreateOptions{})
		if !apierrors.IsAlreadyExists(err) {
			return t.times, err
		}
	}
	change := map[string]any{"lastTimestamp": metav1.NewTime(t.last), "message": beginning(t.Message, maxEventMessage)}
	if told > 0 {
		change["count"] = told + t.times
	}
	patch, err := json.Marshal(change)
	if err != nil {
		return 0, fmt.Errorf("encode event: %w", err)
	}
	is, err := client.Patch(ctx, key.name, types.MergePatchType, patch, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) { // the API forgot it
		_, err = client.Create(ctx, e.object(key, t), metav1.CreateOptions{})
		return t.times, err
	}
	if told > 0 || err != nil {
		return told + t.times, err
	}
	return is.Count + t.times, nil
}

func (e *Events) object(key eventKey, t *telling) *corev1.Event {
	kind := corev1.EventTypeNormal
	if t.Warning {
		kind = corev1.EventTypeWarning
	}
	return &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: key.namespace, Name: key.name},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: t.About.APIVersion, Kind: t.About.Kind, Namespace: t.About.Namespace, Name: t.About.Name, UID: t.About.UID,
		},
		Type: kind, Reason: t.Reason, Message: beginning(t.Message, maxEventMessage), Count: t.times,
		FirstTimestamp: metav1.NewTime(t.first), LastTimestamp: metav1.NewTime(t.last),
		Source: corev1.EventSource{Component: "plinth", Host: e.reporter}, ReportingController: "plinth.dev/plinth", ReportingInstance: e.reporter,
	}
}

// beginning is as much of a text as fits into bytes, without half a character.
func beginning(text string, bytes int) string {
	if len(text) <= bytes {
		return text
	}
	return strings.ToValidUTF8(text[:bytes], "")
}
