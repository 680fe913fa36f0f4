package source

import (
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/google/go-containerregistry/pkg/name"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// Schemes of the URLs that images are downloaded from, in lower case.
const (
	SchemeHTTP  = "http"
	SchemeHTTPS = "https"
	SchemeS3    = "s3"
	SchemeOCI   = "oci"
)

// downloadParameters are the source parameters of a download.
var downloadParameters = []string{
	v1alpha1.ParameterURL, v1alpha1.ParameterSecret, v1alpha1.ParameterSecretNamespace, v1alpha1.ParameterProxy,
	v1alpha1.ParameterEndpoint, v1alpha1.ParameterRegion, v1alpha1.ParameterPathStyle,
}

// validators check a URL and the parameters that belong to its scheme alone.
var validators = map[string]func(parameters map[string]string) error{
	SchemeHTTP:  validateHTTP,
	SchemeHTTPS: validateHTTP,
	SchemeS3:    validateS3,
	SchemeOCI:   validateOCI,
}

// ValidateParameters checks the source parameters of a download as far as that is possible without asking anyone. Every
// fault is Invalid, names the parameter, and has its own message.
func ValidateParameters(parameters map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(parameters)) {
		if !slices.Contains(downloadParameters, key) {
			return backingimage.Errorf(backingimage.Invalid, "source parameter %q is not one that a download has; it has %s", key, strings.Join(downloadParameters, ", "))
		}
	}
	raw := parameters[v1alpha1.ParameterURL]
	scheme := Scheme(raw)
	if scheme == "" {
		return ValidateURL(raw) // which says what is wrong
	}
	validate, known := validators[scheme]
	if !known {
		return invalidURL(raw, "has a scheme that images cannot be downloaded with; use http, https, s3 or oci")
	}
	if scheme != SchemeS3 {
		for _, key := range []string{v1alpha1.ParameterEndpoint, v1alpha1.ParameterPathStyle, v1alpha1.ParameterRegion} {
			if parameters[key] != "" {
				return backingimage.Errorf(backingimage.Invalid, "%s: is for s3:// URLs, and this one is %s://; remove it", key, scheme)
			}
		}
	}
	return validate(parameters)
}

var beginsWithScheme = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9+.-]*):`)

// Scheme is a URL's scheme in lower case, "" when it has none.
func Scheme(raw string) string {
	if m := beginsWithScheme.FindStringSubmatch(raw); m != nil {
		return strings.ToLower(m[1])
	}
	return ""
}

func validateHTTP(parameters map[string]string) error {
	return ValidateURL(parameters[v1alpha1.ParameterURL])
}

// rule is one thing that can be wrong with a text, and what to say then.
type rule struct {
	broken  func(string) bool
	message string
}

// firstBroken is the message of the first rule that a text breaks, "" when it keeps them all.
func firstBroken(text string, rules []rule) string {
	for _, r := range rules {
		if r.broken(text) {
			return r.message
		}
	}
	return ""
}

// restRules are for what follows the scheme of an address that is no web address.
var restRules = []rule{
	{hasControl, "has a control character (a line break, perhaps); remove it"},
	{func(s string) bool { return !strings.HasPrefix(s, "//") }, "lacks the // after its scheme; write it as s3://bucket/key or oci://registry/repository:tag"},
	{func(s string) bool { return strings.TrimSpace(s) != s }, "ends with white space; remove it"},
	{hasUser, "holds a user name or a password, which everyone who can read the image could read too; put it into a secret and name that with the parameter secret"},
	{func(s string) bool { return strings.Contains(s, "?") }, "has a query, which such an address cannot have; remove the question mark and what follows"},
}

// hasUser reports whether an @ comes before the path.
func hasUser(rest string) bool {
	authority, _, _ := strings.Cut(strings.TrimPrefix(rest, "//"), "/")
	return strings.Contains(authority, "@")
}

// afterScheme checks what s3 and oci have in common, and returns the URL without its "scheme://".
func afterScheme(raw string) (string, error) {
	_, rest, _ := strings.Cut(raw, ":")
	if message := firstBroken(rest, restRules); message != "" {
		return "", invalidURL(raw, message)
	}
	return strings.TrimPrefix(rest, "//"), nil
}

// ParseS3 takes s3://bucket/key apart. The key is meant as it is written: nothing in it is decoded. Invalid.
func ParseS3(raw string) (bucket, key string, err error) {
	rest, err := afterScheme(raw)
	if err != nil {
		return "", "", err
	}
	bucket, key, _ = strings.Cut(rest, "/")
	message := firstBroken(bucket, bucketRules)
	if message == "" {
		message = firstBroken(key, keyRules)
	}
	if message != "" {
		return "", "", invalidURL(raw, message)
	}
	return bucket, key, nil
}

// ValidateBucket checks the name of an S3 bucket. Invalid.
func ValidateBucket(name string) error {
	if message := firstBroken(name, bucketRules); message != "" {
		return invalidURL(SchemeS3+"://"+shortened(name), message)
	}
	return nil
}

// bucketRules are Amazon's for the names of buckets.
var bucketRules = []rule{
	{func(s string) bool { return s == "" }, "names no bucket; write it as s3://bucket/key"},
	{func(s string) bool { return len(s) < 3 || len(s) > 63 }, "names a bucket that does not have 3 to 63 characters; correct it"},
	{func(s string) bool { return !bucketCharacters.MatchString(s) }, "names a bucket that has others than lower-case letters, digits, dots and hyphens, or does not begin and end with a letter or a digit; correct it"},
	{func(s string) bool { return strings.Contains(s, "..") }, "names a bucket with two dots in a row; correct it"},
	{dottedNumbers.MatchString, "names an IP address where the bucket must be; give the server with the parameter endpoint"},
}

var (
	bucketCharacters = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`)
	dottedNumbers    = regexp.MustCompile(`^[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+$`)
	regionCharacters = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
)

