package source

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"plinth.dev/plinth/backingimage"
)

// PieceBytes is the size of what one request of a parallel download asks for. Large enough that waiting for the first byte
// costs little of its time on a link with long round trips; connections+2 of them are kept in memory.
const PieceBytes = 6 << 20

// Parallel makes a Source that reads large files over so many connections at once, as far as s can. Its Body gives the
// bytes in order.
func Parallel(s Source, connections int) Source {
	return ParallelPieces(s, connections, PieceBytes)
}

// ParallelPieces is Parallel with pieces of another size, in bytes. Files of which less than four pieces are left are read
// over one connection.
func ParallelPieces(s Source, connections int, pieceBytes int64) Source {
	ranger, ok := s.(Ranger)
	if !ok || connections < 2 {
		return s
	}
	return &parallel{Ranger: ranger, connections: connections, pieceBytes: pieceBytes}
}

var (
	_ Checksummed = (*parallel)(nil)
	_ Archived    = (*parallel)(nil)
	_ Resolver    = (*parallel)(nil)
)

// parallel decorates a Ranger.
type parallel struct {
	Ranger
	connections int
	pieceBytes  int64
	alone       atomic.Bool // the server refused a piece: from then on it is asked for one stream
}

// Resolved implements Resolver for a source that does.
func (s *parallel) Resolved() string {
	if r, ok := s.Ranger.(Resolver); ok {
		return r.Resolved()
	}
	return ""
}

// Checksum implements Checksummed for a source that does; any other has none.
func (s *parallel) Checksum() Checksum {
	if c, ok := s.Ranger.(Checksummed); ok {
		return c.Checksum()
	}
	return Checksum{}
}

// ArchiveFolder implements Archived for a source that does; any other is the image itself.
func (s *parallel) ArchiveFolder() string {
	if a, ok := s.Ranger.(Archived); ok {
		return a.ArchiveFolder()
	}
	return ""
}

// Open implements Source. The answer to the first request serves as the first piece.
func (s *parallel) Open(ctx context.Context, offset int64, validator string) (*Body, error) {
	ctx, cancel := context.WithCancel(ctx)
	body, err := s.Ranger.Open(ctx, offset, validator)
	if err != nil {
		cancel()
		return nil, err
	}
	many := body.Ranges && body.Validator != "" && body.Bytes-body.Offset >= 4*s.pieceBytes
	if !many || s.alone.Load() {
		body.ReadCloser = &ending{body.ReadCloser, cancel}
		return body, nil
	}
	body.ReadCloser = newPieces(ctx, cancel, s, body)
	return body, nil
}

// ending ends a context when it is closed.
type ending struct {
	io.ReadCloser
	end context.CancelFunc
}

func (e *ending) Close() error {
	defer e.end()
	return e.ReadCloser.Close()
}

// pieces is a body that workers fetch piece by piece. A worker claims a buffer and then the next piece, in this order and
// both at once, so that the piece that the reader waits for always has a buffer.
type pieces struct {
	source    *parallel
	ctx       context.Context
	cancel    context.CancelFunc
	validator string
	end       int64 // size of the file

	free    chan []byte // buffers, nil ones are not made yet
	order   chan *piece // claimed and not read yet
	workers sync.WaitGroup

	mu     sync.Mutex
	next   int64 // offset of the next piece
	failed bool  // no further pieces: the reader will not get there

	// The reader's:
	offset  int64
	current *piece
	used    int // bytes of current that were read
}

func newPieces(ctx context.Context, cancel context.CancelFunc, s *parallel, body *Body) *pieces {
	buffers := s.connections + 2
	b := &pieces{
		source: s, ctx: ctx, cancel: cancel, validator: body.Validator, end: body.Bytes,
		free: make(chan []byte, buffers), order: make(chan *piece, buffers), next: body.Offset, offset: body.Offset,
	}
	for range buffers {
		b.free <- nil
	}
	first, answer := b.claim(), body.ReadCloser
	b.workers.Go(func() { b.fetch(first, answer); b.work() })
	for range s.connections - 1 {
		b.workers.Go(b.work)
	}
	return b
}

// work fetches pieces until there are no more.
func (b *pieces) work() {
	for p := b.claim(); p != nil; p = b.claim() {
		b.fetch(p, nil)
	}
}

