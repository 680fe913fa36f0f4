package source_test

import (
	"net/url"
	"strings"
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/source"
)

var digest = "sha256:" + strings.Repeat("0a", 32)

// parameters are given in pairs after the URL.
func parameters(raw string, further ...string) map[string]string {
	p := map[string]string{"url": raw}
	for i := 0; i < len(further); i += 2 {
		p[further[i]] = further[i+1]
	}
	return p
}

func TestValidateParametersAccepts(t *testing.T) {
	for _, p := range []map[string]string{
		parameters("https://example.com/a.img", "secret", "login", "secret-namespace", "vms", "proxy", "http://proxy:3128"),
		parameters("HTTP://10.0.0.1/a"),
		parameters("https://example.com/a", "endpoint", "", "region", "", "path-style", ""),
		parameters("s3://golden-images/linux/fedora.qcow2"),
		parameters("S3://a.b-c/k"),
		parameters("s3://bucket/ä key+with%20what/..//is#special@\\"),
		parameters("s3://bucket/key", "endpoint", "http://10.0.0.1:9000", "region", "eu-central-1", "path-style", "true"),
		parameters("s3://bucket/key", "endpoint", "https://example.com/storage/v1/s3", "path-style", "false", "secret", "keys"),
		parameters("oci://registry.example.com/vms/fedora:42"),
		parameters("OCI://docker.io/library/fedora@" + digest),
		parameters("oci://registry.example.com:5000/fedora:42@" + digest),
		parameters("oci://localhost:5000/fedora:42"),
		parameters("oci://[::1]:5000/fedora:42"),
	} {
		if err := source.ValidateParameters(p); err != nil {
			t.Errorf("%v: %v", p, err)
		}
	}
}

// Each row has one fault, and its message no other row has.
func TestValidateParametersNamesEachFault(t *testing.T) {
	seen := map[string]string{}
	for _, c := range []struct {
		parameters map[string]string
		says       string
	}{
		{parameters(""), `url: "" is empty`},
		{parameters("//example.com/a"), "before the //"},
		{parameters("example.com/a"), "has no scheme; write it as"},
		{parameters("ftp://example.com/a"), `url: "ftp://example.com/a" has a scheme that images cannot be downloaded with; use http, https, s3 or oci`},
		{parameters("file:///etc/passwd"), `url: "file:///etc/passwd" has a scheme that images cannot be downloaded with; use http, https, s3 or oci`},
		{parameters("gs://bucket/key"), `"gs://bucket/key" has a scheme`},
		{parameters("https://user:hunter2@host/a"), "https://redacted@host/a"},
		{parameters("https://host/a", "url2", "x"), `source parameter "url2" is not one`},
		{parameters("https://host/a", "endpoint", "http://x"), "endpoint: is for s3:// URLs, and this one is https://"},
		{parameters("oci://host/a:1", "region", "x"), "region: is for s3:// URLs, and this one is oci://"},
		{parameters("http://host/a", "path-style", "true"), "path-style: is for s3:// URLs, and this one is http://"},

		{parameters("s3:bucket/key"), "lacks the //"},
		{parameters("s3://"), `"s3://" names no bucket`},
		{parameters("s3:///key"), `"s3:///key" names no bucket`},
		{parameters("s3://bucket"), `"s3://bucket" names no object`},
		{parameters("s3://bucket/"), `"s3://bucket/" names no object`},
		{parameters("s3://bucket/folder/"), `"s3://bucket/folder/" names no object`},
		{parameters("s3://AKIA:hunter2@bucket/key"), "s3://redacted@bucket/key"},
		{parameters("s3://bucket/key?X-Amz-Signature=hunter2"), "has a query"},
		{parameters("s3://bucket/a\nb"), "has a control character (a line break, perhaps)"},
		{parameters("s3://bucket/key "), "ends with white space"},
		{parameters("s3://bu/key"), "3 to 63 characters"},
		{parameters("s3://" + strings.Repeat("b", 64) + "/key"), strings.Repeat("b", 64) + `/key" names a bucket that does not have 3 to 63`},
		{parameters("s3://Bucket/key"), `"s3://Bucket/key" names a bucket that has others`},
		{parameters("s3://bucket_1/key"), `"s3://bucket_1/key" names a bucket that has others`},
		{parameters("s3://-bucket/key"), `"s3://-bucket/key" names a bucket that has others`},
		{parameters("s3://bucket:9000/key"), `"s3://bucket:9000/key" names a bucket that has others`},
		{parameters("s3://b..cket/key"), "two dots in a row"},
		{parameters("s3://10.0.0.1/key"), "an IP address where the bucket must be"},
		{parameters("s3://bucket/" + strings.Repeat("k", 1025)), "more than 1024 bytes"},
		{parameters("s3://bucket/\xff"), "not UTF-8"},
		{parameters("s3://bucket/key", "endpoint", "ftp://host"), `endpoint: "ftp://host" has a scheme`},
		{parameters("s3://bucket/key", "endpoint", "host"), `endpoint: "host" is not the URL of a server`},
		{parameters("s3://bucket/key", "endpoint", "http://"), `endpoint: "http://" is not the URL of a server`},
		{parameters("s3://bucket/key", "endpoint", "https://AKIA:hunter2@host"), `endpoint: "https://redacted@host" holds a user name`},
		{parameters("s3://bucket/key", "endpoint", "https://host?token=hunter2"), `endpoint: "https://host?token=redacted" has a query`},
		{parameters("s3://bucket/key", "endpoint", "https://host:0"), `endpoint: "https://host:0" has a port`},
		{parameters("s3://bucket/key", "endpoint", "https://host\n"), "endpoint: \"https://host\\n\" has a control character"},
		{parameters("s3://bucket/key", "region", "eu/../west"), `region: "eu/../west" is not the name of a region`},
		{parameters("s3://bucket/key", "path-style", "yes"), `path-style: "yes" is neither true`},

		{parameters("oci:registry.example.com/a:1"), `"oci:registry.example.com/a:1" lacks the //`},
		{parameters("oci://"), `"oci://" names no registry`},
		{parameters("oci:///a:1"), `"oci:///a:1" names no registry`},
		{parameters("oci://registry.example.com"), `"oci://registry.example.com" names no repository`},
		{parameters("oci://user:hunter2@registry.example.com/a:1"), "oci://redacted@registry.example.com/a:1"},
		{parameters("oci://vms/fedora:42"), "does not begin with a registry"},
		{parameters("oci://registry.example.com/fedora"), "neither a tag nor a digest"},
		{parameters("oci://registry.example.com/Fedora:42"), `"oci://registry.example.com/Fedora:42" is not a reference`},
		{parameters("oci://registry.example.com/fedora@sha256:12"), `fedora@sha256:12" is not a reference`},
		{parameters("oci://registry.example.com/fedora@md5:" + strings.Repeat("0a", 16)), `" is not a reference`},
		{parameters("oci://registry.example.com/fedora:a/b"), `fedora:a/b" is not a reference`},
		{parameters("oci://registry.example.com/../x:1"), `/../x:1" has an empty part`},
		{parameters("oci://registry.example.com//x:1"), `com//x:1" has an empty part`},
		{parameters("oci://localhost/x:1"), `"oci://localhost/x:1" does not begin with a registry`},
		{parameters("oci://registry.example.com/fedora:42?token=hunter2"), `fedora:42?token=redacted" has a query`},
	} {
		err := source.ValidateParameters(c.parameters)
		if !backingimage.Is(err, backingimage.Invalid) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: got %v, want %q", c.parameters, err, c.says)
			continue
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the message tells the secret: %v", err)
		}
		if before, twice := seen[err.Error()]; twice {
			t.Errorf("%q and %q have the same message: %v", before, c.says, err)
		}
		seen[err.Error()] = c.says
	}
}