var keyRules = []rule{
	{func(s string) bool { return s == "" || strings.HasSuffix(s, "/") }, "names no object in the bucket; write it as s3://bucket/key"},
	{func(s string) bool { return len(s) > 1024 }, "has a key of more than 1024 bytes, which no object has; correct it"},
	{func(s string) bool { return !utf8.ValidString(s) }, "has a key that is not UTF-8; correct it"},
}

func validateS3(parameters map[string]string) error {
	if _, _, err := ParseS3(parameters[v1alpha1.ParameterURL]); err != nil {
		return err
	}
	if err := ValidateEndpoint(v1alpha1.ParameterEndpoint, parameters[v1alpha1.ParameterEndpoint]); err != nil {
		return err
	}
	if err := ValidateRegion(v1alpha1.ParameterRegion, parameters[v1alpha1.ParameterRegion]); err != nil {
		return err
	}
	if style := parameters[v1alpha1.ParameterPathStyle]; style != "" && style != "true" && style != "false" {
		return backingimage.Errorf(backingimage.Invalid, "path-style: %q is neither true (https://server/bucket/key) nor false (https://bucket.server/key)", shortened(style))
	}
	return nil
}

// ValidateEndpoint checks the URL of an S3 server; the empty string, Amazon's, is one. field is what the message calls it.
func ValidateEndpoint(field, endpoint string) error {
	if endpoint == "" {
		return nil
	}
	if message := firstBroken(endpoint, endpointRules); message != "" {
		return backingimage.Errorf(backingimage.Invalid, "%s: %q %s", field, RedactURL(endpoint), message)
	}
	return nil
}

var endpointRules = []rule{
	{hasControl, "has a control character; remove it"},
	{func(s string) bool { u, err := url.Parse(s); return err != nil || u.Hostname() == "" }, "is not the URL of a server; write it as https://host:port"},
	{func(s string) bool { return Scheme(s) != SchemeHTTP && Scheme(s) != SchemeHTTPS }, "has a scheme that no S3 server has; use http or https"},
	{func(s string) bool { u, _ := url.Parse(s); return u.User != nil }, "holds a user name or a password; put the keys into a secret and name that with the parameter secret"},
	{func(s string) bool { return strings.ContainsAny(s, "?#") }, "has a query or a fragment; write it as https://host:port"},
	{func(s string) bool { u, _ := url.Parse(s); return !validPort(u.Port()) }, "has a port that does not exist; give one from 1 to 65535, or none"},
}

// ValidateRegion checks the name of a region as far as it becomes part of a host's name; the empty string is one. field is
// what the message calls it.
func ValidateRegion(field, region string) error {
	if region == "" || regionCharacters.MatchString(region) {
		return nil
	}
	return backingimage.Errorf(backingimage.Invalid, "%s: %q is not the name of a region, such as eu-central-1: lower-case letters, digits and hyphens", field, shortened(region))
}

// ParseOCI reads oci://registry/repository:tag, …@sha256:digest, or both, of which the digest counts. Invalid.
func ParseOCI(raw string) (name.Reference, error) {
	rest, err := afterScheme(raw)
	if err != nil {
		return nil, err
	}
	if message := firstBroken(rest, referenceRules); message != "" {
		return nil, invalidURL(raw, message)
	}
	ref, err := name.ParseReference(rest, name.StrictValidation)
	if err != nil { // its text repeats the whole
		return nil, invalidURL(raw, "is not a reference to an image; write it as oci://registry/repository:tag or oci://registry/repository@sha256:digest, in lower case")
	}
	return ref, nil
}

var referenceRules = []rule{
	{func(s string) bool { registry, _, _ := strings.Cut(s, "/"); return registry == "" }, "names no registry; write it as oci://registry/repository:tag"},
	{func(s string) bool { _, path, _ := strings.Cut(s, "/"); return path == "" }, "names no repository; write it as oci://registry/repository:tag"},
	{func(s string) bool { registry, _, _ := strings.Cut(s, "/"); return !isRegistry(registry) }, "does not begin with a registry; write its whole name, such as docker.io, registry.example.com:5000 or localhost:5000"},
	{climbs, "has an empty part, or one of dots alone; write it as oci://registry/repository:tag"},
	{func(s string) bool { _, path, _ := strings.Cut(s, "/"); return !strings.ContainsAny(path, ":@") }, "names neither a tag nor a digest; write it as oci://registry/repository:tag"},
}

// isRegistry tells a registry from the first part of a repository on Docker Hub.
func isRegistry(s string) bool { return strings.ContainsAny(s, ".:") }

// climbs reports whether a part of a path is none, or leads elsewhere.
func climbs(path string) bool {
	return slices.ContainsFunc(strings.Split(path, "/"), func(part string) bool { return strings.Trim(part, ".") == "" })
}

func validateOCI(parameters map[string]string) error {
	_, err := ParseOCI(parameters[v1alpha1.ParameterURL])
	return err
}
