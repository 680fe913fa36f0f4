package cluster_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2/ktesting"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage/cluster"
	"plinth.dev/plinth/backingimage/event"
)

// api is as much of an API as keeps Events, in memory. That a real one takes what is sent is shown by the end-to-end tests.
type api struct {
	mu      sync.Mutex
	events  map[string]*corev1.Event // by path
	away    bool
	writes  int
	patched int
}

func newAPI(t *testing.T) (*api, *rest.Config) {
	t.Helper()
	a := &api{events: map[string]*corev1.Event{}}
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	return a, &rest.Config{Host: server.URL}
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	path := r.URL.Path
	switch {
	case a.away:
		status(w, http.StatusServiceUnavailable, "ServiceUnavailable")
		return
	case r.Method == http.MethodPost:
		var e corev1.Event
		must(json.NewDecoder(r.Body).Decode(&e))
		if path += "/" + e.Name; a.events[path] != nil {
			status(w, http.StatusConflict, "AlreadyExists")
			return
		}
		a.events[path] = &e
		a.writes++
	case a.events[path] == nil:
		status(w, http.StatusNotFound, "NotFound")
		return
	case r.Method == http.MethodPatch:
		must(json.NewDecoder(r.Body).Decode(a.events[path]))
		a.writes++
		a.patched++
	}
	w.Header().Set("Content-Type", "application/json")
	answer := a.events[path].DeepCopy()
	answer.APIVersion, answer.Kind = "v1", "Event"
	must(json.NewEncoder(w).Encode(answer))
}

func status(w http.ResponseWriter, code int, reason string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"code":%d}`, reason, code)
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func (a *api) say(away bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.away = away
}

func (a *api) patches() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.patched
}

// until waits until the Events are as wanted: "reason×count message" of each.
func (a *api) until(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		got = nil
		a.mu.Lock()
		for _, e := range a.events {
			got = append(got, fmt.Sprintf("%s/%s %s×%d %s", e.Namespace, e.InvolvedObject.Name, e.Reason, e.Count, e.Message))
		}
		a.mu.Unlock()
		if len(got) == len(want) && containsAll(got, want) {
			return
		}
	}
	t.Fatalf("Events are %q, want %q", got, want)
}

func containsAll(got, want []string) bool {
	all := strings.Join(got, "\n")
	for _, w := range want {
		if !strings.Contains(all, w) {
			return false
		}
	}
	return true
}

func run(t *testing.T, cfg *rest.Config) (tell func(event.Event)) {
	t.Helper()
	events, err := cluster.NewEvents(cfg, "plinth-0", clock.RealClock{})
	if err != nil {
		t.Fatal(err)
	}
	_, ctx := ktesting.NewTestContext(t)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error)
	go func() { done <- events.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return func(e event.Event) { events.Record(ctx, e) }
}

func TestEvents(t *testing.T) {
	claim := event.Object{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: "shop", Name: "data", UID: "u1"}
	progress := func(message string) event.Event {
		return event.Event{About: claim, Reason: "WaitingForImage", Message: message, Latest: true}
	}
	failed := event.Event{About: event.Ours("BackingImage", "fedora", "u2"), Reason: "State", Message: "image fedora is failed", Warning: true}

	t.Run("progress is one Event that is kept up to date", func(t *testing.T) {
		a, cfg := newAPI(t)
		tell := run(t, cfg)
		for _, percent := range []string{"10 %", "50 %", "90 %"} {
			tell(progress(percent))
			a.until(t, percent)
		}
		a.until(t, "shop/data WaitingForImage×3 90 %")
	})

	t.Run("the same told again counts up, something else is another Event", func(t *testing.T) {
		a, cfg := newAPI(t)
		tell := run(t, cfg)
		other := failed
		other.Message = "image fedora is failed: 404"
		tell(failed)
		tell(failed)
		tell(other)
		a.until(t, "default/fedora State×2 image fedora is failed", "default/fedora State×1 image fedora is failed: 404")
	})

	t.Run("a new process goes on with the Events of the last", func(t *testing.T) {
		a, cfg := newAPI(t)
		run(t, cfg)(failed)
		a.until(t, "State×1")
		tell := run(t, cfg)
		tell(failed) // and learns the count
		a.until(t, "State×1")
		for a.patches() == 0 {
			time.Sleep(time.Millisecond)
		}
		tell(failed)
		a.until(t, "State×3")
	})

	t.Run("what is told while the API is away is written once it is back", func(t *testing.T) {
		a, cfg := newAPI(t)
		a.say(true)
		tell := run(t, cfg)
		for i := range 1000 {
			tell(progress(fmt.Sprint(i)))
		}
		a.say(false)
		a.until(t, "WaitingForImage×1000 999")
		if a.writes > 500 {
			t.Errorf("it took %d writes", a.writes)
		}
	})

	t.Run("an Event that the API forgot is made anew", func(t *testing.T) {
		a, cfg := newAPI(t)
		tell := run(t, cfg)
		tell(failed)
		a.until(t, "State×1")
		a.mu.Lock()
		clear(a.events)
		a.mu.Unlock()
		tell(failed)
		a.until(t, "State×1")
	})

	t.Run("names of any length, and long messages, make Events that an API takes", func(t *testing.T) {
		a, cfg := newAPI(t)
		long := failed
		long.About.Name, long.Message = strings.Repeat("a.", 126), strings.Repeat("ü", 2000)
		run(t, cfg)(long)
		a.until(t, "State×1")
		for path, e := range a.events {
			if len(e.Name) > 253 || len(e.Message) > 1024 || strings.Contains(e.Name, "..") {
				t.Errorf("%s: a name of %d and a message of %d bytes", path, len(e.Name), len(e.Message))
			}
		}
	})
}
