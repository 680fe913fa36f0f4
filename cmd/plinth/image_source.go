package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/source"
)

// imageSource is what the flags of `image create` say of where an image comes from: exactly one of URL, volume and image, and
// what goes with it.
type imageSource struct {
	url, secret, secretNamespace, proxy, endpoint, region, pathStyle string
	volume, exportType                                               string
	image                                                            string
}

func (s *imageSource) flags(f *pflag.FlagSet) {
	f.StringVar(&s.url, "url", "", "http, https, s3 or oci `URL` to download the image from")
	f.StringVar(&s.secret, "secret", "", "with --url: `name` of the secret that says who asks")
	f.StringVar(&s.secretNamespace, "secret-namespace", "", "with --secret: its `namespace` (default \"default\")")
	f.StringVar(&s.proxy, "proxy", "", "with --url: `URL` of the proxy to go through")
	f.StringVar(&s.endpoint, "endpoint", "", "with --url s3://…: `URL` of the server, where that is not Amazon's")
	f.StringVar(&s.region, "region", "", "with --url s3://…: `region` of the bucket")
	f.StringVar(&s.pathStyle, "path-style", "", "with --url s3://…: `bool`, true to ask for http://server/bucket/key, false for http://bucket.server/key (default true with --endpoint, false without)")
	f.Lookup("path-style").NoOptDefVal = "true"
	f.StringVar(&s.volume, "from-volume", "", "ID or name of the `volume` whose content the image is to have; a mounted one is frozen for a moment")
	f.StringVar(&s.exportType, "export-type", "", "with --from-volume: `format` that a later download of the image yields, raw or qcow2 (default raw)")
	f.StringVar(&s.image, "clone-of", "", "name of the `image` that this one is to be a clone of")
}

// origins are the flags that say where an image comes from, and the source type that each means.
var origins = []struct {
	flag string
	t    v1alpha1.SourceType
	key  string
	of   func(imageSource) string
}{
	{"--url", v1alpha1.SourceDownload, v1alpha1.ParameterURL, func(s imageSource) string { return s.url }},
	{"--from-volume", v1alpha1.SourceExport, v1alpha1.ParameterVolumeName, func(s imageSource) string { return s.volume }},
	{"--clone-of", v1alpha1.SourceClone, v1alpha1.ParameterBackingImage, func(s imageSource) string { return s.image }},
}

// parameters are the source type and its parameters; Invalid names the flag.
func (s imageSource) parameters() (v1alpha1.SourceType, map[string]string, error) {
	var t v1alpha1.SourceType
	given, p := "", map[string]string{}
	for _, o := range origins {
		value := o.of(s)
		if value == "" {
			continue
		}
		if given != "" {
			return "", nil, backingimage.Errorf(backingimage.Invalid, "%s and %s contradict each other: an image comes from one place; keep one", given, o.flag)
		}
		given, t, p[o.key] = o.flag, o.t, value
	}
	if given == "" {
		return "", nil, backingimage.Errorf(backingimage.Invalid, "it is not said where the image is: give --url https://example.org/disk.qcow2, --from-volume VOLUME or --clone-of IMAGE")
	}
	for _, more := range s.more() {
		switch {
		case more.value == "":
		case more.with != t:
			return "", nil, backingimage.Errorf(backingimage.Invalid, "--%s means nothing with %s; leave it out", more.key, given)
		default:
			p[more.key] = more.value
		}
	}
	if s.secretNamespace != "" && s.secret == "" {
		return "", nil, backingimage.Errorf(backingimage.Invalid, "--secret-namespace is given without --secret; name the secret, too")
	}
	if err := source.ValidateSource(t, p); err != nil {
		if strings.HasPrefix("--"+err.Error(), given+": ") {
			return "", nil, fmt.Errorf("--%w", err) // it begins with url:
		}
		return "", nil, fmt.Errorf("%s: %w", given, err)
	}
	return t, p, nil
}

// parameter is one that a flag of its own name sets, for one source type.
type parameter struct {
	key, value string
	with       v1alpha1.SourceType
}

func (s imageSource) more() []parameter {
	return []parameter{
		{v1alpha1.ParameterSecret, s.secret, v1alpha1.SourceDownload},
		{v1alpha1.ParameterSecretNamespace, s.secretNamespace, v1alpha1.SourceDownload},
		{v1alpha1.ParameterProxy, s.proxy, v1alpha1.SourceDownload},
		{v1alpha1.ParameterEndpoint, s.endpoint, v1alpha1.SourceDownload},
		{v1alpha1.ParameterRegion, s.region, v1alpha1.SourceDownload},
		{v1alpha1.ParameterPathStyle, s.pathStyle, v1alpha1.SourceDownload},
		{v1alpha1.ParameterExportType, s.exportType, v1alpha1.SourceExport},
	}
}

// sourceDifferences names each source parameter in which two images differ.
func sourceDifferences(is, wanted v1alpha1.BackingImageSpec) []string {
	a, b := source.Canonical(is.SourceType, is.Parameters()), source.Canonical(wanted.SourceType, wanted.Parameters())
	both := maps.Clone(a)
	maps.Copy(both, b)
	var differs []string
	for _, key := range slices.Sorted(maps.Keys(both)) {
		if a[key] != b[key] {
			differs = append(differs, fmt.Sprintf("its %s is %s, not %s", key, orNone(a[key]), orNone(b[key])))
		}
	}
	return differs
}

// orNone is a parameter's value as it may be shown.
func orNone(value string) string {
	if value == "" {
		return "none"
	}
	return source.RedactURL(value)
}
