// Package azure opens containers of Azure Blob Storage, and of what speaks its API, for backups. Linking it is dear: plinth-buckets
// does.
package azure

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"gocloud.dev/blob/azureblob"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/provisioner/backup/object"
)

var _ object.Opener = Open

// defaultSuffix is that of the hosts of Azure's public cloud; the location's region is another's.
const defaultSuffix = "core.windows.net"

// Open implements object.Opener.
func Open(ctx context.Context, l object.Location, o source.Options) (object.Bucket, error) {
	c := o.Credential
	if err := source.ValidateEndpoint("secret: key "+credential.KeyAzureServer, c.AzureEndpoint); err != nil {
		return object.Bucket{}, err
	}
	if c.AzureAccount == "" {
		return object.Bucket{}, backingimage.Errorf(backingimage.Precondition, "no storage account is named; put it into a secret as %s, with %s or %s, and name that secret", credential.KeyAzureAccount, credential.KeyAzureKey, credential.KeyAzureToken)
	}
	server := "https://" + c.AzureAccount + ".blob." + cmp.Or(l.Region, defaultSuffix)
	if c.AzureEndpoint != "" { // as Longhorn has it, and emulators
		server = strings.TrimRight(c.AzureEndpoint, "/") + "/" + c.AzureAccount
	}
	transport := source.NewTransport(o)
	client, err := newClient(server+"/"+l.Bucket, c, &http.Client{Transport: source.Bound(transport, isContent), CheckRedirect: noRedirect})
	if err != nil { // it may quote the key or the token
		return object.Bucket{}, backingimage.Errorf(backingimage.Invalid, "secret: keys %s, %s and %s do not fit each other; give them as Azure shows them", credential.KeyAzureAccount, credential.KeyAzureKey, credential.KeyAzureToken)
	}
	opened, err := azureblob.OpenBucket(ctx, client, nil)
	if err != nil {
		return object.Bucket{}, fmt.Errorf("open container %s: %w", l.Bucket, err)
	}
	return object.Bucket{
		Bucket:   opened,
		Classify: func(ctx context.Context, err error) error { return classify(ctx, l.Bucket, err) },
		Close:    func() error { transport.CloseIdleConnections(); return nil },
	}, nil
}

func isContent(r *http.Response) bool { return r.StatusCode < 300 }

// noRedirect keeps signatures at the server that they are for.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func newClient(url string, c credential.Credential, over *http.Client) (*container.Client, error) {
	options := &container.ClientOptions{ClientOptions: azcore.ClientOptions{
		Transport: over, Retry: policy.RetryOptions{MaxRetries: -1}, PerCallPolicies: []policy.Policy{digest{}},
	}}
	switch {
	case c.AzureKey != "":
		key, err := azblob.NewSharedKeyCredential(c.AzureAccount, c.AzureKey.Reveal())
		if err != nil {
			return nil, err
		}
		return container.NewClientWithSharedKeyCredential(url, key, options)
	case c.AzureToken != "":
		url += "?" + c.AzureToken.Reveal()
	}
	return container.NewClientWithNoCredential(url, options)
}

// digest has the server compare what it gets, and compares what it gives.
type digest struct{}

const digestHeader = "Content-MD5" // as whoever signs it spells it

// Do implements policy.Policy.
func (digest) Do(r *policy.Request) (*http.Response, error) {
	if body := r.Body(); body != nil && r.Raw().Method == http.MethodPut {
		sum := md5.New()
		if _, err := io.Copy(sum, body); err != nil {
			return nil, err
		}
		if err := r.RewindBody(); err != nil {
			return nil, err
		}
		r.Raw().Header[digestHeader] = []string{base64.StdEncoding.EncodeToString(sum.Sum(nil))}
	}
	resp, err := r.Next()
	if err == nil && resp.StatusCode == http.StatusOK && r.Raw().Method == http.MethodGet {
		if want, err := base64.StdEncoding.DecodeString(resp.Header.Get(digestHeader)); err == nil && len(want) == md5.Size {
			resp.Body = &compared{ReadCloser: resp.Body, sum: md5.New(), want: want}
		}
	}
	return resp, err
}

