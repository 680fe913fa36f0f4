package provisioner_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"k8s.io/client-go/rest"
)

// storageAPI is as much of an API as has claims, PersistentVolumes, classes and Events, in memory. That a real one takes what is sent, and does
// with it what controllers stands for here, is shown by the end-to-end tests.
type storageAPI struct {
	mu      sync.Mutex
	objects map[string]map[string]any // by path
	history []change
	news    chan struct{} // closed at the next change
	// broken is asked at each write whether it fails, before or after it is done.
	broken func() (before, after bool)
}

// change is a watch's event; its place in the history, from 1 on, is the version of the object.
type change struct {
	Type   string         `json:"type"`
	Object map[string]any `json:"object"`
	path   string
}

var storageKinds = map[string][2]string{
	"persistentvolumeclaims": {"v1", "PersistentVolumeClaim"}, "persistentvolumes": {"v1", "PersistentVolume"},
	"events": {"v1", "Event"}, "storageclasses": {"storage.k8s.io/v1", "StorageClass"},
}

func newStorageAPI(t *testing.T) (*storageAPI, *rest.Config) {
	t.Helper()
	a := &storageAPI{objects: map[string]map[string]any{}, news: make(chan struct{})}
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	t.Cleanup(server.CloseClientConnections)
	return a, &rest.Config{Host: server.URL}
}

func (a *storageAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	collection := storageKinds[path[strings.LastIndex(path, "/")+1:]] != [2]string{}
	switch {
	case path == "/api/v1":
		answer(w, map[string]any{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "v1", "resources": []any{map[string]any{"name": "persistentvolumeclaims", "namespaced": true, "kind": "PersistentVolumeClaim", "verbs": []string{}}}})
	case collection && r.URL.Query().Get("watch") != "":
		a.watch(w, r, path)
	case collection && r.Method == http.MethodGet:
		answer(w, a.list(path))
	case r.Method == http.MethodGet:
		a.mu.Lock()
		o := a.objects[path]
		a.mu.Unlock()
		if o == nil {
			refuse(w, http.StatusNotFound, "NotFound")
			return
		}
		answer(w, o)
	default:
		a.write(w, r, path)
	}
}

var namespaced = regexp.MustCompile(`/namespaces/[^/]+`)

// in reports whether an object is in a collection, which may be that of all namespaces.
func in(collection, object string) bool {
	return strings.HasPrefix(object, collection+"/") || strings.HasPrefix(namespaced.ReplaceAllString(object, ""), collection+"/")
}

func (a *storageAPI) list(collection string) map[string]any {
	a.mu.Lock()
	defer a.mu.Unlock()
	items := []any{}
	for _, path := range slices.Sorted(maps.Keys(a.objects)) {
		if in(collection, path) {
			items = append(items, a.objects[path])
		}
	}
	kind := storageKinds[collection[strings.LastIndex(collection, "/")+1:]]
	return map[string]any{"apiVersion": kind[0], "kind": kind[1] + "List", "metadata": map[string]any{"resourceVersion": fmt.Sprint(len(a.history))}, "items": items}
}

func (a *storageAPI) watch(w http.ResponseWriter, r *http.Request, collection string) {
	var from int
	fmt.Sscan(r.URL.Query().Get("resourceVersion"), &from)
	w.Header().Set("Content-Type", "application/json")
	for {
		a.mu.Lock()
		now, news := a.history[from:], a.news
		from = len(a.history)
		a.mu.Unlock()
		for _, c := range now {
			if in(collection, c.path) && json.NewEncoder(w).Encode(c) != nil {
				return
			}
		}
		w.(http.Flusher).Flush()
		select {
		case <-news:
		case <-r.Context().Done():
			return
		}
	}
}

