package csi_test

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"plinth.dev/plinth/test/plinthtest"
)

// private serves a directory to whoever knows the password of the moment, and counts whom it turned away.
func private(t *testing.T, dir string, password *atomic.Value) (url string) {
	t.Helper()
	files := http.FileServer(http.Dir(dir))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, given, _ := r.BasicAuth()
		if user != "golden" || given != password.Load() {
			http.Error(w, "who are you, "+user+":"+given+"?", http.StatusUnauthorized) // it even says what it got
			return
		}
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// The secret that a class names for the provisioner opens the door to the image that it makes on demand.
func TestProvisionerSecret(t *testing.T) {
	const first, second = "swordfish-one", "swordfish-two"
	var password atomic.Value
	password.Store(first)
	dir := t.TempDir()
	plinthtest.MustImage(t, dir, "private.raw", plinthtest.Image{Format: "raw"})
	url := private(t, dir, &password) + "/private.raw"
	o := mustOrchestrator(t)
	create := func(name, image, password string, more map[string]string) error {
		request := createVolume(name)
		request.Parameters = class(t, image, url)
		maps.Copy(request.Parameters, more)
		request.Secrets = nil
		if password != "" {
			request.Secrets = map[string]string{"username": "golden", "password": password}
		}
		_, err := o.CreateVolume(t.Context(), request)
		if err != nil && (strings.Contains(err.Error(), first) || strings.Contains(err.Error(), second)) {
			t.Errorf("the password is in the error: %v", err)
		}
		return err
	}
	kept := filepath.Join(o.DataDir, "secrets", "plinth", "image-private.json")

	t.Run("a private image is made on demand", func(t *testing.T) {
		must(t, create("one", "private", first, nil))
		o.mustStage(t, "one")
		if info, err := os.Stat(kept); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the secret is kept as %v, %v", info, err)
		}
	})
	t.Run("its class is the image's, with the secret and without", func(t *testing.T) {
		must(t, create("two", "private", first, nil))
		must(t, create("three", "private", "", nil))
	})
	t.Run("a changed secret is kept in the old one's place", func(t *testing.T) {
		must(t, create("four", "private", second, nil))
		if text, err := os.ReadFile(kept); err != nil || !strings.Contains(string(text), mustBase64(t, second)) {
			t.Errorf("what is kept is not the new secret (%v)", err)
		}
	})
	t.Run("a secret that the class names outright comes first", func(t *testing.T) {
		parameters, err := json.Marshal(map[string]string{"url": url, "secret": "mine", "secret-namespace": "team"})
		must(t, err)
		wantCode(t, create("five", "private", first, map[string]string{"backingImageDataSourceParameters": string(parameters)}), codes.InvalidArgument, "secret", `"mine"`)
	})
	t.Run("a secret that cannot be read is refused before anything is made", func(t *testing.T) {
		request := createVolume("six")
		request.Parameters, request.Secrets = class(t, "unmade", url), map[string]string{"pass": first}
		_, err := o.CreateVolume(t.Context(), request)
		wantCode(t, err, codes.InvalidArgument, `"pass"`)
		if r := o.CLI("image", "show", "unmade"); r.Code == 0 {
			t.Error("the image was made")
		}
	})
	t.Run("a wrong secret fails with the server's answer and without the secret", func(t *testing.T) {
		err := create("seven", "closed", second, nil)
		for range 20 {
			if err != nil {
				break
			}
			time.Sleep(500 * time.Millisecond)
			err = create("seven-too", "closed", second, nil)
		}
		wantCode(t, err, codes.FailedPrecondition, "401")
	})
	for name, text := range map[string]string{"log": o.Log(), "objects": o.MustCLI("image", "ls", "-o", "json") + o.MustCLI("volume", "ls", "-o", "json") + o.MustCLI("image", "show", "private", "-o", "json")} {
		if strings.Contains(text, first) || strings.Contains(text, second) || strings.Contains(text, mustBase64(t, first)) {
			t.Errorf("the password is in the %s", name)
		}
	}
	t.Run("the secret goes with its image", func(t *testing.T) {
		o.mustRemove(t, "one")
		for _, id := range []string{"two", "three", "four"} {
			_, err := o.DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{VolumeId: id})
			must(t, err)
		}
		o.MustCLI("image", "rm", "private")
		if _, err := os.Stat(kept); !os.IsNotExist(err) {
			t.Errorf("the secret is still kept (%v)", err)
		}
	})
}

func mustBase64(t *testing.T, text string) string {
	t.Helper()
	out, err := json.Marshal([]byte(text))
	must(t, err)
	return strings.Trim(string(out), `"`)
}
