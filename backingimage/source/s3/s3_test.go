package s3_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/backingimage/source/s3"
	"plinth.dev/plinth/backingimage/source/servertest"
)

const (
	accessKey = "AKIATESTACCESSKEY"
	secretKey = "sEcReTkEyOfTheTests"
	bucket    = "golden-images"
	key       = "linux/fedora 42+é.img" // with what URLs would escape
)

func TestObjectsAreFetched(t *testing.T) {
	server := mustStore(t)
	content := servertest.Image(1, 9<<20)
	for name, file := range map[string][]byte{"raw": content, "qcow2": servertest.MustQCOW2(t, content)} {
		server.mustPut(t, key, file)
		result := servertest.MustFetch(t, servertest.Job(t, mustSource(t, server.address, key, options())), content)
		if result.Format != name || result.SourceBytes != int64(len(file)) {
			t.Errorf("%s: the result is %+v", name, result)
		}
	}
}

func TestTheSecretNamesTheServerToo(t *testing.T) {
	server := mustStore(t)
	content := servertest.Image(1, 1<<20)
	server.mustPut(t, key, content)
	o := options()
	o.Credential.Endpoint, o.Credential.Region = "http://"+server.address+"/", "eu-test-1"
	s, err := s3.New(map[string]string{"url": "s3://" + bucket + "/" + key}, o)
	if err != nil {
		t.Fatal(err)
	}
	servertest.MustFetch(t, servertest.Job(t, s), content)
	o.Credential.Endpoint, o.Credential.Region = "http://127.0.0.1:1", "elsewhere-1" // the parameters win
	servertest.MustFetch(t, servertest.Job(t, mustSource(t, server.address, key, o)), content)
}

func TestACutConnectionGoesOnWhereItBroke(t *testing.T) {
	server := mustStore(t)
	content := servertest.Image(1, 9<<20)
	server.mustPut(t, key, content)
	network := servertest.MustCutter(t, server.address)
	network.Cut(4, 1<<20)
	servertest.MustFetch(t, servertest.Job(t, mustSource(t, network.Address, key, options())), content)
	if left, given := network.Left(), network.Given(); left != 0 || given > 10<<20 {
		t.Errorf("%d cuts were not made; %d bytes came for %d", left, given, len(content))
	}
}

func TestAnotherAttemptGoesOnWhereTheLastWasLeft(t *testing.T) {
	server := mustStore(t)
	content := servertest.Image(1, 64<<20)
	server.mustPut(t, key, content)
	network := servertest.MustCutter(t, server.address)
	job := servertest.Job(t, mustSource(t, network.Address, key, options()))
	job.CheckpointBytes = 4 << 20
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if _, err := fetch.Run(ctx, job, func(fetch.Progress) {
		if _, err := os.Stat(filepath.Join(job.Dir, "checkpoint")); err == nil {
			cancel()
		}
	}); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	job.Source = mustSource(t, network.Address, key, options())
	network.Given()
	servertest.MustFetch(t, job, content)
	if given := network.Given(); given > 61<<20 {
		t.Errorf("%d bytes came again", given)
	}
}

func TestOpenContinuesOrBeginsAnewButNeverMixes(t *testing.T) {
	server := mustStore(t)
	before, after := servertest.Image(1, 1<<20), servertest.Image(2, 1<<20)
	server.mustPut(t, key, before)
	s := mustSource(t, server.address, key, options())
	first := mustOpen(t, s, 0, "")
	if first.Bytes != 1<<20 || first.Offset != 0 || !strings.HasPrefix(first.Validator, `"`) || !first.Ranges {
		t.Errorf("the object is described as %+v", first)
	}
	first.Close()
	for _, c := range []struct {
		name              string
		offset            int64
		validator, change string
		want              int64
		content           []byte
	}{
		{"same version", 100_000, first.Validator, "", 100_000, before},
		{"any version", 100_000, "", "", 100_000, before},
		{"another version", 100_000, `"0123456789abcdef0123456789abcdef"`, "", 0, before},
		{"at its end", 1 << 20, first.Validator, "", 0, before},
		{"replaced", 100_000, first.Validator, "replace", 0, after},
	} {
		if c.change != "" {
			server.mustPut(t, key, after)
		}
		body := mustOpen(t, s, c.offset, c.validator)
		got, err := io.ReadAll(body)
		if err != nil || body.Offset != c.want || body.Bytes != 1<<20 || !bytes.Equal(got, c.content[c.want:]) {
			t.Errorf("%s: offset %d of %d, %d bytes, %v", c.name, body.Offset, body.Bytes, len(got), err)
		}
		body.Close()
	}
}

