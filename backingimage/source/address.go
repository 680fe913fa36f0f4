package source

import (
	"net/netip"
	"strings"
	"syscall"

	"plinth.dev/plinth/backingimage"
)

// denied are the addresses that no download may reach: the machine itself, its link, and the clouds' metadata
// services, which hand credentials to whoever asks from inside. Private networks are not among them: that is where
// on-premises images are.
var denied = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("169.254.169.254/32"), "a cloud metadata address"},
	{netip.MustParsePrefix("fd00:ec2::254/128"), "a cloud metadata address"},
	{netip.MustParsePrefix("100.100.100.200/32"), "a cloud metadata address"},
	{netip.MustParsePrefix("168.63.129.16/32"), "a cloud metadata address"},
	{netip.MustParsePrefix("127.0.0.0/8"), "a loopback address"},
	{netip.MustParsePrefix("::1/128"), "a loopback address"},
	{netip.MustParsePrefix("0.0.0.0/8"), "an unspecified address"},
	{netip.MustParsePrefix("::/128"), "an unspecified address"},
	{netip.MustParsePrefix("169.254.0.0/16"), "a link-local address"},
	{netip.MustParsePrefix("fe80::/10"), "a link-local address"},
	{netip.MustParsePrefix("224.0.0.0/4"), "a multicast address"},
	{netip.MustParsePrefix("255.255.255.255/32"), "a broadcast address"},
	{netip.MustParsePrefix("ff00::/8"), "a multicast address"},
}

// embedding are the IPv6 prefixes whose last four bytes are an IPv4 address that the packet may end at: NAT64 and the
// deprecated IPv4-compatible form. IPv4-mapped addresses are unmapped before.
var embedding = []netip.Prefix{netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("::/96")}

// reason says why an address may not be dialled, or "" when it may.
func reason(addr netip.Addr, allow []netip.Prefix) string {
	addr = addr.WithZone("").Unmap()
	for _, p := range allow {
		if p.Contains(addr) {
			return ""
		}
	}
	for _, d := range denied {
		if d.prefix.Contains(addr) {
			return d.what
		}
	}
	for _, p := range embedding {
		if p.Contains(addr) {
			b := addr.As16()
			return reason(netip.AddrFrom4([4]byte(b[12:])), allow)
		}
	}
	return ""
}

// dialControl returns a net.Dialer.Control that refuses denied addresses. It sees each address after name resolution,
// just before the connection is made, so that no second look-up can swap it.
func dialControl(allow []netip.Prefix) func(network, address string, _ syscall.RawConn) error {
	return func(_, address string, _ syscall.RawConn) error {
		target, err := netip.ParseAddrPort(address)
		if err != nil {
			return backingimage.Errorf(backingimage.Precondition, "the address %q cannot be checked", address)
		}
		return deny(target.Addr(), allow)
	}
}

// deny is a Precondition when an address may not be reached.
func deny(addr netip.Addr, allow []netip.Prefix) error {
	if what := reason(addr, allow); what != "" {
		return backingimage.Errorf(backingimage.Precondition,
			"%s is %s, from which images are not downloaded; use another server, or have an administrator allow it with --allow-source-cidr", addr, what)
	}
	return nil
}

// isOddAddress reports whether a host is an IPv4 address in another form than four decimal numbers: short, decimal, octal,
// hexadecimal, which some software reads and some takes for names; a proxy may be either. What ends in a number is no name
// (https://url.spec.whatwg.org/#ends-in-a-number-checker).
func isOddAddress(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return false
	}
	last := strings.TrimSuffix(host, ".")
	last = strings.ToLower(last[strings.LastIndex(last, ".")+1:])
	digits, hex := strings.CutPrefix(last, "0x")
	if hex {
		return strings.Trim(digits, "0123456789abcdef") == ""
	}
	return last != "" && strings.Trim(last, "0123456789") == ""
}
