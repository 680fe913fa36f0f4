package servertest

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
)

// Cutter is a network between a client and a server that breaks connections.
type Cutter struct {
	Address string // to connect to instead of the server's

	target string
	mu     sync.Mutex
	times  int   // connections that are still to be cut
	after  int64 // bytes from the server
	given  int64 // bytes from the server to clients, altogether
}

// MustCutter starts a Cutter before a server; it cuts nothing until it is told to.
func MustCutter(tb testing.TB, server string) *Cutter {
	tb.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	c := &Cutter{Address: listener.Addr().String(), target: server}
	tb.Cleanup(func() { listener.Close() })
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go c.serve(client)
		}
	}()
	return c
}

// Cut breaks, times times, a connection over which more than after bytes came from the server.
func (c *Cutter) Cut(times int, after int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.times, c.after = times, after
}

// Left returns how many cuts are still due.
func (c *Cutter) Left() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.times
}

// Given returns how many bytes came from the server since the last call.
func (c *Cutter) Given() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	given := c.given
	c.given = 0
	return given
}

func (c *Cutter) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", c.target)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		io.Copy(server, client)
		server.Close()
	}()
	var passed int64
	buffer := make([]byte, 32<<10)
	for {
		n, err := server.Read(buffer)
		passed += int64(n)
		if c.account(int64(n), passed) {
			return
		}
		if _, werr := client.Write(buffer[:n]); errors.Join(err, werr) != nil {
			return
		}
	}
}

// account counts what came and decides whether the connection breaks.
func (c *Cutter) account(n, passed int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.times > 0 && passed > c.after {
		c.times--
		return true
	}
	c.given += n
	return false
}
