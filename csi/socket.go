package csi

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
)

// maxSocketPath is the longest path that the kernel takes for a Unix socket, in bytes.
const maxSocketPath = 107

// socketOf reads an endpoint: unix:///path, or unix:/path.
func socketOf(endpoint string) (string, error) {
	path, ok := strings.CutPrefix(endpoint, "unix:")
	path = strings.TrimPrefix(path, "//")
	switch {
	case !ok || !filepath.IsAbs(path) || filepath.Clean(path) == "/":
		return "", backingimage.Errorf(backingimage.Invalid, "CSI endpoint %q is no Unix socket; use unix:// and an absolute path, e.g. unix:///run/plinth/csi.sock", endpoint)
	case len(path) > maxSocketPath:
		return "", backingimage.Errorf(backingimage.Invalid, "CSI endpoint %q: the path is longer than the %d bytes that a socket's can have; use a shorter one", endpoint, maxSocketPath)
	}
	return filepath.Clean(path), nil
}

// listen makes the socket, for this user alone; closing the listener removes it. What a killed process left is replaced; a socket on which someone
// answers is Busy, and anything else of that name is left alone.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make directory of CSI socket: %w", err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on CSI socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		listener.Close()
		return nil, fmt.Errorf("listen on CSI socket: %w", err)
	}
	return listener, nil
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at CSI socket: %w", err)
	}
	if info.Mode().Type() != os.ModeSocket {
		return backingimage.Errorf(backingimage.Precondition, "%s exists and is no socket; move it away or use another CSI endpoint", path)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		conn.Close()
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return backingimage.Errorf(backingimage.Busy, "another process serves %s; stop it, or use another CSI endpoint", path)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove stale CSI socket: %w", err)
	}
	return nil
}