// FuzzValidateParameters checks, of what is accepted, that it can be taken apart again into what was given, and of what is not,
// that the message is bounded and keeps the password of a URL to itself.
func FuzzValidateParameters(f *testing.F) {
	for _, raw := range []string{
		"https://example.com/a.img?x=y#z", "s3://bucket/ä key", "oci://registry.example.com:5000/a/b:1@" + digest, "oci://localhost:5000/a:1", "ftp://x", "//h", "s3:x", "oci://", "s3://b/",
	} {
		f.Add(raw, "", "", "")
	}
	f.Add("s3://bucket/key", "https://user:pw@host:99999/x", "eu-west-1", "true")
	f.Fuzz(func(t *testing.T, raw, endpoint, region, style string) {
		err := source.ValidateParameters(parameters(raw, "endpoint", endpoint, "region", region, "path-style", style))
		if err != nil {
			if !backingimage.Is(err, backingimage.Invalid) || len(err.Error()) > 2000 {
				t.Errorf("%q: %v", raw, err)
			}
			return
		}
		switch source.Scheme(raw) {
		case source.SchemeS3:
			bucket, key, err := source.ParseS3(raw)
			if err != nil || !strings.HasSuffix(raw, "://"+bucket+"/"+key) || key == "" {
				t.Errorf("%q is %q and %q, %v", raw, bucket, key, err)
			}
			if u, err := url.Parse(endpoint); err != nil || u.User != nil {
				t.Errorf("endpoint %q: %v", endpoint, err)
			}
		case source.SchemeOCI:
			ref, err := source.ParseOCI(raw)
			if err != nil || ref.Context().RepositoryStr() == "" || ref.Identifier() == "" || strings.ContainsAny(ref.Context().RegistryStr(), "@/?#") {
				t.Errorf("%q is %v, %v", raw, ref, err)
			}
		case source.SchemeHTTP, source.SchemeHTTPS:
			if u, err := url.Parse(raw); err != nil || u.User != nil || u.Host == "" {
				t.Errorf("%q: %v", raw, err)
			}
		default:
			t.Errorf("%q is accepted", raw)
		}
		hidden, ok := strings.CutPrefix(raw, source.Scheme(raw)+"://")
		if !ok || strings.ContainsAny(hidden, "@?#") {
			return
		}
		err = source.ValidateParameters(parameters(source.Scheme(raw)+"://user:hunter2@"+hidden, "endpoint", endpoint, "region", region, "path-style", style))
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("with a password before %q: %v", hidden, err)
		}
	})
}
