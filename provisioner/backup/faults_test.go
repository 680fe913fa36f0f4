package backup_test

import (
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/provisioner/backup"
	"plinth.dev/plinth/provisioner/backup/object"
)

// network is what lies between a client and a server, and does to answers what networks do.
type network struct {
	proxy   *httputil.ReverseProxy
	mu      sync.Mutex
	random  *rand.Rand
	changed map[string]bool // paths of what was changed on its way
	faults  []fault
	done    atomic.Int64 // faults
}

// fault is one in so many requests.
type fault struct {
	every int
	do    func(n *network, w http.ResponseWriter, r *http.Request)
}

// mustNetwork puts a network before a server and returns its address.
func mustNetwork(tb testing.TB, server string, faults ...fault) (*network, string) {
	tb.Helper()
	n := &network{proxy: httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: server}), random: rand.New(rand.NewPCG(1, 2)), changed: map[string]bool{}, faults: faults}
	n.proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	s := httptest.NewServer(n)
	tb.Cleanup(s.Close)
	return n, s.Listener.Addr().String()
}

func (n *network) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for _, f := range n.faults {
		n.mu.Lock()
		now := n.random.IntN(f.every) == 0
		n.mu.Unlock()
		if now {
			n.done.Add(1)
			f.do(n, w, r)
			return
		}
	}
	n.proxy.ServeHTTP(w, r)
}

func unavailable(_ *network, w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	w.WriteHeader(http.StatusServiceUnavailable)
	io.WriteString(w, `<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>`+secretKey+`</Message></Error>`)
}

func hangUp(*network, http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// greet answers as a server that has nothing to do with this.
func greet(_ *network, w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	io.WriteString(w, "<html>hello</html>")
}

// loseAnswer lets the request arrive.
func loseAnswer(n *network, _ http.ResponseWriter, r *http.Request) {
	n.proxy.ServeHTTP(httptest.NewRecorder(), r)
	panic(http.ErrAbortHandler)
}

// change passes on an answer whose content a function changed, once for each object: what is wrong twice is taken for damage.
func change(with func([]byte) []byte) func(n *network, w http.ResponseWriter, r *http.Request) {
	return func(n *network, w http.ResponseWriter, r *http.Request) {
		n.mu.Lock()
		before := n.changed[r.URL.Path]
		n.changed[r.URL.Path] = true
		n.mu.Unlock()
		if before {
			n.proxy.ServeHTTP(w, r)
			return
		}
		answer := httptest.NewRecorder()
		n.proxy.ServeHTTP(answer, r)
		for name, values := range answer.Header() {
			w.Header()[name] = values
		}
		w.WriteHeader(answer.Code)
		w.Write(with(answer.Body.Bytes()))
	}
}

func half(b []byte) []byte { return b[:len(b)/2] }

func flipped(b []byte) []byte {
	if len(b) > 1000 {
		b[len(b)/2] ^= 1
	}
	return b
}

func slow(n *network, w http.ResponseWriter, r *http.Request) {
	time.Sleep(50 * time.Millisecond)
	n.proxy.ServeHTTP(w, r)
}

// servers runs a test on each server that there is a network before.
func servers(t *testing.T, test func(t *testing.T, p *place)) {
	t.Run("s3", func(t *testing.T) { t.Parallel(); test(t, s3Server(t)) })
	for name, where := range clouds() {
		t.Run(name, func(t *testing.T) { t.Parallel(); test(t, where(t)) })
	}
}

func TestANetworkThatFailsIsOnlySlow(t *testing.T) { servers(t, testNetwork) }

func testNetwork(t *testing.T, p *place) {
	n, address := mustNetwork(t, p.address, fault{12, unavailable}, fault{15, hangUp}, fault{20, loseAnswer}, fault{20, change(half)}, fault{40, change(flipped)}, fault{20, slow})
	p.through(t, address)
	p.options.Attempts, p.options.Timeout = 10, 5*time.Second
	r := p.mustOpen(t, backup.Options{Key: key})
	volume := content(1, 40<<20)
	mustSave(t, r, "b-1", backup.Manifest{}, whole(volume))
	mustRestore(t, r, "b-1", volume)
	if n.done.Load() < 5 {
		t.Errorf("only %d faults were made", n.done.Load())
	}
}

func TestAServerThatStaysAwayIsToldAbout(t *testing.T) { servers(t, testAway) }

func testAway(t *testing.T, p *place) {
	p.mustOpen(t, backup.Options{})
	for name, c := range map[string]struct {
		do   func(*network, http.ResponseWriter, *http.Request)
		kind backingimage.Kind
		says string
	}{
		"throttles":  {unavailable, backingimage.NotReady, "503"},
		"hangs up":   {hangUp, backingimage.NotReady, "cannot be reached"},
		"says no":    {status(http.StatusForbidden), backingimage.Precondition, "access is refused"},
		"stalls":     {stall, backingimage.NotReady, "no answer within"},
		"is another": {greet, backingimage.NotReady, ""},
	} {
		_, address := mustNetwork(t, p.address, fault{1, c.do})
		away := *p
		away.through(t, address)
		away.options = object.Options{Attempts: 2, Pause: time.Millisecond, Timeout: 2 * time.Second}
		_, err := backup.Open(context.Background(), away.mustStore(t), backup.Options{})
		if err == nil || c.says != "" && !backingimage.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), p.url) || strings.Contains(err.Error(), secretKey) {
			t.Errorf("a server that %s: %v", name, err)
		}
	}
}

