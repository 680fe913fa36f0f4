package embedded

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/util/validation"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/durable"
)

// validateListen checks where the API listens, and that it can be told to others.
func validateListen(address, advertise string) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return invalid("API address %q: it is not host:port; give for example 127.0.0.1:0", address)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return invalid("API address %q: %q is no port number; give 0 for any free port", address, port)
	}
	ip := listenHost(address)
	switch {
	case ip == nil:
		return invalid("API address %q: its host is no IP address; give for example 127.0.0.1:%s, or 0.0.0.0:%s with the address that others use", address, port, port)
	case ip.IsUnspecified() && advertise == "":
		return invalid("API address %q: it is every address of this machine; say with which of them others reach it", address)
	case advertise != "" && net.ParseIP(advertise) == nil && len(validation.IsDNS1123Subdomain(strings.ToLower(advertise))) > 0:
		return invalid("API address for others %q: it is neither an IP address nor a DNS name; give one, without a port", advertise)
	}
	return nil
}

// places are the hosts at which the API of these options is reached: by this process, and by others.
func (o *Options) places() (own, others string) {
	ip := listenHost(o.Listen)
	switch {
	case ip.IsUnspecified() && ip.To4() == nil:
		return net.IPv6loopback.String(), o.Advertise
	case ip.IsUnspecified():
		return net.IPv4(127, 0, 0, 1).String(), o.Advertise
	case ip.IsLoopback() || o.Advertise == "":
		return ip.String(), ip.String()
	}
	return ip.String(), o.Advertise
}

// listenHost returns the address' host, nil when it is no IP address. No host is every address, as net.Listen has it.
func listenHost(address string) net.IP {
	host, _, _ := net.SplitHostPort(address)
	switch host {
	case "localhost":
		return net.IPv4(127, 0, 0, 1)
	case "":
		return net.IPv6unspecified
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
	_, port, _ = net.SplitHostPort(l.Addr().String()) // its host is not the one asked for when that is every address
	if err := durable.WriteFile(file, []byte(net.JoinHostPort(host, port)+"\n"), 0o600); err != nil {
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
