package transfer

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/utils/clock"
)

// lane is what contents go out through: at a bounded rate, and few at a time. Twenty receivers that get their chunks one
// after another have something to give to each other much earlier than twenty that get theirs at once.
type lane struct {
	limiter *rate.Limiter // nil without a limit
	abreast chan struct{}
}

const (
	// atATime is how many answers go out side by side while others wait.
	atATime = 4
	// longestWait is how long one waits for that: a few slow receivers must not hold up everyone.
	longestWait = 2 * time.Second
)

func newLane(bytesPerSecond int64) *lane {
	l := &lane{abreast: make(chan struct{}, atATime)}
	if bytesPerSecond > 0 {
		l.limiter = rate.NewLimiter(rate.Limit(bytesPerSecond), burst)
	}
	return l
}

// enter waits for its turn, but not for long; the returned function ends it.
func (l *lane) enter(ctx context.Context) (leave func()) {
	timer := time.NewTimer(longestWait)
	defer timer.Stop()
	select {
	case l.abreast <- struct{}{}:
		return func() { <-l.abreast }
	case <-timer.C:
	case <-ctx.Done():
	}
	return func() {}
}

// wait returns when so many bytes may go out.
func (l *lane) wait(ctx context.Context, bytes int) error {
	for l.limiter != nil && bytes > 0 {
		n := min(bytes, burst)
		if err := l.limiter.WaitN(ctx, n); err != nil {
			return err
		}
		bytes -= n
	}
	return nil
}

// given remembers which chunks of finished copies went to which peer lately, so that several receivers get different ones.
type given struct {
	clock clock.PassiveClock
	mu    sync.Mutex
	to    map[chunkOf]gift
	swept time.Time
}

type chunkOf struct {
	imageUID string
	index    int64
}

type gift struct {
	peer string
	at   time.Time
}

// givenTime is how long a chunk that went to one peer is not given to another that has a choice: somewhat more than it takes
// until it has arrived and the others, who ask each other once a second, have learned of it. With less, sixteen receivers
// take half of an image twice from whoever gives it first, and that is what they wait for.
const givenTime = 3 * time.Second

func newGiven(c clock.PassiveClock) *given { return &given{clock: c, to: map[chunkOf]gift{}} }

// give notes that a peer gets chunks; false, and nothing is noted, when it has a choice and the first has just gone to another.
func (g *given) give(imageUID, peer string, first, end int64, choice bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.clock.Now()
	g.sweep(now)
	last, known := g.to[chunkOf{imageUID, first}]
	if choice && known && last.peer != peer && now.Sub(last.at) < givenTime {
		return false
	}
	for i := first; i < end; i++ {
		g.to[chunkOf{imageUID, i}] = gift{peer, now}
	}
	return true
}

// sweep forgets what is past. The caller has the lock.
func (g *given) sweep(now time.Time) {
	if now.Sub(g.swept) < 10*givenTime {
		return
	}
	g.swept = now
	for key, gift := range g.to {
		if now.Sub(gift.at) >= givenTime {
			delete(g.to, key)
		}
	}
}