func TestTheEndOfACallersTimeSaysWhatWasWaitedFor(t *testing.T) {
	t.Parallel()
	p := s3Server(t)
	for says, do := range map[string]func(*network, http.ResponseWriter, *http.Request){"no answer": stall, "503": unavailable} {
		_, address := mustNetwork(t, p.address, fault{1, do})
		away := *p
		away.through(t, address)
		away.options = object.Options{Attempts: 1000, Pause: 10 * time.Millisecond}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_, err := backup.Open(ctx, away.mustStore(t), backup.Options{})
		cancel()
		if !backingimage.Is(err, backingimage.NotReady) || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, which does not say %s", err, says)
		}
	}
}

func status(code int) func(*network, http.ResponseWriter, *http.Request) {
	return func(_ *network, w http.ResponseWriter, r *http.Request) { w.WriteHeader(code) }
}

func stall(_ *network, _ http.ResponseWriter, r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-time.After(20 * time.Second):
	}
}

func TestWhatArrivedIsNotSentAgain(t *testing.T) {
	each(t, func(t *testing.T, p *place, o backup.Options) {
		r := p.mustOpen(t, o)
		volume := content(1, 32<<20)
		ctx, cancel := context.WithCancel(context.Background())
		s, err := r.Begin(ctx, false)
		must(t, err)
		_, err = s.Write(ctx, whole(volume), func(p backup.Progress) {
			if p.DoneBytes >= 16<<20 {
				cancel()
			}
		})
		if err == nil {
			t.Fatal("it was not interrupted")
		}
		first := s.Stats().NewBytes
		again := mustSave(t, p.mustOpen(t, o), "b-1", backup.Manifest{}, whole(volume))
		all := again.Stats.StoredBytes
		if first < 10<<20 || first+again.Stats.NewBytes > all+5*backup.BlockBytes {
			t.Errorf("%d bytes arrived, then %d were sent, of %d", first, again.Stats.NewBytes, all)
		}
		mustRestore(t, r, "b-1", volume)
	})
}

func TestRatesAreHeld(t *testing.T) {
	t.Parallel()
	p := directory(t)
	p.options.Limits = object.Limits{UploadBytes: 8 << 20}
	r := p.mustOpen(t, backup.Options{})
	began := time.Now()
	mustSave(t, r, "b-1", backup.Manifest{}, whole(content(3, 30<<20))) // 20 MB of data
	if took := time.Since(began); took < time.Second {
		t.Errorf("20 MB took %s at 8 MiB/s", took)
	}
}
