package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/source"
)

// registry is a repository that we are logged in to.
type registry struct {
	shown      string // the URL, for errors
	repository name.Repository
	client     *http.Client
	transports []*http.Transport
	options    source.Options
}

// asBlob marks requests for blobs, whose answers may be long.
const asBlob = "application/octet-stream"

// login asks the registry how it wants to be asked, and gets its token.
func login(ctx context.Context, shown string, repository name.Repository, o source.Options) (*registry, error) {
	auth, err := authenticator(o.Credential, repository)
	if err != nil {
		return nil, err
	}
	r := &registry{shown: shown, repository: repository, options: o}
	inner := source.Bound(r.newTransport(), func(resp *http.Response) bool {
		return resp.StatusCode < 300 && resp.Request.Header.Get("Accept") == asBlob
	})
	done, err := source.Watch(ctx, o, shown, func(ctx context.Context) (io.ReadCloser, error) {
		scope := repository.Scope(transport.PullScope)
		t, err := transport.NewWithContext(ctx, repository.Registry, auth, transport.NewUserAgent(inner, o.UserAgent), []string{scope})
		if err != nil {
			return nil, r.classify(err)
		}
		r.client = &http.Client{Transport: t, CheckRedirect: checkRedirect}
		return http.NoBody, nil
	})
	if err != nil {
		return nil, err
	}
	return r, done.Close()
}

// authenticator is what the credential has for a repository: a token, a login, or what a .dockerconfigjson says of it or of its
// registry.
func authenticator(c credential.Credential, repository name.Repository) (authn.Authenticator, error) {
	switch {
	case c.Token != "":
		return authn.FromConfig(authn.AuthConfig{RegistryToken: c.Token.Reveal()}), nil
	case c.Username != "":
		return authn.FromConfig(authn.AuthConfig{Username: c.Username.Reveal(), Password: c.Password.Reveal()}), nil
	case c.DockerConfig == "":
		return authn.Anonymous, nil
	}
	var config struct {
		Auths map[string]authn.AuthConfig `json:"auths"`
	}
	if json.Unmarshal([]byte(c.DockerConfig.Reveal()), &config) != nil { // its error may quote the text
		return nil, backingimage.Errorf(backingimage.Invalid, "secret: key %q cannot be read; make it with \"docker login\" or \"kubectl create secret docker-registry\"", credential.KeyDockerConfig)
	}
	found, best := authn.Anonymous, ""
	for server, login := range config.Auths {
		if prefix := prefixOf(server); len(prefix) > len(best) && strings.HasPrefix(repository.Name()+"/", prefix) {
			found, best = authn.FromConfig(login), prefix
		}
	}
	return found, nil
}

// prefixOf is what the names of the repositories begin with that an entry of a docker configuration is for: a registry
// ("https://index.docker.io/v1/", "ghcr.io") or a part of one ("ghcr.io/vms"). Docker Hub has two names.
func prefixOf(server string) string {
	if _, rest, found := strings.Cut(server, "://"); found {
		server = rest
	}
	server = strings.TrimRight(server, "/")
	server = strings.TrimSuffix(strings.TrimSuffix(server, "/v1"), "/v2")
	if rest, found := strings.CutPrefix(server+"/", "docker.io/"); found {
		return name.DefaultRegistry + "/" + rest
	}
	return server + "/"
}

// networkError is a request that brought no answer, as the transport has it.
type networkError struct{ error }

func (e *networkError) Unwrap() error { return e.error }

// newTransport makes one that shows the credential's client certificate to the registry alone.
func (r *registry) newTransport() *refusing {
	t := &refusing{registry: r, home: source.NewTransport(r.options)}
	t.abroad = t.home
	if o := r.options; o.Credential.Certificate != nil {
		o.Credential.Certificate = nil
		t.abroad = source.NewTransport(o)
	}
	r.transports = []*http.Transport{t.home, t.abroad}
	return t
}

// refusing ends a request that the server is not ready for where the answer comes in: what logs in above it would lose the
// time that the server named. It marks what the network did, to be told from what the login did.
type refusing struct {
	home, abroad *http.Transport // for the registry, and for where it redirects and logs in
	registry     *registry
}

