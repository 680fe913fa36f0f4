package node

import (
	"context"
	"net/url"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/source"
)

// source is where the bytes of an image come from that is fetched from its source. It may ask a registry, for as long as minutes.
func (a *Agent) source(ctx context.Context, image *v1alpha1.BackingImage) (source.Source, error) {
	if image.Spec.SourceType != v1alpha1.SourceDownload {
		return nil, backingimage.Errorf(backingimage.Unsupported, "spec.sourceType: %s is not in this version; delete the image and create it with another", image.Spec.SourceType)
	}
	return a.download(ctx, image.Spec.Parameters())
}

// download is the source behind a URL, asked over several connections.
func (a *Agent) download(ctx context.Context, parameters map[string]string) (source.Source, error) {
	s, err := a.behind(ctx, parameters)
	if err != nil {
		return nil, err
	}
	return source.Parallel(s, a.options.Source.Connections), nil
}

// behind is the source behind a URL.
func (a *Agent) behind(ctx context.Context, parameters map[string]string) (source.Source, error) {
	if err := source.ValidateParameters(parameters); err != nil {
		return nil, err
	}
	o := a.options.Source
	var err error
	if o.Credential, err = a.credential(ctx, parameters); err != nil {
		return nil, err
	}
	raw := parameters[v1alpha1.ParameterURL]
	switch scheme := source.Scheme(raw); scheme {
	case source.SchemeHTTP, source.SchemeHTTPS:
		return source.NewHTTP(raw, o)
	default:
		open, linked := a.options.Openers[scheme]
		if !linked {
			return nil, backingimage.Errorf(backingimage.Unsupported, "url: this program was built without %s://; use another source", scheme)
		}
		return open(ctx, parameters, o)
	}
}

// Opener makes the source of parameters that source.ValidateParameters accepts. It may ask a server, for as long as minutes; its
// errors are those of source.Source.
type Opener func(ctx context.Context, parameters map[string]string, o source.Options) (source.Source, error)

// waitsForSecret tells when the secret that comes with an image's StorageClass is not there yet.
func (a *Agent) waitsForSecret(ctx context.Context, image *v1alpha1.BackingImage) string {
	ref, kept := credential.Kept(image)
	if a.options.Credentials == nil || !kept {
		return ""
	}
	if _, err := a.options.Credentials.Get(ctx, ref); backingimage.Is(err, backingimage.NotFound) {
		return "waits for the provisioner secret of its StorageClass, which comes with the next CreateVolume call"
	}
	return ""
}

// credential is who asks for an image: what the secret says that its parameters name, and the proxy.
func (a *Agent) credential(ctx context.Context, parameters map[string]string) (credential.Credential, error) {
	var c credential.Credential
	if name := parameters[v1alpha1.ParameterSecret]; name != "" {
		ref, err := credential.NewRef(parameters[v1alpha1.ParameterSecretNamespace], name)
		if err != nil {
			return c, err
		}
		if a.options.Credentials == nil {
			return c, backingimage.Errorf(backingimage.Precondition, "secret: %s cannot be read: this agent has no secrets", ref)
		}
		if c, err = credential.Load(ctx, a.options.Credentials, ref); err != nil {
			return c, err
		}
	}
	if proxy := parameters[v1alpha1.ParameterProxy]; proxy != "" {
		if u, err := url.Parse(proxy); err != nil || u.User != nil {
			return c, backingimage.Errorf(backingimage.Invalid, "proxy: %q is not the URL of a proxy without a login", source.RedactURL(proxy))
		}
		c.Proxy = credential.Secret(proxy)
	}
	return c, nil
}
