package backup_test

import (
	"context"
	"maps"
	"testing"

	"plinth.dev/plinth/backingimage/credential"
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
