package embedded

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/durable"
)

// validateListen refuses all but loopback addresses: the token in the kubeconfig is all that protects the API, and it
// is written for this machine's users, not for a network.
func validateListen(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return invalid("API address %q: it is not host:port; give for example 127.0.0.1:0", address)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return invalid("API address %q: %q is no port number; give 0 for any free port", address, port)
	}
	if ip := listenHost(address); ip == nil || !ip.IsLoopback() {
		return invalid("API address %q: the embedded API listens on loopback addresses only; give for example 127.0.0.1:%s, and use a Kubernetes cluster's API for several machines", address, port)
	}
	return nil
}

// listenHost returns the address' host, nil when it is no IP address.
func listenHost(address string) net.IP {
	host, _, _ := net.SplitHostPort(address)
	if host == "localhost" {
		return net.IPv4(127, 0, 0, 1)
	}
	return net.ParseIP(host)
}

// listen opens the API's port. For port 0 it tries the one in the file first, so that a kubeconfig which somebody has
// open or copied goes on working; what it got it writes there.
func listen(address, file string) (net.Listener, error) {
	host := listenHost(address).String()
	_, port, _ := net.SplitHostPort(address)
	if port == "0" {
		if l := listenAgain(host, file); l != nil {
			return l, nil
		}
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, port))
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, backingimage.Errorf(backingimage.InUse, "API address %s is in use by another program; stop it, or choose another address or port 0", address)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	if err := durable.WriteFile(file, []byte(l.Addr().String()+"\n"), 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("keep the address: %w", err)
	}
	return l, nil
}

// listenAgain returns nil when there is no last address on that host, or when it is taken.
func listenAgain(host, file string) net.Listener {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	last := string(bytes.TrimSpace(content))
	if lastHost, _, err := net.SplitHostPort(last); err != nil || lastHost != host {
		return nil
	}
	l, err := net.Listen("tcp", last)
	if err != nil {
		return nil
	}
	return l
}
