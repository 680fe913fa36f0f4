package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/backingimage/source/s3"
	"plinth.dev/plinth/backingimage/source/servertest"
)

func TestRefusalsAreClassified(t *testing.T) {
	server := mustStore(t)
	server.mustPut(t, key, servertest.Image(1, 1<<20))
	keys := func(access, secret credential.Secret) source.Options {
		o := options()
		o.Credential.AccessKeyID, o.Credential.SecretAccessKey = access, secret
		return o
	}
	denied := options()
	denied.AllowCIDRs = []netip.Prefix{}
	for _, c := range []struct {
		name string
		s    *s3.Source
		kind backingimage.Kind
		says []string
	}{
		{"no such key", mustSource(t, server.address, "nothing", options()), backingimage.NotFound, []string{"NoSuchKey", "correct the key"}},
		{"no such bucket", mustSource(t, server.address, key, options(), "url", "s3://nothing/here"), backingimage.NotFound, []string{"NoSuchBucket", "correct the bucket"}},
		{"no keys", mustSource(t, server.address, key, keys("", "")), backingimage.Precondition, []string{"AccessDenied", "AWS_ACCESS_KEY_ID"}},
		{"unknown key", mustSource(t, server.address, key, keys("NOBODY", secretKey)), backingimage.Precondition, []string{"InvalidAccessKeyId", "AWS_SECRET_ACCESS_KEY"}},
		{"wrong secret key", mustSource(t, server.address, key, keys(accessKey, "wRoNgKeY")), backingimage.Precondition, []string{"SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"}},
		{"other region", mustSource(t, server.address, key, options(), "region", "us-west-2"), backingimage.Precondition, []string{"us-west-2", "parameter region"}},
		{"loopback", mustSource(t, server.address, key, denied), backingimage.Precondition, []string{"loopback", "--allow-source-cidr"}},
		{"metadata", mustSource(t, "169.254.169.254", key, options()), backingimage.Precondition, []string{"metadata"}},
		{"nobody listens", mustSource(t, "127.0.0.1:1", key, options()), backingimage.NotReady, []string{"cannot be reached", "refused"}},
	} {
		t.Run(c.name, func(t *testing.T) { mustRefuse(t, c.s, c.kind, c.says...) })
	}
}

// mustRefuse checks the error of Open, and that it tells no secret.
func mustRefuse(t *testing.T, s *s3.Source, kind backingimage.Kind, says ...string) error {
	t.Helper()
	_, err := s.Open(context.Background(), 0, "")
	text := fmt.Sprint(err)
	if !backingimage.Is(err, kind) || !strings.HasPrefix(text, "download s3://") {
		t.Errorf("got %v error %v, want %v", backingimage.KindOf(err), err, kind)
	}
	for _, want := range says {
		if !strings.Contains(text, want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
	for _, secret := range []string{accessKey, secretKey, "wRoNgKeY", "NOBODY", "Signature=", "Credential=", "AWS4-HMAC", "X-Amz"} {
		if strings.Contains(text, secret) {
			t.Errorf("the message tells %q: %v", secret, err)
		}
	}
	return err
}

// Answers that no real server can be made to give.
func TestBadAnswersAreClassified(t *testing.T) {
	says := func(status int, code string, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(status)
			fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s %s</Message></Error>", code, r.Header.Get("Authorization"), secretKey)
		}
	}
	for _, c := range []struct {
		name    string
		handler http.HandlerFunc
		kind    backingimage.Kind
		says    string
		after   time.Duration
	}{
		{"slow down", says(503, "SlowDown", "Retry-After", "7"), backingimage.NotReady, "SlowDown", 7 * time.Second},
		{"too many requests", says(429, "", "Retry-After", "9"), backingimage.NotReady, "429", 9 * time.Second},
		{"internal error", says(500, "InternalError"), backingimage.NotReady, "500", 0},
		{"time-out with a status of its own", says(400, "RequestTimeout"), backingimage.NotReady, "RequestTimeout", 0},
		{"bucket elsewhere", says(301, "PermanentRedirect", "X-Amz-Bucket-Region", "ap-south-1"), backingimage.Precondition, "set the parameter region to ap-south-1", 0},
		{"bucket elsewhere, for now", says(307, "TemporaryRedirect", "Location", "http://169.254.169.254/"), backingimage.Precondition, "parameter region", 0},
		{"bucket elsewhere, hostile", says(301, "PermanentRedirect", "X-Amz-Bucket-Region", "x@"+secretKey), backingimage.Precondition, "give the bucket's region", 0},
		{"code that is none", says(403, "Key "+secretKey), backingimage.Precondition, "403 Forbidden: access", 0},
		{"expired", says(400, "ExpiredToken"), backingimage.Precondition, "session token has expired", 0},
		{"no S3 server", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "hello", http.StatusTeapot) }, backingimage.Precondition, "418", 0},
		{"an endless error", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(500)
			for range 64 {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		}, backingimage.NotReady, "500", 0},
		{"silence", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, backingimage.NotReady, "no byte arrived for 300ms", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := httptest.NewServer(c.handler)
			t.Cleanup(server.Close)
			t.Cleanup(server.CloseClientConnections)
			o := options()
			o.StallTimeout = 300 * time.Millisecond
			err := mustRefuse(t, mustSource(t, server.Listener.Addr().String(), key, o), c.kind, c.says)
			if after := source.RetryAfter(err); after != c.after {
				t.Errorf("to be tried again after %s, want %s", after, c.after)
			}
		})
	}
}