// claim returns the next piece, nil when there is none to fetch.
func (b *pieces) claim() *piece {
	var buffer []byte
	select {
	case buffer = <-b.free:
	case <-b.ctx.Done():
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	size := min(b.source.pieceBytes, b.end-b.next)
	if b.failed || size <= 0 {
		b.free <- buffer // for the other workers, so that they end too
		return nil
	}
	if buffer == nil {
		buffer = make([]byte, b.source.pieceBytes)
	}
	p := &piece{offset: b.next, buffer: buffer[:size], more: make(chan struct{}, 1)}
	b.next += size
	b.order <- p
	return p
}

// pieceTries is how often in a row a piece is asked for without a byte of it coming.
const pieceTries = 3

// pieceDelay is the wait before a piece is asked for again.
const pieceDelay = 200 * time.Millisecond

// fetch fills a piece, from body when it is open already. When that fails, the reader gets what came and then the error;
// who reads then opens the source anew, and so learns what is wrong.
func (b *pieces) fetch(p *piece, body io.ReadCloser) {
	for try := 1; ; try++ {
		before := p.filled
		err := b.fill(p, body)
		if err == nil {
			return
		}
		if p.filled > before {
			try = 1
		}
		if try == pieceTries || !isPassing(err) || !b.pause() {
			b.fail(p, err)
			return
		}
		body = nil
	}
}

// fill reads the rest of a piece once.
func (b *pieces) fill(p *piece, body io.ReadCloser) (err error) {
	if body == nil {
		body, err = b.source.OpenRange(b.ctx, p.offset+int64(p.filled), int64(len(p.buffer)-p.filled), b.validator)
		if err != nil {
			return err
		}
	}
	defer body.Close()
	for p.filled < len(p.buffer) {
		n, err := body.Read(p.buffer[p.filled:])
		p.grow(n)
		if err != nil && p.filled < len(p.buffer) {
			if errors.Is(err, io.EOF) {
				return backingimage.Errorf(backingimage.NotReady, "download %s: the connection ended at byte %d of %d", b.source, p.offset+int64(p.filled), b.end)
			}
			return err
		}
	}
	return nil
}

// pause waits before another try, and reports whether there is one.
func (b *pieces) pause() bool {
	timer := time.NewTimer(pieceDelay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-b.ctx.Done():
		return false
	}
}

// isPassing reports whether a piece may be asked for again at once: its connection broke, and did not stall for long, and the
// server did not ask for less.
func isPassing(err error) bool {
	var stall *stallError
	var answer *statusError
	if !backingimage.Is(err, backingimage.NotReady) || errors.As(err, &stall) || RetryAfter(err) > 0 {
		return false
	}
	return !errors.As(err, &answer) || answer.status != http.StatusTooManyRequests
}

// fail ends a piece early. To the reader it is a connection that broke, whatever it is.
func (b *pieces) fail(p *piece, err error) {
	b.mu.Lock()
	b.failed = true
	b.mu.Unlock()
	if b.ctx.Err() != nil {
		p.fail(b.ctx.Err())
		return
	}
	var answer *statusError
	if errors.As(err, &answer) || !backingimage.Is(err, backingimage.NotReady) {
		b.source.alone.Store(true)
	}
	p.fail(backingimage.Errorf(backingimage.NotReady, "%w", err))
}

// Read implements io.Reader.
func (b *pieces) Read(to []byte) (int, error) {
	if b.offset == b.end {
		return 0, io.EOF
	}
	if b.current == nil {
		select {
		case b.current = <-b.order:
			b.used = 0
		case <-b.ctx.Done():
			return 0, b.ctx.Err()
		}
	}
	n, err := b.current.take(b.ctx, b.used, to)
	b.used += n
	b.offset += int64(n)
	if b.used == len(b.current.buffer) {
		b.free <- b.current.buffer[:cap(b.current.buffer)]
		b.current = nil
	}
	return n, err
}

// Close implements io.Closer: it ends the workers and their connections.
func (b *pieces) Close() error {
	b.cancel()
	b.workers.Wait()
	if c, ok := b.source.Ranger.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
	return nil
}

// piece is a part of the file that one worker fills and the reader reads, at the same time.
type piece struct {
	offset int64
	buffer []byte
	more   chan struct{} // holds a token when something came that the reader has not seen

	mu     sync.Mutex
	filled int   // written by the worker alone
	err    error // what comes after filled
}

func (p *piece) grow(n int) {
	p.mu.Lock()
	p.filled += n
	p.mu.Unlock()
	p.wake()
}

func (p *piece) fail(err error) {
	p.mu.Lock()
	p.err = err
	p.mu.Unlock()
	p.wake()
}

func (p *piece) wake() {
	select {
	case p.more <- struct{}{}:
	default:
	}
}

// take copies what has come from at on, and waits for that if need be.
func (p *piece) take(ctx context.Context, at int, to []byte) (int, error) {
	for len(to) > 0 {
		p.mu.Lock()
		n, err := copy(to, p.buffer[at:p.filled]), p.err
		p.mu.Unlock()
		if n > 0 {
			return n, nil
		}
		if err != nil {
			return 0, err
		}
		select {
		case <-p.more:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	return 0, nil
}
