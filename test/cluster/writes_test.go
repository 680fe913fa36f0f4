package cluster

import (
	"bytes"
	"context"

	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// slowly is how long the fetch takes whose writes are counted, and fewWrites how many there may be: with thousands of copies each one
// tells.
const (
	slowly    = 10 * time.Second
	fewWrites = 12
	perWrite  = 2 * time.Second // of progress; a fetch that a busy machine makes longer has more of it to tell
)

// slowFetch is the fetch of an image from a slow source, which goes on beside the other cases.
type slowFetch struct {
	began  time.Time
	watch  watch.Interface
	writes []*v1alpha1.BackingImageCopy // the copy after each
}

// fetchSlowly begins it, on node n1, which the other cases leave alone.
func (c *cluster) fetchSlowly() *slowFetch {
	var mu sync.Mutex
	content := bytes.Repeat([]byte("slow"), imageBytes/4)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(&slowWriter{w, &mu}, r, "", time.Time{}, bytes.NewReader(content))
	}))
	c.t.Cleanup(server.Close)
	w, err := c.Client(c.t).Copies.Watch(context.Background(), metav1.ListOptions{FieldSelector: "spec.image=slow"})
	must(c.t, err)
	c.t.Cleanup(w.Stop)
	c.tag("n1", "slow")
	c.MustCLI("image", "create", "slow", "--url", server.URL, "--node-selector", "slow")
	return &slowFetch{began: time.Now(), watch: w}
}

// slowWriter gives a whole image, over whatever number of connections, in the time.
type slowWriter struct {
	http.ResponseWriter
	mu *sync.Mutex
}

// Write implements io.Writer.
func (s *slowWriter) Write(p []byte) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	time.Sleep(slowly * time.Duration(len(p)) / imageBytes)
	return s.ResponseWriter.Write(p)
}

func fewWritesPerCopy(t *testing.T, f *slowFetch) {
	timeout := time.After(wait)
	for ready := false; !ready; {
		select {
		case e := <-f.watch.ResultChan():
			c, is := e.Object.(*v1alpha1.BackingImageCopy)
			if !is {
				t.Fatalf("the watch ended: %v", e)
			}
			f.writes = append(f.writes, c)
			ready = isReady(c)
		case <-timeout:
			t.Fatalf("the copy is not ready after %d writes", len(f.writes))
		}
	}
	took := f.writes[len(f.writes)-1].Status.LastStateTransitionTime.Sub(f.began)
	allowed := fewWrites + int(max(took-slowly, 0)/perWrite)
	t.Logf("%d writes from birth to ready in %s", len(f.writes), took.Round(time.Second))
	if len(f.writes) > allowed {
		for _, c := range f.writes {
			t.Logf("%s %d %% %q", c.Status.State, c.Status.Progress, c.Status.Message)
		}
		t.Errorf("%d writes, want at most %d", len(f.writes), allowed)
	}
}
