package node_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/disk/disktest"
	"plinth.dev/plinth/backingimage/node/nodetest"
)

// privateWeb gives its file to those who log in, over TLS with a certificate that nobody knows.
func privateWeb(tb testing.TB, user, password string) (server *httptest.Server, requests *atomic.Int32) {
	tb.Helper()
	requests = new(atomic.Int32)
	content := bytes.Repeat([]byte("private "), 1<<17)
	server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		if u, p, _ := r.BasicAuth(); u != user || p != password {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	server.TLS = &tls.Config{}
	server.StartTLS()
	tb.Cleanup(server.Close)
	return server, requests
}

func TestPrivateImages(t *testing.T) {
	disktest.NeedRoot(t)
	const password = "correct-horse-battery"
	server, requests := privateWeb(t, "reader", password)
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	secrets, err := credential.OpenDirectory(filepath.Join(t.TempDir(), "secrets"))
	must(t, err)
	put := func(name, password string) {
		must(t, secrets.Put(context.Background(), credential.Ref{Namespace: "images", Name: name}, map[string][]byte{
			credential.KeyUsername: []byte("reader"), credential.KeyPassword: []byte(password), credential.KeyAuthorities: authority,
		}))
	}
	put("wrong", password+"-not")
	put("right", password)
	must(t, secrets.Put(context.Background(), credential.Ref{Namespace: "images", Name: "no-authority"}, map[string][]byte{credential.KeyUsername: []byte("reader"), credential.KeyPassword: []byte(password)}))
	m := nodetest.MustStart(t, disktest.MustPool(t, nodetest.PoolBytes))
	m.Stop()
	m.Credentials = secrets
	m.Start()

	create := func(secret string) *v1alpha1.BackingImage {
		return m.Create("private-"+secret, v1alpha1.BackingImageSpec{
			SourceType: v1alpha1.SourceDownload, MinNumberOfCopies: 1,
			SourceParameters: map[string]v1alpha1.SourceParameter{"url": v1alpha1.SourceParameter(server.URL + "/disk.img"), "secret": v1alpha1.SourceParameter(secret), "secret-namespace": "images"},
		})
	}
	for secret, c := range map[string]struct {
		says     string
		requests int32
	}{
		"absent":       {"plinth secret create", 0},
		"wrong":        {"sourceParameters.secret", 1},
		"no-authority": {"ca.crt", 0},
	} {
		t.Run(secret+" fails once, for good, with what to do", func(t *testing.T) {
			before := requests.Load()
			i := create(secret)
			failed := m.UntilState("private-"+secret, v1alpha1.CopyFailed)
			if !strings.Contains(failed.Status.Message, c.says) || strings.Contains(failed.Status.Message, "next try") {
				t.Errorf("message is %q", failed.Status.Message)
			}
			time.Sleep(time.Second) // five times the retry
			if n := requests.Load() - before; n != c.requests {
				t.Errorf("%d requests", n)
			}
			m.UntilNoFiles(i)
		})
	}
	t.Run("the right one makes it ready", func(t *testing.T) {
		create("right")
		m.UntilReady("private-right", "1/1")
	})
	t.Run("no secret is anywhere", func(t *testing.T) {
		objects, err := json.Marshal([]any{m.Store.Images.List(), m.Store.Copies.List(), m.Store.Disks.List(), m.Store.Nodes.List()})
		must(t, err)
		mustNotTell(t, "the objects", objects, password)
		mustNotTell(t, "the log", []byte(m.Logs()), password)
		files := 0
		must(t, filepath.WalkDir(string(m.Disks[0].Layout()), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return err
			}
			files++
			content, err := os.ReadFile(path)
			mustNotTell(t, path, content, password)
			return err
		}))
		if files < 4 {
			t.Errorf("only %d files were looked at", files)
		}
	})
}

func mustNotTell(tb testing.TB, what string, text []byte, secret string) {
	tb.Helper()
	if len(text) == 0 || bytes.Contains(text, []byte(secret)) {
		tb.Errorf("%s, of %d bytes, tells the secret or nothing", what, len(text))
	}
}