func TestPiecesAreOfOneVersion(t *testing.T) {
	server := mustStore(t)
	content := servertest.Image(1, 1<<20)
	server.mustPut(t, key, content)
	s := mustSource(t, server.address, key, options())
	body := mustOpen(t, s, 0, "")
	body.Close()
	for _, offset := range []int64{0, 4096, 1<<20 - 1000} {
		piece, err := s.OpenRange(context.Background(), offset, 1000, body.Validator)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(piece)
		piece.Close()
		if err != nil || !bytes.Equal(got, content[offset:offset+1000]) {
			t.Errorf("the piece at %d: %d bytes, %v", offset, len(got), err)
		}
	}
	server.mustPut(t, key, servertest.Image(2, 1<<20))
	for name, offset := range map[string]int64{"of a version that is gone": 4096, "beyond the end": 2 << 20} {
		if _, err := s.OpenRange(context.Background(), offset, 1000, body.Validator); !backingimage.Is(err, backingimage.Precondition) {
			t.Errorf("a piece %s: %v", name, err)
		}
	}
	s.CloseIdleConnections()
}

func TestAnObjectReplacedMidwayIsFetchedAnew(t *testing.T) {
	server := mustStore(t)
	before, after := servertest.Image(1, 9<<20), servertest.Image(2, 9<<20)
	server.mustPut(t, key, before)
	network := servertest.MustCutter(t, server.address)
	network.Cut(1, 3<<20)
	replaced := false
	s := &watched{Source: mustSource(t, network.Address, key, options()), opened: func(n int) {
		if n == 2 {
			server.mustPut(t, key, after)
			replaced = true
		}
	}}
	servertest.MustFetch(t, servertest.Job(t, s), after)
	if !replaced {
		t.Error("the connection was not cut")
	}
}

// watched calls back before each Open.
type watched struct {
	source.Source
	n      int
	opened func(n int)
}

func (w *watched) Open(ctx context.Context, offset int64, validator string) (*source.Body, error) {
	w.n++
	w.opened(w.n)
	return w.Source.Open(ctx, offset, validator)
}

func TestTheBucketIsInThePathOrInTheHost(t *testing.T) {
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked = append(asked, r.URL.Path) }))
	t.Cleanup(server.Close)
	mustOpen(t, mustSource(t, server.Listener.Addr().String(), "a/b", options()), 0, "").Close()
	if len(asked) != 1 || asked[0] != "/"+bucket+"/a/b" {
		t.Errorf("asked for %v", asked)
	}
	s := mustSource(t, "nowhere.invalid", "a/b", options(), "path-style", "false")
	if _, err := s.Open(context.Background(), 0, ""); err == nil || !strings.Contains(err.Error(), bucket+".nowhere.invalid") {
		t.Errorf("in the host's name: %v", err)
	}
}

func TestIdentityTellsObjectsApart(t *testing.T) {
	a := mustSource(t, "host", "a", options())
	seen := map[string]bool{}
	for _, s := range []*s3.Source{a, mustSource(t, "host", "b", options()), mustSource(t, "other", "a", options()), mustSource(t, "host", "a", options(), "url", "s3://another/a")} {
		seen[s.Identity()] = true
	}
	if len(seen) != 4 || a.Identity() != mustSource(t, "host", "a", source.Options{}).Identity() || a.String() != "s3://"+bucket+"/a" {
		t.Errorf("identities %v of %s", seen, a)
	}
}
