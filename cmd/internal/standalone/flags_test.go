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
		via, err := c.agent.Source.Proxy(u)
		if err != nil || (via == nil) != (want == "") || via != nil && via.String() != want {
			t.Errorf("%s goes through %v, want %q (%v)", to, via, want, err)
		}
	}
}

func TestDownloadRanges(t *testing.T) {
	for args, want := range map[string]int{"": 4, "--download-ranges=1": 1, "--download-ranges=32": 32} {
		if c, err := parse(strings.Fields(args)...); err != nil || c.agent.Source.Connections != want {
			t.Errorf("%q: %d connections, %v", args, c.agent.Source.Connections, err)
		}
	}
	for _, n := range []string{"0", "-1", "33"} {
		if _, err := parse("--download-ranges=" + n); !backingimage.Is(err, backingimage.Invalid) || !strings.HasPrefix(err.Error(), "--download-ranges: ") {
			t.Errorf("%s: got %v", n, err)
		}
	}
}

func TestScrubFlags(t *testing.T) {
	if c, err := parse(); err != nil || c.agent.ScrubInterval != 168*time.Hour || c.agent.ScrubRate != 50_000_000 {
		t.Errorf("by default: %s, %d, %v", c.agent.ScrubInterval, c.agent.ScrubRate, err)
	}
	if c, err := parse("--scrub-interval=1h", "--scrub-rate=1Gi"); err != nil || c.agent.ScrubInterval != time.Hour || c.agent.ScrubRate != 1<<30 {
		t.Errorf("got %s, %d, %v", c.agent.ScrubInterval, c.agent.ScrubRate, err)
	}
	for _, arg := range []string{"--scrub-interval=0s", "--scrub-interval=-1h", "--scrub-rate=0", "--scrub-rate=fast"} {
		flag, _, _ := strings.Cut(arg, "=")
		if _, err := parse(arg); !backingimage.Is(err, backingimage.Invalid) || !strings.HasPrefix(err.Error(), flag+": ") {
			t.Errorf("%s: got %v", arg, err)
		}
	}
}
