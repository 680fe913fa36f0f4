package standalone

import (
	"context"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage"
)

// parse gives what arguments mean, or the error that they are refused with.
func parse(args ...string) (c Config, err error) {
	endpoint := "unix:///nowhere"
	cmd := NewCommand(&endpoint, func(_ context.Context, parsed Config, _ io.Writer) error {
		c = parsed
		return nil
	})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs(args)
	return c, cmd.Execute()
}

func TestDownloadsGoThroughTheEnvironmentsProxy(t *testing.T) {
	for name, value := range map[string]string{"HTTP_PROXY": "", "HTTPS_PROXY": "http://proxy.test:3128", "NO_PROXY": ".inside.test", "http_proxy": "", "https_proxy": "", "no_proxy": ""} {
		t.Setenv(name, value)
	}
	c, err := parse()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("HTTPS_PROXY", "http://later.test:3128") // too late
	for to, want := range map[string]string{"https://images.test/a": "http://proxy.test:3128", "https://a.inside.test/a": "", "http://images.test/a": ""} {
		u, err := url.Parse(to)
		if err != nil {
			t.Fatal(err)
		}
		via, err := c.agent.Node.Source.Proxy(u)
		if err != nil || (via == nil) != (want == "") || via != nil && via.String() != want {
			t.Errorf("%s goes through %v, want %q (%v)", to, via, want, err)
		}
	}
}

func TestDownloadRanges(t *testing.T) {
	for args, want := range map[string]int{"": 4, "--download-ranges=1": 1, "--download-ranges=32": 32} {
		if c, err := parse(strings.Fields(args)...); err != nil || c.agent.Node.Source.Connections != want {
			t.Errorf("%q: %d connections, %v", args, c.agent.Node.Source.Connections, err)
		}
	}
	for _, n := range []string{"0", "-1", "33"} {
		if _, err := parse("--download-ranges=" + n); !backingimage.Is(err, backingimage.Invalid) || !strings.HasPrefix(err.Error(), "--download-ranges: ") {
			t.Errorf("%s: got %v", n, err)
		}
	}
}

func TestAddressesForOthers(t *testing.T) {
	for name, tc := range map[string]struct {
		args      string
		advertise string
		refused   string // the flag
	}{
		"loopback needs none":                     {"--api-listen 127.0.0.1:0", "", ""},
		"every address needs one that others use": {"--api-listen 0.0.0.0:6443", "", "--advertise-address: "},
		"no host is every address":                {"--api-listen :6443", "", "--advertise-address: "},
		"a host":                                  {"--api-listen 0.0.0.0:6443 --advertise-address n1.test", "n1.test", ""},
		"the port is that of the peers' server":   {"--api-listen [::]:6443 --advertise-address [fd00::1]:9281", "fd00::1", ""},
		"no port":                                 {"--api-listen 192.0.2.1", "", "--api-listen: "},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := parse(strings.Fields(tc.args)...)
			if tc.refused != "" && (!backingimage.Is(err, backingimage.Invalid) || !strings.HasPrefix(err.Error(), tc.refused)) {
				t.Errorf("got %v, want it to be refused for %s", err, tc.refused)
			}
			if tc.refused == "" && (err != nil || c.agent.AdvertiseHost() != tc.advertise) {
				t.Errorf("others are told %q, want %q (%v)", c.agent.AdvertiseHost(), tc.advertise, err)
			}
		})
	}
}

func TestScrubFlags(t *testing.T) {
	if c, err := parse(); err != nil || c.agent.Node.ScrubInterval != 168*time.Hour || c.agent.Node.ScrubRate != 50_000_000 {
		t.Errorf("by default: %s, %d, %v", c.agent.Node.ScrubInterval, c.agent.Node.ScrubRate, err)
	}
	if c, err := parse("--scrub-interval=1h", "--scrub-rate=1Gi"); err != nil || c.agent.Node.ScrubInterval != time.Hour || c.agent.Node.ScrubRate != 1<<30 {
		t.Errorf("got %s, %d, %v", c.agent.Node.ScrubInterval, c.agent.Node.ScrubRate, err)
	}
	for _, arg := range []string{"--scrub-interval=0s", "--scrub-interval=-1h", "--scrub-rate=0", "--scrub-rate=fast"} {
		flag, _, _ := strings.Cut(arg, "=")
		if _, err := parse(arg); !backingimage.Is(err, backingimage.Invalid) || !strings.HasPrefix(err.Error(), flag+": ") {
			t.Errorf("%s: got %v", arg, err)
		}
	}
}
