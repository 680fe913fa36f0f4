package transfer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
)

// LocalDir is where agents have sockets for programs on their own machine. It is root's alone, and so is what is in it: who
// reaches an agent there needs no TLS to know that nobody else hears or answers, and on two processors TLS takes a quarter of
// an upload's time. What a caller may do is decided as on the network, by tokens.
const LocalDir = "/run/plinth/agents"

// localSocket is the socket of the agent whose public key has the hash.
func localSocket(dir, publicKeyHash string) string { return filepath.Join(dir, publicKeyHash+".sock") }

// listenLocal takes an agent's socket, and removes those that killed agents left.
func listenLocal(dir, publicKeyHash string) (net.Listener, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of local sockets: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of local sockets root's alone: %w", err)
	}
	left, err := filepath.Glob(localSocket(dir, "*"))
	if err != nil {
		return nil, err
	}
	for _, path := range left {
		if err := removeDead(path); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("unix", localSocket(dir, publicKeyHash))
	if err != nil {
		return nil, fmt.Errorf("take the local socket: %w", err)
	}
	return l, nil
}

// removeDead removes a socket at which nobody listens.
func removeDead(path string) error {
	conn, err := net.Dial("unix", path)
	if err == nil {
		return conn.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return nil // gone, or busy
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove a local socket that nobody serves: %w", err)
	}
	return nil
}

// Local lets the client reach the agent through its socket in a directory, see LocalDir, where it is on this machine and the
// caller is root; elsewhere nothing changes.
func (c *Client) Local(dir string) {
	socket := localSocket(dir, c.publicKeyHash)
	transport := c.http.Transport.(*http.Transport)
	remote := &tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout}, Config: transport.TLSClientConfig}
	transport.DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		var near net.Dialer
		if conn, err := near.DialContext(ctx, "unix", socket); err == nil {
			return conn, nil
		}
		ctx, cancel := context.WithTimeout(ctx, 2*dialTimeout)
		defer cancel()
		return remote.DialContext(ctx, network, address)
	}
}
