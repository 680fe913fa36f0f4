package s3_test

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/backingimage/source/s3"
	"plinth.dev/plinth/backingimage/source/servertest"
)

// store is an S3 server with one bucket.
type store struct {
	dir, address string
	client       *awss3.Client
}

func mustStore(tb testing.TB) *store {
	tb.Helper()
	s := &store{dir: tb.TempDir()}
	if err := os.Mkdir(filepath.Join(s.dir, bucket), 0o700); err != nil {
		tb.Fatal(err)
	}
	s.address = servertest.MustS3(tb, s.dir, accessKey, secretKey)
	s.client = awss3.New(awss3.Options{
		Region: "eu-test-1", BaseEndpoint: aws.String("http://" + s.address), UsePathStyle: true,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: accessKey, SecretAccessKey: secretKey}, nil
		}),
	})
	return s
}

func (s *store) mustPut(tb testing.TB, key string, content []byte) {
	tb.Helper()
	if _, err := s.client.PutObject(context.Background(), &awss3.PutObjectInput{
		Bucket: aws.String(bucket), Key: aws.String(key), Body: bytes.NewReader(content),
	}); err != nil {
		tb.Fatal(err)
	}
}

// options open 127.0.0.1 and have the good keys.
func options() source.Options {
	return source.Options{
		AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, StallTimeout: 5 * time.Second,
		Credential: credential.Credential{AccessKeyID: accessKey, SecretAccessKey: secretKey},
	}
}

// mustSource is an object behind an address, with further parameters in pairs.
func mustSource(tb testing.TB, address, key string, o source.Options, further ...string) *s3.Source {
	tb.Helper()
	parameters := map[string]string{"url": "s3://" + bucket + "/" + key, "endpoint": "http://" + address, "region": "eu-test-1"}
	for i := 0; i < len(further); i += 2 {
		parameters[further[i]] = further[i+1]
	}
	s, err := s3.New(parameters, o)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func mustOpen(tb testing.TB, s source.Source, offset int64, validator string) *source.Body {
	tb.Helper()
	body, err := s.Open(context.Background(), offset, validator)
	if err != nil {
		tb.Fatal(err)
	}
	return body
}
