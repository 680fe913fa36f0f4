package embedded_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/backingimage/store/embedded"
	"plinth.dev/plinth/deploy"
)

// writeForEver prints the name of each object when the API has acknowledged it.
func writeForEver(ctx context.Context, dir string) error {
	s, err := serveAsMain(ctx, dir)
	if err != nil {
		return err
	}
	c, err := store.NewClient(s.RESTConfig())
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		name := fmt.Sprintf("p%d-%d", os.Getpid(), n)
		if _, err := c.Images.Create(ctx, image(name), metav1.CreateOptions{}); err != nil {
			return err
		}
		fmt.Println(name)
	}
}

func TestKillWhileWriting(t *testing.T) {
	dir := tempDir(t)
	acknowledged := map[string]bool{}
	for round := range 4 {
		c := mustSpawn(t, "write", dir)
		for n := 0; n < 10+round && c.lines.Scan(); n++ {
			acknowledged[c.lines.Text()] = true
		}
		if err := c.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for c.lines.Scan() { // written before the kill, read after it
			acknowledged[c.lines.Text()] = true
		}
		_ = c.Wait()
		if len(acknowledged) < 10*(round+1) {
			t.Fatalf("round %d: the child wrote too little: %s", round, c.stderr.String())
		}
	}
	s := mustServe(t, embedded.Options{Dir: dir})
	list, err := mustClient(t, s.RESTConfig()).Images.List(testContext(t), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list.Items {
		delete(acknowledged, i.Name)
	}
	if len(acknowledged) != 0 {
		t.Errorf("acknowledged and lost: %v", acknowledged)
	}
}

func TestKillWhileStarting(t *testing.T) {
	dir := tempDir(t)
	for n := range 8 {
		c := mustSpawn(t, "write", dir)
		time.Sleep(time.Duration(n) * 60 * time.Millisecond) // anywhere in a start that takes about half a second
		if err := c.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = c.Wait()
	}
	s := mustServe(t, embedded.Options{Dir: dir})
	if _, err := mustClient(t, s.RESTConfig()).Images.Create(testContext(t), image("after"), metav1.CreateOptions{}); err != nil {
		t.Error(err)
	}
}

// The two moments that etcd and the API server do not survive by themselves.
func TestInterruptedFirstStart(t *testing.T) {
	t.Run("of etcd is begun anew", func(t *testing.T) {
		s := mustNew(t)
		mustBreakEtcd(t, s)
		mustWrite(t, s.Unfinished(), "")
		mustStart(t, s)
	})
	t.Run("is not assumed without its mark", func(t *testing.T) {
		s := mustNew(t)
		broken := mustBreakEtcd(t, s)
		mustContain(t, fmt.Sprint(s.Start(testContext(t))), s.Etcd(), "restore the directory from a backup")
		if _, err := os.Stat(broken); err != nil {
			t.Errorf("data was deleted: %v", err)
		}
	})
	t.Run("of a definition is finished", func(t *testing.T) {
		dir := tempDir(t)
		mustStop(t, mustServe(t, embedded.Options{Dir: dir}))
		mustUnestablish(t, dir)
		mustServe(t, embedded.Options{Dir: dir})
	})
}

func mustNew(t testing.TB) *embedded.Server {
	t.Helper()
	s, err := embedded.New(embedded.Options{Dir: tempDir(t), CRDs: deploy.CRDs})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustStart(t testing.TB, s *embedded.Server) {
	t.Helper()
	if err := s.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustStop(t, s) })
}

func mustWrite(t testing.TB, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// mustBreakEtcd leaves a log that etcd cannot read.
func mustBreakEtcd(t testing.TB, s *embedded.Server) (path string) {
	t.Helper()
	path = filepath.Join(s.Etcd(), "member", "wal", "0000000000000000-0000000000000000.wal")
	mustWrite(t, path, "no log")
	return path
}

// mustUnestablish makes every definition one whose names are accepted and which nobody has established yet.
func mustUnestablish(t testing.TB, dir string) {
	t.Helper()
	ctx := testContext(t)
	s, err := embedded.New(embedded.Options{Dir: dir})
	if err == nil {
		err = s.StartEtcdOnly(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer mustStop(t, s)
	etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{s.EtcdEndpoint()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer etcd.Close()
	stored, err := etcd.Get(ctx, "/registry/apiextensions.k8s.io/", clientv3.WithPrefix())
	if err != nil || len(stored.Kvs) == 0 {
		t.Fatalf("got %d definitions, %v", len(stored.Kvs), err)
	}
	for _, kv := range stored.Kvs {
		var crd apiextensionsv1.CustomResourceDefinition
		if err := json.Unmarshal(kv.Value, &crd); err != nil {
			t.Fatal(err)
		}
		crd.Status.Conditions = slices.DeleteFunc(crd.Status.Conditions, func(c apiextensionsv1.CustomResourceDefinitionCondition) bool {
			return c.Type == apiextensionsv1.Established
		})
		value, err := json.Marshal(crd)
		if err == nil {
			_, err = etcd.Put(ctx, string(kv.Key), string(value))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
