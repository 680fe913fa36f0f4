package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/manifest"
)

// Receiving is an image on its way from agents that have a ready copy of it.
type Receiving struct {
	// Dial makes a client of each agent that has one. It is asked at first, and again when none of them could give what was
	// asked. NotReady while there is none.
	Dial func(context.Context) ([]*Client, error)
	// ContentDigest that the image has, as the API says.
	ContentDigest string
	// Patience is for how long nothing may be got before it is given up; 10 minutes by default.
	Patience time.Duration
	// Trouble is told why nothing comes just now; may be nil.
	Trouble func(error)

	mu    sync.Mutex
	peers []*Client
	turn  int       // of whom to ask next
	last  time.Time // when something was got
}

// atOnce is how many chunks are on their way at a time.
const atOnce = 4

// maxManifestBytes is more than the manifest of the largest image has.
const maxManifestBytes = 1 << 30

// maxCorrupt is how often a thing may come that is not what it must be.
const maxCorrupt = 5

// Manifest gets the image's manifest and checks that it is of the image's content.
func (r *Receiving) Manifest(ctx context.Context) (m *manifest.Manifest, err error) {
	err = r.persist(ctx, func(ctx context.Context, c *Client) error {
		text, err := c.manifest(ctx)
		if err != nil {
			return err
		}
		if m, err = manifest.Parse(text); err != nil {
			return err
		}
		if digest := m.ContentDigest(); digest != r.ContentDigest {
			return backingimage.Errorf(backingimage.Corrupt, "agent at %s has another content: its digest is %s, the image's is %s", c.address, digest, r.ContentDigest)
		}
		return nil
	})
	return m, err
}

// Chunks gets the chunks of a content for which wanted holds, several at once, compares each with the manifest, and gives
// them to use in order. wanted and use are each called from one goroutine, in order too; a chunk's bytes are use's until it
// returns.
func (r *Receiving) Chunks(ctx context.Context, m *manifest.Manifest, wanted func(index int64) (bool, error), use func(index int64, data []byte) error) error {
	group, ctx := errgroup.WithContext(ctx)
	queue := make(chan chan arrival, atOnce)
	free := make(chan []byte, atOnce+2)
	for range cap(free) {
		free <- nil // allocated when it is needed
	}
	group.Go(func() error {
		defer close(queue)
		for index := range m.Chunks() {
			ok, err := wanted(index)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			if err := r.begin(ctx, group, m, index, free, queue); err != nil {
				return err
			}
		}
		return nil
	})
	group.Go(func() error {
		for next := range queue {
			select {
			case a := <-next:
				if err := use(a.index, a.data); err != nil {
					return err
				}
				free <- a.data[:0]
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	return group.Wait()
}

// arrival is a chunk that has come.
type arrival struct {
	index int64
	data  []byte
}

// begin starts to get one chunk, and queues the channel that it will come through.
func (r *Receiving) begin(ctx context.Context, group *errgroup.Group, m *manifest.Manifest, index int64, free <-chan []byte, queue chan<- chan arrival) error {
	var buffer []byte
	select {
	case buffer = <-free:
	case <-ctx.Done():
		return ctx.Err()
	}
	if buffer == nil {
		buffer = make([]byte, 0, manifest.ChunkBytes)
	}
	offset, length := m.Span(index)
	came := make(chan arrival, 1)
	group.Go(func() error {
		data := buffer[:length]
		err := r.persist(ctx, func(ctx context.Context, c *Client) error {
			if err := c.data(ctx, offset, data); err != nil {
				return err
			}
			if manifest.Sum(data) != m.Digest(index) {
				return backingimage.Errorf(backingimage.Corrupt, "agent at %s sent chunk %d (from byte %d) with other bytes than the manifest says", c.address, index, offset)
			}
			return nil
		})
		if err == nil {
			came <- arrival{index, data}
		}
		return err
	})
	select {
	case queue <- came:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// persist asks one agent after another until get succeeds, or there is no use in asking more.
func (r *Receiving) persist(ctx context.Context, get func(context.Context, *Client) error) error {
	delay, corrupt := firstDelay, 0
	for {
		err := r.ask(ctx, get)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case backingimage.Is(err, backingimage.Corrupt):
			if corrupt++; corrupt >= maxCorrupt {
				return err
			}
		case backingimage.Terminal(err) && !backingimage.Is(err, backingimage.NotFound), r.silentFor() > r.patience():
			return err
		}
		if r.Trouble != nil {
			r.Trouble(err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(delay):
		}
		delay = min(2*delay, maxDelay)
	}
}

// ask asks the agent whose turn it is. One that fails is asked no more before Dial is.
func (r *Receiving) ask(ctx context.Context, get func(context.Context, *Client) error) error {
	c, err := r.peer(ctx)
	if err != nil {
		return err
	}
	err = get(ctx, c)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		r.last = time.Now()
		return nil
	}
	for i, p := range r.peers {
		if p == c {
			r.peers = append(r.peers[:i:i], r.peers[i+1:]...)
		}
	}
	return err
}

func (r *Receiving) peer(ctx context.Context) (*Client, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last.IsZero() {
		r.last = time.Now()
	}
	if len(r.peers) == 0 {
		peers, err := r.Dial(ctx)
		if err != nil {
			return nil, err
		}
		r.peers = peers
	}
	r.turn++
	return r.peers[r.turn%len(r.peers)], nil
}

func (r *Receiving) silentFor() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Since(r.last)
}

func (r *Receiving) patience() time.Duration {
	if r.Patience == 0 {
		return 10 * time.Minute
	}
	return r.Patience
}

func (c *Client) path(what string) string { return "/v1/" + c.kind + "/" + c.uid + "/" + what }

// manifest gets a manifest's file form.
func (c *Client) manifest(ctx context.Context) ([]byte, error) {
	resp, err := c.do(ctx, http.MethodGet, c.path("manifest"), nil, nil)
	if err != nil {
		return nil, fmt.Errorf("get the manifest: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxManifestBytes))
	return text, c.broken(ctx, err)
}

// data fills p with the content's bytes from an offset on.
func (c *Client) data(parent context.Context, offset int64, p []byte) error {
	ctx, cancel := context.WithTimeout(parent, stall)
	defer cancel()
	resp, err := c.do(ctx, http.MethodGet, c.path("data"), nil, map[string]string{"Range": fmt.Sprintf("bytes=%d-%d", offset, offset+int64(len(p))-1)})
	if errors.Is(err, context.DeadlineExceeded) && parent.Err() == nil {
		return backingimage.Errorf(backingimage.NotReady, "get data: agent at %s gave nothing for %s", c.address, stall)
	}
	if err != nil {
		return fmt.Errorf("get data: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusPartialContent || resp.ContentLength != int64(len(p)) {
		return backingimage.Errorf(backingimage.Internal, "get data: agent at %s answered %d with %d bytes, not a range of %d", c.address, resp.StatusCode, resp.ContentLength, len(p))
	}
	_, err = io.ReadFull(resp.Body, p)
	return c.broken(parent, err)
}

// broken is the error of an answer that ended early.
func (c *Client) broken(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return errors.Join(err, ctx.Err())
	}
	return backingimage.Errorf(backingimage.NotReady, "agent at %s: the answer broke off: %w", c.address, err)
}