// compared is a body that ends with an error when it has another digest than it must have.
type compared struct {
	io.ReadCloser
	sum  hash.Hash
	want []byte
}

func (c *compared) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.sum.Write(p[:n])
	if err == io.EOF && !bytes.Equal(c.sum.Sum(nil), c.want) {
		err = backingimage.Errorf(backingimage.NotReady, "other bytes came than the server sent: %s", laterOn)
	}
	return n, err
}

// meaning of an answer that holds no object, and what to do about it.
type meaning struct {
	kind   backingimage.Kind
	remedy string
}

const (
	keyRemedy = "put the storage account's key, or a token with the rights to read, write, delete and list, into a secret, as " + credential.KeyAzureKey + " or " + credential.KeyAzureToken + ", and name that secret"
	laterOn   = "it will be tried again"
)

var refused = meaning{backingimage.Precondition, "access is refused; " + keyRemedy}

// byCode are Blob Storage's error codes.
var byCode = map[bloberror.Code]meaning{
	bloberror.BlobNotFound:                    {backingimage.NotFound, "there is no such object"},
	bloberror.ResourceNotFound:                {backingimage.NotFound, "there is no such object"},
	bloberror.BlobAlreadyExists:               {backingimage.Conflict, "there is one"},
	bloberror.ConditionNotMet:                 {backingimage.Conflict, "there is another object, or another version of it"},
	bloberror.ContainerBeingDeleted:           {backingimage.Precondition, "the container is being deleted; use another"},
	bloberror.ContainerDisabled:               {backingimage.Precondition, "the container is disabled; use another"},
	bloberror.AccountIsDisabled:               {backingimage.Precondition, "the storage account is disabled; use another"},
	bloberror.AuthenticationFailed:            {backingimage.Precondition, "the key or the token is not the storage account's, has expired, or this node's clock is wrong; " + keyRemedy},
	bloberror.InvalidAuthenticationInfo:       {backingimage.Precondition, "the key or the token is not the storage account's; " + keyRemedy},
	bloberror.AuthorizationFailure:            refused,
	bloberror.AuthorizationPermissionMismatch: refused,
	bloberror.BlobArchived:                    {backingimage.Precondition, "the object is archived; bring it back in the object store first"},
}

var byStatus = map[int]meaning{
	http.StatusUnauthorized:    refused,
	http.StatusForbidden:       refused,
	http.StatusRequestTimeout:  {backingimage.NotReady, laterOn},
	http.StatusTooManyRequests: {backingimage.NotReady, laterOn},
}

// classify gives an error of a container's a Kind.
func classify(ctx context.Context, name string, err error) error {
	var answer *azcore.ResponseError
	if !errors.As(err, &answer) || answer.StatusCode < 300 {
		return source.Unanswered(ctx, err)
	}
	code := bloberror.Code(answer.ErrorCode)
	if code == bloberror.ContainerNotFound {
		return backingimage.Errorf(backingimage.Precondition, "there is no container %s; correct the URL, or make it", name)
	}
	m, known := byCode[code]
	if !known {
		m, known = byStatus[answer.StatusCode]
	}
	switch {
	case known:
	case answer.StatusCode >= 500:
		m = meaning{backingimage.NotReady, laterOn}
	default:
		m = meaning{backingimage.Precondition, "correct the URL and the endpoint, so that they name a container of Blob Storage"}
	}
	resp := &http.Response{StatusCode: answer.StatusCode, Header: http.Header{}}
	if answer.RawResponse != nil {
		resp.Header = answer.RawResponse.Header
	}
	said := ""
	if known && byCode[code] == m {
		said = " (" + string(code) + ")"
	}
	return backingimage.Errorf(m.kind, "%w%s: %s", source.StatusError(resp, time.Now()), said, m.remedy)
}
