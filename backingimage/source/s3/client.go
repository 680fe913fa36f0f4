package s3

import (
	"context"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"

	"plinth.dev/plinth/backingimage/source"
)

// newClient makes a client from nothing but its arguments; s3.New, unlike the SDK's other constructors, reads neither
// the environment nor files.
func newClient(where place, o source.Options, transport http.RoundTripper) *s3.Client {
	options := s3.Options{
		Region:                     where.region,
		UsePathStyle:               where.pathStyle,
		Credentials:                aws.AnonymousCredentials{},
		HTTPClient:                 &http.Client{Transport: source.Bound(transport, isContent), CheckRedirect: noRedirect},
		Retryer:                    aws.NopRetryer{},
		Logger:                     logging.Nop{},
		ResponseChecksumValidation: aws.ResponseChecksumValidationWhenSupported,

		DisableLogOutputChecksumValidationSkipped: true,
	}
	if where.endpoint != "" {
		options.BaseEndpoint = aws.String(where.endpoint)
	}
	if keys := o.Credential; keys.AccessKeyID != "" {
		options.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{
				AccessKeyID: keys.AccessKeyID.Reveal(), SecretAccessKey: keys.SecretAccessKey.Reveal(), SessionToken: keys.SessionToken.Reveal(),
				Source: "secret",
			}, nil
		})
	}
	return s3.New(options)
}

// noRedirect makes a redirect an answer to be classified: it says that the bucket is in another region.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func isContent(r *http.Response) bool { return r.StatusCode < 300 }
