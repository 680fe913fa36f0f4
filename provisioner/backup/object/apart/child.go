package apart

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/command"
)

// child is the program, which runs while there are connections to it and for restTime after.
type child struct {
	path  string
	setup []byte

	mu      sync.Mutex
	closed  bool
	program *command.Companion // nil: none was started since the last ended
	control *net.UnixConn      // through which connections are handed down
	open    int                // connections
	rest    *time.Timer        // set while none is open
}

// idleTimeout is how long a connection waits for a next request, restTime how long the program stays without one. They are variables so
// that tests need not wait.
var (
	idleTimeout = 10 * time.Second
	restTime    = 50 * time.Second
)

// controlFile is the number that the socket has in the program.
const controlFile = 3

// handTime is how long handing down a connection may take.
const handTime = 10 * time.Second

// dial implements http.Transport.DialContext.
func (c *child) dial(context.Context, string, string) (net.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	conn, err := c.connect()
	if err != nil && !c.closed { // it died before it was noticed
		c.end()
		conn, err = c.connect()
	}
	if err != nil {
		return nil, err
	}
	c.open++
	if c.rest != nil {
		c.rest.Stop()
	}
	return &counted{Conn: conn, done: sync.OnceFunc(c.left)}, nil
}

// connect starts the program unless it runs, and hands it one end of a connection.
func (c *child) connect() (net.Conn, error) {
	if err := c.start(); err != nil {
		return nil, err
	}
	ours, theirs, err := pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	if err := c.control.SetWriteDeadline(time.Now().Add(handTime)); err != nil {
		ours.Close()
		return nil, err
	}
	if _, _, err := c.control.WriteMsgUnix([]byte{0}, unix.UnixRights(int(theirs.Fd())), nil); err != nil {
		ours.Close()
		return nil, fmt.Errorf("hand a connection to %s: %w", c.path, err)
	}
	return ours, nil
}

// start starts the program unless it runs.
func (c *child) start() error {
	if c.closed {
		return net.ErrClosed
	}
	if c.program != nil {
		select {
		case <-c.program.Ended():
			c.end()
		default:
			return nil
		}
	}
	ours, theirs, err := pair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	program, err := command.Accompany(c.path, c.setup, theirs)
	if err != nil {
		ours.Close()
		return backingimage.Errorf(backingimage.NotReady, "%w", err)
	}
	c.program, c.control = program, ours
	return nil
}

// pair makes two connected sockets: ours, and the file of the other's.
func pair() (ours *net.UnixConn, theirs *os.File, err error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	near, theirs := os.NewFile(uintptr(ends[0]), "near"), os.NewFile(uintptr(ends[1]), "far")
	defer near.Close()
	conn, err := net.FileConn(near)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), theirs, nil
}

// counted is a connection that tells when it is closed.
type counted struct {
	net.Conn
	done func()
}

func (c *counted) Close() error {
	defer c.done()
	return c.Conn.Close()
}

// left is called when a connection was closed.
func (c *child) left() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open--; c.open == 0 && !c.closed {
		c.rest = time.AfterFunc(restTime, c.retire)
	}
}

// retire ends the program unless it is needed again.
func (c *child) retire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == 0 {
		c.end()
	}
}

// close ends the program for good.
func (c *child) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.end()
}

// end ends the program if it runs.
func (c *child) end() {
	if c.program == nil {
		return
	}
	c.control.Close()
	c.program.End()
	c.program = nil
}
