package join_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"k8s.io/client-go/tools/clientcmd"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/store/join"
)

const server = "https://node-1.test:6443"

func mustAnnounce(t *testing.T, path string) *join.Directory {
	t.Helper()
	d := join.Open(path)
	if err := d.Announce(server, []byte("a certificate")); err != nil {
		t.Fatal(err)
	}
	return d
}

// mustToken lets a node join and returns the token in its kubeconfig.
func mustToken(t testing.TB, d *join.Directory, node string) string {
	t.Helper()
	content, at, err := d.Kubeconfig(node)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := clientcmd.Load(content)
	if err != nil {
		t.Fatal(err)
	}
	cluster, user := cfg.Clusters["plinth"], cfg.AuthInfos["plinth"]
	if at != server || cluster.Server != server || string(cluster.CertificateAuthorityData) != "a certificate" {
		t.Fatalf("it joins %s, %+v", at, cluster)
	}
	return user.Token
}

func wantNode(t testing.TB, d *join.Directory, token, want string) {
	t.Helper()
	if got, err := d.NodeOf(token); err != nil || got != want {
		t.Errorf("the token is of %q, want %q (%v)", got, want, err)
	}
}

func TestTokens(t *testing.T) {
	path := filepath.Join(t.TempDir(), "join")
	giver, api := mustAnnounce(t, path), join.Open(path) // different processes
	first, other := mustToken(t, giver, "n2"), mustToken(t, giver, "n3.test")
	wantNode(t, api, first, "n2")
	wantNode(t, api, other, "n3.test")
	second := mustToken(t, giver, "n2")
	wantNode(t, api, first, "")
	wantNode(t, api, second, "n2")
	if err := giver.Revoke("n2"); err != nil {
		t.Fatal(err)
	}
	wantNode(t, api, second, "")
	wantNode(t, api, other, "n3.test")
	wantNode(t, api, "", "")
	for kind, err := range map[backingimage.Kind]error{backingimage.NotFound: giver.Revoke("n2"), backingimage.Invalid: giver.Revoke("../api")} {
		if !backingimage.Is(err, kind) {
			t.Errorf("got %v, want %v", err, kind)
		}
	}
}

func TestTokensAreKeptNowhere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "join")
	token := mustToken(t, mustAnnounce(t, path), "n2")
	err := filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", p, info.Mode())
		}
		if e.IsDir() {
			return nil
		}
		content, err := os.ReadFile(p)
		if strings.Contains(string(content), token) {
			t.Errorf("%s has the token", p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestWhatCannotJoin(t *testing.T) {
	path := filepath.Join(t.TempDir(), "join")
	if _, _, err := join.Open(path).Kubeconfig("n2"); !backingimage.Is(err, backingimage.NotFound) || !strings.Contains(err.Error(), "start plinth standalone") {
		t.Errorf("without an API: %v", err)
	}
	d := mustAnnounce(t, path)
	for _, name := range []string{"", ".", "..", "../n2", "N2", "a/b", "a b", ".n2"} {
		if _, _, err := d.Kubeconfig(name); !backingimage.Is(err, backingimage.Invalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := os.WriteFile(filepath.Join(path, "api"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.Kubeconfig("n2"); !backingimage.Is(err, backingimage.Corrupt) {
		t.Errorf("a damaged file: %v", err)
	}
}

// What an interrupted write left, and files that nobody here wrote, are no tokens.
func TestDebrisAmongTokens(t *testing.T) {
	path := filepath.Join(t.TempDir(), "join")
	d := mustAnnounce(t, path)
	token := mustToken(t, d, "n2")
	for name, content := range map[string]string{".n3.123.tmp": strings.Repeat("0", 64), "n4": "", "n5": "half"} {
		if err := os.WriteFile(filepath.Join(path, "nodes", name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	wantNode(t, d, token, "n2")
	wantNode(t, d, "half", "")
}

func TestManyAskAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "join")
	giver, api := mustAnnounce(t, path), join.Open(path)
	kept := mustToken(t, giver, "kept")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				wantNode(t, api, kept, "kept")
			}
		})
	}
	for range 20 {
		wantNode(t, api, mustToken(t, giver, "changing"), "changing")
	}
	wg.Wait()
}
