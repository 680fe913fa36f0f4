package s3

import (
	"errors"
	"net/http"
	"regexp"
	"time"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/source"
)

// meaning of an answer that holds no object, and what to do about it.
type meaning struct {
	kind   backingimage.Kind
	remedy string
}

const (
	keysRemedy = "put keys that have the right to it into a secret, as " + credential.KeyAccessKeyID + " and " + credential.KeySecretKey + ", and name that secret"
	laterOn    = "it will be tried again"
)

// byCode are S3's error codes.
var byCode = map[string]meaning{
	"NoSuchKey":             {backingimage.NotFound, "correct the key in the URL; the bucket has no such object"},
	"NoSuchBucket":          {backingimage.NotFound, "correct the bucket in the URL, or the endpoint; there is no such bucket"},
	"AccessDenied":          {backingimage.Precondition, "access is refused; " + keysRemedy},
	"InvalidAccessKeyId":    {backingimage.Precondition, "the server does not know the access key; " + keysRemedy},
	"XAdminUserNotFound":    {backingimage.Precondition, "the server does not know the access key; " + keysRemedy}, // versitygw's
	"SignatureDoesNotMatch": {backingimage.Precondition, "the secret access key is not the one of the access key; " + keysRemedy},
	"InvalidToken":          {backingimage.Precondition, "the session token is not valid; " + keysRemedy},
	"ExpiredToken":          {backingimage.Precondition, "the session token has expired; " + keysRemedy},
	"RequestTimeTooSkewed":  {backingimage.Precondition, "this node's clock is wrong; set it"},
	"InvalidObjectState":    {backingimage.Precondition, "the object is archived; restore it in the object store first"},
	"InvalidBucketName":     {backingimage.Precondition, "the server has no buckets of such a name; correct the bucket in the URL"},
	"SlowDown":              {backingimage.NotReady, laterOn},
	"RequestTimeout":        {backingimage.NotReady, laterOn},
	"InternalError":         {backingimage.NotReady, laterOn},
	"ServiceUnavailable":    {backingimage.NotReady, laterOn},
}

// byStatus is for servers that send no code that is known.
var byStatus = map[int]meaning{
	http.StatusNotFound:        {backingimage.NotFound, "correct the URL; nothing is there"},
	http.StatusUnauthorized:    byCode["AccessDenied"],
	http.StatusForbidden:       byCode["AccessDenied"],
	http.StatusRequestTimeout:  {backingimage.NotReady, laterOn},
	http.StatusTooManyRequests: {backingimage.NotReady, laterOn},
}

// otherRegion are the codes that say that the bucket is elsewhere.
var otherRegion = map[string]bool{"PermanentRedirect": true, "AuthorizationHeaderMalformed": true, "IncorrectEndpoint": true}

// classify turns the client's error into one with a Kind, which does not name the source yet. source.ErrUnfit when another version or
// piece is there than was asked for; the error itself when there was no answer at all.
func (p place) classify(err error, now time.Time) error {
	var answer *smithyhttp.ResponseError
	if !errors.As(err, &answer) || answer.Response == nil || answer.Response.Response == nil {
		return err
	}
	resp, code := answer.Response.Response, codeOf(err)
	switch {
	case resp.StatusCode == http.StatusPreconditionFailed, resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return source.ErrUnfit
	case resp.StatusCode/100 == 3, otherRegion[code]:
		return p.elsewhere(resp)
	case resp.StatusCode < 300: // the answer broke while it was read
		return err
	}
	m, known := byCode[code]
	if !known {
		m, known = byStatus[resp.StatusCode]
	}
	switch {
	case known:
	case resp.StatusCode >= 500:
		m = meaning{backingimage.NotReady, laterOn}
	default:
		m = meaning{backingimage.Precondition, "correct the URL and the endpoint, so that they name an S3 server and an object on it"}
	}
	if code != "" {
		code = " (" + code + ")"
	}
	return backingimage.Errorf(m.kind, "%w%s: %s", source.StatusError(resp, now), code, m.remedy)
}

// elsewhere names the region, when the server did.
func (p place) elsewhere(resp *http.Response) error {
	remedy := "give the bucket's region with the parameter region"
	if region := resp.Header.Get("X-Amz-Bucket-Region"); region != "" && source.ValidateRegion("", region) == nil {
		remedy = "set the parameter region to " + region
	}
	return backingimage.Errorf(backingimage.Precondition, "the bucket %s is not in the region %s, for which it was asked: %s", p.name, p.region, remedy)
}

var codeCharacters = regexp.MustCompile(`^[A-Za-z][A-Za-z.]{0,63}$`)

// codeOf is the error code that the server sent, "" when it sent none that looks like one.
func codeOf(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) && codeCharacters.MatchString(api.ErrorCode()) {
		return api.ErrorCode()
	}
	return ""
}
