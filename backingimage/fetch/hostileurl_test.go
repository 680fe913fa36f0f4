package fetch_test

import (
	"context"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/backingimage/source/sourcetest"
)

// names that the tests' name server knows; only 127.0.0.1 is open to images there.
var names = map[string][]string{
	"image.test":     {"127.0.0.1"},
	"loopback.test":  {"127.0.0.2"},
	"mapped.test":    {"::ffff:127.0.0.2"},
	"nat64.test":     {"64:ff9b::7f00:2"},
	"metadata.test":  {"169.254.169.254"},
	"link.test":      {"169.254.7.7"},
	"rebinding.test": {"127.0.0.1", "127.0.0.2"},
}

// runURL fetches from a URL as an agent does.
func runURL(tb testing.TB, url, dir string) error {
	tb.Helper()
	s, err := source.NewHTTP(url, source.Options{
		AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, Resolver: sourcetest.MustDNS(tb, names).Resolver(),
	})
	if err != nil {
		return err
	}
	_, err = fetch.Run(context.Background(), fetch.Job{Dir: dir, Image: "fedora", ImageUID: "uid", Source: s}, nil)
	return err
}

func TestHostileURLsEndForGood(t *testing.T) {
	for url, c := range map[string]struct {
		kind backingimage.Kind
		says string
	}{
		"":                                 {backingimage.Invalid, "is empty"},
		"//image.test/a":                   {backingimage.Invalid, "no scheme"},
		"image.test/a":                     {backingimage.Invalid, "no scheme"},
		"file:///etc/shadow":               {backingimage.Invalid, "use http or https"},
		"ftp://image.test/a":               {backingimage.Invalid, "use http or https"},
		"gopher://image.test/a":            {backingimage.Invalid, "use http or https"},
		"http://user:hunter2@image.test/a": {backingimage.Invalid, "sourceParameters.secret"},
		"http://user@image.test/a":         {backingimage.Invalid, "sourceParameters.secret"},
		"http://[fe80::1%25lo]/a":          {backingimage.Invalid, "network interface"},
		"http://2130706434/":               {backingimage.Invalid, "four decimal numbers"},
		"http://0177.0.0.2/":               {backingimage.Invalid, "four decimal numbers"},
		"http://0x7f.2/":                   {backingimage.Invalid, "four decimal numbers"},
		"http://0x7f000002/":               {backingimage.Invalid, "four decimal numbers"},
		"http://127.2/":                    {backingimage.Invalid, "four decimal numbers"},
		"http://127.0.0.2./":               {backingimage.Invalid, "four decimal numbers"},
		"http://127.0.0.2/":                {backingimage.Precondition, "loopback"},
		"http://[::1]/":                    {backingimage.Precondition, "loopback"},
		"http://0.0.0.0/":                  {backingimage.Precondition, "unspecified"},
		"http://[::]/":                     {backingimage.Precondition, "unspecified"},
		"http://[::ffff:127.0.0.2]/":       {backingimage.Precondition, "loopback"},
		"http://[::127.0.0.2]/":            {backingimage.Precondition, "loopback"},
		"http://[64:ff9b::7f00:2]/":        {backingimage.Precondition, "loopback"},
		"http://[64:ff9b::a9fe:a9fe]/":     {backingimage.Precondition, "metadata"},
		"http://169.254.169.254/latest/":   {backingimage.Precondition, "metadata"},
		"http://[fd00:ec2::254]/latest/":   {backingimage.Precondition, "metadata"},
		"http://100.100.100.200/":          {backingimage.Precondition, "metadata"},
		"http://169.254.7.7/":              {backingimage.Precondition, "link-local"},
		"http://[fe80::1]/":                {backingimage.Precondition, "link-local"},
		"http://224.0.0.1/":                {backingimage.Precondition, "multicast"},
		"http://loopback.test/":            {backingimage.Precondition, "loopback"},
		"https://loopback.test/":           {backingimage.Precondition, "loopback"},
		"http://mapped.test/":              {backingimage.Precondition, "loopback"},
		"http://nat64.test/":               {backingimage.Precondition, "loopback"},
		"http://metadata.test/":            {backingimage.Precondition, "metadata"},
		"http://link.test/":                {backingimage.Precondition, "link-local"},
	} {
		t.Run(url, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "staging")
			err := runURL(t, url, dir)
			if !backingimage.Is(err, c.kind) || !backingimage.Terminal(err) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("got %v error %v, want %v with %q", backingimage.KindOf(err), err, c.kind, c.says)
			}
			mustBeGone(t, dir)
		})
	}
}

func TestHostileRedirectsEndForGood(t *testing.T) {
	for to, says := range map[string]string{
		"http://loopback.test/":       "loopback",
		"http://nat64.test/":          "loopback",
		"http://metadata.test/latest": "metadata",
		"http://[::ffff:7f00:2]/":     "loopback",
		"http://127.2/":               "read in several ways",
		"http://2130706434/":          "read in several ways",
		"http://0177.0.0.2/":          "read in several ways",
		"file:///etc/shadow":          "over http or https",
		"ftp://image.test/":           "over http or https",
	} {
		t.Run(to, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "staging")
			err := runURL(t, mustServe(t, http.RedirectHandler(to, http.StatusFound)), dir)
			if !backingimage.Is(err, backingimage.Precondition) || !strings.Contains(err.Error(), says) {
				t.Errorf("got %v error %v, want %q", backingimage.KindOf(err), err, says)
			}
			mustBeGone(t, dir)
		})
	}
}

func TestANameThatComesToStandForADeniedAddressEndsTheDownload(t *testing.T) {
	s := &server{content: image(1, 9<<20), tag: "v1"}
	cutEach(s, 1, 3<<20)
	url := strings.Replace(mustServe(t, s), "127.0.0.1", "rebinding.test", 1)
	dir := filepath.Join(t.TempDir(), "staging")
	err := runURL(t, url, dir)
	if !backingimage.Is(err, backingimage.Precondition) || !strings.Contains(err.Error(), "127.0.0.2 is a loopback address") {
		t.Errorf("got %v", err)
	}
	if n := s.served.Load(); n == 0 {
		t.Errorf("nothing came from the address that is allowed")
	}
	mustBeGone(t, dir)
}
