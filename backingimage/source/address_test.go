package source

import (
	"net/netip"
	"strings"
	"testing"
)

func TestAddressesAreDeniedInEveryForm(t *testing.T) {
	for address, want := range map[string]string{
		"127.0.0.1": "loopback", "127.8.9.1": "loopback", "::1": "loopback", "::ffff:127.0.0.1": "loopback", "::127.0.0.1": "loopback", "64:ff9b::7f00:1": "loopback",
		"0.0.0.0": "unspecified", "::": "unspecified", "0.1.2.3": "unspecified",
		"169.254.1.1": "link-local", "fe80::1": "link-local", "fe80::1%eth0": "link-local",
		"169.254.169.254": "metadata", "::ffff:169.254.169.254": "metadata", "fd00:ec2::254": "metadata", "64:ff9b::a9fe:a9fe": "metadata", "100.100.100.200": "metadata",
		"224.0.0.1": "multicast", "ff02::1": "multicast", "255.255.255.255": "broadcast",
		"10.0.0.1": "", "192.168.1.1": "", "8.8.8.8": "", "2001:db8::1": "", "fd00::1": "", "::ffff:10.0.0.1": "",
	} {
		got := reason(netip.MustParseAddr(address), nil)
		if (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%s: got %q, want %q", address, got, want)
		}
	}
}

func TestAnAdministratorOpensAddresses(t *testing.T) {
	allow := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	for address, open := range map[string]bool{"127.0.0.1": true, "::ffff:127.0.0.1": true, "64:ff9b::7f00:1": true, "::1": false, "169.254.169.254": false} {
		if got := reason(netip.MustParseAddr(address), allow) == ""; got != open {
			t.Errorf("%s: open is %t", address, got)
		}
	}
}
