package agent

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"k8s.io/client-go/rest"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/credential"
)

// apiWith serves the core group's discovery as an API with or without Secrets does, and one Secret.
func apiWith(t *testing.T, discovery func(http.ResponseWriter)) *rest.Config {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1", func(w http.ResponseWriter, _ *http.Request) { discovery(w) })
	mux.HandleFunc("GET /api/v1/namespaces/default/secrets/login", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"kind":"Secret","apiVersion":"v1","metadata":{"name":"login","namespace":"default"},"data":{"token":"Y2x1c3Rlcg=="}}`)
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return &rest.Config{Host: server.URL}
}

func list(kinds string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"v1","resources":[%s]}`, kinds)
	}
}

func TestSecretsAreTheClustersWhereItHasThem(t *testing.T) {
	ref := credential.Ref{Namespace: "default", Name: "login"}
	for name, tc := range map[string]struct {
		discovery func(http.ResponseWriter)
		want      string
	}{
		"a cluster's":                 {list(`{"name":"secrets","kind":"Secret","namespaced":true,"verbs":["get"]}`), "cluster"},
		"an API without a core group": {func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) }, "file"},
		"a core group without them":   {list(`{"name":"events","kind":"Event","namespaced":true,"verbs":["get"]}`), "file"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := openSecrets(apiWith(t, tc.discovery), t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			if err := s.file.Put(context.Background(), ref, map[string][]byte{"token": []byte("file")}); err != nil {
				t.Fatal(err)
			}
			if got, err := s.Get(context.Background(), ref); err != nil || string(got["token"]) != tc.want {
				t.Errorf("got the %s's (%v)", got["token"], err)
			}
		})
	}
}

func TestSecretsWaitForTheAPI(t *testing.T) {
	var up atomic.Bool
	s, err := openSecrets(apiWith(t, func(w http.ResponseWriter) {
		if !up.Load() {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		list(`{"name":"secrets","kind":"Secret","namespaced":true,"verbs":["get"]}`)(w)
	}), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ref := credential.Ref{Namespace: "default", Name: "login"}
	if _, err := s.Get(context.Background(), ref); !backingimage.Is(err, backingimage.NotReady) {
		t.Errorf("got %v, want NotReady", err)
	}
	up.Store(true)
	if got, err := s.Get(context.Background(), ref); err != nil || string(got["token"]) != "cluster" {
		t.Errorf("got %q (%v)", got["token"], err)
	}
}
