package transfer

import (
	"errors"
	"io"
	"time"

	"plinth.dev/plinth/backingimage/disk/direct"
)

const (
	pieceBytes = 4 << 20                // written at once
	pieceTime  = 100 * time.Millisecond // how long a piece may wait to become whole
	pieceCount = 8                      // in memory: filled, written, or kept for who reads behind
	keptPieces = 4                      // of them, at most, what was written last
	// takeTime is how long a writer waits for who reads behind to take a piece from memory; who is slower reads the file.
	takeTime = 200 * time.Millisecond
)

// piece is a stretch of an upload in memory. Its data lies in the buffer as it lies in the file's blocks.
type piece struct {
	at     int64
	data   []byte
	buffer []byte
}

func (p piece) end() int64 { return p.at + int64(len(p.data)) }

// belt brings pieces from a request to the goroutine that writes them, and their buffers back.
type belt struct {
	free chan []byte
	full chan piece
}

func newBelt() *belt {
	b := &belt{free: make(chan []byte, pieceCount), full: make(chan piece, pieceCount)}
	for range pieceCount {
		b.free <- nil // made when it is needed: most requests that bring little need one
	}
	return b
}

// fill puts what from brings on the belt, from that offset of the file on, until it ends or nobody writes any more.
func (b *belt) fill(stopped <-chan struct{}, offset int64, from io.Reader) error {
	defer close(b.full)
	for {
		var buffer []byte
		select {
		case buffer = <-b.free:
		case <-stopped:
			return nil
		}
		if buffer == nil {
			buffer = direct.Buffer(pieceBytes + direct.Block)
		}
		start := offset % direct.Block
		n, err := fillPiece(from, buffer[start:start+pieceBytes-offset%pieceBytes])
		if n > 0 {
			b.full <- piece{at: offset, data: buffer[start : start+int64(n)], buffer: buffer}
		} else {
			b.free <- buffer
		}
		offset += int64(n)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// fillPiece reads until p is full, or has waited long enough.
func fillPiece(from io.Reader, p []byte) (n int, err error) {
	began := time.Now()
	for n < len(p) && err == nil {
		var m int
		m, err = from.Read(p[n:])
		n += m
		if time.Since(began) > pieceTime {
			break
		}
	}
	return n, err
}

// spare lets go of pieces in memory that are too many, and returns their buffers. It waits a while for a reader who is close
// behind and has not taken them.
func (up *upload) spare() (free [][]byte) {
	up.mu.Lock()
	defer up.mu.Unlock()
	for len(up.kept) > keptPieces {
		if r := up.reader; r != nil && !r.late && r.at < up.kept[0].end() {
			r.late = !up.awaitTaken()
			continue
		}
		free = append(free, up.kept[0].buffer)
		up.kept = up.kept[1:]
	}
	return free
}

// awaitTaken waits until the reader has taken something, and reports whether it did. The caller has the lock, and has it
// again.
func (up *upload) awaitTaken() bool {
	up.mu.Unlock()
	defer up.mu.Lock()
	timer := up.clock.NewTimer(takeTime)
	defer timer.Stop()
	select {
	case <-up.taken:
		return true
	case <-timer.C():
		return false
	}
}

// forget lets go of what is in memory: nobody writes, and the file has it all.
func (up *upload) forget() {
	up.mu.Lock()
	defer up.mu.Unlock()
	up.kept = nil
}

// takeKept copies to p what is in memory from the reader's place on. 0: only the file has it.
func (up *upload) takeKept(r *reader, p []byte) (n int) {
	up.mu.Lock()
	defer up.mu.Unlock()
	for _, k := range up.kept {
		if at := r.at + int64(n); k.at <= at && at < k.end() {
			n += copy(p[n:], k.data[at-k.at:])
		}
	}
	up.advance(r, n)
	return n
}

// moved notes that the reader has read so many bytes of the file.
func (up *upload) moved(r *reader, n int) {
	up.mu.Lock()
	defer up.mu.Unlock()
	up.advance(r, n)
}

// advance moves the reader and tells a writer who waits for that. The caller has the lock.
func (up *upload) advance(r *reader, n int) {
	r.at += int64(n)
	select {
	case up.taken <- struct{}{}:
	default:
	}
}

// left notes that a reader reads no more: no writer waits for it.
func (up *upload) left(r *reader) {
	up.mu.Lock()
	defer up.mu.Unlock()
	if up.reader == r {
		up.reader = nil
	}
	up.advance(r, 0)
}
