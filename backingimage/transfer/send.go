package transfer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"plinth.dev/plinth/backingimage"
)

// Sending is a file on its way to an agent.
type Sending struct {
	// Dial makes a client of the agent that takes the file. It is asked before every try: the agent may have moved. NotReady
	// while there is none.
	Dial func(context.Context) (*Client, error)
	// File is read from its beginning, or, of an upload that has begun, from where that is.
	File *os.File
	// Patience is for how long nothing may get through before Send gives up; 10 minutes by default.
	Patience time.Duration
	// BytesPerSecond at the most; 0 is no limit.
	BytesPerSecond int64
	// Report is told how many bytes have been sent, and why none are just now; may be nil.
	Report func(sent int64, trouble error)

	before      os.FileInfo
	fingerprint string
	last        time.Time // when something got through
	sent        int64
}

// stall is for how long a connection may take no byte before it is given up.
const stall = time.Minute

// Delays between two tries.
const (
	firstDelay = 50 * time.Millisecond
	maxDelay   = 5 * time.Second
)

// Send uploads the file, whatever part of it is still to be uploaded, and returns when the agent has it. It goes on over
// broken connections and restarts of the agent, and may be called again after it ended, or was killed.
//
// Conflict when the upload that has begun is of another file, or when the image is ready; Precondition when the file changes
// meanwhile, the upload has expired or the token is refused; Full; NotReady when nothing got through for Patience.
func (s *Sending) Send(ctx context.Context) (err error) {
	if s.before, err = s.File.Stat(); err != nil {
		return err
	}
	if s.fingerprint, err = fingerprint(s.File, s.before.Size()); err != nil {
		return fmt.Errorf("read %s: %w", s.File.Name(), err)
	}
	return s.persist(ctx, s.try)
}

// persist calls try until it succeeds, fails for good, or nothing gets through any more.
func (s *Sending) persist(ctx context.Context, try func(context.Context) error) error {
	if s.Patience == 0 {
		s.Patience = 10 * time.Minute
	}
	delay := firstDelay
	s.last = time.Now()
	for {
		sent := s.sent
		err := try(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !backingimage.Is(err, backingimage.NotReady) && !backingimage.Is(err, backingimage.Busy) {
			return err
		}
		if s.sent > sent {
			delay = firstDelay
		}
		if time.Since(s.last) > s.Patience {
			return fmt.Errorf("nothing got through for %s: %w", s.Patience, err)
		}
		s.say(err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(delay):
		}
		delay = min(2*delay, maxDelay)
	}
}

func (s *Sending) say(trouble error) {
	if s.Report != nil {
		s.Report(s.sent, trouble)
	}
}

// try is one connection's worth.
func (s *Sending) try(ctx context.Context) error {
	client, up, err := s.find(ctx, s.before.Size(), s.fingerprint)
	if err != nil {
		return err
	}
	defer client.Close()
	if up.Fingerprint != s.fingerprint {
		return backingimage.Errorf(backingimage.Conflict, "%s is not the file whose upload has begun (their sizes, first or last bytes differ); give that file, or delete the image and upload this one", s.File.Name())
	}
	if up.Offset >= up.Bytes {
		return nil
	}
	s.sent = up.Offset
	left := s.before.Size() - up.Offset
	return s.append(ctx, client, io.NewSectionReader(s.File, up.Offset, left), left, s.unchanged)
}

// find asks how far the upload is, and begins it where there is none.
func (s *Sending) find(ctx context.Context, bytes int64, fingerprint string) (*Client, Upload, error) {
	client, err := s.Dial(ctx)
	if err != nil {
		return nil, Upload{}, err
	}
	up, err := client.Find(ctx)
	if backingimage.Is(err, backingimage.NotFound) {
		if err = client.Create(ctx, bytes, fingerprint); err == nil {
			up, err = client.Find(ctx)
		}
	}
	if err != nil {
		client.Close()
	}
	return client, up, err
}

// append sends bytes from a reader of the file. An error of the file comes before that of the connection.
func (s *Sending) append(ctx context.Context, client *Client, from io.Reader, bytes int64, check func() error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	body := &sendingBody{sending: s, from: from, left: bytes, check: check, began: time.Now()}
	body.dog = time.AfterFunc(stall, func() {
		cancel(backingimage.Errorf(backingimage.NotReady, "the agent took nothing for %s", stall))
	})
	defer body.dog.Stop()
	err := client.Append(ctx, s.sent, bytes, io.NopCloser(body))
	if failed := body.end(); failed != nil {
		return failed
	}
	if err != nil && errors.Is(err, context.Canceled) && context.Cause(ctx) != nil {
		return context.Cause(ctx)
	}
	return err
}

// unchanged is Precondition when the file is not what it was at the beginning.
func (s *Sending) unchanged() error {
	now, err := s.File.Stat()
	if err != nil {
		return err
	}
	if now.Size() != s.before.Size() || !now.ModTime().Equal(s.before.ModTime()) {
		return backingimage.Errorf(backingimage.Precondition, "%s changed while it was uploaded; delete the image, and upload the file when nobody writes to it", s.File.Name())
	}
	return nil
}

// sendingBody is what a request takes of the file. The library may still read from it when the agent has answered, while the next try has
// begun: such a read changes nothing.
type sendingBody struct {
	sending *Sending
	from    io.Reader
	left    int64 // -1: until the file ends
	check   func() error
	dog     *time.Timer
	began   time.Time
	count   int64

	mu     sync.Mutex // guards these, and what Sending knows of its progress
	ended  bool
	failed error // of the file
}

// burst is what is sent at once where a rate is bounded.
const burst = 64 << 10

// Read implements io.Reader. The file is checked before its last bytes are given away: an upload of a file that changed
// never becomes complete.
func (b *sendingBody) Read(p []byte) (int, error) {
	if limit := b.sending.BytesPerSecond; limit > 0 {
		p = p[:min(len(p), burst, int(max(limit/10, 1)))]
		due := b.began.Add(time.Duration(float64(b.count) / float64(limit) * float64(time.Second)))
		time.Sleep(time.Until(due))
	}
	n, err := b.from.Read(p)
	b.count += int64(n)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return 0, io.ErrClosedPipe
	}
	b.dog.Reset(stall)
	if b.left >= 0 && b.count >= b.left || err != nil {
		if b.failed = b.check(); b.failed != nil {
			return 0, b.failed
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		b.failed = fmt.Errorf("read %s: %w", b.sending.File.Name(), err)
		return n, b.failed
	}
	b.sending.sent += int64(n)
	b.sending.last = time.Now()
	b.sending.say(nil)
	return n, err
}

// end is called when the request was answered, or failed. It returns what was wrong with the file.
func (b *sendingBody) end() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	return b.failed
}

// fingerprintBytes is how much of a file's beginning and end tell it from another.
const fingerprintBytes = 1 << 20

// fingerprint tells a file from another, without reading all of it.
func fingerprint(f io.ReaderAt, bytes int64) (string, error) {
	text := fmt.Sprintf("%d", bytes)
	for _, at := range []int64{0, max(bytes-fingerprintBytes, 0)} {
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(f, at, min(fingerprintBytes, bytes))); err != nil {
			return "", err
		}
		text += "-" + hex.EncodeToString(h.Sum(nil))
	}
	return text, nil
}
