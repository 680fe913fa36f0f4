// Package linktest is a network between two programs for tests: a Link passes connections on to a server until it is cut, and
// tells how much has come through it. What decides an outcome is a number of bytes, not a moment that a test has to hit.
package linktest

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
)

// Link passes connections on to a server.
type Link struct {
	Address string // where it listens

	to     func() string
	mu     sync.Mutex
	left   int64 // bytes that the server may still say; negative: any number
	passed int64
	open   map[net.Conn]bool
}

var errCut = errors.New("the link is cut")

// New makes a Link that passes everything on until the test ends; to is the server's address, asked for each connection.
func New(tb testing.TB, to func() string) *Link {
	tb.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("listen for a link: %v", err)
	}
	l := &Link{Address: listener.Addr().String(), to: to, left: -1, open: map[net.Conn]bool{}}
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return // the test has ended
			}
			go l.join(c)
		}
	}()
	tb.Cleanup(func() { listener.Close(); l.Pass(0) })
	return l
}

// Pass lets the server say so many more bytes, TLS included, and then cuts the link: what is open is closed, and what is
// opened is closed at once. 0 cuts it now; a negative number mends it.
func (l *Link) Pass(bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left = bytes; bytes == 0 {
		l.close()
	}
}

// Cut reports whether nothing comes through.
func (l *Link) Cut() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.left == 0
}

// Passed is how many bytes the server has said.
func (l *Link) Passed() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.passed
}

// close closes what is open. The caller has the lock.
func (l *Link) close() {
	for c := range l.open {
		c.Close()
	}
}

// join joins a connection with one to the server, until one of them ends.
func (l *Link) join(client net.Conn) {
	defer client.Close()
	if !l.keep(client) {
		return
	}
	defer l.forget(client)
	server, err := net.Dial("tcp", l.to())
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		defer server.Close()
		_, _ = io.Copy(server, client) // that it ended is all there is to know
	}()
	_, _ = io.Copy(&metered{client, l}, server)
}

// keep notes an open connection; false when the link is cut.
func (l *Link) keep(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left == 0 {
		return false
	}
	l.open[c] = true
	return true
}

func (l *Link) forget(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, c)
}

// metered is the client's end of a connection.
type metered struct {
	net.Conn
	link *Link
}

func (m *metered) Write(p []byte) (int, error) {
	allowed, last := m.link.take(len(p))
	n, err := m.Conn.Write(p[:allowed])
	if last {
		m.link.Pass(0)
		return n, errors.Join(err, errCut)
	}
	return n, err
}

// take takes so many bytes of what may still pass, or what is left of it; last says that nothing more may.
func (l *Link) take(n int) (allowed int, last bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left >= 0 {
		n = int(min(int64(n), l.left))
		l.left -= int64(n)
	}
	l.passed += int64(n)
	return n, l.left == 0
}