// write does what a request asks for, unless the API is broken.
func (a *storageAPI) write(w http.ResponseWriter, r *http.Request, path string) {
	var body map[string]any
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		panic(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var after bool
	if a.broken != nil {
		var before bool
		if before, after = a.broken(); before {
			refuse(w, http.StatusServiceUnavailable, "ServiceUnavailable")
			return
		}
	}
	meta, _ := body["metadata"].(map[string]any)
	if r.Method == http.MethodPost {
		path += "/" + meta["name"].(string)
	}
	old := a.objects[path]
	code, reason := conflict(r.Method, old, body, meta)
	switch {
	case code != 0:
		refuse(w, code, reason)
		return
	case r.Method == http.MethodDelete:
		a.record("DELETED", path, old)
		body = old
	case r.Method == http.MethodPatch:
		body = merged(old, body)
		fallthrough
	default:
		a.record("MODIFIED", path, body)
	}
	if after {
		refuse(w, http.StatusServiceUnavailable, "ServiceUnavailable")
		return
	}
	answer(w, body)
}

// conflict is why a write is refused: 0 when it is not.
func conflict(method string, old, body, meta map[string]any) (code int, reason string) {
	switch {
	case method == http.MethodPost && old != nil:
		return http.StatusConflict, "AlreadyExists"
	case method != http.MethodPost && old == nil:
		return http.StatusNotFound, "NotFound"
	case method == http.MethodDelete:
		if p, _ := body["preconditions"].(map[string]any); p["uid"] == nil || p["uid"] != old["metadata"].(map[string]any)["uid"] {
			return http.StatusConflict, "Conflict"
		}
	case method != http.MethodPost && meta["resourceVersion"] != old["metadata"].(map[string]any)["resourceVersion"]:
		return http.StatusConflict, "Conflict"
	}
	return 0, ""
}

// merged is a JSON merge patch.
func merged(old, patch map[string]any) map[string]any {
	now := maps.Clone(old)
	for key, value := range patch {
		into, deep := now[key].(map[string]any)
		with, both := value.(map[string]any)
		switch {
		case value == nil:
			delete(now, key)
		case deep && both:
			now[key] = merged(into, with)
		default:
			now[key] = value
		}
	}
	return now
}

// record makes a change; a.mu is held. What is recorded is never changed.
func (a *storageAPI) record(event, path string, o map[string]any) {
	o, meta := maps.Clone(o), maps.Clone(o["metadata"].(map[string]any))
	o["metadata"] = meta
	if meta["uid"] == nil {
		meta["uid"] = uuid.NewString()
	}
	if a.objects[path] == nil {
		event = "ADDED"
	}
	meta["resourceVersion"] = fmt.Sprint(len(a.history) + 1)
	if a.objects[path] = o; event == "DELETED" {
		delete(a.objects, path)
	}
	a.history = append(a.history, change{event, o, path})
	close(a.news)
	a.news = make(chan struct{})
}

func answer(w http.ResponseWriter, o any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(o); err != nil {
		panic(err)
	}
}

func refuse(w http.ResponseWriter, code int, reason string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"code":%d}`, reason, code)
}

// path is that of an object of a resource.
func pathOf(resource, namespace, name string) string {
	path := "/api/v1/"
	if resource == "storageclasses" {
		path = "/apis/storage.k8s.io/v1/"
	}
	if namespace != "" {
		path += "namespaces/" + namespace + "/"
	}
	return path + resource + "/" + name
}

// put makes an object or replaces it, as the cluster does.
func (a *storageAPI) put(resource, namespace, name string, o any) {
	text, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	var object map[string]any
	if err := json.Unmarshal(text, &object); err != nil {
		panic(err)
	}
	object["apiVersion"], object["kind"] = storageKinds[resource][0], storageKinds[resource][1]
	a.mu.Lock()
	defer a.mu.Unlock()
	a.record("MODIFIED", pathOf(resource, namespace, name), object)
}

// drop removes an object.
func (a *storageAPI) drop(resource, namespace, name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if path := pathOf(resource, namespace, name); a.objects[path] != nil {
		a.record("DELETED", path, a.objects[path])
	}
}

// all are the objects of a resource.
func all[T any](a *storageAPI, resource string) (list []T) {
	text, err := json.Marshal(a.list(strings.TrimSuffix(pathOf(resource, "", ""), "/"))["items"])
	if err != nil {
		panic(err)
	}
	if err := json.Unmarshal(text, &list); err != nil {
		panic(err)
	}
	return list
}
