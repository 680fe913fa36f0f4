package cluster_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2/ktesting"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/cluster"
)

func node(name, version string, cordoned bool) *corev1.Node {
	return &corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name), ResourceVersion: version}, Spec: corev1.NodeSpec{Unschedulable: cordoned}}
}

// nodesAPI has one Node, n1, at first, and says what comes out of changes, as a watch does.
func nodesAPI(t *testing.T, kinds string, changes <-chan metav1.WatchEvent) *rest.Config {
	t.Helper()
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, o any) {
		w.Header().Set("Content-Type", "application/json")
		must(json.NewEncoder(w).Encode(o))
	}
	mux.HandleFunc("GET /api/v1", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"v1","resources":[%s]}`, kinds)
	})
	mux.HandleFunc("GET /api/v1/nodes/{name}", func(w http.ResponseWriter, _ *http.Request) { status(w, http.StatusNotFound, "NotFound") })
	mux.HandleFunc("GET /api/v1/nodes", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("watch") == "" {
			answer(w, &corev1.NodeList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "NodeList"}, ListMeta: metav1.ListMeta{ResourceVersion: "1"}, Items: []corev1.Node{*node("n1", "1", false)}})
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.(http.Flusher).Flush()
		for {
			select {
			case change := <-changes:
				must(json.NewEncoder(w).Encode(change))
				w.(http.Flusher).Flush()
			case <-r.Context().Done():
				return
			}
		}
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.CloseClientConnections)
	t.Cleanup(server.Close)
	return &rest.Config{Host: server.URL}
}

func runNodes(t *testing.T, cfg *rest.Config) (*cluster.Nodes, context.Context) {
	t.Helper()
	nodes, err := cluster.NewNodes(cfg)
	if err != nil {
		t.Fatal(err)
	}
	_, ctx := ktesting.NewTestContext(t)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error)
	go func() { done <- nodes.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return nodes, ctx
}

const nodesServed = `{"name":"nodes","kind":"Node","namespaced":false,"verbs":["get","list","watch"]}`

func TestNodes(t *testing.T) {
	changes := make(chan metav1.WatchEvent, 1)
	nodes, ctx := runNodes(t, nodesAPI(t, nodesServed, changes))
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := nodes.Synced(ctx); err != nil {
		t.Fatal(err)
	}
	if m, known := nodes.Get("n1"); !known || m != (cluster.Machine{UID: "uid-n1"}) {
		t.Errorf("n1 is %+v, %t", m, known)
	}
	if _, err := nodes.Live(ctx, "n2"); !backingimage.Is(err, backingimage.NotFound) {
		t.Errorf("n2: %v", err)
	}
	changed := make(chan string, 10)
	defer nodes.OnChange(func(name string) { changed <- name })()
	for _, step := range []struct {
		change  metav1.WatchEvent
		node    *corev1.Node
		says    bool // OnChange is called
		known   bool
		machine cluster.Machine
	}{
		{metav1.WatchEvent{}, nil, true, true, cluster.Machine{UID: "uid-n1"}}, // those that there are
		{metav1.WatchEvent{Type: "MODIFIED"}, node("n1", "2", true), true, true, cluster.Machine{UID: "uid-n1", Cordoned: true}},
		{metav1.WatchEvent{Type: "MODIFIED"}, node("n1", "3", true), false, true, cluster.Machine{UID: "uid-n1", Cordoned: true}}, // a kubelet says that it lives
		{metav1.WatchEvent{Type: "DELETED"}, node("n1", "4", true), true, false, cluster.Machine{}},
	} {
		if step.node != nil {
			step.change.Object.Object = step.node
			changes <- step.change
		}
		if !step.says {
			continue // the next step would find it in the way
		}
		select {
		case name := <-changed:
			m, known := nodes.Get("n1")
			if name != "n1" || known != step.known || m != step.machine {
				t.Errorf("after %s of %s: %+v, %t", step.change.Type, name, m, known)
			}
		case <-ctx.Done():
			t.Fatalf("nobody says that there was a %s", step.change.Type)
		}
	}
}

func TestAnAPIWithoutNodesIsLeftAlone(t *testing.T) {
	nodes, ctx := runNodes(t, nodesAPI(t, "", nil))
	ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if err := nodes.Synced(ctx); err == nil {
		t.Error("a cache of Nodes is full that nothing can fill")
	}
}