func (t *refusing) RoundTrip(req *http.Request) (*http.Response, error) {
	inner := t.abroad
	if req.URL.Host == t.registry.repository.RegistryStr() {
		inner = t.home
	}
	resp, err := inner.RoundTrip(req)
	if err != nil {
		return nil, &networkError{err}
	}
	if !later(resp.StatusCode) {
		return resp, nil
	}
	resp.Body.Close()
	return nil, t.registry.refusal(resp)
}

// maxRedirects that one request follows.
const maxRedirects = 10

// checkRedirect keeps the login from other servers than the one it is for. The transport puts it on again where it belongs.
func checkRedirect(next *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return backingimage.Errorf(backingimage.Precondition, "the registry redirected more than %d times", maxRedirects)
	}
	if next.URL.Scheme != "http" && next.URL.Scheme != "https" {
		return backingimage.Errorf(backingimage.Precondition, "the registry redirected to a %q address; images are downloaded over http or https", next.URL.Scheme)
	}
	next.Header.Del("Authorization")
	next.Header.Del("Referer")
	return nil
}

// get asks for a path of the repository. An answer that is neither 200 nor 206 is an error; source.ErrUnfit when it is about the
// range.
func (r *registry) get(ctx context.Context, path string, header http.Header) (*http.Response, error) {
	u := url.URL{Scheme: r.repository.Scheme(), Host: r.repository.RegistryStr(), Path: path}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header = header
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, r.classify(err)
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusPartialContent:
		return resp, nil
	}
	resp.Body.Close()
	if resp.StatusCode == http.StatusRequestedRangeNotSatisfiable && header.Get("Range") != "" {
		return nil, source.ErrUnfit
	}
	return nil, r.refusal(resp)
}

func (r *registry) blobURL(digest v1.Hash) string {
	return fmt.Sprintf("/v2/%s/blobs/%s", r.repository.RepositoryStr(), digest)
}

func (r *registry) manifestURL(identifier string) string {
	return fmt.Sprintf("/v2/%s/manifests/%s", r.repository.RepositoryStr(), identifier)
}

// blobHeader asks for bytes bytes at offset, for all from there when bytes is negative.
func blobHeader(offset, bytes int64) http.Header {
	h := http.Header{"Accept": {asBlob}, "Accept-Encoding": {"identity"}}
	switch {
	case bytes >= 0:
		h.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, offset+bytes-1))
	case offset > 0:
		h.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	return h
}

// later reports whether a status means that asking again may help.
func later(status int) bool {
	return status >= 500 || status == http.StatusTooManyRequests || status == http.StatusRequestTimeout
}

// refusal is the error of an answer that holds nothing; it does not name the source yet.
func (r *registry) refusal(resp *http.Response) error {
	kind, remedy := backingimage.Precondition, "correct the URL; this is not how a registry answers"
	switch status := resp.StatusCode; {
	case later(status):
		kind, remedy = backingimage.NotReady, "it will be tried again"
	case status == http.StatusNotFound:
		kind, remedy = backingimage.NotFound, "correct the URL; the registry has no such image, or hides it from who is not logged in"
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		remedy = fmt.Sprintf("access is refused; put a login of %s into a secret, as %s and %s, %s, or %s, and name that with the parameter secret",
			r.repository.RegistryStr(), credential.KeyUsername, credential.KeyPassword, credential.KeyToken, credential.KeyDockerConfig)
	}
	return backingimage.Errorf(kind, "%w: %s", source.StatusError(resp, r.options.Clock.Now()), remedy)
}

// classify turns an error of the client into one without a registry's own text, which may repeat what it was sent: a refusal,
// the network's error, or that the login went wrong.
func (r *registry) classify(err error) error {
	var classified *backingimage.Error
	var answer *transport.Error
	var network *networkError
	var reading *net.OpError
	switch {
	case errors.As(err, &classified):
		return classified
	case errors.As(err, &answer):
		return r.refusal(&http.Response{StatusCode: answer.StatusCode})
	case errors.As(err, &network):
		return network.error
	case errors.As(err, &reading):
		return reading
	case errors.Is(err, io.ErrUnexpectedEOF):
		return io.ErrUnexpectedEOF
	}
	return backingimage.Errorf(backingimage.Precondition, "%s does not let log in as registries do; correct the URL", r.repository.RegistryStr())
}