// Servers that call themselves S3 and do not look at what they are asked for.
func TestServersThatIgnoreWhatIsAskedMixNothing(t *testing.T) {
	content := servertest.Image(1, 1<<20)
	for name, handler := range map[string]http.HandlerFunc{
		"ranges": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("ETag", `"a"`); w.Write(content) },
		"the version": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"b"`)
			r.Header.Del("If-Match")
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
		},
		"where to begin": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"a"`)
			if r.Header.Get("Range") != "" {
				r.Header.Set("Range", "bytes=5-")
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
		},
	} {
		server := httptest.NewServer(handler)
		t.Cleanup(server.Close)
		s := mustSource(t, server.Listener.Addr().String(), key, options())
		body := mustOpen(t, s, 1000, `"a"`)
		got, err := io.ReadAll(body)
		if err != nil || body.Offset != 0 || !bytes.Equal(got, content) {
			t.Errorf("%s: offset %d, %d bytes, %v", name, body.Offset, len(got), err)
		}
		body.Close()
		if _, err := s.OpenRange(context.Background(), 1000, 1000, `"a"`); !backingimage.Is(err, backingimage.Precondition) {
			t.Errorf("%s: a piece: %v", name, err)
		}
	}
}

func TestAStallInTheMiddleEndsTheConnection(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		w.Write(make([]byte, 100))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}))
	t.Cleanup(server.Close)
	t.Cleanup(server.CloseClientConnections)
	o := options()
	o.StallTimeout = 300 * time.Millisecond
	body := mustOpen(t, mustSource(t, server.Listener.Addr().String(), key, o), 0, "")
	defer body.Close()
	if _, err := io.ReadAll(body); !backingimage.Is(err, backingimage.NotReady) || !strings.Contains(err.Error(), "no byte arrived") {
		t.Errorf("got %v", err)
	}
}

func TestTheCallersEndIsTheCallers(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	t.Cleanup(server.Close)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := mustSource(t, server.Listener.Addr().String(), key, options()).Open(ctx, 0, ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestNothingIsTakenFromTheEnvironment(t *testing.T) {
	server := mustStore(t)
	server.mustPut(t, key, servertest.Image(1, 1<<20))
	file := filepath.Join(t.TempDir(), "credentials")
	text := "[default]\naws_access_key_id = " + accessKey + "\naws_secret_access_key = " + secretKey + "\nendpoint_url = http://" + server.address + "\nregion = eu-test-1\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": accessKey, "AWS_SECRET_ACCESS_KEY": secretKey, "AWS_SHARED_CREDENTIALS_FILE": file, "AWS_CONFIG_FILE": file,
		"AWS_PROFILE": "default", "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1", "AWS_REGION": "us-west-2",
	} {
		t.Setenv(name, value)
	}
	o := options()
	o.Credential = credential.Credential{}
	mustRefuse(t, mustSource(t, server.address, key, o), backingimage.Precondition, "AccessDenied")
}

func TestWhatIsGivenIsChecked(t *testing.T) {
	secret := options()
	secret.Credential.Endpoint = "ftp://x"
	region := options()
	region.Credential.Region = "a/b"
	for name, c := range map[string]struct {
		parameters map[string]string
		o          source.Options
		says       string
	}{
		"parameters":                  {map[string]string{"url": "s3://x"}, options(), "bucket"},
		"the endpoint of the secret":  {map[string]string{"url": "s3://bucket/x"}, secret, "AWS_ENDPOINTS"},
		"the region of the secret":    {map[string]string{"url": "s3://bucket/x"}, region, "AWS_REGION"},
		"how long it may take to say": {map[string]string{"url": "s3://bucket/x"}, source.Options{StallTimeout: -1}, "stall timeout"},
	} {
		if _, err := s3.New(c.parameters, c.o); !backingimage.Is(err, backingimage.Invalid) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
