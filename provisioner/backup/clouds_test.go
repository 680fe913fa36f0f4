package backup_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"maps"
	"net/http/httputil"
	"net/url"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/source/sourcetest"
	"plinth.dev/plinth/provisioner/backup"
	"plinth.dev/plinth/provisioner/backup/object"
	"plinth.dev/plinth/provisioner/backup/object/apart"
	"plinth.dev/plinth/provisioner/backup/object/cloudtest"
	"plinth.dev/plinth/test/plinthtest"
)

// clouds are the places whose drivers are in a program of their own. The race detector does without: it would have that program, and all
// that it links, compiled once more, and watches what is ours of it in object/apart.
func clouds() map[string]func(testing.TB) *place {
	if testing.Short() {
		return nil
	}
	return map[string]func(testing.TB) *place{
		"gs":     func(tb testing.TB) *place { return googleServer(tb, cloudtest.MustServiceAccount(tb)) },
		"azblob": func(tb testing.TB) *place { p, _ := azureServer(tb); return p },
	}
}

func googleServer(tb testing.TB, account cloudtest.ServiceAccount) *place {
	tb.Helper()
	return cloudPlace(tb, object.SchemeGCS, cloudtest.MustGoogle(tb, bucket, account), func(address string) map[string]string {
		return map[string]string{credential.KeyGoogle: account.JSON, credential.KeyGoogleServer: "http://" + address}
	})
}

func azureServer(tb testing.TB) (p *place, token string) {
	tb.Helper()
	address, token := cloudtest.MustAzure(tb, bucket)
	return cloudPlace(tb, object.SchemeAzure, address, func(address string) map[string]string {
		return map[string]string{credential.KeyAzureAccount: cloudtest.AzureAccount, credential.KeyAzureKey: cloudtest.AzureKey, credential.KeyAzureServer: "http://" + address}
	}), token
}

func cloudPlace(tb testing.TB, scheme, address string, secret func(string) map[string]string) *place {
	tb.Helper()
	program := plinthtest.MustBuckets(tb)
	open := apart.Opener(func() (string, error) { return program, nil })
	p := &place{url: scheme + "://" + bucket + "/some/prefix", address: address, openers: object.Openers{scheme: open}, secret: secret}
	p.through(tb, p.address)
	return p
}

// with changes keys of a place's secret; one that becomes empty is left out.
func (p *place) with(tb testing.TB, changes map[string]string) {
	tb.Helper()
	secret := p.secret(p.address)
	maps.Copy(secret, changes)
	maps.DeleteFunc(secret, func(_, value string) bool { return value == "" })
	p.as(tb, secret)
}

func TestCloudsThatAreWrongSaySoAtOnce(t *testing.T) {
	if clouds() == nil {
		return
	}
	t.Parallel()
	google, other := googleServer(t, cloudtest.MustServiceAccount(t)), cloudtest.MustServiceAccount(t)
	wrong(t, google, otherBucket, "no bucket another-bucket")
	wrong(t, google, func(p *place) { p.with(t, map[string]string{credential.KeyGoogle: other.JSON}) }, "does not accept who asks")
	wrong(t, google, func(p *place) { p.with(t, map[string]string{credential.KeyGoogle: ""}) }, credential.KeyGoogle)
	azure, token := azureServer(t)
	wrong(t, azure, otherBucket, "no container another-bucket")
	wrong(t, azure, func(p *place) { p.with(t, map[string]string{credential.KeyAzureKey: "d3Jvbmc="}) }, "access is refused")
	wrong(t, azure, func(p *place) {
		p.with(t, map[string]string{credential.KeyAzureKey: "", credential.KeyAzureToken: token + "0"})
	}, "access is refused")
	azure.with(t, map[string]string{credential.KeyAzureKey: "", credential.KeyAzureToken: token})
	must(t, backup.Probe(context.Background(), azure.mustStore(t)))
}

func TestAPrivateAuthorityIsTrustedWhenItIsNamed(t *testing.T) {
	certificate := sourcetest.MustCertificate(t, time.Now().Add(time.Hour))
	for name, where := range clouds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := where(t)
			server := sourcetest.MustServeTLS(t, certificate, tls.NoClientCert, httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: p.address}))
			changes := map[string]string{credential.KeyGoogleServer: server.URL}
			if name == object.SchemeAzure {
				changes = map[string]string{credential.KeyAzureServer: server.URL}
			}
			wrong(t, p, func(p *place) { p.with(t, changes) }, "not trusted")
			changes[credential.KeyAuthorities] = string(certificate.PEM)
			p.with(t, changes)
			must(t, backup.Probe(context.Background(), p.mustStore(t)))
		})
	}
}

// TestTheMachinesIdentityIsUsedWhenTheSecretSaysSo is for Google's cloud, whose metadata server is elsewhere here.
func TestTheMachinesIdentityIsUsedWhenTheSecretSaysSo(t *testing.T) {
	if clouds() == nil {
		return
	}
	account := cloudtest.MustServiceAccount(t)
	p := googleServer(t, account)
	t.Setenv("GCE_METADATA_HOST", cloudtest.MustMetadata(t, account))
	t.Setenv("HOME", t.TempDir()) // a person may have an identity there
	wrong(t, p, func(p *place) { p.with(t, map[string]string{credential.KeyGoogle: ""}) }, "does not accept who asks")
	p.with(t, map[string]string{credential.KeyGoogle: credential.Ambient})
	must(t, backup.Probe(context.Background(), p.mustStore(t)))
	t.Setenv("GCE_METADATA_HOST", cloudtest.MustMetadata(t, cloudtest.MustServiceAccount(t)))
	wrong(t, p, func(*place) {}, "does not accept who asks")
}

// TestBytesThatChangeOnTheWayAreAskedForAgain is for the clouds, whose answers say what they must be.
func TestBytesThatChangeOnTheWayAreAskedForAgain(t *testing.T) {
	for name, where := range clouds() {
		t.Run(name, func(t *testing.T) { t.Parallel(); testChanged(t, where(t)) })
	}
}

func testChanged(t *testing.T, p *place) {
	ctx, want := context.Background(), content(1, 1<<20)
	must(t, p.mustStore(t).Put(ctx, "object", want))
	n, address := mustNetwork(t, p.address, fault{2, change(flipped)})
	p.through(t, address)
	p.options.Attempts, p.options.Pause = 30, time.Millisecond
	s := p.mustStore(t)
	for range 8 {
		if got, err := s.Get(ctx, "object", 1<<20); err != nil || !bytes.Equal(got, want) {
			t.Errorf("got %d bytes, which are other ones: %v", len(got), err)
		}
	}
	if n.done.Load() < 3 {
		t.Errorf("only %d faults were made", n.done.Load())
	}
}
