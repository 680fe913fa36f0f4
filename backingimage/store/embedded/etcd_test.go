package embedded_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2/textlogger"

	"plinth.dev/plinth/backingimage/store/embedded"
	"plinth.dev/plinth/deploy"
)

func TestCompaction(t *testing.T) {
	ctx := testContext(t)
	s, err := embedded.New(embedded.Options{Dir: tempDir(t), CRDs: deploy.CRDs})
	if err != nil {
		t.Fatal(err)
	}
	s.SetCompaction(100 * time.Millisecond)
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustStop(t, s) })
	c := mustClient(t, s.RESTConfig())
	i, err := c.Images.Create(ctx, image("busy"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{s.EtcdEndpoint()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer etcd.Close()
	first, err := etcd.Get(ctx, "nothing")
	if err != nil {
		t.Fatal(err)
	}
	for progress := int32(1); ; progress++ {
		i.Status.Progress = progress
		if i, err = c.Images.UpdateStatus(ctx, i, metav1.UpdateOptions{}); err != nil {
			t.Fatalf("the old revisions are never dropped: %v", err)
		}
		if _, err := etcd.Get(ctx, "nothing", clientv3.WithRev(first.Header.Revision)); errors.Is(err, rpctypes.ErrCompacted) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestEtcdDies(t *testing.T) {
	s := mustServe(t, embedded.Options{Dir: tempDir(t)})
	if err := s.CloseEtcd(testContext(t)); err != nil {
		t.Fatal(err)
	}
	t.Run("and Wait says so", func(t *testing.T) {
		if err := s.Wait(); err == nil {
			t.Error("got nil")
		} else {
			mustContain(t, err.Error(), "etcd")
		}
	})
	t.Run("and Stop still ends the rest", func(t *testing.T) { mustStop(t, s) })
}

func TestEtcdLog(t *testing.T) {
	var out bytes.Buffer
	died := make(chan error, 1)
	logger := embedded.NewEtcdLogger(textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(&out))), func(err error) { died <- err })
	go func() {
		logger.Info("an information")
		logger.Warn("a warning")
		logger.With(zap.String("disk", "sda")).Error("an error", zap.Error(errors.New("its cause")))
		logger.Fatal("a fatal error", zap.Error(errors.New("no space left on device")))
		t.Error("the goroutine went on")
	}()
	err := <-died
	t.Run("tells who waits of a fatal error", func(t *testing.T) {
		mustContain(t, err.Error(), "a fatal error", "no space left on device")
	})
	t.Run("keeps errors and what is known of them", func(t *testing.T) {
		mustContain(t, out.String(), "an error", "its cause", "sda", "a fatal error")
	})
	t.Run("drops the rest", func(t *testing.T) {
		if bytes.Contains(out.Bytes(), []byte("a warning")) || bytes.Contains(out.Bytes(), []byte("an information")) {
			t.Error(out.String())
		}
	})
}

func TestQuiet(t *testing.T) {
	var out bytes.Buffer
	logger := embedded.Quiet(textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(&out)))).WithName("n").WithValues("k", "v")
	logger.Info("our information")
	logger.Error(nil, "our error")
	mustContain(t, out.String(), "our information", "our error", `logger="n"`, `k="v"`, "etcd_test.go:")
}
