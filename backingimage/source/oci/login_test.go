package oci_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/source/servertest"
)

// login is a credential in each of the forms it may have.
func logins(registry, user, password string) map[string]credential.Credential {
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	config := func(server string) credential.Secret {
		return credential.Secret(fmt.Sprintf(`{"auths": {"other.example": {"auth": "bm9ib2R5Og=="}, %q: {"auth": %q}}}`, server, auth))
	}
	return map[string]credential.Credential{
		"user and password":    {Username: credential.Secret(user), Password: credential.Secret(password)},
		"docker configuration": {DockerConfig: config(registry)},
		"docker's older form":  {DockerConfig: config("https://" + registry + "/v1/")},
		"the nearest of many":  {DockerConfig: credential.Secret(fmt.Sprintf(`{"auths": {%q: {"auth": "bm9ib2R5Og=="}, %q: {"auth": %q}, %q: {"auth": "bm9ib2R5Og=="}}}`, registry, registry+"/disk", auth, registry+"/disks"))},
		"in plain words":       {DockerConfig: credential.Secret(fmt.Sprintf(`{"auths": {%q: {"username": %q, "password": %q}}}`, registry, user, password))},
	}
}

func TestPrivateRegistriesAreLoggedInTo(t *testing.T) {
	registry := servertest.MustRegistry(t, t.TempDir(), user, password)
	content := servertest.Image(1, 1<<20)
	mustPush(t, registry+"/disk:1", mustArtifact(t, file(content)), &authn.Basic{Username: user, Password: password})
	home := t.TempDir() // the user's own login is not used
	t.Setenv("DOCKER_CONFIG", home)
	t.Setenv("REGISTRY_AUTH_FILE", filepath.Join(home, "config.json"))
	if err := os.WriteFile(filepath.Join(home, "config.json"), []byte(logins(registry, user, password)["docker configuration"].DockerConfig.Reveal()), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range logins(registry, user, password) {
		o := options()
		o.Credential = c
		t.Run(name, func(t *testing.T) {
			servertest.MustFetch(t, servertest.Job(t, mustSource(t, registry+"/disk:1", o)), content)
		})
	}
	bad := logins(registry, user, "wRoNg")
	bad["nothing"] = credential.Credential{}
	bad["a token"] = credential.Credential{Token: password}
	bad["a login for another registry"] = credential.Credential{DockerConfig: logins("ghcr.io", user, password)["docker configuration"].DockerConfig}
	for name, c := range bad {
		o := options()
		o.Credential = c
		t.Run("wrong: "+name, func(t *testing.T) {
			mustRefuse(t, registry+"/disk:1", o, backingimage.Precondition, "401", registry, "username", ".dockerconfigjson")
		})
	}
	o := options()
	o.Credential.DockerConfig = `{"auths": {"` + password
	mustRefuse(t, registry+"/disk:1", o, backingimage.Invalid, ".dockerconfigjson", "docker login")
}

// Object stores that a registry redirects to, with presigned URLs.
func TestRedirectsNeverSeeTheLogin(t *testing.T) {
	dir := t.TempDir()
	registry := servertest.MustRegistry(t, dir, user, password)
	content := servertest.Image(1, 4<<20)
	mustPush(t, registry+"/disk:1", mustArtifact(t, file(content)), &authn.Basic{Username: user, Password: password})
	var asked int
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		if r.Header.Get("Authorization") != "" || r.Referer() != "" {
			t.Errorf("the object store is told %v", r.Header)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	t.Cleanup(store.Close)
	o := options()
	o.Credential = credential.Credential{Username: user, Password: password}
	for to, says := range map[string]string{
		store.URL + "/blob?X-Signature=" + password:             "",
		"http://169.254.169.254/latest?X-Signature=" + password: "metadata",
		"http://[::1]:1/?X-Signature=" + password:               "loopback",
		"file:///etc/passwd":                                    "\"file\" address",
	} {
		redirecting := front(t, registry, func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/blobs/") {
				return false
			}
			http.Redirect(w, r, to, http.StatusTemporaryRedirect)
			return true
		})
		s := mustSource(t, redirecting+"/disk:1", o)
		if says == "" {
			servertest.MustFetch(t, servertest.Job(t, s), content)
			continue
		}
		_, err := s.Open(context.Background(), 0, "")
		if !backingimage.Is(err, backingimage.Precondition) || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), password) {
			t.Errorf("%s: got %v", to, err)
		}
	}
	if asked == 0 {
		t.Error("the object store was not asked")
	}
}

// tokenServer is a registry's front that wants bearer tokens, and the server that gives them.
func tokenServer(t *testing.T, registry string, give http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(give)
	t.Cleanup(server.Close)
	return front(t, registry, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "Bearer good" {
			r.Header.Del("Authorization")
			return false
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+server.URL+`/token",service="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
}

func TestTokensAreFetched(t *testing.T) {
	registry := servertest.MustRegistry(t, t.TempDir(), "", "")
	content := servertest.Image(1, 1<<20)
	mustPush(t, registry+"/disk:1", mustArtifact(t, file(content)), authn.Anonymous)
	private := tokenServer(t, registry, func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != user || p != password || r.URL.Query().Get("scope") != "repository:disk:pull" {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, password)
			return
		}
		fmt.Fprint(w, `{"token": "good"}`)
	})
	o := options()
	o.Credential = credential.Credential{Username: user, Password: password}
	servertest.MustFetch(t, servertest.Job(t, mustSource(t, private+"/disk:1", o)), content)
	o.Credential = credential.Credential{Token: "good"}
	servertest.MustFetch(t, servertest.Job(t, mustSource(t, private+"/disk:1", o)), content)
	mustRefuse(t, private+"/disk:1", options(), backingimage.Precondition, "401")
	for name, c := range map[string]struct {
		give http.HandlerFunc
		kind backingimage.Kind
		says string
	}{
		"no token":        {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, `{"secret": %q}`, password) }, backingimage.Precondition, "does not let log in"},
		"no JSON":         {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, password) }, backingimage.Precondition, "does not let log in"},
		"an endless text": {func(w http.ResponseWriter, _ *http.Request) { io.CopyN(w, zeros{}, 100<<20) }, backingimage.Precondition, "does not let log in"},
		"not now":         {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, backingimage.NotReady, "503"},
		"a cut": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, "{")
		}, backingimage.NotReady, "EOF"},
		"to metadata": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://169.254.169.254/", http.StatusFound)
		}, backingimage.Precondition, "metadata"},
	} {
		t.Run(name, func(t *testing.T) {
			mustRefuse(t, tokenServer(t, registry, c.give)+"/disk:1", options(), c.kind, c.says)
		})
	}
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
